"""Checkpoints: saving a training run so that it cannot be lost, and resuming it.

Both stages of training use this. A checkpoint is a folder `checkpoint-<images seen>` of two
files: `state.safetensors` (all tensors, flat names) and `checkpoint.json` (format, images seen,
plain values, size and SHA-256 of the tensors, SHA-256 of itself). Of a sharded run there are
several files of tensors (`shard_files.py`, `shard_saver.py`) in the place of one. It is written
under a temporary name, flushed to the disk and renamed; only then are older ones removed. Loading
trusts only what the checksums prove, and falls back to the checkpoint before. Nothing is pickled,
so reading a checkpoint runs no code.

Proving a checkpoint reads and hashes all of it, so it happens once: when it is loaded, or when it
is written. A save does not prove the older ones again unless their files have changed since.

The run that this project descends from was lost because the machine crashed while saving.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tessella import files
from tessella.errors import CheckpointError
from tessella.runs.record import stamp_file
from tessella.training import shard_files

CHECKPOINT_FORMAT = 1
"""Of `checkpoint.json`; goes up when an older tessella could no longer read it."""

SHARDED_FORMAT = 2
"""Of a `checkpoint.json` that lists several files of tensors."""

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


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that is whole, by its files."""

    path: Path
    images_seen: int
    info: dict[str, Any]
    is_sharded: bool

    def read_tensors(self) -> dict[str, Tensor]:
        """Reads all of its tensors into the CPU's memory."""
        if not self.is_sharded:
            return files.read_tensors(self.path / STATE_FILE)
        likes = shard_files.create_like(self.path)
        tensors = {name: torch.empty_like(like, device="cpu") for name, like in likes.items()}
        shard_files.read_into(self.path, tensors)
        return tensors


class _DamagedError(Exception):
    """A checkpoint is incomplete or altered; the text is the reason."""


@dataclass(frozen=True)
class FileProof:
    """What a file must be to be trusted."""

    size: int  # bytes
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Describes a file as it is now."""
        return cls(path.stat().st_size, files.sha256_file(path))


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
    with new_checkpoint(folder, state.images_seen, state.info, keep) as (temporary, proofs):
        files.write_tensors(temporary / STATE_FILE, state.tensors)
        proofs[STATE_FILE] = FileProof.of(temporary / STATE_FILE)
    return name_checkpoint(folder, state.images_seen)


@contextlib.contextmanager
def new_checkpoint(
    folder: Path, images_seen: int, info: Mapping[str, Any], keep: int = 2
) -> Iterator[tuple[Path, dict[str, FileProof]]]:
    """Yields a temporary folder for files of tensors, and a place to note what proves them.

    On success the checkpoint gets its record and its name, and older ones go.

    Args:
        folder: as for `save_checkpoint`.
        images_seen: progress of the run.
        info: plain JSON values.
        keep: as for `save_checkpoint`.

    Raises:
        CheckpointError: as `save_checkpoint`; nothing is left of it.
    """
    path = name_checkpoint(folder, images_seen)
    files.remove_leftovers(folder)
    good, damaged = _prove_all(folder)
    if good and _parse_name(good[0]) > images_seen:
        _log.warning("Resuming will use a later checkpoint, which exists: `%s`.", good[0])
    kept = "there is no earlier checkpoint"
    if good:
        kept = f"the last good checkpoint is kept: `{good[0]}`"
    with files.new_folder(path, what="the checkpoint", kept=kept) as temporary:
        proofs: dict[str, FileProof] = {}
        yield temporary, proofs
        is_whole = [*proofs] == [STATE_FILE]
        record = {
            "format": CHECKPOINT_FORMAT if is_whole else SHARDED_FORMAT,
            "images_seen": images_seen,
            **_describe_files(proofs),
            "info": dict(info),
        }
        record["sha256"] = _record_sha256(record)
        text = json.dumps(record, indent=2) + "\n"
        (temporary / RECORD_FILE).write_text(text, encoding="ascii")
    _proved[path] = _stamp(path)
    others = [old for old in good if old != path]
    _remove_checkpoints(old for old in (*others[keep - 1 :], *damaged) if old != path)


def _remove_checkpoints(paths: Iterable[Path]) -> None:
    for path in paths:
        _proved.pop(path, None)
        try:
            files.remove_folder(path)
        except OSError as error:
            _log.warning("Cannot remove the old checkpoint: `%s` (%s).", path, error)


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
    found = find_latest_checkpoint(folder)
    if found is None:
        return None
    return CheckpointState(found.images_seen, found.read_tensors(), found.info)


def find_latest_checkpoint(folder: Path) -> FoundCheckpoint | None:
    """Finds and proves the newest checkpoint that is whole; reads nothing of it yet.

    Args, Returns, Raises:
        As `load_latest_checkpoint`.
    """
    path, record = _find_newest(folder)
    if path is None:
        return None
    is_sharded = record["format"] == SHARDED_FORMAT
    return FoundCheckpoint(path, record["images_seen"], record["info"], is_sharded)


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
        if record["format"] not in (CHECKPOINT_FORMAT, SHARDED_FORMAT):
            raise CheckpointError(
                f"The checkpoint has format {record['format']}, this tessella reads "
                f"{CHECKPOINT_FORMAT} and {SHARDED_FORMAT}: `{path}`. Use the version of tessella "
                "that wrote it, or a newer one."
            )
        if record["images_seen"] != _parse_name(path):
            raise _DamagedError(f"its name is not that of {record['images_seen']} images")
        proofs = _list_proofs(record)
        for name, proof in proofs.items():
            size = (path / name).stat().st_size
            if size != proof.size:
                raise _DamagedError(f"{name} has {size} bytes instead of {proof.size}")
        if more := {one.name for one in path.glob("*.safetensors")} - {*proofs}:
            raise _DamagedError(f"{min(more)} is not its own")
        if _proved.get(path) != stamp:
            for name, proof in proofs.items():
                if files.sha256_file(path / name) != proof.sha256:
                    raise _DamagedError(f"{name} is altered")
            _proved[path] = stamp
    except PermissionError as error:
        raise CheckpointError(
            f"Not allowed to read the checkpoint: `{error.filename}`. Make it readable and run the "
            "same command again."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise _DamagedError(f"{type(error).__name__}: {error}") from error
    return record


def name_checkpoint(folder: Path, images_seen: int) -> Path:
    """Returns where the checkpoint of a number of images lies."""
    return folder / f"checkpoint-{images_seen:012d}"


def _describe_files(proofs: Mapping[str, FileProof]) -> dict[str, Any]:
    """Returns what a record says of a checkpoint's files; of one whole state as it always did."""
    if [*proofs] == [STATE_FILE]:
        proof = proofs[STATE_FILE]
        return {"state_size": proof.size, "state_sha256": proof.sha256}
    return {"files": {name: asdict(proof) for name, proof in sorted(proofs.items())}}


def _list_proofs(record: Mapping[str, Any]) -> dict[str, FileProof]:
    """Returns what `_describe_files` described."""
    if record["format"] == CHECKPOINT_FORMAT:
        return {STATE_FILE: FileProof(record["state_size"], record["state_sha256"])}
    return {name: FileProof(**proof) for name, proof in record["files"].items()}


def _stamp(path: Path) -> list[tuple[int, ...] | None]:
    """Describes a checkpoint's files by values of which one changes whenever a file does."""
    return [stamp_file(one) for one in sorted(path.iterdir())]


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
