"""Inspect: reports what DATA contains and what is wrong with it, for `tessella doctor`.

Every picture is decoded, nothing is written, and memory stays flat: it holds some 30 bytes per
picture, the names of the first hundred thousand, and each different word once.
"""

import contextlib
import shlex
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tessella.data.caption_words import CaptionWords, join_words
from tessella.data.decode import Decoded, decode_records
from tessella.data.records import Record, Skipped
from tessella.data.settings import DataSettings
from tessella.data.sources import describe_notes, recognise
from tessella.data.split import split_key
from tessella.errors import DataError, ShapeError

_MAX_EXAMPLES = 3  # of each kind of skipped file
_MAX_DUPLICATES = 20  # that are named
_MAX_NAMES = 100_000  # images that later ones may be named as duplicates of: some 10 MB
_MANY_DUPLICATES = 0.1  # of the images
_MANY_TINY = 0.1
_FEW_IMAGES = 200
_WIDE = 2.0  # longer side over shorter: cropping to the middle square loses half
_MANY_WIDE = 0.2


@dataclass
class SourceReport:
    """One DATA argument."""

    given: str  # as the user wrote it
    kind: str | None = None  # table, captions, shards, classes or scenes; None if not recognised
    files: int = 0  # scanned to recognise it
    bytes: int = 0  # their total size
    images: int = 0  # usable
    skipped: int = 0
    readings: dict[str, int] = field(default_factory=dict)  # images by where their captions are
    split: dict[str, int] = field(default_factory=dict)  # images by side, if the data names both
    notes: list[str] = field(default_factory=list)  # what else was done to it
    error: str | None = None  # why it cannot be read, or not to its end


@dataclass(frozen=True)
class Spread:
    """Smallest, mean, median and largest of some numbers; all 0 if there are none."""

    min: float
    mean: float
    median: float
    max: float


@dataclass
class SkippedReport:
    """Files that are skipped for one kind of reason."""

    count: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)  # name, reason of the first few


@dataclass(frozen=True)
class DataReport:
    """The contents of DATA, its problems, and what to do next."""

    sources: tuple[SourceReport, ...]
    images: int  # usable
    captions: int
    captions_per_image: Spread
    width_px: Spread  # as stored
    height_px: Spread
    aspect_ratio: Spread  # width over height
    modes: dict[str, int]  # Pillow's modes, most frequent first
    formats: dict[str, int]  # file formats, most frequent first
    duplicates: int  # images with the same square pixels as an earlier one
    duplicate_examples: tuple[tuple[str, str], ...]  # names of the first few, and of the earlier
    skipped: dict[str, SkippedReport]  # by kind
    skipped_fraction: float
    caption_characters: Spread
    caption_words: Spread
    vocabulary_size: int  # different words, in lower case
    learnable_words: int  # of them, those of ten images or more: about enough to learn them
    frequent_words: tuple[str, ...]  # the ten that most images have
    untold: tuple[str, ...]  # of `colours`, `sizes`, `counts`: what the captions never mention
    different_captions: int
    warnings: tuple[str, ...]  # suspicious, but no obstacle
    errors: tuple[str, ...]  # reasons why no model can be trained
    advice: tuple[str, ...]  # what to do next

    @property
    def is_usable(self) -> bool:
        """Whether `prepare` with the same settings would succeed."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, ready for JSON."""
        return asdict(self) | {"is_usable": self.is_usable}


def inspect_data(
    sources: Sequence[str],
    settings: DataSettings,
    on_picture: Callable[[Decoded], None] | None = None,
) -> DataReport:
    """Reads all of DATA and reports on it.

    A source that cannot be read does not raise: the report says so, and the others are read.

    Args:
        sources: paths, `scenes:N` or `scenes2:N`; see `tessella.data.sources`.
        settings: for preparing it.
        on_picture: told each usable picture.
    """
    arguments = [sources] if isinstance(sources, str) else [str(source) for source in sources]
    tally = _Tally()
    reports = tuple(
        _inspect_source(argument, settings, tally, on_picture) for argument in arguments
    )
    return _report(reports, tally, settings)


