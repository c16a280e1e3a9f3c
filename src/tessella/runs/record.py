"""Everything a run has written so far, read without importing anything that trains.

Any run can be read: half-trained, killed halfway, without a model. What does not exist yet is empty
or None; unreadable lines are counted, never guessed. A run in progress can be read again and again:
only the new lines of its logs are parsed.
"""

import contextlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from tessella.config import flatten, read_config
from tessella.data.cache import MANIFEST, SIDES, SKIPPED, CaptionedImages, read_manifest
from tessella.errors import CheckpointError, ConfigError
from tessella.files import is_locked
from tessella.retrieval.examples import EXAMPLES_FILE
from tessella.retrieval.mapped import map_arrays

Points = Sequence[tuple[int, float]]
"""(images seen, value) pairs in the order of training."""

STAGES = ("tokenizer", "transformer")

RUN_FILE = "run.json"
LOCK_FILE = ".lock"
"""Locked by the process that trains in the run, until that process ends."""

DATA_FOLDER = "data"
CODES_FOLDER = "codes"
EXAMPLES_FOLDER = "examples"
MEMORY_FOLDER = "memory"
"""In the folder of examples."""
CHOICE_FILE = "choice.json"
"""In the folder of examples: how many a picture looks at, and why."""
TEXT_FOLDER = "text"
MODEL_FOLDER = "model"
TOKENIZER_MODEL_FOLDER = "tokenizer/model"
NEAREST_FILE = "nearest.json"
NEAREST_PICTURE = "nearest.png"
METRICS_LOG = "metrics.jsonl"
"""In each stage's folder; all other names are relative to the run's folder."""

_CAPTIONS = 16
_RECENT_LINES = 9  # of the log: the speed is their median
_MAX_COUNT = 2**53
_MAX_VALUE = 1e100  # beyond it sums overflow


@dataclass(frozen=True)
class Note:
    """A warning that training logged."""

    stage: str  # tokenizer or transformer
    images_seen: int  # when it was logged
    text: str


class StageRecord:
    """The log and the pictures of one stage; each read continues where the last one stopped."""

    images_seen: int  # as of the last line
    seconds: float  # spent on training steps, evaluations excluded
    curves: dict[str, dict[str, list[tuple[int, float]]]]  # metric → train or validation → values
    notes: list[Note]

    def __init__(self, folder: Path) -> None:
        """Remembers where the stage is; it need not exist yet."""
        self.name = folder.name  # tokenizer or transformer
        self.images = 0  # how many it will train on
        self.pictures: dict[str, list[tuple[int, Path]]] = {}  # name → images seen, file
        self._folder = folder
        self._restart()

    def _restart(self) -> None:
        self._inode = self._offset = 0
        self._last_line = b""
        self._unreadable_lines = 0
        self._has_rest = False  # a line is cut off, or is being written
        self._speeds: list[float] = []  # images per second, one per line
        self.images_seen, self.seconds, self.curves, self.notes = 0, 0.0, {}, []

    @property
    def images_per_second(self) -> float | None:
        """Recently, evaluations excluded; None if unknown."""
        return statistics.median(self._speeds[-_RECENT_LINES:]) if self._speeds else None

    @property
    def unreadable_lines(self) -> int:
        """Lines of the log that are left out."""
        return self._unreadable_lines + self._has_rest

    def read(self, run: Mapping[str, Any]) -> None:
        """Reads the new lines of the log and lists the pictures."""
        images = run.get(f"recipe.{self.name}_training.images")
        self.images = images if _is_count(images) else 0
        self.pictures = {
            path.name: [(int(f.stem), f) for f in sorted(path.glob("*.png")) if f.stem.isdecimal()]
            for path in (self._folder / "samples", self._folder / "codebook")
        }
        self._read_log()

    def _read_log(self) -> None:
        """Parses the new lines; all lines if a resumed training has rewritten the log."""
        try:
            with (self._folder / METRICS_LOG).open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._offset - len(self._last_line))
                # A new file can get the inode number of the one that it replaced.
                if inode != self._inode or file.read(len(self._last_line)) != self._last_line:
                    self._restart()
                    file.seek(0)
                self._inode = inode
                *lines, rest = file.read().split(b"\n")
        except OSError:
            self._restart()
            return
        for text in lines:
            line = _parse_line(text)
            if line is None or not self._add(line):
                self._unreadable_lines += 1
        self._offset += sum(len(text) + 1 for text in lines)
        if lines:
            self._last_line = lines[-1] + b"\n"
        self._has_rest = bool(rest)

    def _add(self, line: Mapping[str, Any]) -> bool:
        """Adds the values of a line; False if it is not a line of a log."""
        at, kind = line.get("images_seen"), line.get("kind")
        if not _is_count(at) or kind not in ("train", "validation", "note"):
            return False
        if kind == "note":
            self.notes.append(Note(self.name, at, str(line.get("note", ""))))
            return True
        values = {name: value for name, value in line.items() if _is_number(value)}
        speed = values.get("images_per_second", 0)
        if kind == "train" and speed > 0:
            self.seconds += max(0, at - self.images_seen) / speed
            self._speeds.append(float(speed))
        self.images_seen = max(self.images_seen, at)
        for name, value in values.items():
            if name != "images_seen":
                self.curves.setdefault(name, {}).setdefault(kind, []).append((at, float(value)))
        return True


