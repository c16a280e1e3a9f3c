"""`tessella score`: a picture and prompts in, how well each describes it out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.command import get_group
from tessella.cli.options import DEFAULT_MODEL, Device, Model, PromptsFile, Seed
from tessella.cli.painting import collect_prompts
from tessella.cli.pictures import read_picture
from tessella.cli.reporting import Result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessella.model.sampler import Scores


@dataclass(frozen=True)
class ScoreOptions:
    """What to score, and how."""

    image: Annotated[Path, typer.Argument(metavar="IMAGE", show_default=False)]
    """A picture of any size."""
    prompts: Annotated[list[str] | None, typer.Argument(metavar="PROMPT", show_default=False)] = (
        None
    )
    """Candidate prompts."""
    prompts_file: PromptsFile = None
    model: Model = DEFAULT_MODEL
    num_orders: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=1000)] = 4
    """Average over this many orders of the positions: more are steadier and take longer."""
    seed: Seed = 0
    device: Device = "auto"


def score(context: typer.Context) -> Result:
    """Rank prompts for a picture.

    PMI (pointwise mutual information) says how much likelier the prompt makes the picture, in
    nats; below 0, less likely. The share is the model's probability for the prompt among those
    given: with names of classes as prompts, it classifies.
    """
    options = get_group(context, ScoreOptions)
    prompts = list(dict.fromkeys(collect_prompts(options.prompts, options.prompts_file)))
    picture = read_picture(options.image, "score")

    from tessella.model.find import find_model
    from tessella.model.pipeline import TextToImage

    model = TextToImage.load(find_model(options.model), options.device)
    settings = {"num_orders": options.num_orders, "seed": options.seed}
    ranked = _rank(prompts, model.score([picture], prompts, **settings))
    values = {
        "model": options.model,
        "image": str(options.image),
        **settings,
        "prompts": ranked,
    }
    return Result(values, _describe(ranked))


def _rank(prompts: Sequence[str], scores: "Scores") -> list[dict[str, Any]]:
    """Sorts prompts by their scores for the one picture, best first.

    Returns:
        Each prompt, with `pmi` and `log_likelihood` in nats and its `share`: the probability among
        the prompts, by softmax.
    """
    import numpy as np

    log_likelihood, pmi = scores.log_likelihood[0], scores.pmi[0]
    share = np.exp(pmi - pmi.max())
    share /= share.sum()
    names = "prompt", "pmi", "log_likelihood", "share"
    columns = prompts, pmi.tolist(), log_likelihood.tolist(), share.tolist()
    rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    return sorted(rows, key=lambda row: -row["pmi"])


def _describe(ranked: Sequence[Mapping[str, Any]]) -> Iterator["RenderableType"]:
    """Says what fits in plain words, then shows the numbers."""
    from rich.table import Column, Table

    best = ranked[0]
    if best["pmi"] <= 0:
        each = "Each prompt makes" if len(ranked) > 1 else "The prompt makes"
        more = f" The best of them: {best['prompt']}" if len(ranked) > 1 else ""
        yield (
            f"{each} the picture less likely than no prompt does: something in it may be missing, "
            f"or said otherwise than the model's captions do.{more}\n"
        )
    elif len(ranked) == 1:
        yield "To the model the prompt fits: it makes the picture likelier.\n"
    else:
        yield f"The best match, {best['share']:.0%} among these prompts: {best['prompt']}\n"
    heads = "rank", "PMI (nats)", "log-likelihood", "share"
    numbers = [Column(head, justify="right", no_wrap=True) for head in heads]
    table = Table(*numbers, "prompt", box=None, pad_edge=False)
    for rank, row in enumerate(ranked, start=1):
        cells = f"{row['pmi']:+.2f}", f"{row['log_likelihood']:.2f}", f"{row['share']:.1%}"
        table.add_row(str(rank), *cells, row["prompt"])
    yield table
