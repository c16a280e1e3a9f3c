"""Saving a training run so that it can never be lost, and taking it up again.

Beside the data's way: `training/` saves both stages with this. A checkpoint is a folder
`checkpoint-<images seen>` of two files: `state.safetensors` (all tensors, flat names) and
`checkpoint.json` (format, images seen, plain values, size and SHA-256 of the tensors, SHA-256
of itself). It is written under a temporary name, flushed to the disk, renamed; only then are
older ones removed. Loading believes nothing that the checksums do not prove, and goes back to
the one before. Nothing is pickled, so reading a checkpoint runs no code.

The run that this project descends from was lost because the machine crashed while saving.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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

FORMAT = 1
"""Of `checkpoint.json`; goes up when an older tessella could no longer read it."""

STATE_FILE = "state.safetensors"
RECORD_FILE = "checkpoint.json"

_NAME = re.compile(rf"(?P<aside>{re.escape(REPLACED_PREFIX)})?checkpoint-(?P<images>\d{{12,}})")
_log = logging.getLogger("tessella")


@dataclass(frozen=True, eq=False)
class CheckpointState:
    """All that a run needs to go on as if it had never stopped."""

    images_seen: int
    """How far the run is; checkpoints are ordered by it."""

    tensors: dict[str, Tensor]
    """Flat names: `model.encoder.0.weight`, `ema.…`, `optimizer.…`; loaded on the CPU."""

    info: dict[str, Any] = field(default_factory=dict)
    """Plain JSON values: the recipe's fingerprint, scalars; tuples come back as lists."""

    def section(self, prefix: str) -> dict[str, Tensor]:
        """Takes the tensors whose names begin with `prefix.`, without it."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(start)
        }


class _DamagedError(Exception):
    """A checkpoint that is not whole; the text is the reason."""


def save_checkpoint(folder: Path, state: CheckpointState, keep: int = 2) -> Path:
    """Saves a checkpoint, then removes older ones.

    Args:
        folder: where the run's checkpoints are; one process alone writes there.
        state: what to save. A checkpoint of the same `images_seen` is replaced.
        keep: how many good ones stay, the new one included; at least 1. Damaged ones go.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: no space, or not allowed to write; the earlier checkpoints are
            untouched and the message names the last good one.
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
    verdicts = {old: _verdict(old) for old in _checkpoints(folder)}
    good = [old for old, verdict in verdicts.items() if verdict == "good"]
    if good and _images_seen(good[0]) > state.images_seen:
        _log.warning("A later checkpoint is there, and resuming will take it: `%s`.", good[0])
    kept = "there is no earlier checkpoint"
    if good:
        kept = f"the last good checkpoint is kept: `{good[0]}`"
    with new_folder(path, what="the checkpoint", kept=kept) as temporary:
        state_file = temporary / STATE_FILE
        write_tensors(state_file, state.tensors)
        record = {
            "format": FORMAT,
            "images_seen": state.images_seen,
            "state_size": state_file.stat().st_size,
            "state_sha256": sha256_file(state_file),
            "info": info,
        }
        record["sha256"] = _record_sha256(record)
        text = json.dumps(record, indent=2) + "\n"
        (temporary / RECORD_FILE).write_text(text, encoding="ascii")
    damaged = [old for old, verdict in verdicts.items() if verdict == "damaged"]
    others = [old for old in good if old != path]
    for old in (*others[keep - 1 :], *damaged):
        if old != path:
            try:
                remove_folder(old)
            except OSError as error:
                _log.warning("Cannot remove the old checkpoint: `%s` (%s).", old, error)
    return path


def load_latest_checkpoint(folder: Path) -> CheckpointState | None:
    """Loads the newest checkpoint that is whole.

    Newest by the number of images in the name, never by the file's time, which copying and
    crashes change. A damaged one is passed over with a warning in the log. Nothing is written.

    Args:
        folder: where the run's checkpoints are; it need not exist.

    Returns:
        The state, its tensors on the CPU; None where there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints but all are damaged; or one may not be read; or
            one was written by a newer tessella.
    """
    reasons = []
    for path in _checkpoints(folder):
        try:
            record = _verified_record(path)
            tensors = read_tensors(path / STATE_FILE)
        except _DamagedError as error:
            reasons.append(f"`{path}`: {error}")
            _log.warning(
                "Passed over a damaged checkpoint: `%s` (%s); taking the one before.", path, error
            )
        else:
            return CheckpointState(record["images_seen"], tensors, record["info"])
    if not reasons:
        return None
    raise CheckpointError(
        f"Every checkpoint is damaged: {'; '.join(reasons)}. Bring one back from a backup, or "
        f"remove `{folder}` to begin the run anew."
    )


