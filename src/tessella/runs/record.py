"""What a run has written down so far, read without loading anything that trains.

It reads any run: half-trained, killed in the middle, without a model. What is not there yet is
empty or None; what cannot be read is counted, never guessed. A run that goes on can be read again
and again: only what is new in its logs is parsed.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tessella.config import read_config
from tessella.data.cache import MANIFEST, SIDES, SKIPPED, CaptionedImages, read_manifest
from tessella.errors import ConfigError

Points = Sequence[tuple[int, float]]
"""Images seen and the value there, in the order of training."""

STAGES = ("tokenizer", "transformer")

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
"""Locked by whoever trains in the run, for as long as that lives."""

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
_LATELY = 9  # lines of the log
_MAX_COUNT = 2**53
_MAX_VALUE = 1e100  # beyond it sums overflow


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
    images_per_second: float | None  # of late, by the same count; None: not known
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
    last_news: float  # when the run wrote last, in seconds since 1970


def read_run(folder: Path) -> RunRecord:
    """Reads what a run has written down.

    Args:
        folder: `--out` of a `tessella fit`.

    Raises:
        ConfigError: it is no run's folder, or its run.json is damaged.
    """
    return RunReader(folder).read()


class RunReader:
    """Reads a run as it grows: a log of any length costs its new lines.

    For one thread at a time; a record is good until the next one is read.
    """

    def __init__(self, folder: Path) -> None:
        """Remembers where the run is; it may not be there yet.

        Args:
            folder: `--out` of a `tessella fit`.
        """
        self._folder = folder
        self._logs = {name: _StageLog(folder / name / METRICS_FILE) for name in STAGES}
        self._data_stamp: object = None

    def read(self) -> RunRecord:
        """Reads what the run has written down by now.

        Raises:
            ConfigError: it is no run's folder, or its run.json is damaged.
        """
        folder = self._folder
        run = _read_run_file(folder / RUN_FILE)
        model = folder / MODEL_FOLDER
        self._read_data(folder / DATA_FOLDER)
        nearest = _read_json(folder / NEAREST_FILE)
        return RunRecord(
            folder=folder,
            run=run,
            counts=self._manifest["counts"] if self._manifest else None,
            captions=self._captions,
            skipped=self._skipped,
            grid=_read_grid(folder / CODES_FOLDER / "train.npy"),
            stages=[_read_stage(folder / name, run["recipe"], self._logs[name]) for name in STAGES],
            metrics=_read_json(model / "metrics.json"),
            samples=_existing(model / "samples.png"),
            nearest=nearest,
            nearest_picture=_existing(folder / NEAREST_PICTURE) if nearest else None,
            unreadable_lines=self._unreadable,
            last_news=_find_last_news(folder),
        )

    def _read_data(self, data: Path) -> None:
        """Reads what the data says about itself, unless it is as it was."""
        stamp = [stamp_file(data / name) for name in (MANIFEST, SKIPPED)]
        if stamp == self._data_stamp:
            return
        self._manifest = read_manifest(data)
        try:
            self._captions = _read_captions(data, self._manifest) if self._manifest else {}
        except (OSError, LookupError, TypeError, ValueError):
            # It went away while it was read, or was changed by hand.
            self._manifest, self._captions = None, {}
        self._skipped, self._unreadable = _read_skipped(data / SKIPPED)
        self._data_stamp = stamp


def stamp_file(path: Path) -> tuple[int, int, int] | None:
    """Says what changes whenever a file does, or the names in a folder; None: it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_run_file(path: Path) -> dict[str, Any]:
    """Reads run.json, whose recipe is a table."""
    if not path.is_file():
        raise ConfigError(
            f"Not the folder of a run: `{path.parent}`. It has no {RUN_FILE}. Name the --out of a "
            "`tessella fit`."
        )
    run = read_config(path)
    if not isinstance(run.get("recipe"), dict):
        raise ConfigError(
            f"The run's file holds no recipe: `{path}`. It was changed by hand, or is of another "
            "program."
        )
    return run


