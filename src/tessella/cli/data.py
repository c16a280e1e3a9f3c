"""`tessella doctor`: what DATA holds, what is wrong with it, what to do next."""

from typing import TYPE_CHECKING

import typer

from tessella.cli.options import Config, Data, Debug, Json, Preset, Set
from tessella.cli.reporting import FAILED, create_console, print_json, told_errors

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.data.inspect import DataReport


def doctor(
    data: Data,
    config: Config = None,
    set_: Set = None,
    preset: Preset = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check DATA: what it holds, what is wrong with it, what to do next.

    Decodes every picture and writes nothing. The exit status is 1 if DATA cannot be trained on.
    """
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.data.inspect import inspect_data
        from tessella.training.recipe import resolve_recipe

        recipe = resolve_recipe(preset, config, set_ or ())
        report = inspect_data(data, recipe.data)
        if as_json:
            print_json(report.to_dict())
        else:
            _show(report, create_console(as_json))
        if not report.is_usable:
            raise typer.Exit(FAILED)


def _show(report: "DataReport", console: "Console") -> None:
    from rich.table import Table

    table = Table("data", "kind", "images", "skipped", box=None, pad_edge=False)
    for source in report.sources:
        counts = f"{source.images:,}", f"{source.skipped:,}"
        table.add_row(source.given, source.kind or "not readable", *counts)
    console.print(table)
    console.print()
    for name, value in _facts(report):
        console.print(f"{name:<10} {value}")
    for kind, skipped in report.skipped.items():
        console.print(f"\nSkipped, {kind}: {skipped.count:,}, for example")
        for example in skipped.examples:
            console.print(f"  {example['name']}: {example['reason']}")
    for title, lines in (
        ("Errors", report.errors),
        ("Warnings", report.warnings),
        ("Next", report.advice),
    ):
        if lines:
            console.print(f"\n{title}:")
        for line in lines:
            console.print(f"- {line}")


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
