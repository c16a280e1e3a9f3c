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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tessella.errors import CheckpointError, ConfigError
from tessella.files import (
    REPLACED_PREFIX,
    new_folder,
    read_tensors,
    remove_folder,
    remove_leftovers,
    sha256_file,
    write_tensors,
)

CHECKPOINT_FORMAT = 1
"""Of `checkpoint.json`; goes up when an older tessella could no longer read it."""

STATE_FILE = "state.safetensors"
RECORD_FILE = "checkpoint.json"

_NAME = re.compile(rf"(?P<aside>{re.escape(REPLACED_PREFIX)})?checkpoint-(?P<images>\d{{12,}})")
_log = logging.getLogger("tessella")

# Checkpoints that this process wrote or proved, with their tensors' file as it was then.
_proved: dict[Path, tuple[str | int, ...]] = {}
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class CheckpointState:
    """Everything a run needs to continue as if it had never stopped."""

    images_seen: int
    """Progress of the run; checkpoints are ordered by it."""

    tensors: dict[str, Tensor]
    """Flat names: `network.encoder.0.weight`, `average.…`, `optimizer.…`; loaded on the CPU."""

    info: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values: the recipe's fingerprint, scalars; tuples come back as lists."""

    def section(self, prefix: str) -> dict[str, Tensor]:
        """Returns the tensors whose names begin with `prefix.`, without the prefix."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }


class _DamagedError(Exception):
    """A checkpoint is incomplete or altered; the text is the reason."""


def save_checkpoint(folder: Path, state: CheckpointState, keep: int = 2) -> Path:
    """Saves a checkpoint, then removes older ones.

    Args:
        folder: holds the run's checkpoints; only one process writes there.
        state: what to save. A checkpoint of the same `images_seen` is replaced.
        keep: how many good ones stay, including the new one; at least 1. Damaged ones go.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed; earlier checkpoints
            are untouched and the message names the last good one.
        ConfigError: `keep` is below 1.
    """
    if keep < 1:
        raise ConfigError(f"At least 1 checkpoint must be kept; got keep: `{keep}`.")
    path = folder / f"checkpoint-{state.images_seen:012d}"
    try:
        info = json.loads(json.dumps(state.info))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"A checkpoint's info must be plain JSON values: {error}.") from error
    remove_leftovers(folder)
    verdicts = {old: _judge(old) for old in _list_checkpoints(folder)}
    good = [old for old, verdict in verdicts.items() if verdict == "good"]
    if good and _parse_name(good[0]) > state.images_seen:
        _log.warning("Resuming will use a later checkpoint, which exists: `%s`.", good[0])
    kept = "there is no earlier checkpoint"
    if good:
        kept = f"the last good checkpoint is kept: `{good[0]}`"
    with new_folder(path, what="the checkpoint", kept=kept) as temporary:
        state_file = temporary / STATE_FILE
        write_tensors(state_file, state.tensors)
        state_sha256 = sha256_file(state_file)
        proved = _stamp(temporary, state_sha256)
        record = {
            "format": CHECKPOINT_FORMAT,
            "images_seen": state.images_seen,
            "state_size": state_file.stat().st_size,
            "state_sha256": state_sha256,
            "info": info,
        }
        record["sha256"] = _record_sha256(record)
        text = json.dumps(record, indent=2) + "\n"
        (temporary / RECORD_FILE).write_text(text, encoding="ascii")
    _proved[path] = proved
    damaged = [old for old, verdict in verdicts.items() if verdict == "damaged"]
    others = [old for old in good if old != path]
    for old in (*others[keep - 1 :], *damaged):
        if old != path:
            _proved.pop(old, None)
            try:
                remove_folder(old)
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

    def load(path: Path) -> CheckpointState:
        record = _read_record(path, prove=True)
        tensors = read_tensors(path / STATE_FILE)
        return CheckpointState(record["images_seen"], tensors, record["info"])

    return _read_newest(folder, load)


def read_images_seen(folder: Path) -> int | None:
    """Reads how far the newest checkpoint is, without reading its tensors or proving them.

    Args:
        folder: holds the run's checkpoints; it need not exist.

    Returns:
        The images seen; None if there is no checkpoint.

    Raises:
        CheckpointError: as `load_latest_checkpoint`.
    """
    return _read_newest(folder, lambda path: int(_read_record(path, prove=False)["images_seen"]))


def _read_newest(folder: Path, read: Callable[[Path], T]) -> T | None:
    """Reads the newest checkpoint that is not damaged."""
    reasons = []
    for path in _list_checkpoints(folder):
        try:
            return read(path)
        except _DamagedError as error:
            reasons.append(f"`{path}`: {error}")
            _log.warning("Skipped a damaged checkpoint: `%s` (%s).", path, error)
    if not reasons:
        return None
    raise CheckpointError(
        f"Every checkpoint is damaged: {'; '.join(reasons)}. Restore one from a backup, or "
        f"remove `{folder}` to train from the beginning."
    )


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


def _judge(path: Path) -> Literal["good", "damaged", "unknown"]:
    """Finds out whether a checkpoint is whole; unknown if this tessella cannot read it."""
    try:
        record = _read_record(path, prove=False)
        if _proved.get(path) != _stamp(path, record["state_sha256"]):
            _read_record(path, prove=True)
    except _DamagedError:
        return "damaged"
    except CheckpointError:
        return "unknown"
    return "good"


def _read_record(path: Path, *, prove: bool) -> dict[str, Any]:
    """Reads `checkpoint.json`, and checks that it and the tensors' file are whole.

    Args:
        path: the checkpoint's folder.
        prove: whether to hash the tensors' file, and remember that it is whole. Otherwise only its
            size is compared.

    Raises:
        _DamagedError: a file is missing, cut short or altered.
        CheckpointError: the checkpoint is of another format, or cannot be read.
    """
    try:
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
        # Before hashing, so that a change meanwhile does not go unnoticed.
        stamp = _stamp(path, record["state_sha256"])
        size = (path / STATE_FILE).stat().st_size
        if size != record["state_size"]:
            raise _DamagedError(f"{STATE_FILE} has {size} bytes instead of {record['state_size']}")
        if prove:
            if sha256_file(path / STATE_FILE) != record["state_sha256"]:
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


def _stamp(path: Path, sha256: str) -> tuple[str | int, ...]:
    """Describes the tensors' file by values of which one changes whenever the file does."""
    status = (path / STATE_FILE).stat()
    return sha256, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _record_sha256(record: Mapping[str, Any]) -> str:
    """Computes the checksum of the record's values, whatever their order and spacing."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Takes an optimizer's state apart into named tensors and plain values.

    It works with any optimizer that keeps tensors and numbers for each parameter in a flat table:
    AdamW, SGD, Muon and most others.

    Args:
        optimizer: its state is shared, not copied.
        names: the name of each parameter, in the order of the parameter groups.

    Returns:
        The tensors, named `<parameter>.<key>` (`encoder.0.weight.exp_avg`), and the plain
        values: `{"state": {"<parameter>.<key>": value}, "groups": [{"lr": …}, …]}`.

    Raises:
        CheckpointError: the number of names differs, or the state has other kinds of values.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for name, parameter, _ in _named_parameters(optimizer, names):
        for key, value in optimizer.state.get(parameter, {}).items():
            if "." in key or not isinstance(value, Tensor | bool | int | float | str | None):
                raise CheckpointError(
                    f"The state of {type(optimizer).__name__} cannot be saved: `{name}.{key}` "
                    f"is a {type(value).__name__}. Use an optimizer that keeps tensors and numbers."
                )
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value.detach()
            else:
                scalars[f"{name}.{key}"] = value
    groups = [
        {key: _plain(value) for key, value in group.items() if _is_plain(_plain(value))}
        for group in optimizer.param_groups
    ]
    return tensors, {"state": scalars, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    tensors: Mapping[str, Tensor],
    scalars: Mapping[str, Any],
) -> None:
    """Puts back what `flatten_optimizer` took apart, bit for bit.

    `Optimizer.load_state_dict` is not used: it casts the state to the parameter's dtype.

    Args:
        optimizer: of the same kind, with the same groups; its current state is dropped.
        names: the name of each parameter, in the order of the parameter groups.
        tensors: the flat tensors, on any device.
        scalars: the plain values.

    Raises:
        CheckpointError: the state belongs to other parameters or groups; nothing is changed.
    """
    parameters = list(_named_parameters(optimizer, names))
    states: dict[str, dict[str, Any]] = {name: {} for name, _, _ in parameters}
    for full_name, value in (*tensors.items(), *scalars["state"].items()):
        name, _, key = full_name.rpartition(".")
        if name not in states:
            raise CheckpointError(
                f"The optimizer's state belongs to another model: it has `{full_name}`, but the "
                f"model has no parameter `{name}`. Resume with the recipe that the run began with."
            )
        states[name][key] = value
    if len(scalars["groups"]) != len(optimizer.param_groups):
        raise CheckpointError(
            f"The optimizer has {len(optimizer.param_groups)} parameter groups, the saved state "
            f"{len(scalars['groups'])}. Resume with the recipe that the run began with."
        )
    optimizer.state.clear()
    for name, parameter, group in parameters:
        if states[name]:
            optimizer.state[parameter] = {
                key: _placed(key, value, parameter, group) for key, value in states[name].items()
            }
    for group, saved in zip(optimizer.param_groups, scalars["groups"], strict=True):
        for key, value in saved.items():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            else:
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def _named_parameters(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Pairs each parameter with its name and its group."""
    pairs = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if len(pairs) != len(names) or len(set(names)) != len(names):
        raise CheckpointError(
            f"Expected one name for each of the optimizer's {len(pairs)} parameters, got "
            f"{len(set(names))} different names of {len(names)}."
        )
    for name, (parameter, group) in zip(names, pairs, strict=True):
        yield name, parameter, group


def _plain(value: Any) -> Any:
    """Turns a setting of a parameter group into a JSON value, if it has one."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    """Returns whether a value can be JSON; parameters and functions cannot."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str | None)


def _placed(key: str, value: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """Copies a saved value to the optimizer's device, in the memory layout that it had."""
    if not isinstance(value, Tensor):
        return value
    # torch counts steps on the CPU unless the whole step runs on the device.
    on_cpu = key == "step" and not (group.get("fused") or group.get("capturable"))
    device = torch.device("cpu") if on_cpu else parameter.device
    if value.shape == parameter.shape:
        # In the parameter's own memory order, as the optimizer made it.
        return torch.empty_like(parameter, dtype=value.dtype, device=device).copy_(value)
    return value.detach().to(device, copy=True)
