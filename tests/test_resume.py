"""A run that is stopped, killed or cut off ends in the same weights as one that was not.

The founding project lost its only run while the model was being saved. Each way in which a run can
end early is played here, and the resumed run compared with an undisturbed one, bit for bit.

As a script (`python tests/test_resume.py FOLDER`) this file is the victim of
`test_killed_at_any_moment`, and one of the two processes of `test_two_processes`.
"""

import dataclasses
import hashlib
import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import CheckpointError, TessellaError
from tessella.model.pipeline import ModelConfig, TextToImage
from tessella.retrieval import RetrievalSettings
from tessella.retrieval.copies import NearCopies
from tessella.text import TextSettings, TextTokenizer
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.training import processes
from tessella.training.checkpoint import CHECKPOINTS_FOLDER, CheckpointState, load_latest_checkpoint
from tessella.training.interrupt import Interrupted
from tessella.training.loop import create_accelerator, train
from tessella.training.neighbors import ExampleReader, find_neighbors, prepare_memory
from tessella.training.precision import PrecisionSetting
from tessella.training.stage import Stage, TrainingSettings
from tessella.training.tokenizer_stage import TokenizerStage, TokenizerTrainingSettings
from tessella.training.transformer_stage import TransformerStage, TransformerTrainingSettings

Data = Mapping[str, CaptionedImages]

BATCH = 4

TOKENIZERS: Mapping[str, dict[str, Any]] = {
    # Every code that misses one batch is revived at the next.
    "gradient": {
        "patch": 2,
        "widths": (16, 32),
        "quantizer": {"codebook_size": 32, "code_width": 4, "revive_after_images": BATCH},
    },
    "ema": {
        "patch": 2,
        "widths": (16, 32),
        "quantizer": {
            "codebook_size": 32,
            "code_width": 4,
            "normalize": False,
            "learning": "ema",
            "revive_after_images": BATCH,
        },
    },
    # The tails that are dropped are drawn: a resumed run must draw the same.
    "residual_pairs": {
        "patch": 2,
        "widths": (16, 32),
        "quantizer": {
            "codebook_size": 32,
            "code_width": 4,
            "codes_per_position": 2,
            "composition": "residual",
            "tail_dropout": 0.5,
            "revive_after_images": BATCH,
        },
    },
    # Batch normalization's running statistics are state too.
    "report2021": {
        "network": "report2021",
        "nhid": 16,
        "quantizer": {
            "codebook_size": 32,
            "code_width": 16,
            "normalize": False,
            "learning": "ema",
            "revive_after_images": BATCH,
        },
    },
}
TOKENIZERS = {**TOKENIZERS, "discriminator": TOKENIZERS["gradient"]}

LOSSES: Mapping[str, dict[str, Any]] = {
    # It counts from the second step on; an evaluation that finds reconstructions worse halves its
    # weight, which a resumed run must not forget.
    "discriminator": {
        "adversarial": {
            "weight": 0.5,
            "start_images": 0,
            "warmup_images": BATCH,
            "width": 16,
            "layers": 1,
            "augment": True,
            "lecam_weight": 0.1,
            "error_tolerance": 0.0,
        }
    }
}


def tokenizer_stage(kind: str, data: Data) -> TokenizerStage:
    torch.manual_seed(0)
    tokenizer = VQAutoencoder(TokenizerSettings.model_validate(TOKENIZERS[kind]))
    settings = TokenizerTrainingSettings.model_validate({"loss": LOSSES.get(kind, {})})
    return TokenizerStage(tokenizer, settings, data, torch.device("cpu"))