class RunRecord:
    """Everything that a run has written so far; `read` brings it up to date.

    For one thread at a time.

    Args:
        folder: the `--out` of a `tessella fit`; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages = [StageRecord(folder / name) for name in STAGES]
        self.run: dict[str, Any] = {}  # run.json, by dotted names: recipe.data.image_size, …
        self.counts: Mapping[str, Any] | None = None  # of the data; None: missing or damaged
        self.captions: dict[str, list[str]] = {}  # train, validation → the first images' captions
        self.skipped: dict[str, list[tuple[str, str]]] = {}  # kind → the skipped files, reasons
        self.grid: tuple[int, int] | None = None  # (h, w) codes per image; None: none are encoded
        self.metrics: dict[str, Any] | None = None  # of the finished model; None: not finished
        self.samples: Path | None = None  # the finished model's picture
        self.nearest: dict[str, Any] | None = None  # the pairs that nearest.png shows
        self.num_examples: int | None = None  # that the model looks up; None: it has no memory
        self.choice: dict[str, Any] | None = None  # how many it looks at, and why
        self.nearest_picture: Path | None = None
        self.last_news = 0.0  # when the run last wrote something, in seconds since 1970
        self._unreadable_lines = 0  # of the list of skipped files
        self._data_stamp: object = None

    @property
    def unreadable_lines(self) -> int:
        """Lines of all logs that are left out."""
        return self._unreadable_lines + sum(stage.unreadable_lines for stage in self.stages)

    def stamp(self) -> object:
        """Returns what changes whenever `read` would find something new."""
        paths = [path for depth in ("*", "*/*") for path in self.folder.glob(depth)]
        # Not the lock: asking whether it is held may touch it.
        return sorted((p.as_posix(), stamp_file(p)) for p in paths if p.name != LOCK_FILE)

    def read(self) -> "RunRecord":
        """Reads everything the run has written by now, and of its logs the new lines.

        Raises:
            ConfigError: the folder holds no run, or its run.json is damaged.
        """
        self.run = _read_run_file(self.folder / RUN_FILE)
        self._read_data(self.folder / DATA_FOLDER)
        for stage in self.stages:
            stage.read(self.run)
        self.grid = _read_grid(self.folder / CODES_FOLDER / "train.npy")
        self.metrics = _read_json(self.folder / MODEL_FOLDER / "metrics.json")
        self.samples = _existing(self.folder / MODEL_FOLDER / "samples.png")
        self.nearest = _read_json(self.folder / NEAREST_FILE)
        self.nearest_picture = _existing(self.folder / NEAREST_PICTURE) if self.nearest else None
        memories = (self.folder / MODEL_FOLDER, self.folder / EXAMPLES_FOLDER / MEMORY_FOLDER)
        counts = (_count_examples(folder / EXAMPLES_FILE) for folder in memories)
        self.num_examples = next((count for count in counts if count is not None), None)
        self.choice = _read_json(self.folder / EXAMPLES_FOLDER / CHOICE_FILE)
        self.last_news = find_last_news(self.folder)
        return self

    def _read_data(self, data: Path) -> None:
        """Reads the data's counts, captions and skipped files, unless nothing changed."""
        stamp = [stamp_file(data / name) for name in (MANIFEST, SKIPPED)]
        if stamp == self._data_stamp:
            return
        self.counts, self.captions = None, {}
        # The data may be missing, be removed while it is read, or have been changed by hand.
        with contextlib.suppress(OSError, LookupError, TypeError, ValueError):
            if manifest := read_manifest(data):
                self.captions = _read_captions(data, manifest)
                self.counts = _check_counts(manifest["counts"])
        self.skipped, self._unreadable_lines = _read_skipped(data / SKIPPED)
        self._data_stamp = stamp


