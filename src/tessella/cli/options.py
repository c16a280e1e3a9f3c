"""The options that commands share: each means the same wherever it stands."""

from pathlib import Path
from typing import Annotated

import typer

# A picture's seed is the given one plus its number, and torch takes 64 bits.
_MAX_SEED = 2**63 - 1

MODELS_OWN = "the model's"
"""The default of what a model brings with it, in words."""

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="Captioned images: a folder with metadata.jsonl/.csv/.parquet, a folder of images "
        "with .txt files, WebDataset .tar shards, a folder of class folders, or scenes:N.",
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings from a TOML file.", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="One setting; it wins over --config and --preset. May be repeated.",
        show_default=False,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A size by name: tiny, small, base, report2021, taming, palette.",
        show_default="tiny",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or mps.")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="NUMBER",
        help="Of all randomness: the same seed gives the same result.",
        min=0,
        max=_MAX_SEED,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A model folder, a run's folder, or the name of a bundled model.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would be done; write nothing.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
