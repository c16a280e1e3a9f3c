"""Ours, for `quality_per_minute.py`: `tessella.fit` with the settings of configs/stickers.toml.

Theory: `fit` counts its progress in images, so a first, short run measures the processor seconds of
a step of either stage and of all that lies between them (codes, and the lookup of examples). The
second has as many images as then fit, the stages sharing what is left as `fit --minutes` shares it
(0.4 and 0.6). What it really took is measured again, and stands in the result; it is within some
per cent. Evaluations and the first run are not counted.

Output contract: none; `quality_per_minute.py` prints and stores the results.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import tessella
from quality_training import FIRST_CAPTION_FRACTION, Training, count_parameters
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.files import write_json
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.training.callbacks import Callback, TrainingEvent

TOKENIZER_FRACTION = 0.4
"""Of the seconds of training, in two stages: `tessella.training.budget`."""

STICKERS: Mapping[str, Any] = {
    "tokenizer.quantizer.codebook_size": 512,
    "tokenizer.quantizer.codes_per_position": 4,
    "transformer.width": 192,
    "transformer.depth": 4,
    "transformer.heads": 6,
    "transformer.dropout": 0.1,
    "transformer_training.batch_size": 16,
    "transformer_training.first_caption_fraction": FIRST_CAPTION_FRACTION,
    "generation.temperature": 0.3,
    "generation.guidance_scale": 3.0,
}
"""Of configs/stickers.toml, without mirrored pictures, which peers do not learn from either."""

STAGES = ("tokenizer", "transformer")
_PACE_STEPS = 12
_WARMUP_STEPS = 4


class Clock(Callback):
    """Counts the processor seconds of a run's stages and of what lies between them.

    Args:
        path: keeps what was counted until the last checkpoint, for a run that is resumed.
        steps: of the transformer, after which the run is stopped; None: it is not.
    """

    def __init__(self, path: Path, steps: int | None = None) -> None:
        self._path, self._steps = path, steps
        self.ends: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._evaluated: float | None = None  # when stage 1 was
        self._before: dict[str, float] = dict.fromkeys((*STAGES, "between"), 0.0)
        if path.exists():
            self._before = json.loads(path.read_text(encoding="utf-8"))

    def on_step(self, event: TrainingEvent) -> None:
        """Notes when the step was done."""
        self.ends[event.stage].append(time.process_time())
        if event.stage == STAGES[1] and len(self.ends[event.stage]) == self._steps:
            event.stop()

    def on_evaluate(self, event: TrainingEvent) -> None:
        """Notes when stage 1 was done."""
        if event.stage == STAGES[0]:
            self._evaluated = time.process_time()

    def on_save(self, event: TrainingEvent) -> None:
        """Keeps what was counted."""
        write_json(self._path, self.seconds)

    @property
    def seconds(self) -> dict[str, float]:
        """Of each stage, and between them."""
        now = dict(self._before)
        for stage, ends in self.ends.items():
            if len(ends) > 1:  # of the first step only the end is known
                now[stage] += (ends[-1] - ends[0]) * len(ends) / (len(ends) - 1)
        first = self.ends[STAGES[1]][:1]
        if self._evaluated is not None and first:
            now["between"] += first[0] - self._evaluated
        return now

    def step_seconds(self, stage: str) -> float:
        """The median of a step's seconds, without the first ones."""
        ends = self.ends[stage]
        return median(
            b - a for a, b in zip(ends[_WARMUP_STEPS:], ends[_WARMUP_STEPS + 1 :], strict=False)
        )


