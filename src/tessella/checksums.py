"""SHA-256 of every file of a model folder, in `SHA256SUMS`, proved when a file is read.

    64 hexadecimal digits, two blanks, the file's name        as `sha256sum -c SHA256SUMS` reads it

It says that the files are those that were written together: not cut off, not flipped by a bad disk,
not mixed with those of another model. It does not say who wrote them.

While files are replaced one by one, each has a line for what it was and one for what it becomes, so
that at every moment what is there is right. A line of zeros says that it may be missing.
"""

import hashlib
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tessella.errors import CheckpointError
from tessella.files import sha256_file, write_bytes
from tessella.hub import find_hub_repository

SUMS_FILE = "SHA256SUMS"

_MISSING = "0" * 64
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MAX_SUMS_BYTES = 1_000_000
_ATTEMPTS = 3  # at reading a file that is replaced meanwhile

Sums = Mapping[str, Set[str]]
"""By a file's name, what it may be: mostly one sum."""


def write_sums(folder: Path) -> None:
    """Writes the sums of all files of a folder, without hidden ones and those of other programs.

    Raises:
        CheckpointError: they cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    shown = [
        name
        for name in names
        if "\n" not in str(name) and not any(part.startswith(".") for part in name.parts)
    ]
    sums = {name.as_posix(): {sha256_file(folder / name)} for name in shown}
    sums.pop(SUMS_FILE, None)
    _write(folder, sums)


def expect_change(folder: Path, becoming: Mapping[str, Path | None]) -> None:
    """Lets files be replaced one by one: until `settle_sums` they may be as before, or new.

    Nothing is done in a folder without sums.

    Args:
        folder: the files are in.
        becoming: by name, the new content, still elsewhere; None if the file is removed.

    Raises:
        CheckpointError: the sums are damaged or cannot be written.
    """
    sums = read_sums(folder)
    if sums is None:
        return
    changing = {
        name: {*sums.get(name, {_MISSING}), _MISSING if path is None else sha256_file(path)}
        for name, path in becoming.items()
    }
    _write(folder, {**sums, **changing})


def settle_sums(folder: Path, names: Iterable[str]) -> None:
    """Writes the sums of files as they are now, after a change.

    Nothing is done in a folder without sums.

    Raises:
        CheckpointError: the sums are damaged or cannot be written.
    """
    sums = read_sums(folder)
    if sums is None:
        return
    settled = dict(sums)
    for name in names:
        settled.pop(name, None)
        if (folder / name).exists():
            settled[name] = {sha256_file(folder / name)}
    if settled != sums:
        _write(folder, settled)


def settle_interrupted(folder: Path) -> None:
    """Ends a change that was broken off: of what a file may be, keeps what it is.

    A file that is none of it stays damaged. Nothing is done in a folder without sums.

    Raises:
        CheckpointError: the sums are damaged or cannot be written.
    """
    sums = read_sums(folder) or {}
    names = []
    for name in (name for name, expected in sums.items() if len(expected) > 1):
        path = folder / name
        if (sha256_file(path) if path.exists() else _MISSING) in sums[name]:
            names.append(name)
    settle_sums(folder, names)


def read_sums(folder: Path) -> Sums | None:
    """Reads the sums of a folder; None if it has none: older ones do not.

    Raises:
        CheckpointError: they are damaged.
    """
    path = folder / SUMS_FILE
    if not path.exists():
        return None
    check_own(path)
    try:
        if path.stat().st_size > _MAX_SUMS_BYTES:
            raise ValueError
        lines = path.read_bytes().decode(errors="surrogateescape").split("\n")
        found = [_LINE.fullmatch(line) for line in lines if line]
        sums: defaultdict[str, set[str]] = defaultdict(set)
        for line in found:
            if line is None:
                raise ValueError
            sums[line[2]].add(line[1])
    except (OSError, ValueError):
        raise CheckpointError(
            f"The checksums are damaged: `{path}`. Lines of `sha256sum` were expected. Copy the "
            "whole model folder again."
        ) from None
    return sums


def read_file(path: Path, *, most_bytes: int | None = None) -> bytes:
    """Reads a file of a model folder, and proves it if the folder has sums.

    Args:
        path: of the file.
        most_bytes: a larger one is not what it says it is.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read.
        CheckpointError: it is not the file that was written, not in the folder, or too large.
    """

    def read() -> bytes:
        if most_bytes is not None and (size := path.stat().st_size) > most_bytes:
            raise CheckpointError(
                f"The file is too large: `{path}` has {size:,} bytes; at most {most_bytes:,} were "
                "expected. Copy the whole model folder again."
            )
        return path.read_bytes()

    for attempt in range(_ATTEMPTS):
        check_own(path)
        content = read()
        if _is_proved(path, content, is_last=attempt + 1 == _ATTEMPTS):
            break
    return content


def map_file(path: Path) -> npt.NDArray[np.uint8]:
    """Maps a file of a model folder as (N,) uint8, read only, and proves it as `read_file` does.

    Raises:
        OSError: it cannot be read.
        CheckpointError: as `read_file`.
    """
    for attempt in range(_ATTEMPTS):
        check_own(path)
        content = map_bytes(path)
        if _is_proved(path, content, is_last=attempt + 1 == _ATTEMPTS):
            break
    return content


def map_bytes(path: Path) -> npt.NDArray[np.uint8]:
    """Maps any file as (N,) uint8, read only.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.zeros(0, np.uint8)  # an empty file cannot be mapped
        # As a plain array: every slice of a memmap carries its overhead along.
        return np.asarray(np.memmap(file, np.uint8, "r"))


