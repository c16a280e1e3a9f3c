"""Changes which pictures a finished model looks things up in: adds, lists, takes away, leaves out.

    DATA ─ decode ─▶ pixels ─ image tokenizer ─▶ codes, captions ─▶ examples of the model folder

The weights stay as they are. A model folder is changed in place, where a reader finds the old
examples or the new ones, or copied with the change.
"""

import contextlib
import hashlib
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from tessella.checksums import (
    SUMS_FILE,
    check_own,
    expect_change,
    prove,
    read_sums,
    settle_interrupted,
    settle_sums,
    write_sums,
)
from tessella.data.decode import Decoded, decode_records
from tessella.data.records import Skipped
from tessella.data.settings import DataSettings
from tessella.data.sources import WHAT_DATA_MAY_BE, Source, recognise_all
from tessella.errors import CheckpointError, ConfigError, DataError
from tessella.files import lock, new_file, new_folder, remove_leftovers, write_bytes
from tessella.model.codec import encode_stored
from tessella.model.find import explain_fixed
from tessella.model.folder import (
    CARD_FILE,
    NOTES,
    SAMPLES_FILE,
    TrainedTokenizer,
    load_memory,
    read_model_config,
)
from tessella.retrieval import ExampleMemory
from tessella.retrieval.copies import are_same
from tessella.retrieval.examples import (
    EXAMPLES_FILES,
    Codes,
    ExampleRow,
    remove_memory,
    settle_memory,
)
from tessella.retrieval.names import shorten_names

_LOCK_FILE = ".examples.lock"
_ENCODED_TOGETHER = 64

_CARD_PART = re.compile(r"(<!-- examples -->\n)(.*?)(<!-- /examples -->)", re.DOTALL)
_CARD_NOTE = re.compile(r"^Since the training, .*\n", re.MULTILINE)

Progress = Callable[[int, int | None], object]
"""Called with how many pictures are done and how many there are, None if that is not known."""


@dataclass(frozen=True)
class MemoryChange:
    """What was done to the examples of a model, or would be."""

    folder: Path  # of the model with the change
    examples: Sequence[ExampleRow]  # that were added or removed
    count: int  # of the examples that it has now
    known: Sequence[str] = ()  # names of pictures that were there already, and not added again
    skipped: Sequence[Skipped] = ()  # files that could not be used


@dataclass(frozen=True)
class ExampleFilter:
    """Which examples are meant: those that all given patterns match, in any case of letters.

    `*` stands for any characters, `?` for one.
    """

    name: str | None = None  # occurs in the name
    caption: str | None = None  # occurs in a caption
    source: str | None = None  # is the source: the first part of the name

    def matches(self, row: ExampleRow) -> bool:
        """Returns whether an example is meant."""
        checks = (
            (self.name, [row.name], _search),
            (self.caption, row.captions, _search),
            (self.source, [row.name.partition("/")[0]], _match_whole),
        )
        return all(
            pattern is None or any(check(pattern, text) for text in texts)
            for pattern, texts, check in checks
        )


ALL_EXAMPLES = ExampleFilter()


