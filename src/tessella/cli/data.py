"""`tessella doctor`: what DATA holds, what is wrong with it, what to do next."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tessella.cli.options import Config, Data, Preset, Set
from tessella.cli.reporting import FAILED, Result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessella.data.inspect import DataReport


def doctor(data: Data, config: Config = None, set_: Set = None, preset: Preset = None) -> Result:
    """Check DATA: its contents, its faults, what to do next.

    Decodes every picture and writes nothing. The exit status is 1 if DATA cannot be trained on.
    """
    from tessella.data.inspect import inspect_data
    from tessella.training.recipe import resolve_recipe

    report = inspect_data(data, resolve_recipe(preset, config, set_ or ()).data)
    return Result(report.to_dict(), _describe(report), 0 if report.is_usable else FAILED)


def _describe(report: "DataReport") -> Iterator["RenderableType"]:
    from rich.table import Table

    table = Table("data", "kind", "images", "skipped", box=None, pad_edge=False)
    for source in report.sources:
        counts = f"{source.images:,}", f"{source.skipped:,}"
        table.add_row(source.given, source.kind or "not readable", *counts)
    yield table
    yield ""
    for name, value in _facts(report):
        yield f"{name:<10} {value}"
    for kind, skipped in report.skipped.items():
        yield f"\nSkipped, {kind}: {skipped.count:,}, for example"
        for example in skipped.examples:
            yield f"  {example['name']}: {example['reason']}"
    sections = {"Errors": report.errors, "Warnings": report.warnings, "Next": report.advice}
    for title, lines in sections.items():
        if lines:
            yield "\n".join(["", f"{title}:", *(f"- {line}" for line in lines)])


def _facts(report: "DataReport") -> list[tuple[str, str]]:
    """Lists the numbers of a report, one line per subject."""
    if not report.images:
        return [("Images", "none usable")]
    width, height, words = report.width_px, report.height_px, report.caption_words
    formats = ", ".join(f"{name} {count:,}" for name, count in report.formats.items())
    return [
        ("Images", f"{report.images:,} ({formats}); {report.duplicates:,} duplicates"),
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
        ("Words", f"{report.vocabulary_size:,}; most frequent: {', '.join(report.frequent_words)}"),
    ]
