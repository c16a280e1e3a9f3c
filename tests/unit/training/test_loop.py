"""The training loop, with a toy for a stage; `tests/test_resume.py` stops and resumes real ones."""

import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tessella.errors import ConfigError, TessellaError
from tessella.training.checkpoint import load_latest_checkpoint, section
from tessella.training.loop import create_accelerator, measure_pace, train
from tessella.training.optimizer import OptimizerSettings
from tessella.training.precision import PrecisionSetting
from tessella.training.stage import Evaluation, Stage, StepLoss, TrainingSettings


class ToyNetwork(nn.Module):
    """Learns one number for all images; has a matrix for Muon and a part that does not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(3))
        self.guess = nn.Parameter(torch.zeros(()))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)
        self.spoil: str | None = None  # what is no number: the loss, or its gradient alone

    def forward(self, numbers: Tensor) -> StepLoss:
        guess = self.guess * self.fixed.sum() / 2
        if self.spoil == "gradient" and self.training:
            # 0 · √0 is 0, and its gradient 0 · ∞ is not a number.
            guess = guess + 0 * (self.guess - self.guess.detach()).sqrt()
        loss = (guess - numbers.float()).square().mean() + 0 * self.matrix.sum()
        if self.spoil == "loss" and self.training:
            loss = loss * torch.nan
        return StepLoss(loss, {"guess": guess})


class Toy(Stage[ToyNetwork]):
    """Ten images, whose pixels are their numbers."""

    name = "toy"
    num_images = 10

    def __init__(self, network: ToyNetwork | None = None) -> None:
        self.network = self.loss_module = network or ToyNetwork()
        self.hidden_matrices = [self.network.matrix]
        self.seen: list[int] = []
        self.drawn: list[float] = []
        self.evaluated: list[float] = []
        self.seconds = 0.0

    def load_batch(
        self, indices: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensor, ...]:
        time.sleep(self.seconds)
        self.seen += indices.tolist()
        self.drawn += [rng.random() for rng in rngs]
        return (torch.from_numpy(indices),)

    def evaluate(self, average: ToyNetwork, device: torch.device, images_seen: int) -> Evaluation:
        assert not average.training
        self.evaluated.append(average.guess.item())
        return Evaluation({"psnr": 1.0}, {"samples": np.zeros((8, 8, 3), dtype=np.uint8)})


def run(stage: Stage[Any], folder: Path, **changes: Any) -> Any:
    settings = TrainingSettings(warmup_images=0).replace(
        **{"images": 40, "batch_size": 4, "evaluate_every_images": 1000, **changes}
    )
    return train(
        stage,
        settings,
        folder,
        seed=0,
        accelerator=create_accelerator("cpu"),
        console=Console(file=io.StringIO()),
        fingerprint="",
    )


def metrics(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_each_pass_sees_every_image_once(tmp_path: Path) -> None:
    stage = Toy()
    run(stage, tmp_path)
    passes = np.array(stage.seen[:40]).reshape(4, 10)
    assert np.array_equal(np.sort(passes, axis=1), np.tile(np.arange(10), (4, 1)))
    # What is drawn for a batch is drawn afresh.
    assert len(set(stage.drawn)) == len(stage.drawn)


def test_it_learns_and_returns_the_average(tmp_path: Path) -> None:
    """The mean of 0 … 9 is 4.5."""
    stage = Toy()
    optimizer = OptimizerSettings(adamw_learning_rate=0.5, max_gradient_norm=100.0)
    made = run(stage, tmp_path, images=800, ema_half_life_images=40, optimizer=optimizer)
    assert made is not stage.network
    assert made.guess.item() == pytest.approx(4.5, abs=0.5)
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert section(state.tensors, "average")["guess"] == made.guess
    assert section(state.tensors, "network")["guess"] == stage.network.guess
    assert made.guess != stage.network.guess


def test_what_does_not_learn_has_no_optimizer(tmp_path: Path) -> None:
    run(Toy(), tmp_path)
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert set(section(state.tensors, "optimizer")) == {
        "matrix.momentum",
        "guess.step",
        "guess.mean",
        "guess.square",
    }
    assert torch.equal(section(state.tensors, "network")["fixed"], torch.ones(2))


def test_images_are_rounded_up_to_whole_batches(tmp_path: Path) -> None:
    run(Toy(), tmp_path, images=9)
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert state.images_seen == 12


@pytest.mark.parametrize(
    ("every", "expected"),
    [(10, [12, 20, 32, 40]), (4, list(range(4, 41, 4))), (1000, [40]), (1, list(range(4, 41, 4)))],
)
def test_it_evaluates_when_it_passes_a_multiple_and_at_the_end(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    run(Toy(), tmp_path, evaluate_every_images=every)
    assert [line["images_seen"] for line in metrics(tmp_path, "validation")] == expected
    pictures = sorted(path.stem for path in (tmp_path / "samples").glob("*.png"))
    assert pictures == [f"{images:012d}" for images in expected]


def test_an_evaluation_that_a_kill_fell_on_is_made_up(tmp_path: Path) -> None:
    """The checkpoint is written before the evaluation: what belongs to it used to be missing."""

    class Killed(Toy):
        def evaluate(
            self, average: ToyNetwork, device: torch.device, images_seen: int
        ) -> Evaluation:
            evaluation = super().evaluate(average, device, images_seen)
            if len(self.evaluated) == 2:
                raise KeyboardInterrupt
            return evaluation

    with pytest.raises(KeyboardInterrupt):
        run(Killed(), tmp_path / "killed", evaluate_every_images=12)
    resumed = Toy()
    made = run(resumed, tmp_path / "killed", evaluate_every_images=12)
    undisturbed = Toy()
    expected = run(undisturbed, tmp_path / "whole", evaluate_every_images=12)
    assert made.guess == expected.guess
    assert resumed.evaluated == undisturbed.evaluated[1:]
    seen = [
        [line["images_seen"] for line in metrics(tmp_path / which, "validation")]
        for which in ("killed", "whole")
    ]
    assert seen == [[12, 24, 36, 40]] * 2
    # Finished is finished: nothing is evaluated again.
    finished = Toy()
    run(finished, tmp_path / "whole", evaluate_every_images=12)
    assert finished.evaluated == []


class Counting(Toy):
    """Counts its steps from 8 images on; notes when an evaluation is the second one."""

    steady_from_images = 8

    def __init__(self) -> None:
        super().__init__()
        self.total = torch.zeros(())
        self.begun: list[int] = []
        self.validations: list[float] = []

    def before_step(self, images_seen: int) -> None:
        self.begun.append(images_seen)

    def after_step(self) -> dict[str, Tensor]:
        if self.begun[-1] < self.steady_from_images:
            return {}
        self.total += 1
        return {"total": self.total.clone()}

    def note_validation(self, metrics: Mapping[str, float]) -> str | None:
        self.validations.append(metrics["psnr"])
        return "It got worse." if len(self.validations) == 2 else None

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.total = state["total"].clone()


def test_a_stage_may_learn_something_beside_the_network(tmp_path: Path) -> None:
    stage = Counting()
    run(stage, tmp_path, images=24, evaluate_every_images=12)
    assert stage.begun == [0, 4, 8, 12, 16, 20]
    assert stage.validations == [1.0, 1.0]
    [*_, note] = metrics(tmp_path, "note")
    assert note == {"images_seen": 24, "kind": "note", "note": "It got worse."}
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert section(state.tensors, "stage")["total"] == 4
    # The mean over the steps that gave one, not over all.
    totals = [line["total"] for line in metrics(tmp_path, "train")]
    assert totals == [1.0, 3.0]


def test_a_stage_s_own_state_is_restored(tmp_path: Path) -> None:
    run(Counting(), tmp_path, images=12)
    resumed = Counting()
    run(resumed, tmp_path, images=24)
    assert resumed.total == 4


def test_the_pace_is_measured_where_steps_take_their_full_time() -> None:
    stage = Counting()
    measure_pace(stage, TrainingSettings(batch_size=4), create_accelerator("cpu"), 0.0)
    assert stage.begun[0] == 8


def test_the_network_is_averaged_and_saved_without_what_holds_it(tmp_path: Path) -> None:
    """The loss may hold more than the network: none of that is averaged, saved or trained."""

    class Loss(nn.Module):
        def __init__(self, network: ToyNetwork) -> None:
            super().__init__()
            self.inner = network
            self.other = nn.Parameter(torch.ones(()))

        def forward(self, numbers: Tensor) -> StepLoss:
            result = self.inner(numbers)
            return StepLoss(result.loss * self.other, result.metrics)

    stage = Toy()
    stage.loss_module = loss = Loss(stage.network)
    average = run(stage, tmp_path)
    assert isinstance(average, ToyNetwork)
    assert loss.other == 1
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    for part in ("network", "average"):
        assert set(section(state.tensors, part)) == {"matrix", "guess", "fixed"}


def test_what_a_stage_names_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    stage = Toy()
    run(stage, tmp_path / "plain")
    assert compiled == []
    stage = Toy()
    stage.compiled = [stage.network]
    run(stage, tmp_path / "compiled")
    assert compiled == [stage.network]


def test_no_images_need_weights_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"with 0 images the weights stay random"):
        TrainingSettings().replace(images=0)
    stage = Toy()
    made = run(stage, tmp_path, images=0, init_from="elsewhere")
    assert made.guess == 0
    assert stage.evaluated == []


def test_evaluating_changes_no_weight(tmp_path: Path) -> None:
    class Careless(Toy):
        def evaluate(
            self, average: ToyNetwork, device: torch.device, images_seen: int
        ) -> Evaluation:
            torch.manual_seed(99)
            return super().evaluate(average, device, images_seen)

    class Noisy(ToyNetwork):
        def forward(self, numbers: Tensor) -> StepLoss:
            return super().forward(numbers + torch.randn(numbers.shape))

    made = {}
    for every in (4, 1000):
        stage = Careless(Noisy())
        made[every] = run(stage, tmp_path / str(every), evaluate_every_images=every).guess.item()
    assert made[4] == made[1000]


def test_metrics_are_means_over_the_steps_between(tmp_path: Path) -> None:
    run(Toy(), tmp_path, batch_size=10, images=40, optimizer=OptimizerSettings())
    [line] = metrics(tmp_path, "train")
    assert line["images_seen"] == 40
    assert set(line) == {
        "images_seen",
        "kind",
        "loss",
        "guess",
        "gradient_norm",
        "images_per_second",
    }
    # Every step sees all ten: the loss is 8.25 + (guess - 4.5)², the gradient 2 (4.5 - guess).
    # The guess is moved by at most the learning rate a step, 0.003 at its peak.
    assert line["gradient_norm"] == pytest.approx(9.0, abs=0.03)
    assert line["loss"] == pytest.approx(28.5, abs=0.1)
    assert line["guess"] == pytest.approx(0.003 * (0 + 1 + 2 + 2.8) / 4, abs=0.002)


def test_long_gradients_are_shortened(tmp_path: Path) -> None:
    """AdamW's mean of squares shows what it was given: (1 - β₂) · 0.01² after one step."""
    run(Toy(), tmp_path, images=4, optimizer=OptimizerSettings(max_gradient_norm=0.01))
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert section(state.tensors, "optimizer")["guess.square"].item() == pytest.approx(
        0.05e-4, rel=1e-3
    )


