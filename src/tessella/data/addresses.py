"""Addresses: files with many pictures, here or elsewhere, as local files to read from.

    shard-{000..003}.tar, shards/*.tar   several names in one
    https:, s3:, gs:, hf:, …             any file system that fsspec knows
    pipe:COMMAND                         what a command writes (webdataset's)
    .gz, .bz2, .xz, .zst                 unpacked

What is not a plain local file is copied to a temporary one, which is deleted as soon as none of
its pictures is needed any more. So every shard can be read in any order, and is known to be
complete before anything of it is used.
"""

import bz2
import contextlib
import glob
import gzip
import lzma
import math
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

from tessella.errors import DataError, first_line, needs_extra

_PIPE = "pipe:"
_MAX_NAMES = 1_000_000  # of one pattern in braces
_MAX_CHARACTERS = 200_000_000  # of all these names
_MAX_DIGITS = 100  # of a number in braces
_SHOWN_CHARACTERS = 200  # of a pattern, in errors
_THREADS = 16  # ask for sizes and dates at the same time; each waits for a server

# What of a remote file's facts changes with its contents; each file system has its own.
_FACTS = (
    "ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "last_modified",
    "mtime", "modified", "updated", "created", "md5Hash", "generation", "version", "lfs",
    "blob_id",
)  # fmt: skip

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True)
class LocalFile:
    """A file that can be read by its path."""

    path: Path
    name: str  # as the user wrote it
    owner: object = None  # deletes a temporary file when it is deleted itself


class _Temporary:
    """A temporary folder that goes when nothing refers to it any more, at the latest at exit."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tessella-"))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def is_address(argument: str) -> bool:
    """Says whether an argument names something elsewhere, or a command."""
    return argument.startswith(_PIPE) or re.match(r"[a-z][a-z0-9+.-]*:(//|:)", argument) is not None


def is_command(name: str) -> bool:
    """Says whether a name is a command, of whose output nothing is known before it is run."""
    return name.startswith(_PIPE)


def is_pattern(argument: str) -> bool:
    """Says whether an argument names several files with braces or wildcards."""
    return not Path(argument).exists() and re.search(r"\{.*\}|[*?\[]", argument) is not None


def expand_braces(pattern: str) -> list[str]:
    """Expands `{000..003}` and `{a,b}` as the shell and webdataset do.

    Raises:
        DataError: there are far too many names.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[Sequence[str]] = []
    for index, part in enumerate(parts):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part)
        if index % 2 == 0:
            choices.append([part])
        elif numbers is not None:
            choices.append(_count(pattern, *numbers.groups()))
        else:
            choices.append(part.split(",") if "," in part else ["{" + part + "}"])
        count = math.prod(map(len, choices))
        if count > _MAX_NAMES or count * len(pattern) > _MAX_CHARACTERS:
            raise _too_many_names(pattern)
    return ["".join(chosen) for chosen in product(*choices)]


def _count(pattern: str, first: str, last: str) -> list[str]:
    """Counts from one number to another, with the zeros in front that either has."""
    if max(len(first), len(last)) > _MAX_DIGITS:
        raise _too_many_names(pattern)
    low, high = int(first), int(last)
    if abs(high - low) >= _MAX_NAMES:
        raise _too_many_names(pattern)
    has_zeros = any(len(number) > 1 and number.startswith("0") for number in (first, last))
    width = max(len(first), len(last)) if has_zeros else 0
    step = 1 if low <= high else -1
    return [f"{number:0{width}}" for number in range(low, high + step, step)]


def _too_many_names(pattern: str) -> DataError:
    shown = pattern if len(pattern) <= _SHOWN_CHARACTERS else f"{pattern[:_SHOWN_CHARACTERS]}…"
    return DataError(
        f"The braces stand for too many names: `{shown}`. At most {_MAX_NAMES:,} are read."
    )


def expand(argument: str) -> list[str]:
    """Expands braces and wildcards, and the folders of remote file systems, to names of files.

    Raises:
        DataError: nothing matches a wildcard, or a file system cannot be asked.
    """
    found = []
    for name in [argument] if argument.startswith(_PIPE) else expand_braces(argument):
        if name.startswith(_PIPE):
            found += [_PIPE + command for command in expand_braces(name.removeprefix(_PIPE))]
        elif is_address(name):
            found += _expand_remote(name)
        elif re.search(r"[*?\[]", name) and not Path(name).exists():
            matches = sorted(glob.glob(str(Path(name).expanduser()), recursive=True))  # noqa: PTH207
            if not matches:
                raise DataError(f"No file matches: `{name}`. Check the folder and the pattern.")
            found += matches
        else:
            found.append(str(Path(name).expanduser()))
    return found


def _expand_remote(address: str) -> list[str]:
    """Lists what is under a remote folder or matches a wildcard; a file stays what it is."""
    if address.startswith(("http:", "https:")):
        return [address]  # web servers list nothing, and ? is part of an address
    with _reaching(address):
        files, path = _file_system(address)
        if re.search(r"[*?\[]", path):
            names = files.glob(path)
        elif files.isdir(path):
            names = files.find(path)
        else:
            return [address]
    if not names:
        raise DataError(f"Nothing is at the address: `{address}`. Check it.")
    return sorted(files.unstrip_protocol(name) for name in names)