def transformer_stage(
    objective: str, data: Data, neighbors: int = 0, tokenizer: str = "gradient"
) -> TransformerStage:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "image_size": 16,
            "tokenizer": TOKENIZERS[tokenizer],
            "transformer": {"width": 16, "depth": 2, "heads": 2, "dropout": 0.2},
            "objective": {"name": objective},
            "generation": {"steps": 2},
            "neighbors": neighbors,
        }
    )
    text = TextTokenizer.train(data["train"].all_captions(), TextSettings())
    rng, num_codes = np.random.default_rng(0), config.tokenizer.quantizer.codes_per_position
    codes = {
        side: rng.integers(32, size=(2, len(images), num_codes, *config.grid)).astype(np.uint16)
        for side, images in data.items()
    }
    settings = TransformerTrainingSettings(caption_dropout=0.3)
    model = TextToImage.create(config, text)
    if not neighbors:
        return TransformerStage(model, settings, data, codes)
    examples = read_examples(model, data, codes)
    model = model.with_parts(memory=examples.memory)
    return TransformerStage(model, settings, data, codes, examples=examples)


def read_examples(
    model: TextToImage, data: Data, codes: Mapping[str, npt.NDArray[np.uint16]]
) -> ExampleReader:
    """Examples of which a part is dropped, and a part of their captions."""
    train, count = data["train"], model.config.neighbors
    with tempfile.TemporaryDirectory() as folder:
        memory = prepare_memory(
            train, codes["train"], model.tokenizer, Path(folder) / "memory", ["scenes:40"]
        )
        copies = NearCopies(memory, model.tokenizer.codebook.detach().numpy())
        neighbors = {
            side: find_neighbors(
                images,
                memory,
                Path(folder) / f"{side}.npy",
                count=count,
                candidates=3,
                copies=copies if images is train else None,
            )
            for side, images in data.items()
        }
    settings = RetrievalSettings(neighbors=count, dropout=0.3, caption_dropout=0.3)
    text = model.text_tokenizer
    return ExampleReader(memory, neighbors, codes["train"], settings, text, flips=True)


STAGES: Mapping[str, Callable[[Data], Stage]] = {
    **{kind: lambda data, kind=kind: tokenizer_stage(kind, data) for kind in TOKENIZERS},
    **{
        name: lambda data, name=name: transformer_stage(name, data)
        for name in ("any_order", "latent_mse")
    },
    "examples": lambda data: transformer_stage("any_order", data, neighbors=2),
    "examples_of_pairs": lambda data: transformer_stage("any_order", data, 2, "residual_pairs"),
}


def run(
    stage: Stage,
    folder: Path,
    *,
    steps: int = 4,
    fingerprint: str = "recipe",
    save_every_seconds: float = 3600.0,
    precision: PrecisionSetting = "auto",
    **changes: Any,
) -> nn.Module:
    settings = TrainingSettings(
        images=steps * BATCH,
        batch_size=BATCH,
        warmup_images=BATCH,
        evaluate_every_images=2 * BATCH,
        save_every_seconds=save_every_seconds,
        **changes,
    )
    return train(
        stage,
        settings,
        folder,
        seed=1,
        accelerator=create_accelerator("cpu"),
        console=Console(file=io.StringIO()),
        fingerprint=fingerprint,
        precision=precision,
    )


def on_step(stage: Stage, number: int, act: Callable[[], Any]) -> Stage:
    """Acts in the middle of a training step, counted from 1."""
    steps = 0

    def count(loss_module: nn.Module, batch: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == number:
            act()

    stage.loss_module.register_forward_pre_hook(count)
    return stage


def saved(folder: Path) -> CheckpointState:
    state = load_latest_checkpoint(folder / CHECKPOINTS_FOLDER)
    assert state is not None
    return state


def assert_same_run(folder: Path, other: Path) -> None:
    """Network, average and optimizer of the last checkpoints are the same, bit for bit."""
    mine, theirs = saved(folder), saved(other)
    assert mine.images_seen == theirs.images_seen
    assert mine.info == theirs.info
    assert mine.tensors.keys() == theirs.tensors.keys()
    differ = [name for name, tensor in mine.tensors.items() if not same(tensor, theirs, name)]
    assert not differ


def same(tensor: Tensor, state: CheckpointState, name: str) -> bool:
    other = state.tensors[name]
    as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, other)]
    return tensor.dtype == other.dtype and torch.equal(*as_bytes)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# Stopped on request.


