"""The options that commands share: each means the same wherever it appears."""

from pathlib import Path
from typing import Annotated

import typer

from tessella.model.find import DEFAULT_MODEL as DEFAULT_MODEL  # of every `--model`
from tessella.precision import PaintingPrecision

# A picture's seed is the given one plus its number, and torch takes 64 bits.
_MAX_SEED = 2**63 - 1

MODELS_OWN = "the model's own"
"""The default of what a model brings with it, in words."""

Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA",
        help="Captioned images: a folder with metadata.jsonl, .csv or .parquet; a folder of images "
        "with .txt files; WebDataset .tar shards; a folder of class folders; hf:USER/DATASET on "
        "the Hugging Face hub; or scenes:N or scenes2:N, which draw N pictures.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Read settings from a TOML or JSON file."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting; overrides files and presets. Can be repeated.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A size by name: tiny, small, base, large, report2021, taming or palette.",
        show_default="tiny",
    ),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="Where to run: auto, cpu, cuda or mps.")]
Precision = Annotated[
    PaintingPrecision,
    typer.Option(
        metavar="NAME",
        help="What to compute in on a CPU: fp32, bf16, int8; or auto, the fastest here that paints "
        "as well, measured once for a large model.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        metavar="NUMBER",
        help="Seeds all randomness: the same seed gives the same result.",
        min=0,
        max=_MAX_SEED,
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="MODEL",
        help="A model folder, a run's folder, the name of a bundled model, or hf:USER/NAME on the "
        "Hugging Face hub (hf:USER/NAME@REVISION for one version of it).",
    ),
]
BestOf = Annotated[
    int,
    typer.Option(
        metavar="NUMBER",
        help="Paint this many candidates for each picture and keep the one that the model finds "
        "closest to the prompt.",
        min=1,
        max=64,
    ),
]
References = Annotated[
    list[Path] | None,
    typer.Option(
        "--reference",
        metavar="IMAGE",
        help="A picture of your own that the model looks at beside the prompt, if it was trained "
        "to look at examples. Can be repeated.",
    ),
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Read prompts from a UTF-8 file, one per line; blank lines are skipped.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what would happen; write nothing.")
]
