"""Lets what a process does to files fail: the n-th write, flush, rename or creation.

A shim over Python's `open`, `os` and numpy's and safetensors' writers, for processes that end
afterwards: nothing is put back.
"""

import builtins
import errno
import functools
import io
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from safetensors import SafetensorError

from tessella import files

ANY = "any"
KINDS = ("write", "sync", "rename", "create")
"""What may fail: writing and allocating; `fsync` and `msync`; renames and links; opening to write
and making folders."""


@dataclass
class Injector:
    """Counts what is done to files below a folder, and lets one of it fail."""

    root: Path  # files elsewhere don't count
    kind: str = ""  # of KINDS; none: nothing fails
    number: int = 0  # of that kind, from 1
    code: int = errno.EIO
    is_lasting: bool = False  # whether everything after it fails too, as on a full disk
    act: Callable[[], object] | None = None  # is done instead, and nothing fails
    notes: Path | None = None  # where to write down what was counted, at the end
    counts: Counter[str] = field(default_factory=Counter)
    has_failed: bool = False
    finished: dict[str, int] = field(default_factory=dict)
    """By folder of checkpoints, the images of the newest that has got its name."""

    def begin(self, kind: str, path: object = None) -> None:
        """Counts an operation.

        Raises:
            OSError: it is the one that fails.
        """
        self.counts[kind] += 1
        self.counts[ANY] += 1
        is_it = self.kind in (kind, ANY) and self.counts[self.kind] == self.number
        if is_it and self.act is not None:
            self.has_failed = True
            self._note()  # it may end here
            self.act()
        elif is_it or (self.is_lasting and self.has_failed):
            self.has_failed = True
            raise OSError(self.code, os.strerror(self.code), None if path is None else str(path))

    def holds(self, path: object) -> bool:
        """Says whether a path is below the folder."""
        if isinstance(path, int):
            return False
        try:
            known = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]  # noqa: PTH100
        except TypeError:
            return False
        return known.startswith(f"{self.root}{os.sep}")

    def _note(self) -> None:
        """Writes down what was counted, and which checkpoints were finished."""
        if self.notes is None:
            return
        values = {
            "counts": dict(self.counts),
            "has_failed": self.has_failed,
            "finished": self.finished,
        }
        self.notes.write_text(json.dumps(values), encoding="utf-8")

    def install(self) -> None:
        """Puts the shim in place, for the rest of the process."""
        end = os._exit

        def note_and_end(status: int) -> None:
            self._note()
            end(status)

        os._exit = note_and_end  # type: ignore[assignment]
        self._install_open()
        for name in ("rename", "replace", "link"):
            self._wrap(os, name, "rename", which=1)
        self._wrap(os, "mkdir", "create")
        self._wrap(os, "fsync", "sync", which=None)
        for name in ("posix_fallocate", "sendfile"):
            self._wrap(os, name, "write", which=None)
        self._wrap(np.memmap, "flush", "sync", which=None)
        self._install_swap()
        self._install_safetensors()

    def _wrap(self, owner: Any, name: str, kind: str, which: int | None = 0) -> None:
        """Counts calls of a function by the path that it is given, or all of them."""
        if not hasattr(owner, name):
            return
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def counted(*args: Any, **options: Any) -> Any:
            if which is None or self.holds(args[which]):
                self.begin(kind, None if which is None else args[which])
            result = inner(*args, **options)
            if which == 1:
                self._note_checkpoint(Path(args[1]))
            return result

        setattr(owner, name, counted)

    def _note_checkpoint(self, path: Path) -> None:
        """Notes that a checkpoint has got its name: from now on it must not be lost."""
        if path.parent.name == "checkpoints" and path.name.startswith("checkpoint-"):
            self.finished[str(path.parent)] = int(path.name.rpartition("-")[2])

    def _install_open(self) -> None:
        injector, real_open, real_os_open = self, io.open, os.open

        class Raw(io.FileIO):
            """A file whose writes count."""

            def write(self, data: Any) -> int:
                try:
                    injector.begin("write", self.name)
                except OSError:
                    super().write(memoryview(data)[: len(data) // 2])  # as far as there was space
                    raise
                return super().write(data)

        def open_counted(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Callable[[str, int], int] | None = None,
        ) -> Any:
            if not set(mode) & set("wax+") or not injector.holds(file):
                return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if opener is None:
                injector.begin("create", file)
            raw = Raw(file, mode.replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
            kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
            buffer = kind(raw, size)
            if "b" in mode:
                return buffer
            return io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)

        def os_open_counted(path: Any, flags: int, *args: Any, **options: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and injector.holds(path):
                injector.begin("create", path)
            return real_os_open(path, flags, *args, **options)

        builtins.open = io.open = open_counted
        os.open = os_open_counted

    def _install_swap(self) -> None:
        swap = files._swap

        def counted(first: Path, second: Path) -> bool:
            try:
                self.begin("rename", second)
            except OSError:
                return False  # as the system would say; then the folder is renamed in two steps
            self._note_checkpoint(second)
            return swap(first, second)

        files._swap = counted

    def _install_safetensors(self) -> None:
        save: Callable[..., None] = safetensors.torch.save_file

        def counted(tensors: Any, filename: Any, metadata: Any = None) -> None:
            path = filename
            try:
                self.begin("create", path)
                self.begin("write", path)
            except OSError as error:
                text = f"Error while serializing: I/O error: {error.strerror}"
                raise SafetensorError(f"{text} (os error {error.errno})") from None
            save(tensors, path, metadata)

        safetensors.torch.save_file = counted