def _checkpoints(folder: Path) -> list[Path]:
    """Lists what is named as a checkpoint, newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(named, key=lambda path: (-_images_seen(path), path.name.startswith(".")))


def _images_seen(path: Path) -> int:
    """Reads the number in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    return int(match["images"]) if match else -1


def _verdict(path: Path) -> Literal["good", "damaged", "unknown"]:
    """Says whether a checkpoint is whole; unknown where this tessella cannot read it."""
    try:
        _verified_record(path)
    except _DamagedError:
        return "damaged"
    except CheckpointError:
        return "unknown"
    return "good"


def _verified_record(path: Path) -> dict[str, Any]:
    """Reads `checkpoint.json` and proves it and the tensors' file by their checksums.

    Raises:
        _DamagedError: something is missing, cut short or altered.
        CheckpointError: it is whole but of another format, or may not be read.
    """
    try:
        record = json.loads((path / RECORD_FILE).read_bytes())
        if not isinstance(record, dict) or record.pop("sha256", None) != _record_sha256(record):
            raise _DamagedError(f"{RECORD_FILE} is altered")
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"The checkpoint has format {record['format']}, this tessella reads {FORMAT}: "
                f"`{path}`. Use the version of tessella that wrote it, or a newer one."
            )
        if record["images_seen"] != _images_seen(path):
            raise _DamagedError(f"its name is not that of {record['images_seen']} images")
        size = (path / STATE_FILE).stat().st_size
        if size != record["state_size"]:
            raise _DamagedError(f"{STATE_FILE} has {size} bytes instead of {record['state_size']}")
        if sha256_file(path / STATE_FILE) != record["state_sha256"]:
            raise _DamagedError(f"{STATE_FILE} is altered")
    except PermissionError as error:
        raise CheckpointError(
            f"The checkpoint may not be read: `{error.filename}`. Make it readable and run the "
            "same command again."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
    return record


def _record_sha256(record: Mapping[str, Any]) -> str:
    """Computes the checksum of the record's values, whatever their order and spacing."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def flatten_optimizer(
    optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Takes an optimizer's state apart into named tensors and plain values.

    Any optimizer whose state is, for each parameter, a flat table of tensors and numbers:
    AdamW, SGD, Muon and most others.

    Args:
        optimizer: the optimizer; its state is shared, not copied.
        names: the name of each parameter, in the order of the parameter groups.

    Returns:
        The tensors, named `<parameter>.<key>` (`encoder.0.weight.exp_avg`), and the plain
        values: `{"state": {"<parameter>.<key>": value}, "groups": [{"lr": …}, …]}`.

    Raises:
        CheckpointError: the number of names differs, or the state holds something else.
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
        optimizer: of the same kind, with the same groups; its present state is dropped.
        names: the name of each parameter, in the order of the parameter groups.
        tensors: the flat tensors, on any device.
        scalars: the plain values.

    Raises:
        CheckpointError: the state is of other parameters or other groups; nothing is changed.
    """
    parameters = list(_named_parameters(optimizer, names))
    states: dict[str, dict[str, Any]] = {name: {} for name, _, _ in parameters}
    for full_name, value in (*tensors.items(), *scalars["state"].items()):
        name, _, key = full_name.rpartition(".")
        if name not in states:
            raise CheckpointError(
                f"The optimizer's state is of another model: it has `{full_name}`, and the model "
                f"has no parameter `{name}`. Resume with the recipe that the run began with."
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
    """Turns a setting of a parameter group into a JSON value where it has one."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    """Says whether a value goes into JSON; parameters and functions do not."""
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return isinstance(value, bool | int | float | str | None)


def _placed(key: str, value: Any, parameter: Tensor, group: Mapping[str, Any]) -> Any:
    """Copies a saved value to where the optimizer keeps it, in the layout that it had."""
    if not isinstance(value, Tensor):
        return value
    # torch counts the steps on the CPU unless the whole step runs on the device.
    on_cpu = key == "step" and not (group.get("fused") or group.get("capturable"))
    device = torch.device("cpu") if on_cpu else parameter.device
    if value.shape == parameter.shape:
        # In the parameter's own memory order, as the optimizer made it.
        return torch.empty_like(parameter, dtype=value.dtype, device=device).copy_(value)
    return value.detach().to(device, copy=True)
