"""Checkpoints: saving a training run so that it cannot be lost, and resuming it.

Both stages of training use this. A checkpoint is a folder `checkpoint-<images seen>` of two
files: `state.safetensors` (all tensors, flat names) and `checkpoint.json` (format, images seen,
plain values, size and SHA-256 of the tensors, SHA-256 of itself). It is written under a temporary
name, flushed to the disk and renamed; only then are older ones removed. Loading trusts only what
the checksums prove, and falls back to the checkpoint before. Nothing is pickled, so reading a
checkpoint runs no code.

Proving a checkpoint reads and hashes all of it, so it happens once: when it is loaded, or when it
is written. A save does not prove the older ones again unless their files have changed since.

The run that this project descends from was lost because the machine crashed while saving.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessella import files
from tessella.errors import CheckpointError
from tessella.runs.record import stamp_file

CHECKPOINT_FORMAT = 1
"""Of `checkpoint.json`; goes up when an older tessella could no longer read it."""

CHECKPOINTS_FOLDER = "checkpoints"
"""In a stage's folder."""

STATE_FILE = "state.safetensors"
RECORD_FILE = "checkpoint.json"

_NAME = re.compile(rf"(?:{re.escape(files.REPLACED_PREFIX)})?checkpoint-(?P<images>\d{{12,}})")
_log = logging.getLogger("tessella")

# Checkpoints that this process wrote or proved, with their files as they were then.
_proved: dict[Path, list[tuple[int, ...] | None]] = {}


@dataclass(frozen=True, eq=False)
class CheckpointState:
    """Everything a run needs to continue as if it had never stopped."""

    images_seen: int
    """Progress of the run; checkpoints are ordered by it."""

    tensors: dict[str, Tensor]
    """Flat names: `network.encoder.0.weight`, `average.…`, `optimizer.…`; loaded on the CPU."""

    info: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values: the recipe's fingerprint, scalars; tuples come back as lists."""


class _DamagedError(Exception):
    """A checkpoint is incomplete or altered; the text is the reason."""


def save_checkpoint(folder: Path, state: CheckpointState, keep: int = 2) -> Path:
    """Saves a checkpoint, then removes older ones.

    Args:
        folder: holds the run's checkpoints; only one process writes there.
        state: what to save. A checkpoint of the same `images_seen` is replaced.
        keep: how many good ones stay, including the new one, at least 1. Damaged ones go.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed; earlier checkpoints
            are untouched and the message names the last good one.
    """
    path = folder / f"checkpoint-{state.images_seen:012d}"
    files.remove_leftovers(folder)
    good, damaged = _prove_all(folder)
    if good and _parse_name(good[0]) > state.images_seen:
        _log.warning("Resuming will use a later checkpoint, which exists: `%s`.", good[0])
    kept = "there is no earlier checkpoint"
    if good:
        kept = f"the last good checkpoint is kept: `{good[0]}`"
    with files.new_folder(path, what="the checkpoint", kept=kept) as temporary:
        state_file = temporary / STATE_FILE
        files.write_tensors(state_file, state.tensors)
        record = {
            "format": CHECKPOINT_FORMAT,
            "images_seen": state.images_seen,
            "state_size": state_file.stat().st_size,
            "state_sha256": files.sha256_file(state_file),
            "info": state.info,
        }
        record["sha256"] = _record_sha256(record)
        text = json.dumps(record, indent=2) + "\n"
        (temporary / RECORD_FILE).write_text(text, encoding="ascii")
    _proved[path] = _stamp(path)
    others = [old for old in good if old != path]
    for old in (*others[keep - 1 :], *damaged):
        if old != path:
            _proved.pop(old, None)
            try:
                files.remove_folder(old)
            except OSError as error:
                _log.warning("Cannot remove the old checkpoint: `%s` (%s).", old, error)
    return path


def load_latest_checkpoint(folder: Path) -> CheckpointState | None:
    """Loads the newest checkpoint that is whole.

    Newest by the number of images in the name, never by the file's time, which copying and
    crashes change. A damaged one is skipped with a warning in the log. Nothing is written.

    Args:
        folder: holds the run's checkpoints; it need not exist.

    Returns:
        The state, its tensors on the CPU; None if there is no checkpoint.

    Raises:
        CheckpointError: all checkpoints are damaged, or one cannot be read, or was written by a
            newer tessella.
    """
    path, record = _find_newest(folder)
    if path is None:
        return None
    return CheckpointState(
        record["images_seen"], files.read_tensors(path / STATE_FILE), record["info"]
    )


def read_images_seen(folder: Path) -> int | None:
    """Reads how far the newest checkpoint is; proves it, so that loading it need not.

    Args:
        folder: holds the run's checkpoints; it need not exist.

    Returns:
        The images seen; None if there is no checkpoint.

    Raises:
        CheckpointError: as `load_latest_checkpoint`.
    """
    return _find_newest(folder)[1].get("images_seen")