@pytest.mark.parametrize(
    ("what", "said"), [("loss", "The loss is no"), ("gradient", "The gradient norm is no")]
)
def test_what_is_no_number_is_not_saved(tmp_path: Path, what: str, said: str) -> None:
    """A gradient that is no number spoils the weights while the loss still looks well."""

    class Spoiled(Toy):
        def load_batch(
            self, indices: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
        ) -> tuple[Tensor, ...]:
            batch = super().load_batch(indices, rngs)
            return (*batch, torch.tensor(len(self.drawn) >= 3 * 4))

    class Network(ToyNetwork):
        def forward(self, numbers: Tensor, spoiled: Tensor) -> StepLoss:  # type: ignore[override]
            self.spoil = what if spoiled else None
            return super().forward(numbers)

    stage = Spoiled(Network())
    with pytest.raises(TessellaError, match=rf"{said} longer a finite number: `nan`.*new --out"):
        run(stage, tmp_path, save_every_seconds=1e-9)
    state = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert state.images_seen == 8
    assert all(tensor.isfinite().all() for tensor in state.tensors.values())


def test_an_error_while_reading_reaches_the_caller(tmp_path: Path) -> None:
    """Batches are read in a thread of their own."""

    class Broken(Toy):
        def load_batch(
            self, indices: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
        ) -> tuple[Tensor, ...]:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        run(Broken(), tmp_path)


