"""The memory of examples: codes and captions of pictures, in two files of a model folder.

    examples.safetensors    codes, whose caption is whose, the index of the captions
    examples.jsonl          a line an example: its name, its captions

Both are memory-mapped: a process holds what it looks up. They belong together: the first holds the
hash of the second, and that of the image tokenizer that the codes are of. While they are replaced
the old captions lie in `examples.old.jsonl`, so that at every moment one pair is whole.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tessella.checksums import check_own, expect_change, is_there, map_bytes, settle_sums
from tessella.errors import CheckpointError
from tessella.files import new_file
from tessella.retrieval.index import CaptionIndex, FindExcluded
from tessella.retrieval.mapped import map_arrays, write_arrays
from tessella.untrusted import parse_json

EXAMPLES_FILE = "examples.safetensors"
ROWS_FILE = "examples.jsonl"
_OLD_ROWS_FILE = "examples.old.jsonl"
EXAMPLES_FILES = (EXAMPLES_FILE, ROWS_FILE, _OLD_ROWS_FILE)
EXAMPLES_FORMAT = "1"

_WHAT = "the examples"
_HOW_TO_MEND = "Copy the whole model folder again, or add the pictures again."
_ATTEMPTS = 3  # at reading a memory that is replaced meanwhile

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, eq=False)
class Example:
    """A picture that a model looks at while it paints another."""

    codes: Codes  # (M, h, w)
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
        codes: (E, M, h, w) uint16.
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
            codes: (E, M, h, w) uint16.
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
        if not is_there(path):
            return None
        for _ in range(_ATTEMPTS):
            arrays, metadata = map_arrays(path)
            lines = _map_captions(folder, metadata)
            if lines is not None:
                return cls._map(path, arrays, metadata, lines)
        raise CheckpointError(
            f"The captions of the examples are missing, damaged or those of others: "
            f"`{folder / ROWS_FILE}`. {_HOW_TO_MEND}"
        )

    @classmethod
    def _map(
        cls,
        path: Path,
        arrays: dict[str, npt.NDArray[Any]],
        metadata: dict[str, str],
        lines: npt.NDArray[np.uint8],
    ) -> "ExampleMemory":
        try:
            if metadata["format"] != EXAMPLES_FORMAT:
                raise CheckpointError(
                    f"The examples have format `{metadata['format']}`; this tessella reads "
                    f"{EXAMPLES_FORMAT}: `{path}`. Install the tessella that wrote them, or add "
                    "the pictures again."
                )
            words = arrays["words"].tobytes().decode().split("\n")
            index = CaptionIndex(
                words if words != [""] else [],
                arrays["word_offsets"],
                arrays["posting_captions"],
                arrays["posting_scores"],
            )
            codes, ends, example_of = arrays["codes"], arrays["row_ends"], arrays["example_of"]
            if codes.ndim == 3:  # (E, h, w), as they were when a position had only one
                codes = codes[:, None]
            is_whole = (
                codes.ndim == 4
                and codes.dtype == np.uint16
                and _is_rising(ends, np.int64, len(codes), len(lines))
                and _is_rising(example_of, np.int32, len(example_of), len(codes) - 1)
                and index.is_whole(len(example_of))
            )
            if is_whole:
                rows = _Rows(lines, ends)
                return cls(codes, rows, index, example_of, metadata["tokenizer"])
        except (KeyError, UnicodeDecodeError):
            pass  # one of its parts is not there, or is no text
        raise CheckpointError(f"The examples are damaged: `{path}`. {_HOW_TO_MEND}")

    def write(self, folder: Path) -> None:
        """Writes both files; who reads them meanwhile finds the old pair or the new one.

        Raises:
            CheckpointError: they cannot be written; what was there stays.
        """
        examples, captions = folder / EXAMPLES_FILE, folder / ROWS_FILE
        settle_memory(folder)
        try:
            with new_file(examples, what=_WHAT) as arrays, new_file(captions, what=_WHAT) as lines:
                self._write_files(arrays, lines)
                expect_change(folder, {EXAMPLES_FILE: arrays, ROWS_FILE: lines})
                if captions.exists():
                    captions.replace(folder / _OLD_ROWS_FILE)
                # Now the captions take their name, and then the codes theirs.
        finally:
            settle_memory(folder)
            settle_sums(folder, EXAMPLES_FILES)

    def _write_files(self, arrays: Path, lines: Path) -> None:
        ends, end, digest = np.zeros(len(self.rows), np.int64), 0, hashlib.sha256()
        with lines.open("wb") as file:
            for number, row in enumerate(self.rows):
                values = {"name": row.name, "captions": list(row.captions)}
                text = json.dumps(values, ensure_ascii=False) + "\n"
                # File names that are not UTF-8 keep their odd bytes as JSON's own escapes.
                line = text.encode(errors="backslashreplace")
                digest.update(line)
                end += file.write(line)
                ends[number] = end
        write_arrays(
            arrays,
            {
                "codes": self.codes,
                "example_of": self.example_of,
                "row_ends": ends,
                "words": np.frombuffer("\n".join(self.index.words).encode(), np.uint8),
                "word_offsets": self.index.offsets,
                "posting_captions": self.index.captions,
                "posting_scores": self.index.scores,
            },
            {
                "format": EXAMPLES_FORMAT,
                "tokenizer": self.tokenizer,
                "captions_sha256": digest.hexdigest(),
            },
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
        example = self.example_of[caption]
        # Of the array's own type: for a plain int all of it would be converted, and copied.
        first = int(np.searchsorted(self.example_of, example))
        index = int(example)
        row = self.rows[index]
        if caption - first >= len(row.captions):
            raise _lacks_captions(index)
        text = row.captions[caption - first]
        return Example(np.asarray(self.codes[index]), text, row.name, index)


def remove_memory(folder: Path) -> None:
    """Removes a memory from a folder, if there is one."""
    expect_change(folder, {name: None for name in EXAMPLES_FILES if (folder / name).exists()})
    # Without the first file there is no memory.
    for name in EXAMPLES_FILES:
        (folder / name).unlink(missing_ok=True)
    settle_sums(folder, EXAMPLES_FILES)


def _map_captions(folder: Path, metadata: dict[str, str]) -> npt.NDArray[np.uint8] | None:
    """Maps the captions that belong to codes; None if they are not there."""
    for name in (ROWS_FILE, _OLD_ROWS_FILE):
        try:
            check_own(folder / name)
            lines = map_bytes(folder / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CheckpointError(
                f"Cannot read the captions of the examples: `{folder / name}`; {error}. "
                f"{_HOW_TO_MEND}"
            ) from error
        if hashlib.sha256(lines.data).hexdigest() == metadata.get("captions_sha256"):
            return lines
    return None


def settle_memory(folder: Path) -> None:
    """Settles an interrupted replacement: keeps the captions that belong to the codes.

    Raises:
        CheckpointError: the codes cannot be read.
        OSError: the captions cannot be moved.
    """
    old, examples = folder / _OLD_ROWS_FILE, folder / EXAMPLES_FILE
    if not old.exists():
        return
    metadata = map_arrays(examples, is_proved=False)[1] if examples.exists() else {}
    if hashlib.sha256(map_bytes(old).data).hexdigest() == metadata.get("captions_sha256"):
        old.replace(folder / ROWS_FILE)
    else:
        old.unlink()


class _Rows(Sequence[ExampleRow]):
    """Reads the lines of a file where they end."""

    def __init__(self, lines: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self._lines, self._ends = lines, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ExampleRow:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._ends[index - 1]) if index else 0
        line = self._lines[start : int(self._ends[index])].tobytes()
        try:
            values = parse_json(line)
            name, captions = values["name"], values["captions"]
        except (ValueError, KeyError, TypeError):
            raise _lacks_captions(index) from None
        is_text = isinstance(captions, list) and all(isinstance(c, str) for c in (name, *captions))
        if not is_text:
            raise _lacks_captions(index)
        return ExampleRow(name, captions)


def _lacks_captions(index: int) -> CheckpointError:
    return CheckpointError(
        f"The examples are damaged: example `{index}` has no captions. {_HOW_TO_MEND}"
    )


def _is_rising(values: npt.NDArray[Any], kind: npt.DTypeLike, length: int, largest: int) -> bool:
    """Returns whether there are as many numbers as there should be, in [0, largest] and rising."""
    if values.shape != (length,) or values.dtype != kind:
        return False
    is_in_range = not length or (values[0] >= 0 and values[-1] <= largest)
    return bool(is_in_range and (values[1:] >= values[:-1]).all())
