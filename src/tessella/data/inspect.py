"""Inspect: what is in DATA and what is wrong with it, for `tessella doctor`.

Every picture is really decoded, nothing is written, and the memory stays flat: of each picture
some 30 bytes are kept, of the words as many as there are different ones.
"""

import contextlib
import shlex
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tessella.data.decode import Decoded
from tessella.data.records import Record, Skipped
from tessella.data.settings import DataSettings
from tessella.data.sources import Source, recognise
from tessella.data.split import split_key
from tessella.data.workers import decode_records
from tessella.errors import DataError

_EXAMPLES = 3  # named for each kind of skipped file
_MANY_DUPLICATES = 0.1  # of the images
_MANY_TINY = 0.1
_FEW_IMAGES = 200
_WIDE = 2.0  # longer side over shorter: centre cropping takes away half
_MANY_WIDE = 0.2


@dataclass(frozen=True)
class SourceReport:
    """One DATA argument."""

    given: str  # as the user wrote it
    kind: str | None  # table, captions, shards, classes or scenes; None if it cannot be read
    files: int  # that were looked at to recognise it
    bytes: int  # their sizes together
    images: int  # that can be used
    skipped: int
    error: str | None = None  # why it cannot be read, or not to its end


@dataclass(frozen=True)
class Spread:
    """Smallest, mean, median and largest of some numbers; all 0 if there are none."""

    min: float
    mean: float
    median: float
    max: float


@dataclass(frozen=True)
class SkippedReport:
    """Files of one kind that are left out."""

    count: int
    examples: tuple[dict[str, str], ...]  # name and reason of the first few


@dataclass(frozen=True)
class DataReport:
    """What is in DATA, what is wrong with it, and what to do next."""

    sources: tuple[SourceReport, ...]
    images: int  # that can be used
    captions: int
    captions_per_image: Spread
    width_px: Spread  # as stored
    height_px: Spread
    aspect_ratio: Spread  # width over height
    modes: dict[str, int]  # Pillow's modes, most frequent first
    formats: dict[str, int]  # file formats, most frequent first
    duplicates: int  # images whose square pixels another image has already
    skipped: dict[str, SkippedReport]  # by kind
    skipped_fraction: float
    caption_characters: Spread
    caption_words: Spread
    vocabulary_size: int  # different words, in lower case
    frequent_words: tuple[str, ...]  # the ten most frequent
    different_captions: int
    warnings: tuple[str, ...]  # what looks suspicious
    errors: tuple[str, ...]  # what keeps a model from being trained
    advice: tuple[str, ...]  # what to do next

    @property
    def is_usable(self) -> bool:
        """Whether `prepare` with the same settings would succeed."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Gives the report as plain values, ready for JSON."""
        return asdict(self) | {"is_usable": self.is_usable}


def inspect_data(sources: Sequence[str], settings: DataSettings) -> DataReport:
    """Reads all of DATA and reports on it.

    A source that cannot be read does not raise: the report says so, and the others are read.

    Args:
        sources: paths, or `scenes:N`; see `tessella.data.sources`.
        settings: with which it would be prepared.
    """
    given = [sources] if isinstance(sources, str) else [str(source) for source in sources]
    tally = _Tally()
    reports = tuple(_inspect_source(one, settings, tally) for one in given)
    return _report(reports, tally, settings)


@dataclass
class _Tally:
    """What is gathered on the way, a few bytes an image."""

    widths: "array[int]" = field(default_factory=lambda: array("L"))
    heights: "array[int]" = field(default_factory=lambda: array("L"))
    captions_per_image: "array[int]" = field(default_factory=lambda: array("L"))
    characters: "array[int]" = field(default_factory=lambda: array("L"))
    words: "array[int]" = field(default_factory=lambda: array("L"))
    pixel_keys: "array[int]" = field(default_factory=lambda: array("Q"))
    caption_keys: "array[int]" = field(default_factory=lambda: array("Q"))
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    vocabulary: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Skipped]] = field(default_factory=dict)
    grouped: int = 0

    def add(self, record: Record, decoded: Decoded) -> None:
        captions = record.captions or decoded.captions
        self.widths.append(decoded.width)
        self.heights.append(decoded.height)
        self.pixel_keys.append(split_key(decoded.digest))
        self.modes[decoded.mode] += 1
        self.formats[decoded.format] += 1
        self.captions_per_image.append(len(captions))
        self.grouped += record.group is not None
        for caption in captions:
            words = [w for w in map(_bare, caption.lower().split()) if w]
            self.characters.append(len(caption))
            self.words.append(len(words))
            self.caption_keys.append(split_key(caption))
            self.vocabulary.update(words)

    def skip(self, skipped: Skipped) -> None:
        self.skipped[skipped.kind] += 1
        examples = self.examples.setdefault(skipped.kind, [])
        if len(examples) < _EXAMPLES:
            examples.append(skipped)


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()[]{}")


def _inspect_source(given: str, settings: DataSettings, tally: _Tally) -> SourceReport:
    """Reads one source to its end, or to where it breaks."""
    try:
        source = recognise(given)
    except DataError as error:
        return SourceReport(given, None, 0, 0, 0, 0, str(error))
    images = skipped = 0
    problem: str | None = None
    try:
        for kept, left_out in _decoded(source, settings):
            for record, decoded in kept:
                tally.add(record, decoded)
            for one in left_out:
                tally.skip(one)
            images += len(kept)
            skipped += len(left_out)
    except DataError as error:
        problem = str(error)
    looked_at = source.fingerprint
    return SourceReport(
        given, source.kind, looked_at.files, looked_at.bytes, images, skipped, problem
    )


