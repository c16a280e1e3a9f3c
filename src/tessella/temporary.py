"""Temporary names, which say what process writes there.

    .tmp-tessella-HOST-PROCESS-RANDOM.suffix

So what a dead process left half-written is told from what a living one is writing.
"""

import contextlib
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-tessella-"
"""Begins the names of unfinished files and folders; after a crash they can be removed."""

_OWNED = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9a-f]{{8}})-(\d+)-")
_LIVE: set[Path] = set()  # what this very process writes
_SECONDS_ELSEWHERE = 7 * 24 * 3600.0  # a process of another computer cannot be asked
_CLOCK_SECONDS = 60.0  # by which a file server's clock may differ


def temporary_path(path: Path) -> Path:
    """Chooses a free temporary name beside a path, with the same suffix."""
    owner = f"{name_host()}-{os.getpid()}"
    return path.with_name(f"{TEMPORARY_PREFIX}{owner}-{secrets.token_hex(6)}{path.suffix}")


@contextlib.contextmanager
def being_written(path: Path) -> Iterator[Path]:
    """Notes that this process writes a temporary path, until it is left."""
    known = path.absolute()
    _LIVE.add(known)
    try:
        yield path
    finally:
        _LIVE.discard(known)


def is_written(path: Path) -> bool:
    """Says whether the process that a temporary name tells of may still write it."""
    owner = _OWNED.match(path.name)
    if owner is None:
        return False  # of a version that did not tell
    try:
        modified = path.stat().st_mtime
    except OSError:
        return False
    if owner[1] != name_host():
        return time.time() - modified < _SECONDS_ELSEWHERE
    number = int(owner[2])
    if number == os.getpid():  # a container's processes have the same numbers when it starts again
        return path.absolute() in _LIVE
    import psutil

    try:
        process = psutil.Process(number)
        # A process that began later has got the number of one that is dead.
        is_later = process.create_time() > modified + _CLOCK_SECONDS
        return not is_later and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def name_host() -> str:
    """Returns eight digits that tell this computer from others."""
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