def read_run(folder: Path) -> RunRecord:
    """Reads a run.

    Args:
        folder: the `--out` of a `tessella fit`.

    Raises:
        ConfigError: the folder holds no run, or its run.json is damaged.
    """
    return RunRecord(folder).read()


def is_running(folder: Path) -> bool | None:
    """Whether a process is training in a run; None if that cannot be determined."""
    return is_locked(folder / LOCK_FILE)


def find_last_news(folder: Path) -> float:
    """Finds when a run last wrote something, in seconds since 1970; 0 if never."""
    files = [folder / RUN_FILE, *folder.glob("*/metrics.json*")]
    stamps = [stamp for stamp in map(stamp_file, files) if stamp]
    return max((changed for _, _, changed in stamps), default=0) / 1e9


def stamp_file(path: Path) -> tuple[int, int, int] | None:
    """Returns what changes with a file, or with the names in a folder; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _is_none_or(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _is_list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _read_run_file(path: Path) -> dict[str, Any]:
    """Reads run.json by dotted names; its recipe must be of tables, but for the precision."""
    shown = {
        "sources": _is_none_or(_is_list_of(_is_text)),
        "asked.minutes": _is_none_or(_is_number),
        "recipe.tokenizer.quantizer.levels": _is_none_or(_is_list_of(_is_count)),
        "recipe.tokenizer.quantizer.codebook_size": _is_none_or(_is_count),
    }  # what the report computes with; anything else it shows as it is
    if not path.is_file():
        raise ConfigError(
            f"Not the folder of a run: `{path.parent}`. It has no {RUN_FILE}. Name the --out of a "
            "`tessella fit`."
        )
    run = read_config(path)
    recipe = run.get("recipe")
    sections = {**recipe, "precision": {}} if isinstance(recipe, dict) else {"recipe": recipe}
    if not all(isinstance(section, dict) for section in sections.values()):
        raise ConfigError(
            f"The run's file holds no recipe: `{path}`. It was edited by hand, or another program "
            "wrote it."
        )
    values = flatten(run)
    for name, is_right in shown.items():
        if not is_right(values.get(name)):
            raise ConfigError(
                f"The run's file was edited by hand: `{path}` says {name} = "
                f"`{str(values[name])[:60]}`. Put back what it was."
            )
    return values


def _check_counts(counts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a data set's counts as they are.

    Raises:
        KeyError, TypeError: some are missing, or are not counts.
    """
    numbers = [counts[name] for name in ("images", "captions", *SIDES)]
    if not all(map(_is_count, [*numbers, *dict(counts["skipped"]).values()])):
        raise TypeError
    return counts


def _is_number(value: object) -> TypeGuard[int | float]:
    """Whether a JSON value is a number that can be drawn; NaN is not."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_VALUE
    )


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a JSON value is a number of images."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT


def _parse_line(text: bytes) -> dict[str, Any] | None:
    """Reads a line that is a JSON object; None if it is not one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _read_skipped(path: Path) -> tuple[dict[str, list[tuple[str, str]]], int]:
    """Lists the skipped files by kind of reason, and counts the unreadable lines."""
    try:
        lines = [_parse_line(text) for text in path.read_bytes().splitlines()]
    except OSError:
        return {}, 0
    kinds: dict[str, list[tuple[str, str]]] = {}
    for line in filter(None, lines):
        file = str(line.get("name", "")), str(line.get("reason", ""))
        kinds.setdefault(str(line.get("kind", "unknown")), []).append(file)
    return kinds, lines.count(None)


def _read_captions(data: Path, manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Reads the first caption of the first images of each side."""
    captions = {}
    for side in SIDES:
        images = CaptionedImages(data, side, manifest)
        captions[side] = [images.captions(i)[0] for i in range(min(_CAPTIONS, len(images)))]
    return captions


def _read_grid(path: Path) -> tuple[int, int] | None:
    """Reads (h, w) codes per image from the header of the encoded images."""
    try:
        *_, height, width = np.load(path, mmap_mode="r").shape
    except Exception:  # noqa: BLE001  numpy reads a damaged header as Python: any error may come
        return None
    return height, width


def _count_examples(path: Path) -> int | None:
    """Reads how many examples a memory holds, from the header of its file; None without one."""
    try:
        return len(map_arrays(path, is_proved=False)[0]["codes"])
    except (CheckpointError, KeyError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """Reads a JSON object; None if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