def _decoded(
    source: Source, settings: DataSettings
) -> Iterator[tuple[list[tuple[Record, Decoded]], list[Skipped]]]:
    batches = decode_records(
        source.records(settings.seed, settings.split_by),
        size=settings.image_size,
        max_pixels=settings.max_image_pixels,
        workers=settings.num_workers,
    )
    with contextlib.closing(batches):
        for batch in batches:
            yield batch.kept, batch.skipped


def _report(sources: tuple[SourceReport, ...], tally: _Tally, settings: DataSettings) -> DataReport:
    """Sums up what was gathered."""
    images, captions = len(tally.widths), len(tally.characters)
    widths, heights = np.array(tally.widths), np.array(tally.heights)
    duplicates = images - len(np.unique(np.array(tally.pixel_keys)))
    different = len(np.unique(np.array(tally.caption_keys)))
    bad = tally.skipped.total()
    fraction = bad / (bad + images) if bad else 0.0
    errors = _errors(sources, tally, settings, fraction)
    warnings = _warnings(tally, settings, duplicates, different)
    return DataReport(
        sources=sources,
        images=images,
        captions=captions,
        captions_per_image=_spread(tally.captions_per_image),
        width_px=_spread(widths),
        height_px=_spread(heights),
        aspect_ratio=_spread(widths / heights),
        modes=dict(tally.modes.most_common()),
        formats=dict(tally.formats.most_common()),
        duplicates=duplicates,
        skipped={
            kind: SkippedReport(
                count,
                tuple({"name": s.name, "reason": s.reason} for s in tally.examples[kind]),
            )
            for kind, count in tally.skipped.most_common()
        },
        skipped_fraction=fraction,
        caption_characters=_spread(tally.characters),
        caption_words=_spread(tally.words),
        vocabulary_size=len(tally.vocabulary),
        frequent_words=tuple(word for word, _ in tally.vocabulary.most_common(10)),
        different_captions=different,
        warnings=tuple(warnings),
        errors=tuple(errors),
        advice=tuple(_advice(sources, tally, errors, warnings)),
    )


def _spread(numbers: Any) -> Spread:
    values = np.asarray(numbers, dtype=np.float64)
    if not len(values):
        return Spread(0.0, 0.0, 0.0, 0.0)
    of = (values.min(), values.mean(), np.median(values), values.max())
    return Spread(*(round(float(number), 4) for number in of))


def _errors(
    sources: Sequence[SourceReport], tally: _Tally, settings: DataSettings, fraction: float
) -> list[str]:
    """Says what would make `prepare` stop."""
    errors = [source.error for source in sources if source.error is not None]
    if not sources:
        errors.append("No data was named.")
    names = [source.given for source in sources]
    errors += [f"The same data is named twice: `{n}`." for n, c in Counter(names).items() if c > 1]
    if fraction > settings.max_skipped_fraction:
        errors.append(
            f"{fraction:.1%} of the files have to be skipped, at most "
            f"{settings.max_skipped_fraction:.0%} may be (data.max_skipped_fraction)."
        )
    elif not tally.widths and not errors:
        errors.append("No image can be used.")
    if settings.split_by is not None and tally.widths and not tally.grouped:
        errors.append(f"No image has the field to split by: `{settings.split_by}`.")
    return errors


def _warnings(tally: _Tally, settings: DataSettings, duplicates: int, different: int) -> list[str]:
    """Says what looks suspicious but stops nothing."""
    images = len(tally.widths)
    if not images:
        return []
    widths, heights = np.array(tally.widths), np.array(tally.heights)
    short, long = np.minimum(widths, heights), np.maximum(widths, heights)
    tiny = int((short < settings.image_size).sum())
    wide = int((long > _WIDE * short).sum())
    size = settings.image_size
    warnings = []
    if different == 1 and len(tally.caption_keys) > 1:
        warnings.append("All captions are the same: the model would have nothing to read.")
    if duplicates > _MANY_DUPLICATES * images:
        warnings.append(f"{duplicates} of {images} images are duplicates of another one.")
    if tiny > _MANY_TINY * images:
        warnings.append(f"{tiny} of {images} images are smaller than {size}x{size} pixels.")
    if wide > _MANY_WIDE * images:
        warnings.append(
            f"{wide} of {images} images are more than twice as long as wide (or the other way "
            "round): the middle square loses at least half of them."
        )
    if images < _FEW_IMAGES:
        warnings.append(f"Only {images} images: the model will learn them by heart.")
    if settings.split_by is not None and 0 < tally.grouped < images:
        missing = images - tally.grouped
        warnings.append(f"{missing} images lack the field to split by: `{settings.split_by}`.")
    return warnings


def _advice(
    sources: Sequence[SourceReport], tally: _Tally, errors: list[str], warnings: list[str]
) -> list[str]:
    """Says what to do next."""
    advice = []
    if any(source.error is not None for source in sources):
        advice.append("Mend or leave out the data that cannot be read.")
    if tally.skipped:
        advice.append("Mend or remove the skipped files; the examples say what is wrong.")
    if any("smaller than" in warning for warning in warnings):
        advice.append("Use a smaller data.image_size, or larger pictures.")
    if any("duplicates" in warning for warning in warnings):
        advice.append(
            "Remove the duplicates; they are never on both sides of the split, but are learnt "
            "more often."
        )
    if any("All captions" in warning for warning in warnings):
        advice.append("Write captions that tell the pictures apart.")
    if not errors:
        data = shlex.join(source.given for source in sources)
        advice.append(f"Train on it: tessella fit {data} --out RUN")
    return advice
