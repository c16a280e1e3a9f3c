"""The options that commands share: each means the same wherever it stands."""

import re
from pathlib import Path
from typing import Annotated

import typer

from tessella.model.find import DEFAULT_MODEL as DEFAULT_MODEL  # of every `--model`

# A picture's seed is the given one plus its number, and torch takes 64 bits.
_MAX_SEED = 2**63 - 1

MODELS_OWN = "the model's"
"""The default of what a model brings with it, in words."""


def parse_size(text: str) -> tuple[int, int]:
    """Reads WIDTHxHEIGHT; whether a model can paint it, the model says.

    Raises:
        typer.BadParameter: it is written otherwise.
    """
    found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.strip().lower())
    if found is None:
        what = f"Write WIDTHxHEIGHT in pixels, such as 256x128: `{text}`."
        raise typer.BadParameter(what, param_hint="--size")
    return int(found[1]), int(found[2])


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
        help="A size by name: tiny, small, base, large, report2021, taming, palette.",
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

# --- what is painted, and how ---------------------------------------------------------------

PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts from a UTF-8 file, one a line; blank lines are skipped.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="PATH",
        help="NAME.png: the picture, or one sheet of all. Anything else: a folder of "
        "0000.png, 0001.png, … and prompts.jsonl.",
        show_default="a free name, after what is painted",
    ),
]
Count = Annotated[
    int,
    typer.Option("--count", metavar="NUMBER", help="Pictures a prompt.", min=1, max=10_000),
]
BestOf = Annotated[
    int,
    typer.Option(
        "--best-of",
        metavar="NUMBER",
        help="Paint so many for each picture, and keep the one that the model finds most like "
        "the prompt.",
        min=1,
        max=64,
    ),
]
NegativePrompt = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="What guidance moves away from, instead of from no prompt; a guidance scale above "
        "1 makes it count.",
        show_default=False,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        metavar="NUMBER",
        help="Rounds in which the places of a picture are filled.",
        show_default=MODELS_OWN,
    ),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="How far the prompt is followed beyond what was learned; 1 is off.",
        show_default=MODELS_OWN,
    ),
]
GuidanceSchedule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The guidance scale over the steps: constant, or linear from 1 up to it.",
        show_default=MODELS_OWN,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="Below 1 the likely codes get likelier; 0 takes the likeliest.",
        show_default=MODELS_OWN,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="NUMBER",
        help="Choose among so many of the likeliest codes.",
        show_default=MODELS_OWN,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        help="Choose among the likeliest codes that together have this probability.",
        show_default=MODELS_OWN,
    ),
]
Order = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The order in which places are filled: random, halton, confidence, or auto: the "
        "objective's own.",
        show_default=MODELS_OWN,
    ),
]
StepSchedule = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How many places each step fills: cosine, or arccos, which leaves more for the end.",
        show_default=MODELS_OWN,
    ),
]
