"""What a run has written down so far, read without loading anything that trains.

It reads any run: half-trained, killed in the middle, without a model. What is not there yet is
empty or None; what cannot be read is counted, never guessed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tessella.config import read_config
from tessella.data.cache import SIDES, SKIPPED, CaptionedImages, read_manifest
from tessella.errors import ConfigError

Points = Sequence[tuple[int, float]]
"""Images seen and the value there, in the order of training."""

STAGES = ("tokenizer", "transformer")

RUN_FILE = "run.json"
DATA_FOLDER = "data"
CODES_FOLDER = "codes"
TEXT_FOLDER = "text"
MODEL_FOLDER = "model"
TOKENIZER_MODEL_FOLDER = "tokenizer/model"
NEAREST_FILE = "nearest.json"
NEAREST_PICTURE = "nearest.png"
METRICS_FILE = "metrics.jsonl"
"""Of a stage's folder; all others are in the run's own."""

_CAPTIONS = 16


@dataclass(frozen=True)
class Note:
    """A sentence that training said."""

    stage: str  # tokenizer or transformer
    images_seen: int  # when
    text: str


@dataclass(frozen=True)
class StageRecord:
    """What one stage has logged and drawn."""

    name: str  # tokenizer or transformer
    images: int  # that it is to see
    images_seen: int  # by its last line
    seconds: float  # spent on its steps, evaluations left out
    curves: Mapping[str, Mapping[str, Points]]  # metric → train or validation → values
    notes: Sequence[Note]
    unreadable_lines: int
    pictures: Mapping[str, Sequence[tuple[int, Path]]]  # name → images seen, file


@dataclass(frozen=True)
class SkippedFiles:
    """What the data left out for one kind of reason."""

    kind: str  # broken, empty, captionless, …
    count: int
    examples: Sequence[tuple[str, str]]  # file, reason


@dataclass(frozen=True)
class RunRecord:
    """All that a run says about itself."""

    folder: Path
    run: Mapping[str, Any]  # run.json
    counts: Mapping[str, Any] | None  # of the data; None: it is gone or damaged
    captions: Mapping[str, Sequence[str]]  # train, validation → the first pictures' captions
    skipped: Sequence[SkippedFiles]  # the commonest kind first
    grid: tuple[int, int] | None  # codes a picture; None: nothing is encoded yet
    stages: Sequence[StageRecord]
    metrics: Mapping[str, Any] | None  # of the finished model; None: there is none yet
    samples: Path | None  # the finished model's picture
    nearest: Mapping[str, Any] | None  # what nearest.png shows
    nearest_picture: Path | None
    unreadable_lines: int  # of skipped.jsonl


def read_run(folder: Path) -> RunRecord:
    """Reads what a run has written down.

    Args:
        folder: `--out` of a `tessella fit`.

    Raises:
        ConfigError: it is no run's folder, or its run.json is damaged.
    """
    if not (folder / RUN_FILE).is_file():
        raise ConfigError(
            f"Not the folder of a run: `{folder}`. It has no {RUN_FILE}. Name the --out of a "
            "`tessella fit`."
        )
    run = read_config(folder / RUN_FILE)
    recipe = run.get("recipe")
    if not isinstance(recipe, dict):
        raise ConfigError(
            f"The run's file holds no recipe: `{folder / RUN_FILE}`. It was changed by hand, or "
            "is of another program."
        )
    data, model = folder / DATA_FOLDER, folder / MODEL_FOLDER
    manifest = read_manifest(data)
    skipped, unreadable = _read_skipped(data / SKIPPED)
    nearest = _read_json(folder / NEAREST_FILE)
    return RunRecord(
        folder=folder,
        run=run,
        counts=manifest["counts"] if manifest else None,
        captions=_read_captions(data, manifest) if manifest else {},
        skipped=skipped,
        grid=_read_grid(folder / CODES_FOLDER / "train.npy"),
        stages=[_read_stage(folder / name, recipe) for name in STAGES],
        metrics=_read_json(model / "metrics.json"),
        samples=_existing(model / "samples.png"),
        nearest=nearest,
        nearest_picture=_existing(folder / NEAREST_PICTURE) if nearest else None,
        unreadable_lines=unreadable,
    )


def _read_stage(folder: Path, recipe: Mapping[str, Any]) -> StageRecord:
    """Reads the log of one stage and lists its pictures."""
    lines, unreadable = _read_lines(folder / METRICS_FILE)
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    notes = []
    seen, seconds = 0, 0.0
    for line in lines:
        at, kind = line.get("images_seen"), line.get("kind")
        if not isinstance(at, int) or kind not in ("train", "validation", "note"):
            unreadable += 1
            continue
        if kind == "note":
            notes.append(Note(folder.name, at, str(line.get("note", ""))))
            continue
        pace = line.get("images_per_second")
        if kind == "train" and isinstance(pace, int | float) and pace > 0:
            seconds += max(0, at - seen) / pace
        seen = max(seen, at)
        for name, value in line.items():
            is_number = isinstance(value, int | float) and name != "images_seen"
            if is_number and math.isfinite(value):
                curves.setdefault(name, {}).setdefault(kind, []).append((at, float(value)))
    settings = recipe.get(f"{folder.name}_training", {})
    pictures = {
        path.name: [(int(f.stem), f) for f in sorted(path.glob("*.png")) if f.stem.isdecimal()]
        for path in (folder / "samples", folder / "codebook")
    }
    images = settings.get("images", 0)
    return StageRecord(folder.name, images, seen, seconds, curves, notes, unreadable, pictures)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads lines of JSON objects; counts those that are none: a crash cuts the last one off."""
    try:
        texts = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    lines, unreadable = [], 0
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            unreadable += 1
    return lines, unreadable


def _read_skipped(path: Path, examples: int = 3) -> tuple[list[SkippedFiles], int]:
    """Counts the files that were left out, by the kind of reason."""
    lines, unreadable = _read_lines(path)
    kinds: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        named = str(line.get("name", "")), str(line.get("reason", ""))
        kinds.setdefault(str(line.get("kind", "unknown")), []).append(named)
    skipped = [SkippedFiles(kind, len(files), files[:examples]) for kind, files in kinds.items()]
    return sorted(skipped, key=lambda found: -found.count), unreadable


def _read_captions(data: Path, manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reads the first caption of the first pictures of each side."""
    size = manifest["identity"]["settings"]["image_size"]
    captions = {}
    for side in SIDES:
        images = CaptionedImages(data, side, size, manifest["fingerprints"][side])
        captions[side] = [images.captions(i)[0] for i in range(min(_CAPTIONS, len(images)))]
    return captions


def _read_grid(path: Path) -> tuple[int, int] | None:
    """Reads how many codes a picture has, from the header of the encoded pictures."""
    try:
        _, height, width = np.load(path, mmap_mode="r").shape
    except (OSError, ValueError):
        return None
    return height, width


def _read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