def fingerprint_addresses(addresses: Sequence[str]) -> list[str]:
    """Returns for each address what changes when its contents do, and its size in bytes.

    Of a command only its words are known, and the files among them.

    Raises:
        DataError: an address cannot be reached.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="tessella-address") as threads:
        return list(threads.map(_fingerprint, addresses))


def _fingerprint(address: str) -> str:
    if address.startswith(_PIPE):
        return f"{address}\0{_facts_of_words(address.removeprefix(_PIPE))}"
    with _reaching(address):
        files, path = _file_system(address)
        facts = files.info(path)
    known = {name: str(facts[name]) for name in _FACTS if facts.get(name) is not None}
    return f"{address}\0{facts.get('size')}\0{known}"


def _facts_of_words(command: str) -> list[tuple[str, int, int]]:
    """Returns size and date of the files that a command names."""
    try:
        words = [Path(word) for word in shlex.split(command)]
        found = [(str(word), word.stat()) for word in words if word.is_file()]
    except (ValueError, OSError):
        return []
    return [(word, status.st_size, status.st_mtime_ns) for word, status in found]


def open_locally(name: str) -> LocalFile:
    """Makes a file, an address or a command's output a plain local file.

    Args:
        name: a path, an address or `pipe:COMMAND`.

    Raises:
        DataError: it cannot be read, reached or unpacked.
    """
    local = LocalFile(Path(name), name)
    if is_address(name):
        temporary = _Temporary()
        local = LocalFile(temporary.folder / "file", name, temporary)
        if name.startswith(_PIPE):
            _run(name, local.path)
        else:
            _fetch(name, local.path)
    try:
        with local.path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"Cannot read the file: `{name}`. {error.strerror}.") from None
    compression = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    return local if compression is None else _unpack(local, compression)


def read_beside(name: str, others: Sequence[str]) -> tuple[str, bytes] | None:
    """Reads the first of some small files that lies in the same folder as a file, if any does."""
    if name.startswith(_PIPE):
        return None
    folder = name.rpartition("/")[0] if is_address(name) else str(Path(name).parent)
    for other in others:
        path = f"{folder}/{other}"
        with _reaching(path):
            if not is_address(path):
                if Path(path).is_file():
                    return path, Path(path).read_bytes()
                continue
            files, remote = _file_system(path)
            if files.exists(remote):
                return path, files.cat_file(remote)
    return None


def _fetch(address: str, path: Path) -> None:
    """Copies a remote file."""
    with _reaching(address):
        files, remote = _file_system(address)
        size = files.info(remote).get("size")
        files.get_file(remote, str(path))
    copied = path.stat().st_size
    if size is not None and copied != size:
        raise DataError(
            f"The file came only in part: `{address}`, {copied:,} of {size:,} bytes. Try again."
        )


def _run(name: str, path: Path) -> None:
    """Keeps what a command writes."""
    command = name.removeprefix(_PIPE).strip()
    with path.open("wb") as file:
        # A shell runs it, as webdataset does: whoever writes DATA may run commands anyway.
        done = subprocess.run(command, shell=True, stdout=file, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DataError(
            f"The command failed with status {done.returncode}: `{name}`. "
            f"{' '.join(said) or 'It says nothing'}. Try it in a shell."
        )


def _unpack(local: LocalFile, compression: str) -> LocalFile:
    """Unpacks a compressed file."""
    temporary = _Temporary()
    path = temporary.folder / "file"
    try:
        with _open_compressed(local, compression) as packed, path.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except DataError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(
                f"Cannot unpack: `{local.name}` into `{temporary.folder}`. {error.strerror}. "
                "Free some space, or let TMPDIR name a folder with more."
            ) from error
        raise DataError(
            f"The file is cut off or broken: `{local.name}`, compressed with {compression} "
            f"({first_line(error)}). Copy or download it again, or leave it out."
        ) from error
    return LocalFile(path, local.name, temporary)


def _open_compressed(local: LocalFile, compression: str) -> Any:
    if compression == "gzip":
        return gzip.open(local.path, "rb")
    if compression == "bzip2":
        return bz2.open(local.path, "rb")
    if compression == "xz":
        return lzma.open(local.path, "rb")
    with needs_extra("shards", f"A .zst file, `{local.name}`,", DataError):
        import zstandard
    return zstandard.ZstdDecompressor().stream_reader(
        local.path.open("rb"), read_across_frames=True
    )


def _file_system(address: str) -> tuple[Any, str]:
    """Returns fsspec's file system of an address, and the path in it."""
    with needs_extra("shards", f"The address `{address}`", DataError):
        import fsspec
        from fsspec.registry import known_implementations
    protocol = re.split(r":(?:/|:)", address, maxsplit=1)[0]
    try:
        files, path = fsspec.url_to_fs(address)
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("err", str(error))
        raise DataError(
            f"The address needs another package: `{address}`. {package.rstrip('.')}, "
            f"with pip install."
        ) from None
    except ValueError as error:
        raise DataError(
            f"Not an address that can be read: `{address}`. {first_line(error)}."
        ) from None
    return files, path


@contextlib.contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Says why an address cannot be read; each file system raises errors of its own."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = "It is not there" if isinstance(error, FileNotFoundError) else first_line(error)
        if isinstance(error, OSError) and error.errno and error.strerror:
            reason = error.strerror
        raise DataError(
            f"Cannot read: `{address}`. {reason}. Check the address, the network and your rights."
        ) from error


def file_name_of(name: str) -> str:
    """Returns the last part of a path or address, without a query."""
    if name.startswith(_PIPE):
        return name
    if is_address(name):
        return PurePosixPath(re.split(r"[?#]", name)[0]).name
    return os.path.basename(name)  # noqa: PTH119