@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, signal.SIGTERM) for kind in STAGES), ("gradient", signal.SIGINT)],
)
def test_two_steps_and_two_are_four(
    kind: str, number: signal.Signals, scenes: Data, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    run(STAGES[kind](scenes), tmp_path / "whole")
    stage = on_step(STAGES[kind](scenes), 2, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted):
        run(stage, tmp_path / "parts")
    assert saved(tmp_path / "parts").images_seen == 2 * BATCH
    assert signal.getsignal(number) is before

    run(STAGES[kind](scenes), tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["discriminator", "any_order"])
def test_two_steps_and_two_are_four_in_bf16(kind: str, scenes: Data, tmp_path: Path) -> None:
    run(STAGES[kind](scenes), tmp_path / "whole", precision="bf16")
    stage = on_step(STAGES[kind](scenes), 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(stage, tmp_path / "parts", precision="bf16")
    run(STAGES[kind](scenes), tmp_path / "parts", precision="bf16")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")

    run(STAGES[kind](scenes), tmp_path / "fp32", precision="fp32")
    weights = [saved(tmp_path / name).tensors for name in ("whole", "fp32")]
    assert any(not torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_stopped_at_every_step(scenes: Data, tmp_path: Path) -> None:
    run(STAGES["gradient"](scenes), tmp_path / "whole")
    for steps in (1, 2, 3):
        stage = on_step(STAGES["gradient"](scenes), 1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts")
        assert saved(tmp_path / "parts").images_seen == steps * BATCH
    run(STAGES["gradient"](scenes), tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("kind", ["gradient", "discriminator"])
def test_a_run_that_keeps_no_pixels_resumes_on_the_same_picture(kind: str, tmp_path: Path) -> None:
    """Decoded out of the data in an order of its own, which has no state to restore."""
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=2, cache="codes")
    data = prepare(["scenes:40"], settings, tmp_path / "data").sides
    assert tokenizer_stage(kind, data).is_streamed
    run(tokenizer_stage(kind, data), tmp_path / "whole")
    for _ in range(3):
        stage = on_step(tokenizer_stage(kind, data), 1, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(stage, tmp_path / "parts")
    run(tokenizer_stage(kind, data), tmp_path / "parts")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")
    read = [
        tokenizer_stage(kind, data).order(1, start, BATCH).tolist() for start in range(0, 16, BATCH)
    ]
    assert len({index for batch in read for index in batch}) == 16


def test_codes_were_revived_in_these_runs(scenes: Data, tmp_path: Path) -> None:
    """Else the tests above would not show that revival survives a stop."""
    stage = tokenizer_stage("ema", scenes)
    quantizer: Any = stage.network.quantizer.parts[0]
    moved = []
    revive = quantizer._revive

    def watched(rows: Tensor) -> None:
        before = quantizer.vectors.detach().clone()
        revive(rows)
        moved.append(int((before != quantizer.vectors).any(1).sum()))

    quantizer._revive = watched
    run(stage, tmp_path)
    assert len(moved) == 4
    assert sum(moved) > 0


def test_a_finished_run_is_left_as_it_is(scenes: Data, tmp_path: Path) -> None:
    first = run(STAGES["gradient"](scenes), tmp_path)
    files = {path: path.read_bytes() for path in (tmp_path / CHECKPOINTS_FOLDER).rglob("*.*")}
    stage = on_step(STAGES["gradient"](scenes), 1, lambda: pytest.fail("it trained again"))
    again = run(stage, tmp_path)
    assert {p: p.read_bytes() for p in (tmp_path / CHECKPOINTS_FOLDER).rglob("*.*")} == files
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_stop_in_the_last_step_is_not_forgotten(scenes: Data, tmp_path: Path) -> None:
    """A Ctrl-C in the last step of stage 1 once went unheard: stage 2 began as if nothing were."""
    stage = on_step(STAGES["gradient"](scenes), 4, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        run(stage, tmp_path)
    assert saved(tmp_path).images_seen == 4 * BATCH
    assert metrics(tmp_path)[-1]["kind"] == "validation"


# Lost without warning.


def test_a_half_written_checkpoint_is_passed_over(scenes: Data, tmp_path: Path) -> None:
    """The crash of 2021: the newest checkpoint is cut short; the one before must do."""
    run(STAGES["ema"](scenes), tmp_path / "whole")
    run(STAGES["ema"](scenes), tmp_path / "crashed", save_every_seconds=1e-9)
    newest = tmp_path / "crashed" / CHECKPOINTS_FOLDER / f"checkpoint-{4 * BATCH:012d}"
    state = newest / "state.safetensors"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    assert saved(tmp_path / "crashed").images_seen == 3 * BATCH

    run(STAGES["ema"](scenes), tmp_path / "crashed")
    assert_same_run(tmp_path / "crashed", tmp_path / "whole")


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Four times `kill -9`, many of them while a checkpoint is written; nothing is lost."""
    script = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    train_lines = [m["images_seen"] for m in metrics(tmp_path / "killed") if m["kind"] == "train"]
    assert train_lines == sorted(set(train_lines))
    assert train_lines[-1] == 30 * BATCH


def be_killed(folder: Path) -> None:
    """Trains once undisturbed; once in processes of which four are killed."""
    importlib.import_module("torch._dynamo")  # every optimizer does, and it takes seconds
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    prepare(["scenes:40"], settings, folder / "data")
    whole, killed = folder / "whole", folder / "killed"
    assert os.waitpid(start_victim(folder, whole, save_every_seconds=3600.0), 0)[1] == 0
    chance = random.Random(0)
    for _ in range(4):
        before = progress(killed)
        victim = start_victim(folder, killed)
        while progress(killed) == before:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.1))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        assert progress(killed) < 30 * BATCH, "too fast: nothing was killed"
    assert os.waitpid(start_victim(folder, killed), 0)[1] == 0


def start_victim(folder: Path, out: Path, save_every_seconds: float = 1e-9) -> int:
    """Trains in a process of its own, that shares what was imported."""
    victim = os.fork()
    if victim:
        return victim
    status = 1
    try:
        torch.set_num_threads(2)
        settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
        data = prepare(["scenes:40"], settings, folder / "data").sides
        stage = tokenizer_stage("ema", data)
        run(stage, out, steps=30, save_every_seconds=save_every_seconds)
        status = 0
    finally:
        os._exit(status)


def progress(folder: Path) -> int:
    names = [path.name for path in (folder / CHECKPOINTS_FOLDER).glob("checkpoint-*")]
    return max((int(name.removeprefix("checkpoint-")) for name in names), default=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("ema", 4),
        ("report2021", 4),
        ("discriminator", 4),
        ("latent_mse", 4),
        ("examples", 4),
        ("gradient", 40),
    ],
)
def test_two_processes(kind: str, steps: int, tmp_path: Path) -> None:
    """Asked to stop in one of them, both do, at one step; resumed, both end as if undisturbed.

    In the short runs they ask each other at every step, in the long one as they usually do.
    """
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    prepare(["scenes:40"], settings, tmp_path / "data")
    for name, ends in (("whole", "done"), ("parts", "stop"), ("parts", "done")):
        words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", __file__]
        done = subprocess.run(
            [sys.executable, *words, str(tmp_path), kind, name, ends, str(steps)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ended = [(tmp_path / f"{name}-{rank}.txt").read_text() for rank in (0, 1)]
        assert ended[0] == ended[1]
        assert ended[0].startswith(ends)
        if ends == "stop":
            steps_done = saved(tmp_path / name).images_seen // BATCH
            assert steps_done == 2 if steps == 4 else 20 <= steps_done < 40
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def be_one_of_two(folder: Path, kind: str, name: str, ends: str, steps: str) -> None:
    """Trains on a half of each batch; if it should stop, the second process alone is asked."""
    if steps == "4":
        processes._SECONDS_BETWEEN_QUESTIONS = 0.0
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    stage = STAGES[kind](prepare(["scenes:40"], settings, folder / "data").sides)
    if ends == "stop" and rank == 1:
        on_step(stage, int(steps) // 2, lambda: signal.raise_signal(signal.SIGTERM))
    if steps != "4":
        stage.loss_module.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    try:
        average = run(stage, folder / name, steps=int(steps))
    except Interrupted:
        outcome = "stop"
    else:
        digest = hashlib.sha256()
        for tensor in average.state_dict().values():
            digest.update(tensor.contiguous().numpy().tobytes())
        outcome = f"done {digest.hexdigest()}"
    (folder / f"{name}-{rank}.txt").write_text(outcome)


# What must not be resumed, or not be saved.


def test_another_recipe_is_refused(scenes: Data, tmp_path: Path) -> None:
    run(STAGES["gradient"](scenes), tmp_path, steps=1)
    before = saved(tmp_path)
    with pytest.raises(CheckpointError, match=r"of other data or another recipe: `.*new --out"):
        run(STAGES["gradient"](scenes), tmp_path, steps=2, fingerprint="another")
    assert saved(tmp_path).images_seen == before.images_seen


@dataclasses.dataclass
class Poison:
    """Makes the loss not a number from one step on."""

    stage: Stage

    def __call__(self) -> None:
        with torch.no_grad():
            next(self.stage.network.parameters()).fill_(torch.nan)


def test_a_loss_that_is_no_number_spares_the_last_checkpoint(scenes: Data, tmp_path: Path) -> None:
    run(STAGES["gradient"](scenes), tmp_path / "two", steps=2)
    stage = STAGES["gradient"](scenes)
    on_step(stage, 3, Poison(stage))
    with pytest.raises(TessellaError, match=r"no longer a finite.*muon_learning_rate"):
        run(stage, tmp_path / "poisoned", save_every_seconds=1e-9)
    assert saved(tmp_path / "poisoned").images_seen == 2 * BATCH
    assert all(t.isfinite().all() for t in saved(tmp_path / "poisoned").tensors.values())
    # And it is good enough to go on from.
    run(STAGES["gradient"](scenes), tmp_path / "poisoned")
    run(STAGES["gradient"](scenes), tmp_path / "whole")
    assert_same_run(tmp_path / "poisoned", tmp_path / "whole")


# What is reported.


def test_metrics_are_not_told_twice(scenes: Data, tmp_path: Path) -> None:
    """Stopped between two checkpoints: what was reported beyond the last one comes again, once."""
    stage = STAGES["gradient"](scenes)
    on_step(stage, 3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(stage, tmp_path)
    checkpoint = tmp_path / CHECKPOINTS_FOLDER / f"checkpoint-{3 * BATCH:012d}"
    line = json.dumps({"images_seen": 4 * BATCH, "kind": "train", "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n" + line[:20])  # the second was cut off by the crash
    assert checkpoint.is_dir()

    run(STAGES["gradient"](scenes), tmp_path)
    told = [(m["images_seen"], m["kind"]) for m in metrics(tmp_path)]
    assert told == [
        (2 * BATCH, "train"),
        (2 * BATCH, "validation"),
        (3 * BATCH, "train"),
        (4 * BATCH, "train"),
        (4 * BATCH, "validation"),
    ]
    assert metrics(tmp_path)[2]["loss"] != 0.5


if __name__ == "__main__":
    if "RANK" in os.environ:
        be_one_of_two(Path(sys.argv[1]), *sys.argv[2:])
    else:
        be_killed(Path(sys.argv[1]))