def _find_newest(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Finds the newest checkpoint that is whole, and its record; None if there is none at all."""
    reasons = []
    for path in _list_checkpoints(folder):
        try:
            return path, _read_record(path)
        except _DamagedError as error:
            reasons.append(f"`{path}`: {error}")
            _log.warning("Skipped a damaged checkpoint: `%s` (%s).", path, error)
    if not reasons:
        return None, {}
    raise CheckpointError(
        f"Every checkpoint is damaged: {'; '.join(reasons)}. Restore one from a backup, or "
        f"remove `{folder}` to train from the beginning."
    )


def _prove_all(folder: Path) -> tuple[list[Path], list[Path]]:
    """Sorts the checkpoints into good and damaged ones; one that it cannot read is neither."""
    good, damaged = [], []
    for path in _list_checkpoints(folder):
        try:
            _read_record(path)
            good.append(path)
        except _DamagedError:
            damaged.append(path)
        except CheckpointError:
            continue
    return good, damaged


def _list_checkpoints(folder: Path) -> list[Path]:
    """Lists everything named like a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: (-_parse_name(path), path.name.startswith(".")))


def _parse_name(path: Path) -> int:
    """Returns the images seen by a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match["images"]) if match else -1


def _read_record(path: Path) -> dict[str, Any]:
    """Reads `checkpoint.json`, and proves that it and the tensors' file are whole.

    The tensors are hashed unless this process wrote or proved them and the files are as they were.

    Raises:
        _DamagedError: a file is missing, cut short or altered.
        CheckpointError: the checkpoint is of another format, or cannot be read.
    """
    try:
        # Before reading, so that a change meanwhile does not go unnoticed.
        stamp = _stamp(path)
        record = json.loads((path / RECORD_FILE).read_bytes())
        if not isinstance(record, dict) or record.pop("sha256", None) != _record_sha256(record):
            raise _DamagedError(f"{RECORD_FILE} is altered")
        if record["format"] != CHECKPOINT_FORMAT:
            raise CheckpointError(
                f"The checkpoint has format {record['format']}, this tessella reads "
                f"{CHECKPOINT_FORMAT}: `{path}`. Use the version of tessella that wrote it, or a "
                "newer one."
            )
        if record["images_seen"] != _parse_name(path):
            raise _DamagedError(f"its name is not that of {record['images_seen']} images")
        size = (path / STATE_FILE).stat().st_size
        if size != record["state_size"]:
            raise _DamagedError(f"{STATE_FILE} has {size} bytes instead of {record['state_size']}")
        if _proved.get(path) != stamp:
            if files.sha256_file(path / STATE_FILE) != record["state_sha256"]:
                raise _DamagedError(f"{STATE_FILE} is altered")
            _proved[path] = stamp
    except PermissionError as error:
        raise CheckpointError(
            f"Not allowed to read the checkpoint: `{error.filename}`. Make it readable and run the "
            "same command again."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
    return record


def _stamp(path: Path) -> list[tuple[int, ...] | None]:
    """Describes a checkpoint's files by values of which one changes whenever a file does."""
    return [stamp_file(path / name) for name in (STATE_FILE, RECORD_FILE)]


def _record_sha256(record: Mapping[str, Any]) -> str:
    """Computes the checksum of the record's values, whatever their order and spacing."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose names begin with `prefix.`, without the prefix."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Takes an optimizer's state apart into named tensors.

    Its settings are not among them: the recipe has them.

    Args:
        optimizer: created from named parameters; keeps, as `MuonAdamW` and torch's Adam do, only
            tensors of each parameter's shape and its number of steps. They are shared, not copied.

    Returns:
        The tensors, named `<parameter>.<key>`: `encoder.0.weight.exp_avg`.
    """
    return {
        f"{name}.{key}": value
        for name, parameter in _named_parameters(optimizer)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `flatten_optimizer` took apart, bit for bit.

    `Optimizer.load_state_dict` is not used: it casts the state to the parameter's dtype.

    Args:
        optimizer: of the same kind, with the same parameters; its current state is dropped.
        tensors: the flat tensors, on the CPU.

    Raises:
        CheckpointError: the state belongs to other parameters; nothing is changed.
    """
    parameters = dict(_named_parameters(optimizer))
    state: dict[Tensor, dict[str, Tensor]] = {}
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(".")
        if name not in parameters:
            raise CheckpointError(
                f"The optimizer's state belongs to another model: it has `{full_name}`, but the "
                f"model has no parameter `{name}`. Resume with the recipe that the run began with."
            )
        parameter = parameters[name]
        # Steps are counted on the CPU. The rest lies in memory as the optimizer made it: in the
        # parameter's own order.
        like = value if key == "step" else parameter
        if like.shape != value.shape:
            raise CheckpointError(
                f"The optimizer's state belongs to another model: `{full_name}` has the shape "
                f"{tuple(value.shape)}, expected {tuple(like.shape)}. Resume with the recipe that "
                "the run began with."
            )
        copy = torch.empty_like(like, dtype=value.dtype).copy_(value)
        state.setdefault(parameter, {})[key] = copy
    optimizer.state.clear()
    optimizer.state.update(state)


def _named_parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