class Ours:
    """Trains, or resumes, and paints.

    Args:
        sources: DATA.
        settings: of the data, and the precision.
        neighbors: examples beside each prompt.
        folder: of its runs.
        seconds: of the processor, for both stages.
        seed: of all randomness.
        changes: further settings, for quick runs.
    """

    def __init__(
        self,
        sources: Sequence[str],
        settings: Mapping[str, Any],
        neighbors: int,
        folder: Path,
        seconds: float,
        seed: int,
        changes: Mapping[str, Any],
    ) -> None:
        self._sources, self._folder = list(sources), folder
        self._seconds, self._seed = seconds, seed
        self._settings = {**settings, **STICKERS, "retrieval.neighbors": neighbors, **changes}
        self._model: TextToImage | None = None

    def train(self) -> dict[str, Any]:
        """Trains both stages; returns what they did."""
        plan, note = self._folder / "plan.json", self._folder / "seconds.json"
        if not plan.exists():
            write_json(plan, self._measure_lengths())
        lengths = json.loads(plan.read_text(encoding="utf-8"))
        clock = Clock(note)
        self._model = self._fit("run", lengths, clock)
        if clock.ends[STAGES[1]]:  # not if the run was finished before
            write_json(note, clock.seconds)
        seconds = json.loads(note.read_text(encoding="utf-8"))
        facts: dict[str, Any] = {
            stage: vars(self._describe(stage, lengths[stage], seconds[stage])) for stage in STAGES
        }
        return {**facts, "codes_seconds": seconds["between"], "seconds": sum(seconds.values())}

    def count_parameters(self) -> dict[str, int]:
        """Counts the weights of both networks."""
        return {
            "tokenizer": count_parameters(self.model.tokenizer),
            "generator": count_parameters(self.model.transformer),
        }

    @property
    def model(self) -> TextToImage:
        """The trained model."""
        assert self._model is not None
        return self._model

    @property
    def paintings(self) -> Mapping[str, Mapping[str, float]]:
        """The ways to paint that are measured."""
        return {"own": {"temperature": 0.3, "guidance_scale": 3.0}}

    def paint(self, prompts: Sequence[str], painting: Mapping[str, float]) -> Pixels:
        """Paints a picture a prompt."""
        settings = self.model.config.generation.replace(**painting)
        return self.model.generate_images(enumerate_requests(prompts), settings).pixels

    def reconstruct(self, pixels: Pixels) -> Pixels | None:
        """Returns what the image tokenizer keeps of pictures."""
        return evaluate_reconstructions(self.model.tokenizer, pixels).pixels

    def _measure_lengths(self) -> dict[str, int]:
        """Measures the pace of both stages, and counts the images that fit into the seconds."""
        sizes = {"tokenizer": 32, "transformer": STICKERS["transformer_training.batch_size"]}
        shutil.rmtree(self._folder / "pace", ignore_errors=True)  # what a kill left: half a pace
        (self._folder / "pace.json").unlink(missing_ok=True)
        clock = Clock(self._folder / "pace.json", _PACE_STEPS)
        lengths = {stage: _PACE_STEPS * size for stage, size in sizes.items()}
        with contextlib.suppress(tessella.TrainingStopped):
            self._fit("pace", lengths | {"transformer": 2 * lengths["transformer"]}, clock)
        left = max(self._seconds - clock.seconds["between"], 0.2 * self._seconds)
        shares = {"tokenizer": TOKENIZER_FRACTION, "transformer": 1 - TOKENIZER_FRACTION}
        return {
            stage: sizes[stage] * max(1, int(share * left / clock.step_seconds(stage)))
            for stage, share in shares.items()
        }

    def _fit(self, name: str, lengths: Mapping[str, int], clock: Clock) -> TextToImage:
        settings = dict(self._settings)
        for stage, images in lengths.items():
            settings[f"{stage}_training.images"] = images
            settings[f"{stage}_training.evaluate_every_images"] = images
        return tessella.fit(
            self._sources,
            self._folder / name,
            settings=settings,
            seed=self._seed,
            device="cpu",
            callbacks=[clock],
            quiet=True,
        )

    def _describe(self, stage: str, images: int, seconds: float) -> Training:
        path = self._folder / "run" / stage / "metrics.jsonl"
        logged = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        losses = [one["loss"] for one in logged if one["kind"] == "train"]
        batch = 32 if stage == STAGES[0] else STICKERS["transformer_training.batch_size"]
        return Training(images, -(-images // batch), seconds, losses[-1])
