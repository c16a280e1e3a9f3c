"""The memory of examples: codes and captions of pictures, in two files of a model folder.

    examples.safetensors    codes, whose caption is whose, the index of the captions
    examples.jsonl          a line an example: its name, its captions

Both are memory-mapped: a process holds what it looks up. They are written as one, with the hash of
the image tokenizer that the codes are of.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tessella.errors import CheckpointError
from tessella.files import write_tensors
from tessella.retrieval.index import CaptionIndex, FindExcluded
from tessella.retrieval.mapped import map_tensors

EXAMPLES_FILE = "examples.safetensors"
CAPTIONS_FILE = "examples.jsonl"
EXAMPLES_FORMAT = "1"

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Example:
    """A picture that a model looks at while it paints another."""

    codes: Codes  # (h, w)
    caption: str  # the one that was found; "" if it has none
    name: str  # of the picture: its file, as it was given
    index: int | None = None  # in the memory; None: it is not in there


@dataclass(frozen=True)
class ExampleRow:
    """What the memory notes of an example beside its codes."""

    name: str
    captions: Sequence[str]


class ExampleMemory:
    """The examples of a model, found by their captions.

    Args:
        codes: (E, h, w) uint16.
        rows: name and captions of each.
        index: of all captions, example after example.
        example_of: (C,) int32, the example of each caption; rising.
        tokenizer: hash of the image tokenizer's weights.
    """

    def __init__(
        self,
        codes: Codes,
        rows: Sequence[ExampleRow],
        index: CaptionIndex,
        example_of: npt.NDArray[np.int32],
        tokenizer: str,
    ) -> None:
        self.codes, self.rows, self.index = codes, rows, index
        self.example_of, self.tokenizer = example_of, tokenizer

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.codes)

    @classmethod
    def build(cls, codes: Codes, rows: Sequence[ExampleRow], tokenizer: str) -> "ExampleMemory":
        """Indexes examples.

        Args:
            codes: (E, h, w) uint16.
            rows: of each.
            tokenizer: hash of the image tokenizer's weights.
        """
        counts = np.array([len(row.captions) for row in rows], np.int64)
        example_of = np.repeat(np.arange(len(rows), dtype=np.int32), counts)
        index = CaptionIndex.build(caption for row in rows for caption in row.captions)
        return cls(codes, rows, index, example_of, tokenizer)

    @classmethod
    def open(cls, folder: Path) -> "ExampleMemory | None":
        """Maps the memory of a model folder; None if it has none.

        Raises:
            CheckpointError: a file is missing, damaged or of another format.
        """
        path = folder / EXAMPLES_FILE
        if not path.exists():
            return None
        tensors, metadata = map_tensors(path)
        try:
            if metadata["format"] != EXAMPLES_FORMAT:
                raise CheckpointError(
                    f"The examples have format `{metadata['format']}`; this tessella reads "
                    f"{EXAMPLES_FORMAT}: `{path}`. Install the tessella that wrote them, or add "
                    "the pictures again."
                )
            words = tensors["words"].tobytes().decode().split("\n")
            index = CaptionIndex(
                words if words != [""] else [],
                tensors["word_offsets"],
                tensors["posting_captions"],
                tensors["posting_scores"],
            )
            rows = _Rows(folder / CAPTIONS_FILE, tensors["row_ends"])
            codes, example_of = tensors["codes"], tensors["example_of"]
            return cls(codes, rows, index, example_of, metadata["tokenizer"])
        except (KeyError, UnicodeDecodeError):
            raise CheckpointError(
                f"The examples are damaged: `{path}`. Copy the whole model folder again, or add "
                "the pictures again."
            ) from None

    def write(self, folder: Path) -> None:
        """Writes both files into a folder that is being built.

        Raises:
            CheckpointError: they cannot be written.
        """
        ends, end = np.zeros(len(self.rows), np.int64), 0
        with (folder / CAPTIONS_FILE).open("wb") as file:
            for number, row in enumerate(self.rows):
                values = {"name": row.name, "captions": list(row.captions)}
                line = json.dumps(values, ensure_ascii=False) + "\n"
                end += file.write(line.encode(errors="backslashreplace"))
                ends[number] = end
        arrays: Mapping[str, npt.NDArray[Any]] = {
            "codes": self.codes,
            "example_of": self.example_of,
            "row_ends": ends,
            "words": np.frombuffer("\n".join(self.index.words).encode() or b"\n", np.uint8),
            "word_offsets": self.index.offsets,
            "posting_captions": self.index.captions,
            "posting_scores": self.index.scores,
        }
        write_tensors(
            folder / EXAMPLES_FILE,
            {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()},
            {"format": EXAMPLES_FORMAT, "tokenizer": self.tokenizer},
            what="the examples",
        )

    def look_up(
        self,
        prompt: str,
        count: int,
        *,
        alternatives: int = 1,
        find_excluded: FindExcluded | None = None,
    ) -> npt.NDArray[np.int32]:
        """Finds captions of examples that together cover the words of a prompt.

        Args and Returns are those of `CaptionIndex.look_up`.
        """
        return self.index.look_up(
            prompt, count, self.example_of, alternatives=alternatives, find_excluded=find_excluded
        )

    def find(self, prompt: str, count: int, *, excluded: Collection[int] = ()) -> list[Example]:
        """Finds the examples of a prompt, at most `count`, the best first."""
        removed = np.array(sorted(excluded), np.int64)
        found = self.look_up(prompt, count, find_excluded=lambda few: np.isin(few, removed))[:, 0]
        return [self.by_caption(int(caption)) for caption in found if caption >= 0]

    def by_caption(self, caption: int) -> Example:
        """Returns an example by the number of one of its captions."""
        index = int(self.example_of[caption])
        row = self.rows[index]
        text = row.captions[caption - int(np.searchsorted(self.example_of, index))]
        return Example(np.asarray(self.codes[index]), text, row.name, index)


class _Rows(Sequence[ExampleRow]):
    """Reads the lines of a file where they end."""

    def __init__(self, path: Path, ends: npt.NDArray[np.int64]) -> None:
        size = path.stat().st_size if path.exists() else -1
        if size != (int(ends[-1]) if len(ends) else 0):
            raise CheckpointError(
                f"The captions of the examples are missing or cut off: `{path}`. Copy the whole "
                "model folder again, or add the pictures again."
            )
        self._path, self._ends = path, ends
        self._bytes = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ExampleRow:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        try:
            values = json.loads(self._bytes[start : int(self._ends[index])].tobytes())
            return ExampleRow(values["name"], values["captions"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"The captions of the examples are damaged: `{self._path}`, line {index + 1}. Copy "
                "the whole model folder again, or add the pictures again."
            ) from None
