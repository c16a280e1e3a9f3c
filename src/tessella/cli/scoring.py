"""`tessella score`: a picture and prompts in, how well each describes it out."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.options import DEFAULT_MODEL, Debug, Device, Json, Model, PromptsFile, Seed
from tessella.cli.painting import read_prompts
from tessella.cli.pictures import read_picture
from tessella.cli.reporting import create_console, print_json, told_errors

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.model.sampler import Scores


@dataclass(frozen=True)
class _RankedPrompt:
    """One prompt for a picture, and how well the model finds that they go together."""

    prompt: str
    pmi: float  # nats
    log_likelihood: float  # nats
    share: float  # the probability among the prompts that are ranked, by softmax


def score(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="A picture of any size.", show_default=False)
    ],
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What it may show.", show_default=False),
    ] = None,
    prompts_file: PromptsFile = None,
    model: Model = DEFAULT_MODEL,
    num_orders: Annotated[
        int,
        typer.Option(
            metavar="NUMBER",
            help="Orders of the positions to average over: more are steadier and take longer.",
            min=1,
            max=1000,
        ),
    ] = 4,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Rank prompts for a picture.

    PMI says how much likelier the prompt makes the picture, in nats; below 0 it makes it less
    likely. The share is the model's probability for the prompt among the ones given: it
    classifies.
    """
    if not prompts and prompts_file is None:
        raise typer.BadParameter("Give at least one, or --prompts FILE.", param_hint="PROMPT")
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.model.find import find_model
        from tessella.model.pipeline import TextToImage

        from_file = read_prompts(prompts_file) if prompts_file else ()
        distinct = list(dict.fromkeys([*(prompts or ()), *from_file]))
        picture = read_picture(image, "score")
        loaded = TextToImage.load(find_model(model), device)
        scores = loaded.score([picture], distinct, num_orders=num_orders, seed=seed)
        ranked = _rank(distinct, scores)
        if as_json:
            print_json(
                {
                    "model": model,
                    "image": str(image),
                    "num_orders": num_orders,
                    "seed": seed,
                    "prompts": [asdict(one) for one in ranked],
                }
            )
        else:
            _show(ranked, create_console(as_json))


def _rank(prompts: list[str], scores: "Scores") -> list[_RankedPrompt]:
    """Sorts prompts by their scores for the one picture, best first."""
    import numpy as np

    log_likelihood, pmi = scores.log_likelihood[0], scores.pmi[0]
    probabilities = np.exp(pmi - pmi.max())
    probabilities /= probabilities.sum()
    numbers = (values.tolist() for values in (pmi, log_likelihood, probabilities))
    rows = zip(prompts, *numbers, strict=True)
    return sorted((_RankedPrompt(*row) for row in rows), key=lambda one: -one.pmi)


def _show(ranked: list[_RankedPrompt], console: "Console") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for head in ("rank", "PMI (nats)", "log-likelihood", "share"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("prompt")
    for rank, one in enumerate(ranked, start=1):
        numbers = f"{one.pmi:+.2f}", f"{one.log_likelihood:.2f}", f"{one.share:.1%}"
        table.add_row(str(rank), *numbers, one.prompt)
    console.print(table)
