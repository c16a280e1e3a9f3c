"""Writing that survives a crash, a full disk and a pulled plug, and locks between processes.

Nothing is written under its final name. The bytes go to a temporary name in the same folder, are
flushed to the disk (`fsync`), and only then take their name in one step (`rename`); last, the
folder itself is flushed, so that the new name survives too. A reader finds the old content or the
new, never half of one.

A killed process leaves at most names that begin with `.tmp-tessella-` or `.old-tessella-`; the
next run calls `remove_leftovers` on the folders that it writes to. A temporary name says which
process writes it, so that nothing is taken from one that lives.

Source:
    Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014, on why each of the
    steps is needed.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessella.errors import CheckpointError
from tessella.temporary import TEMPORARY_PREFIX, being_written, is_written, temporary_path

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from torch import Tensor


class _WriteError(CheckpointError):
    """A failed write, told apart so that an enclosing writer can report it in its own name."""


REPLACED_PREFIX = ".old-tessella-"
"""Begins the name of a good folder while it is replaced, where the system cannot swap names."""

_NO_SPACE = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


def write_bytes(path: Path, data: bytes, *, what: str = "the file") -> None:
    """Writes bytes so that the path holds either its old content or all of the new.

    Args:
        path: the file; its folder is made where missing.
        data: the content.
        what: what the file is, for the message: `the recipe`.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed.
    """
    with new_file(path, what=what) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, what: str = "the file") -> None:
    """Writes text as UTF-8, as safely as `write_bytes`.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed.
    """
    write_bytes(path, text.encode("utf-8"), what=what)


def write_json(path: Path, value: Any, *, what: str = "the file") -> None:
    """Writes a plain value as indented JSON, as safely as `write_bytes`.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    # File names that are not UTF-8 reach Python as lone surrogates, and become JSON's own escapes.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"), what=what)


def write_tensors(
    path: Path,
    tensors: Mapping[str, "Tensor"],
    metadata: Mapping[str, str] | None = None,
    *,
    what: str = "the file",
) -> None:
    """Writes named tensors as safetensors, as safely as `write_bytes`.

    Args:
        path: the file, by convention ending in `.safetensors`.
        tensors: any shape, stride and device, and any dtype that safetensors knows. Tensors that
            share memory are written separately.
        metadata: text for the file's header.
        what: what the file is, for the message.

    Raises:
        CheckpointError: the disk is full, writing there is not allowed, or safetensors does not
            know the kind of a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if "__metadata__" in tensors:
        raise CheckpointError("A tensor cannot have the name `__metadata__`: choose another name.")
    try:
        with new_file(path, what=what) as temporary:
            try:
                save_file(_plain_tensors(tensors), temporary, dict(metadata or {}) or None)
                # The library makes it private; a model folder is meant to be shared.
                temporary.chmod(0o644)
            except SafetensorError as error:
                # The library hides the system's error in its text: "(os error 28)".
                number = re.search(r"os error (\d+)", str(error))
                if number is None:
                    raise
                code = int(number[1])
                raise OSError(code, os.strerror(code)) from error
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"Cannot write {what}: `{path}`; safetensors does not take one of its tensors: "
            f"{error}. Use dense tensors of a common dtype."
        ) from error


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """Reads all tensors of a safetensors file into memory of their own, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            # Cloned: a view of the file is neither aligned nor safe once the file is gone.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"Cannot read the tensors: `{path}`; {error}. "
            "The file is missing or damaged: copy or train it again."
        ) from error