@dataclass
class _Tally:
    """Counts, and tables that grow with every image by a few bytes."""

    images: "array[int]" = field(default_factory=lambda: array("Q"))
    """Width, height, number of captions and key of the pixels of each, one after another."""
    captions: "array[int]" = field(default_factory=lambda: array("Q"))
    """Characters, words and key of each, one after another."""
    modes: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    words: CaptionWords = field(default_factory=CaptionWords)
    names: dict[int, str] = field(default_factory=dict)  # by key of the pixels, of the first images
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # and the earlier image's name
    skipped: dict[str, SkippedReport] = field(default_factory=dict)
    num_grouped: int = 0
    ignored_profiles: int = 0

    def add(self, picture: Decoded) -> None:
        key = split_key(picture.digest.hex())
        self._compare(key, picture.record.name)
        self.images.extend((picture.width, picture.height, len(picture.captions), key))
        self.modes[picture.mode] += 1
        self.formats[picture.format] += 1
        self.num_grouped += picture.record.group is not None
        self.ignored_profiles += picture.ignores_profile
        counts = self.words.add(picture.captions)
        for caption, num_words in zip(picture.captions, counts, strict=True):
            self.captions.extend((len(caption), num_words, split_key(caption)))

    def _compare(self, key: int, name: str) -> None:
        """Notes the names of the first duplicates; of later ones there is the number alone."""
        earlier = self.names.get(key)
        if earlier is None and len(self.names) < _MAX_NAMES:
            self.names[key] = name
        elif earlier is not None and len(self.duplicates) < _MAX_DUPLICATES:
            self.duplicates.append((name, earlier))

    def skip(self, skipped: Skipped) -> None:
        report = self.skipped.setdefault(skipped.kind, SkippedReport())
        report.count += 1
        if len(report.examples) < _MAX_EXAMPLES:
            report.examples.append({"name": skipped.name, "reason": skipped.reason})


def _columns(table: "array[int]", count: int) -> Any:
    """Returns the columns of a table of a tally."""
    return np.array(table, dtype=np.uint64).reshape(-1, count).T


def _inspect_source(
    argument: str,
    settings: DataSettings,
    tally: _Tally,
    on_picture: Callable[[Decoded], None] | None,
) -> SourceReport:
    """Reads one source to its end, or to where it breaks."""
    report = SourceReport(argument)
    try:
        source = recognise(argument, settings.caption_column)
        report.kind = source.kind
        report.files, report.bytes = source.fingerprint.files, source.fingerprint.bytes
        notes = Counter[str]()
        records = source.records(settings.seed, settings.split_by, notes)
        with contextlib.closing(decode_records(records, settings)) as pictures:
            for picture in pictures:
                if isinstance(picture, Skipped):
                    tally.skip(picture)
                    report.skipped += 1
                else:
                    tally.add(picture)
                    _count(report, picture.record)
                    if on_picture is not None:
                        on_picture(picture)
        report.notes = [*source.notes, *describe_notes(notes)]
    except (DataError, ShapeError) as error:  # or drawn scenes that are too small
        report.error = str(error)
    if "validation" not in report.split or len(report.split) < 2 or not settings.named_splits:
        report.split = {}
    return report


def _count(report: SourceReport, record: Record) -> None:
    """Counts one usable image."""
    report.images += 1
    if record.origin:
        report.readings[record.origin] = report.readings.get(record.origin, 0) + 1
    side = record.side or "train"
    report.split[side] = report.split.get(side, 0) + 1