def _find_last_news(folder: Path) -> float:
    """Finds when the run wrote last; a run that is going on has done so a moment ago."""
    files = [folder / RUN_FILE, *folder.glob("*/metrics.json*")]
    stamps = [stamp for stamp in map(stamp_file, files) if stamp]
    return max((changed for _, _, changed in stamps), default=0) / 1e9


class _StageLog:
    """The log of one stage: parsed as far as it goes, then on from there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._restart()

    def _restart(self) -> None:
        self._inode = self._offset = 0
        self._last_line = b""
        self._whole_lines_unreadable = 0
        self.images_seen = 0
        self.seconds = 0.0
        self.paces: list[float] = []  # images a second, a line each
        self.curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
        self.notes: list[Note] = []
        self.unreadable_lines = 0

    def read(self) -> None:
        """Parses what is new; all of it where training went back and wrote the log anew."""
        try:
            with self._path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._offset - len(self._last_line))
                # Another file may have got the number of the one that was replaced.
                if inode != self._inode or file.read(len(self._last_line)) != self._last_line:
                    self._restart()
                    file.seek(0)
                self._inode = inode
                *lines, cut_off = file.read().split(b"\n")
        except OSError:
            self._restart()
            return
        for text in lines:
            line = _parse_line(text)
            if line is None or not self._take(line):
                self._whole_lines_unreadable += 1
        self._offset += sum(len(text) + 1 for text in lines)
        if lines:
            self._last_line = lines[-1] + b"\n"
        self.unreadable_lines = self._whole_lines_unreadable + bool(cut_off)

    def _take(self, line: Mapping[str, Any]) -> bool:
        """Keeps what a line says; False if it is none of a log."""
        at, kind = line.get("images_seen"), line.get("kind")
        if not _is_count(at) or kind not in ("train", "validation", "note"):
            return False
        if kind == "note":
            self.notes.append(Note(self._path.parent.name, at, str(line.get("note", ""))))
            return True
        values = {name: value for name, value in line.items() if _is_number(value)}
        pace = values.get("images_per_second", 0)
        if kind == "train" and pace > 0:
            self.seconds += max(0, at - self.images_seen) / pace
            self.paces.append(float(pace))
        self.images_seen = max(self.images_seen, at)
        for name, value in values.items():
            if name != "images_seen":
                self.curves.setdefault(name, {}).setdefault(kind, []).append((at, float(value)))
        return True


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of a JSON file is a number that can be drawn: NaN cannot."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_VALUE
    )


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a value of a JSON file is a number of images."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _read_stage(folder: Path, recipe: Mapping[str, Any], log: _StageLog) -> StageRecord:
    """Reads the log of one stage and lists its pictures."""
    log.read()
    settings = recipe.get(f"{folder.name}_training")
    images = settings.get("images") if isinstance(settings, Mapping) else None
    pictures = {
        path.name: [(int(f.stem), f) for f in sorted(path.glob("*.png")) if f.stem.isdecimal()]
        for path in (folder / "samples", folder / "codebook")
    }
    return StageRecord(
        name=folder.name,
        images=images if _is_count(images) else 0,
        images_seen=log.images_seen,
        seconds=log.seconds,
        images_per_second=statistics.median(log.paces[-_LATELY:]) if log.paces else None,
        curves=log.curves,
        notes=log.notes,
        unreadable_lines=log.unreadable_lines,
        pictures=pictures,
    )


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Reads lines of JSON objects; counts those that are none: a crash cuts the last one off."""
    try:
        texts = path.read_bytes().splitlines()
    except OSError:
        return [], 0
    lines = [_parse_line(text) for text in texts]
    return [line for line in lines if line is not None], lines.count(None)


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Reads a line that is a JSON object; None if it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


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
        *_, height, width = np.load(path, mmap_mode="r").shape
    except (OSError, ValueError):
        return None
    return height, width


def _read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
