"""`tessella doctor`: what DATA holds, what is wrong with it, what to do next."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tessella.cli.options import Config, Data, Preset, Set
from tessella.cli.reporting import FAILED, Result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessella.data.decode import Decoded
    from tessella.data.inspect import DataReport, SourceReport
    from tessella.retrieval.coverage import CoverageReport


def doctor(data: Data, config: Config = None, set_: Set = None, preset: Preset = None) -> Result:
    """Check DATA: its contents, its faults, what to do next.

    Decodes every picture and writes nothing. Also counts the captions to which another picture's
    caption is so similar that a model that looks at examples would learn from it
    (retrieval.neighbors). The exit status is 1 if DATA cannot be trained on.
    """
    from tessella.data.inspect import inspect_data
    from tessella.retrieval.coverage import CoverageMeter
    from tessella.training.recipe import resolve_recipe

    meter = CoverageMeter()

    def collect(picture: "Decoded") -> None:
        """Pictures that would be on one side of the split are no neighbours."""
        family = picture.record.group
        meter.add(picture.captions, picture.digest.hex() if family is None else f"group {family}")

    report = inspect_data(data, resolve_recipe(preset, config, set_ or ()).data, collect)
    coverage = meter.measure()
    values = {**report.to_dict(), "neighbors": coverage and coverage.to_dict()}
    return Result(values, _describe(report, coverage), 0 if report.is_usable else FAILED)


def _describe(
    report: "DataReport", coverage: "CoverageReport | None"
) -> Iterator["RenderableType"]:
    from rich.table import Table

    table = Table("data", "kind", "images", "skipped", box=None, pad_edge=False)
    for source in report.sources:
        counts = f"{source.images:,}", f"{source.skipped:,}"
        table.add_row(source.given, source.kind or "not readable", *counts)
    yield table
    yield ""
    for source in report.sources:
        yield from _describe_reading(source)
    for name, value in _facts(report):
        yield f"{name:<10} {value}"
    if coverage is not None:
        yield f"{'Neighbours':<10} {coverage.describe()}"
    for kind, skipped in report.skipped.items():
        yield f"\nSkipped, {kind}: {skipped.count:,}, for example"
        for example in skipped.examples:
            yield f"  {example['name']}: {example['reason']}"
    if report.duplicates:
        yield f"\nDuplicates: {report.duplicates:,}, for example"
        for name, earlier in report.duplicate_examples:
            yield f"  {name} duplicates {earlier}"
    sections = {"Errors": report.errors, "Warnings": report.warnings, "Next": report.advice}
    for title, lines in sections.items():
        if lines:
            yield "\n".join(["", f"{title}:", *(f"- {line}" for line in lines)])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _describe_reading(source: "SourceReport") -> Iterator[str]:
    """Says how a source was read, so that a wrong reading is seen before the training."""
    for origin, count in source.readings.items():
        yield f"{'Read':<10} {source.given}: {origin} ({count:,} images)"
    if source.split:
        train, held_out = source.split["train"], source.split["validation"]
        sides = f"{train:,} images for training, {held_out:,} held out"
        yield f"{'Split':<10} {source.given}: as the data names it: {sides}"
    for note in source.notes:
        yield f"{'Note':<10} {source.given}: {note}"


def _facts(report: "DataReport") -> list[tuple[str, str]]:
    """Lists the numbers of a report, one line per subject."""
    from tessella.data.caption_words import OFTEN

    if not report.images:
        return [("Images", "none usable")]
    width, height, words = report.width_px, report.height_px, report.caption_words
    formats = ", ".join(f"{name} {count:,}" for name, count in report.formats.items())
    return [
        ("Images", f"{report.images:,} ({formats}); {_count(report.duplicates, 'duplicate')}"),
        (
            "Pixels",
            f"{width.min:.0f}x{height.min:.0f} to {width.max:.0f}x{height.max:.0f}, "
            f"median {width.median:.0f}x{height.median:.0f}",
        ),
        (
            "Captions",
            f"{report.captions:,}, {report.different_captions:,} distinct; "
            f"{words.min:.0f} to {words.max:.0f} words, mean {words.mean:.1f}",
        ),
        (
            "Words",
            f"{report.vocabulary_size:,}; {report.learnable_words:,} occur in at least {OFTEN} "
            "images, about what a model needs to learn a word; most frequent: "
            f"{', '.join(report.frequent_words)}",
        ),
    ]