def add_examples(
    folder: Path | str,
    sources: Sequence[str],
    *,
    out: Path | None = None,
    device: str = "auto",
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> MemoryChange:
    """Encodes captioned pictures into the examples of a model.

    A picture that is there already, under the same name and with the same codes, is not added
    again.

    Args:
        folder: of a model that learned to look at examples.
        sources: DATA, as for training.
        out: a copy to write, with the pictures; None changes the model itself.
        device: auto, cpu, cuda or mps.
        force: whether a folder that is at `out` is replaced.
        dry_run: whether nothing is written.
        progress: told the pictures.

    Raises:
        ConfigError: the model was trained without examples, is bundled (without `out`), or `out`
            is taken.
        DataError: the data is not recognised, or none of its pictures can be used.
        CheckpointError: the model is damaged, or cannot be written; what was there stays.
    """
    folder = Path(folder)
    recognised = recognise_all(list(map(str, sources)))
    with _changing(folder, out, force=force, dry_run=dry_run):
        loaded = TrainedTokenizer.load(folder, device)
        memory = load_memory(folder, loaded.config, loaded.tokenizer)
        adding = _Adding(memory, loaded)
        for source in recognised:
            adding.add(source, progress)
        if not adding.rows and not adding.known:
            raise _nothing_usable(adding.skipped)
        if adding.rows:
            memory = adding.build()
        if not dry_run:
            _write(folder, out, memory, is_changed=bool(adding.rows))
    count = 0 if memory is None else len(memory)
    return MemoryChange(out or folder, adding.rows, count, adding.known, adding.skipped)


def list_examples(
    folder: Path | str, which: ExampleFilter = ALL_EXAMPLES
) -> Iterator[tuple[int, ExampleRow]]:
    """Lists the examples of a model with their numbers.

    Raises:
        ConfigError: the model was trained without examples.
        CheckpointError: the model is damaged.
    """
    folder = Path(folder)
    _require_neighbors(folder)
    memory = ExampleMemory.open(folder)
    rows = [] if memory is None else memory.rows
    return ((number, row) for number, row in enumerate(rows) if which.matches(row))


def remove_examples(
    folder: Path | str,
    which: ExampleFilter,
    *,
    out: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> MemoryChange:
    """Takes examples away from a model.

    Args:
        folder: of a model that learned to look at examples.
        which: are taken away, for example `ALL_EXAMPLES`.
        out: a copy to write, without them; None changes the model itself.
        force: whether a folder that is at `out` is replaced.
        dry_run: whether nothing is written.

    Raises:
        ConfigError: the model was trained without examples, is bundled (without `out`), or `out`
            is taken.
        CheckpointError: the model is damaged, or cannot be written; what was there stays.
    """
    folder = Path(folder)
    with _changing(folder, out, force=force, dry_run=dry_run):
        memory = ExampleMemory.open(folder)
        rows = [] if memory is None else list(memory.rows)
        is_kept = np.array([not which.matches(row) for row in rows], np.bool_)
        kept = [row for row, stays in zip(rows, is_kept, strict=True) if stays]
        removed = [row for row, stays in zip(rows, is_kept, strict=True) if not stays]
        if memory is not None and removed:
            memory = ExampleMemory.build(memory.codes[is_kept], kept, memory.tokenizer)
        if not dry_run:
            _write(folder, out, memory, is_changed=bool(removed))
    return MemoryChange(out or folder, removed, len(kept))


def export_model(
    folder: Path | str, out: Path, *, without_examples: bool = False, force: bool = False
) -> int:
    """Copies a model folder, with its examples or without; returns how many examples it has then.

    Without them the model still paints, from its weights and from references.

    Raises:
        ConfigError: `out` is taken.
        CheckpointError: the model is damaged, or the copy cannot be written.
    """
    folder = Path(folder)
    read_model_config(folder)
    check_out(folder, out, force=force)
    memory = None if without_examples else ExampleMemory.open(folder)
    _write(folder, out, memory, is_changed=memory is None)
    return 0 if memory is None else len(memory)


def copy_card(folder: Path, out: Path, memory: ExampleMemory | None) -> None:
    """Copies a model's card and the picture on it, if they are there.

    Args:
        folder: of the model.
        out: where they go.
        memory: the examples that are there too; of None the card says so.

    Raises:
        CheckpointError: one of the two is no plain file of the model's folder.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        return
    for path in filter(Path.is_file, (card, folder / SAMPLES_FILE)):
        check_own(path)
        shutil.copyfile(path, out / path.name)
    if memory is None:
        (out / CARD_FILE).write_bytes(_correct_card(_read_card(card), 0))


class _Adding:
    """Collects the pictures that are new."""

    def __init__(self, memory: ExampleMemory | None, loaded: TrainedTokenizer) -> None:
        self._memory, self._loaded = memory, loaded
        self._settings = DataSettings(image_size=loaded.config.image_size)
        self._old_rows = [] if memory is None else list(memory.rows)
        # By name, the codes of each example of that name.
        self._codes_of: dict[str, list[Codes]] = defaultdict(list)
        for row, codes in zip(self._old_rows, [] if memory is None else memory.codes, strict=True):
            self._codes_of[row.name].append(codes)
        self._codes: list[Codes] = []
        self.rows: list[ExampleRow] = []
        self.known: list[str] = []
        self.skipped: list[Skipped] = []

    def add(self, source: Source, progress: Progress) -> None:
        """Decodes and encodes the pictures of a source, some at a time."""
        done = 0
        records = source.records(self._settings.seed)
        with contextlib.closing(decode_records(records, self._settings)) as pictures:
            for together in iter(lambda: list(islice(pictures, _ENCODED_TOGETHER)), []):
                decoded = [one for one in together if isinstance(one, Decoded)]
                self.skipped += [one for one in together if isinstance(one, Skipped)]
                names = shorten_names((one.record.name for one in decoded), [source.argument])
                for name, one, codes in zip(names, decoded, self._encode(decoded), strict=True):
                    self._add(ExampleRow(name, one.captions), codes)
                done += len(together)
                progress(done, source.count)

    def build(self) -> ExampleMemory:
        """Builds the memory of the old pictures and the new ones."""
        codes = np.stack(self._codes)
        if self._memory is not None:
            codes = np.concatenate([self._memory.codes, codes])
        tokenizer = self._loaded.tokenizer.hash_encoder()
        return ExampleMemory.build(codes, [*self._old_rows, *self.rows], tokenizer)

    def _encode(self, pictures: Sequence[Decoded]) -> Codes:
        config = self._loaded.config
        size, num_codes = config.image_size, config.tokenizer.quantizer.codes_per_position
        if not pictures:
            return np.zeros((0, num_codes, *config.grid), np.uint16)
        pixels = np.frombuffer(b"".join(one.pixels for one in pictures), np.uint8)
        pixels = pixels.reshape(-1, size, size, 3).copy()
        return encode_stored(self._loaded.tokenizer, pixels)

    def _add(self, row: ExampleRow, codes: Codes) -> None:
        if any(are_same(codes, other) for other in self._codes_of[row.name]):
            self.known.append(row.name)
        else:
            self._codes_of[row.name].append(codes)
            self._codes.append(codes)
            self.rows.append(row)


def _require_neighbors(folder: Path) -> None:
    if not read_model_config(folder).neighbors:
        raise ConfigError(
            f"The model looks at no examples: it was trained without (retrieval.neighbors is 0): "
            f"`{folder}`. Train one with retrieval.neighbors."
        )


@contextlib.contextmanager
def _changing(folder: Path, out: Path | None, *, force: bool, dry_run: bool) -> Iterator[None]:
    """Checks that a model may be changed, and lets in one change at a time."""
    _require_neighbors(folder)
    if out is not None:
        check_out(folder, out, force=force)
    elif why := explain_fixed(folder):
        raise ConfigError(f"{why}, and stays as it is. Write a copy: --out FOLDER.")
    if out is not None or dry_run:
        yield
        return
    try:
        with lock(folder / _LOCK_FILE):
            remove_leftovers(folder)
            _settle(folder)
            yield
    except OSError as error:
        raise CheckpointError(
            f"Cannot change the examples: `{folder}` ({error.strerror}). Make the folder "
            "writable, or write a copy: --out FOLDER."
        ) from error


def check_out(folder: Path, out: Path, *, force: bool, option: str = "--out") -> None:
    """Refuses a folder for a copy that is taken, or that is in the model's folder or around it.

    Args:
        folder: of the model.
        out: is refused.
        force: whether a folder that is there is replaced.
        option: that names it.

    Raises:
        ConfigError: says which.
    """
    own, other = folder.resolve(), out.resolve()
    if own.is_relative_to(other) or other.is_relative_to(own):
        raise ConfigError(
            f"The copy and the model may not lie in each other: `{out}`. Name another {option}."
        )
    if out.is_file() or (not force and out.is_dir() and any(out.iterdir())):
        raise ConfigError(
            f"Something of that name is there already: `{out}`. Name another {option}, or replace "
            "a folder with --force."
        )


def _write(
    folder: Path, out: Path | None, memory: ExampleMemory | None, *, is_changed: bool
) -> None:
    """Gives a model folder its examples, in place or in a copy."""
    if out is None:
        if is_changed:
            _put(folder, memory, is_changed=True)
        return
    with new_folder(out, what="the model") as building:
        for path in folder.rglob("*"):
            relative = path.relative_to(folder)
            is_hidden = any(part.startswith(".") for part in relative.parts)
            if path.is_file() and not is_hidden and relative.name not in EXAMPLES_FILES:
                if relative.name not in NOTES:
                    prove(folder, relative.as_posix())
                check_own(path)
                (building / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, building / relative)
        (building / SUMS_FILE).unlink(missing_ok=True)
        _put(building, memory, is_changed=is_changed)
        write_sums(building)


def _put(folder: Path, memory: ExampleMemory | None, *, is_changed: bool) -> None:
    count, card = 0 if memory is None else len(memory), folder / CARD_FILE
    with contextlib.ExitStack() as stack:
        if is_changed and card.exists():
            corrected = stack.enter_context(new_file(card, what="the model card"))
            corrected.write_bytes(_correct_card(_read_card(card), count))
            expect_change(folder, {CARD_FILE: corrected})
        if memory is None or not count:
            remove_memory(folder)
        else:
            memory.write(folder)
        # Now the card takes its name.
    settle_sums(folder, [CARD_FILE])


def _settle(folder: Path) -> None:
    """Ends a change that was broken off: examples, card and sums fit together again."""
    settle_memory(folder)
    card = folder / CARD_FILE
    expected = (read_sums(folder) or {}).get(CARD_FILE, ())
    if len(expected) > 1 and card.exists():
        memory = ExampleMemory.open(folder)
        corrected = _correct_card(_read_card(card), 0 if memory is None else len(memory))
        if hashlib.sha256(corrected).hexdigest() in expected:  # the new examples are there
            write_bytes(card, corrected, what="the model card")
    settle_interrupted(folder)


def _read_card(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"The model's card is not UTF-8: `{path}`; {error.reason} at byte {error.start}. Save "
            "it as UTF-8."
        ) from error


def _correct_card(text: str, count: int) -> bytes:
    """Returns a model card whose part about the examples says what is there now."""
    note = "Since the training, the examples were taken out: no picture is inside as codes.\n"
    if count:
        note = f"Since the training, examples were changed: {count:,} are inside as codes now.\n"

    def correct(part: re.Match[str]) -> str:
        said = _CARD_NOTE.sub("", part[2]) if count else ""
        return part[1] + (f"{said.rstrip()}\n\n" if said.strip() else "") + note + part[3]

    return _CARD_PART.sub(correct, text).encode()


def _nothing_usable(skipped: Sequence[Skipped]) -> DataError:
    first = "; ".join(f"`{one.name}`: {one.reason.rstrip('.')}" for one in skipped[:3])
    why = f"{len(skipped)} were skipped, the first: {first}." if skipped else WHAT_DATA_MAY_BE
    return DataError(f"The data holds no picture that can be used. {why}")


def _search(pattern: str, text: str) -> bool:
    return _compile(pattern).search(text) is not None


def _match_whole(pattern: str, text: str) -> bool:
    return _compile(pattern).fullmatch(text) is not None


def _compile(pattern: str) -> re.Pattern[str]:
    """Reads a pattern in which `*` stands for any characters and `?` for one."""
    parts = ({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)