def _plain_tensors(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Gives each tensor a contiguous storage on the CPU that no other tensor shares."""
    plain = {}
    seen = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


@contextlib.contextmanager
def new_file(path: Path, *, what: str = "the file") -> Iterator[Path]:
    """Yields a temporary path to write to; on success it is flushed and renamed to `path`.

    The temporary path has the same suffix, by which a library may choose the format.

    Args:
        path: the file that it becomes; its folder is made where missing.
        what: what the file is, for the message.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed; the path is unchanged
            and nothing half-written is left.
    """
    with _building(path, what) as temporary:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path, *, what: str = "the folder", kept: str | None = None) -> Iterator[Path]:
    """Yields a temporary folder to fill; on success it is flushed and renamed to `path`.

    An existing folder of that name is replaced as a whole, and only once the new one is complete
    and on the disk. On Linux the two swap names in one step; elsewhere the old one is renamed for
    a moment, and `remove_leftovers` brings it back after a crash.

    Args:
        path: the folder that it becomes; the folders above it are made where missing.
        what: what the folder is, for the message: `the model`.
        kept: what stays intact if this fails, for the message; by default worked out.

    Raises:
        CheckpointError: the disk is full, or writing there is not allowed; the path is unchanged
            and nothing half-written is left.
    """
    with _building(path, what, kept) as temporary:
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file of that name is in the way")
        temporary.mkdir()
        yield temporary
        for inner in temporary.rglob("*"):
            if not inner.is_symlink():
                _flush_folder(inner) if inner.is_dir() else _flush(inner)
        _flush_folder(temporary)
        _put_in_place(temporary, path)


def remove_folder(path: Path) -> None:
    """Removes a file or folder; after a crash it is either whole or gone."""
    temporary = temporary_path(path)
    path.rename(temporary)
    _flush_folder(path.parent)
    _remove(temporary)


def remove_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Removes what a killed process left half-written directly in a folder.

    Call it at the start of a run, on each folder that only the run writes to. A good folder that
    was being replaced gets its name back. What a living process writes stays.

    Args:
        folder: it need not be there.
        deep: whether the folders in it are cleared too.

    Raises:
        CheckpointError: the folder cannot be read, or a folder in it cannot be renamed.
    """
    if not folder.is_dir():
        return
    with explained(folder, "the folder"):
        for path in list(folder.iterdir()):
            if path.name.startswith(TEMPORARY_PREFIX):
                if not is_written(path):
                    _remove(path)
            elif path.name.startswith(REPLACED_PREFIX):
                _settle(path, path.with_name(path.name.removeprefix(REPLACED_PREFIX)))
            elif deep and path.is_dir() and not path.is_symlink():
                remove_leftovers(path, deep=True)


def sha256_file(path: Path) -> str:
    """Computes the SHA-256 of a file, as 64 hexadecimal digits; memory stays flat."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(tensors: Mapping[str, "Tensor"]) -> str:
    """Computes the SHA-256 of named tensors, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def find_cache() -> Path:
    """Finds the user's cache: `tessella` in `XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tessella"


def cached(
    path: Path, made_from: Mapping[str, Any], build: Callable[[Path], object], *, what: str
) -> None:
    """Builds a file, unless the one that is there was built from the same things.

    Args:
        path: the file; a `.json` beside it notes what it was made from.
        made_from: plain JSON values that identify everything the content depends on.
        build: writes the content to the path that it is given.
        what: what the file is, for the message.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if is_cached(path, made_from):
        return
    note = path.with_suffix(".json")
    # The note goes first and comes last: a file killed in between has none.
    with new_file(path, what=what) as temporary:
        note.unlink(missing_ok=True)
        build(temporary)
    write_json(note, made_from, what=what)


def is_cached(path: Path, made_from: Mapping[str, Any]) -> bool:
    """Says whether a file is there that `cached` has built from the same things."""
    try:
        note = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return False  # without a readable note the file is not to be trusted
    return path.exists() and bool(note == made_from)


def lock(path: Path, *, wait_seconds: float | None = None) -> "BaseFileLock":
    """Returns a context manager that lets in one process at a time.

    The system releases the lock when its holder dies: a crash never blocks anyone.

    Args:
        path: the lock file, in an existing folder. It is made where missing, and may stay behind.
        wait_seconds: how long to wait for another holder; without a limit by default.

    Raises:
        TimeoutError: on entering, if another process still holds the lock.
        OSError: on entering, if the file cannot be opened or the file system has no locks.
    """
    from filelock import FileLock

    timeout = -1 if wait_seconds is None else wait_seconds
    return FileLock(path, timeout=timeout, fallback_to_soft=False)


def is_locked(path: Path, *, wait_seconds: float = 0) -> bool | None:
    """Returns whether a process holds the lock; None where only someone else may open it."""
    if not path.exists():
        return False
    try:
        with lock(path, wait_seconds=wait_seconds):
            return False
    except TimeoutError:
        return True
    except OSError:
        return None  # not ours to open, or a file system without locks


@contextlib.contextmanager
def _building(path: Path, what: str, kept: str | None = None) -> Iterator[Path]:
    """Yields a free temporary path; if anything fails, nothing is left there and all is as before.

    Raises:
        CheckpointError: the system's error, as `explained` puts it.
    """
    with explained(path, what, kept):
        path.parent.mkdir(parents=True, exist_ok=True)
        with being_written(temporary_path(path)) as temporary:
            try:
                yield temporary
            except BaseException:
                _remove(temporary)
                _settle(_aside(path), path)
                raise


@contextlib.contextmanager
def explained(path: Path, what: str, kept: str | None = None) -> Iterator[None]:
    """Turns the system's errors into one message that says what stays intact.

    Raises:
        CheckpointError: in the place of an `OSError`.
    """
    try:
        yield
    except (OSError, _WriteError) as error:
        # A file written inside a new folder fails in the name of the folder.
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        if kept is None:
            kept = (
                "what was there before is unchanged" if path.exists() else "nothing is left of it"
            )
        why, advice = str(cause), "put that right"
        if cause.errno is not None and cause.errno in _NO_SPACE | _NOT_ALLOWED:
            why = os.strerror(cause.errno)
            advice = "free some space" if cause.errno in _NO_SPACE else "make the folder writable"
        raise _WriteError(
            f"Cannot write {what}: `{path}` ({why}); {kept}; {advice} and run the same command "
            "again."
        ) from cause


def _aside(path: Path) -> Path:
    """Returns the name of a folder while it is replaced."""
    return path.with_name(REPLACED_PREFIX + path.name)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Gives a complete folder its name; a folder that had it is removed."""
    old = temporary  # after a swap the old folder has this name
    if not path.exists():
        temporary.rename(path)
    elif not _swap(temporary, path):
        old = _aside(path)
        _remove(old)
        path.rename(old)
        temporary.rename(path)
    _flush_folder(path.parent)
    _remove(old)


def _swap(first: Path, second: Path) -> bool:
    """Swaps two names in one step where the system can; returns whether it did."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
    status: int = renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange)
    return status == 0


def _settle(aside: Path, path: Path) -> None:
    """Settles an interrupted replacement: keeps the new folder if it is there, else the old."""
    if not os.path.lexists(aside):
        return
    if path.exists():
        _remove(aside)
    else:
        aside.rename(path)


def _remove(path: Path) -> None:
    """Removes a file, link or folder; what cannot be removed now is left for later."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    # Windows flushes only files open for writing; elsewhere the file may be read-only.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(path: Path) -> None:
    """Waits until the names in a folder are on the disk, where the system can do that."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    try:
        _flush(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