def prove(folder: Path, name: str) -> None:
    """Proves a file of a folder, if the folder has sums that name it.

    Args:
        folder: of the model.
        name: of the file in it, with slashes.

    Raises:
        CheckpointError: it is not the file that was written, or not in the folder.
        OSError: it cannot be read.
    """
    check_own(folder / name)
    expected = (read_sums(folder) or {}).get(name)
    if expected and (got := sha256_file(folder / name)) not in expected:
        raise _mismatch(folder / name, got, expected)


def is_there(path: Path) -> bool:
    """Returns whether a file, which not every model folder has, is there.

    Raises:
        CheckpointError: it is not, but the folder's sums name it.
    """
    if path.exists():
        return True
    sums = read_sums(path.parent) or {}
    if _MISSING not in sums.get(path.name, {_MISSING}) and not path.exists():
        raise CheckpointError(
            f"A file of the model is missing: `{path}`, which {SUMS_FILE} names. Copy the whole "
            "model folder again."
        )
    return False


def check_own(path: Path) -> None:
    """Refuses what is not a plain file in its folder; what is not there passes.

    The hub's cache keeps files beside its snapshots and links them; those links are followed.

    Raises:
        CheckpointError: it is a folder, a device or a pipe, or a link that leads elsewhere.
    """
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        check_link(path)
        target = path.resolve()
        mode = target.stat().st_mode if target.exists() else stat.S_IFREG
    if not stat.S_ISREG(mode):
        raise CheckpointError(
            f"Something in the model folder is no plain file: `{path}`. Copy the whole model "
            "folder again."
        )


def check_link(path: Path) -> None:
    """Refuses a link, to a file or a folder, that leads out of the folder that it is in.

    Raises:
        CheckpointError: it does. Links of the hub's cache are followed, as by `check_own`.
    """
    folder = path.parent.resolve()
    if not path.resolve().is_relative_to(find_hub_repository(folder) or folder):
        raise CheckpointError(
            f"A file of a model folder is a link that leads out of it: `{path}`. Plain files "
            "were expected. If the link is yours, put the file itself there."
        )


def _is_proved(path: Path, content: bytes | npt.NDArray[np.uint8], *, is_last: bool) -> bool:
    """Proves a file's content; False if it was replaced meanwhile and must be read again.

    Raises:
        CheckpointError: it is not what the folder's sums say.
    """
    sums = read_sums(path.parent)
    if sums is None:
        return True
    expected = sums.get(path.name, ())
    got = hashlib.sha256(content if isinstance(content, bytes) else content.data).hexdigest()
    if got in expected:
        return True
    if not is_last and (read_sums(path.parent) != sums or sha256_file(path) != got):
        return False
    raise _mismatch(path, got, expected)


def _mismatch(path: Path, got: str, expected: Iterable[str]) -> CheckpointError:
    wanted = " or ".join(f"`{one}`" for one in sorted(expected) if one != _MISSING)
    advice = (
        f"Copy the whole model folder again; if the change is yours, remove {SUMS_FILE}; "
        "`tessella export` then writes a copy with new sums."
    )
    if find_hub_repository(path.parent):
        advice = (
            f"Remove `{path.resolve()}`, and it is fetched again. If it is the same then, tell "
            "whoever has pushed the model."
        )
    return CheckpointError(
        f"A file of the model is damaged or of another one: `{path}` has the SHA-256 `{got}`; "
        f"{SUMS_FILE} says {wanted or 'nothing of it'}. {advice}"
    )


def _write(folder: Path, sums: Sums) -> None:
    lines = [f"{one}  {name}\n" for name in sorted(sums) for one in sorted(sums[name])]
    # File names that are not UTF-8 reach Python as lone surrogates, and leave it as they were.
    content = "".join(lines).encode(errors="surrogateescape")
    write_bytes(folder / SUMS_FILE, content, what="the checksums")
