"""The examples of a served model: what requests look at, from files that may change meanwhile.

The files of the memory are looked at before each request is planned (two calls of `stat`), and are
mapped anew once they have changed, so that examples which were added or taken away count from the
next request on. Whatever is being painted keeps the old files: they are replaced, not written into.
"""

import logging
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from tessella.errors import CheckpointError
from tessella.model.examples import ExampleFinder
from tessella.model.folder import load_memory
from tessella.model.pipeline import TextToImage
from tessella.retrieval import Example, ExampleMemory
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE
from tessella.serving.api_errors import ApiError

_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int] | None, ...]
"""Of each file: when it was written, its size, its number on the disk; None: it is not there."""


class ServedExamples:
    """Finds the examples of requests. Any thread may ask.

    Args:
        folder: of the model; asked again and again.
        model: that looks at them.

    Raises:
        CheckpointError: the memory is damaged, or of another image tokenizer.
    """

    def __init__(self, folder: Path, model: TextToImage) -> None:
        self.most = model.config.neighbors
        self._folder, self._model = folder, model
        self._lock = threading.Lock()
        self._stamp = self._read_stamp()
        self._finder = ExampleFinder(self._open(), self.most)

    def __len__(self) -> int:
        """Returns the number of examples now."""
        memory = self.memory
        return 0 if memory is None else len(memory)

    @property
    def memory(self) -> ExampleMemory | None:
        """The memory as its files are now; the one before, while they are unusable."""
        return self._find_finder().memory

    def check(self, num_references: int) -> None:
        """Refuses more references than the model looks at.

        Raises:
            GenerationError: says how many there may be.
        """
        self._finder.check(num_references)

    def find(
        self,
        prompt: str,
        count: int | None,
        *,
        references: Sequence[Example] = (),
        pinned: Sequence[int] = (),
        excluded: Collection[int] = (),
    ) -> tuple[Example, ...]:
        """Finds what the model looks at for a prompt.

        Args:
            prompt: is looked up.
            count: examples in all, references included; None is as many as the model learned.
            references: come first.
            pinned: examples that come next.
            excluded: examples that are not looked at.

        Raises:
            ApiError: 400, there is no such example, or one is pinned and excluded.
            GenerationError: there are more than the model learned to look at.
        """
        finder = self._find_finder()
        memory = finder.memory
        size = 0 if memory is None else len(memory)
        for name, indices in (("pinned", pinned), ("excluded", excluded)):
            if unknown := [index for index in indices if index >= size]:
                message = f"`{name}`: {_explain_missing(unknown[0], size)}"
                raise ApiError(400, message, param=name, code="unknown_example")
        if both := set(pinned) & set(excluded):
            message = f"An example is pinned and excluded: `{min(both)}`. Leave one out."
            raise ApiError(400, message, param="excluded", code="invalid_value")
        kept: list[Example] = []
        if memory is not None:
            kept += [_take(memory, index, prompt) for index in dict.fromkeys(pinned)]
        return finder.find(prompt, count, references=[*references, *kept], excluded=excluded)

    def read(self, index: int) -> Example:
        """Returns one example.

        Raises:
            ApiError: 404, there is no such example.
        """
        memory = self.memory
        if memory is None or not 0 <= index < len(memory):
            size = 0 if memory is None else len(memory)
            message = _explain_missing(index, size)
            raise ApiError(404, message, param="index", code="unknown_example")
        return _take(memory, index, "")

    def _find_finder(self) -> ExampleFinder:
        """Opens the memory anew if its files have changed."""
        with self._lock:
            # Read first: a change while they are opened is one more change.
            stamp = self._read_stamp()
            if self.most and stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._finder = ExampleFinder(self._open(), self.most)
                except (CheckpointError, OSError) as error:
                    _log.error("The examples have changed and the ones before stay: %s", error)
            return self._finder

    def _read_stamp(self) -> _Stamp:
        return tuple(_stamp(self._folder / name) for name in (EXAMPLES_FILE, ROWS_FILE))

    def _open(self) -> ExampleMemory | None:
        """Maps the memory.

        Raises:
            CheckpointError: it is damaged, or its codes are not this model's.
        """
        if self.most and not self._folder.is_dir():  # for a moment, while it is replaced
            raise CheckpointError(f"The model folder is gone: `{self._folder}`.")
        return load_memory(self._folder, self._model.config, self._model.tokenizer)


def _take(memory: ExampleMemory, index: int, prompt: str) -> Example:
    """Returns an example under the caption that the prompt finds; else under its first one."""
    [[found]] = memory.look_up(prompt, 1, find_excluded=lambda few: few != index)
    if found >= 0:
        return memory.by_caption(int(found))
    row = memory.rows[index]
    caption = row.captions[0] if row.captions else ""
    return Example(np.asarray(memory.codes[index]), caption, row.name, index)


def _explain_missing(index: int, size: int) -> str:
    if not size:
        return f"There is no such example: `{index}`. The model has none."
    return f"There is no such example: `{index}`. The model has {size:,}, counted from 0."


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