def test_a_batch_is_shared_evenly() -> None:
    accelerator: Any = SimpleNamespace(process_index=0, is_main_process=True, num_processes=3)
    settings = TrainingSettings(batch_size=64)
    with pytest.raises(
        ConfigError, match=r"multiple of the number of processes: `64` over 3\. .*batch_size to 66"
    ):
        train(
            Toy(),
            settings,
            Path("nowhere"),
            seed=0,
            accelerator=accelerator,
            console=Console(file=io.StringIO()),
            fingerprint="",
        )


def test_the_accelerator() -> None:
    accelerator = create_accelerator("cpu")
    assert accelerator.device.type == "cpu"
    assert accelerator.mixed_precision == "no"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_there() -> None:
    """Training once went on quietly, and slowly, on the CPU."""
    with pytest.raises(ConfigError, match=r"no such device here: `cuda`\. Choose auto, cpu"):
        create_accelerator("cuda")


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_steps_and_their_pace_are_in_the_precision_asked_for(
    precision: PrecisionSetting, tmp_path: Path
) -> None:
    accelerator, seen = create_accelerator("cpu"), []
    for pace in (False, True):
        stage = Toy()
        stage.network.register_forward_pre_hook(
            lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
        )
        settings = TrainingSettings(images=8, batch_size=4)
        if pace:
            measure_pace(stage, settings, accelerator, 0.0, precision)
        else:
            train(
                stage,
                settings,
                tmp_path,
                seed=0,
                accelerator=accelerator,
                console=Console(quiet=True),
                fingerprint="",
                precision=precision,
            )
    assert len(seen) == 2 + 5
    assert set(seen) == {precision == "bf16"}


def test_the_pace_is_that_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stage = Toy()
    stage.seconds = 0.02
    pace = measure_pace(stage, TrainingSettings(batch_size=4), create_accelerator("cpu"), 0.1)
    assert 0.02 <= pace.step_seconds < 60
    assert len(stage.evaluated) == 1
    assert 0 < pace.evaluation_seconds < 60
    assert not list(tmp_path.iterdir())