def _report(sources: tuple[SourceReport, ...], tally: _Tally, settings: DataSettings) -> DataReport:
    """Sums up the tally."""
    widths, heights, captions_per_image, pixel_keys = _columns(tally.images, 4)
    characters, words, caption_keys = _columns(tally.captions, 3)
    images, different = len(widths), len(np.unique(caption_keys))
    duplicates = images - len(np.unique(pixel_keys))
    num_skipped = sum(report.count for report in tally.skipped.values())
    fraction = num_skipped / (num_skipped + images) if num_skipped else 0.0
    errors = _list_errors(sources, tally, settings, fraction)
    warnings = _list_warnings(tally, settings, duplicates, different)
    advice = [advice for advice in warnings.values() if advice]
    if tally.skipped:
        advice.insert(0, "Fix or remove the skipped files; the examples say what is wrong.")
    if any(source.error is not None for source in sources):
        advice.insert(0, "Fix or leave out the data that cannot be read.")
    if not errors:
        data = shlex.join(source.given for source in sources)
        advice.append(f"Train on it: tessella fit {data} --out RUN")
    return DataReport(
        sources=sources,
        images=images,
        captions=len(characters),
        captions_per_image=_spread(captions_per_image),
        width_px=_spread(widths),
        height_px=_spread(heights),
        aspect_ratio=_spread(widths / heights),
        modes=dict(tally.modes.most_common()),
        formats=dict(tally.formats.most_common()),
        duplicates=duplicates,
        duplicate_examples=tuple(tally.duplicates),
        skipped=dict(sorted(tally.skipped.items(), key=lambda item: -item[1].count)),
        skipped_fraction=fraction,
        caption_characters=_spread(characters),
        caption_words=_spread(words),
        vocabulary_size=len(tally.words.pictures),
        learnable_words=tally.words.count_often(),
        frequent_words=tuple(word for word, _ in tally.words.pictures.most_common(10)),
        untold=tuple(tally.words.list_untold()),
        different_captions=different,
        warnings=tuple(warnings),
        errors=tuple(errors),
        advice=tuple(advice),
    )


def _spread(numbers: Any) -> Spread:
    values = np.asarray(numbers, dtype=np.float64)
    if not len(values):
        return Spread(0.0, 0.0, 0.0, 0.0)
    statistics = (values.min(), values.mean(), np.median(values), values.max())
    return Spread(*(round(float(number), 4) for number in statistics))


def _list_errors(
    sources: Sequence[SourceReport], tally: _Tally, settings: DataSettings, fraction: float
) -> list[str]:
    """Lists what would make `prepare` stop."""
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
    elif not tally.images and not errors:
        errors.append("No image can be used.")
    if settings.split_by is not None and tally.images and not tally.num_grouped:
        errors.append(f"No image has the field to split by: `{settings.split_by}`.")
    return errors


def _list_warnings(
    tally: _Tally, settings: DataSettings, duplicates: int, different: int
) -> dict[str, str]:
    """Lists what looks suspicious but stops nothing, each with its advice, if any."""
    if not tally.images:
        return {}
    widths, heights, captions_per_image, _ = _columns(tally.images, 4)
    short, long = np.minimum(widths, heights), np.maximum(widths, heights)
    images, size = len(widths), settings.image_size
    tiny = int((short < size).sum())
    wide = int((long > _WIDE * short).sum())
    warnings = {}
    if different == 1 and captions_per_image.sum() > 1:
        warnings["All captions are the same: the model would have nothing to read."] = (
            "Write captions that tell the pictures apart."
        )
    if untold := tally.words.list_untold():
        warnings[f"Hardly any caption mentions {join_words(untold, 'or')}."] = (
            f"The model will not follow words for {join_words(untold, 'and')} in a prompt; put "
            "them into the captions of pictures that differ by them."
        )
    if duplicates > _MANY_DUPLICATES * images:
        warnings[f"{duplicates} of {images} images are duplicates of another one."] = (
            "Remove the duplicates; they are never on both sides of the split, but are learned "
            "more often."
        )
    if tiny > _MANY_TINY * images:
        warnings[f"{tiny} of {images} images are smaller than {size}x{size} pixels."] = (
            "Use a smaller data.image_size, or larger pictures."
        )
    if wide > _MANY_WIDE * images:
        warnings[
            f"{wide} of {images} images are more than twice as long as wide (or the other way "
            "round): the middle square loses at least half of them."
        ] = ""
    if tally.ignored_profiles:
        warnings[
            f"{tally.ignored_profiles} images have a broken colour profile: it is ignored, and "
            "their colours are read as sRGB."
        ] = "Save these pictures anew, as sRGB, if their colours look wrong."
    if images < _FEW_IMAGES:
        warnings[f"Only {images} images: the model will learn them by heart."] = ""
    if settings.split_by is not None and 0 < tally.num_grouped < images:
        missing = images - tally.num_grouped
        warnings[f"{missing} images lack the field to split by: `{settings.split_by}`."] = ""
    return warnings
