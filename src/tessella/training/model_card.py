"""The model card: what a model was made of, what it can and cannot do, how to use it.

`model_card.md.jinja` has its text.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tessella.errors import DataError
from tessella.evaluation.plain_words import describe_plainly
from tessella.hub import is_hub_address, parse_address
from tessella.tokenizer.losses import ReconstructionLossSettings
from tessella.tokenizer.perceptual import NETWORKS
from tessella.training.recipe import Recipe
from tessella.untrusted import to_code


def write_card(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """Writes the model card as Markdown, with the header that model hubs read.

    Args:
        recipe: the run's.
        facts: what the recipe does not say: `sources`, as on the command line; `counts` of
            images, captions, train, validation and skipped; `sample_captions`, some of the prompts
            that samples.png shows; `metrics`, as in metrics.json; `parameters` of tokenizer and
            transformer; `seed`; `examples`, how many pictures the memory holds, 0 if there is none.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    captions = [caption for caption in facts["sample_captions"] if caption.strip()]
    return environment.get_template("model_card.md.jinja").render(
        recipe=recipe,
        facts=facts,
        size=recipe.data.image_size,
        side=recipe.data.image_size // recipe.tokenizer.downsampling,
        is_palette=recipe.tokenizer.network == "palette",
        loss=_describe_loss(recipe.tokenizer_training.loss),
        examples=facts.get("examples", 0),
        neighbors=recipe.describe_model().neighbors,
        likeness=_describe_likeness(facts["metrics"]),
        in_words=list(describe_plainly({n: m["value"] for n, m in facts["metrics"].items()})),
        captions=[to_code(caption) for caption in captions],
        example=repr(captions[0] if captions else "a prompt"),
        name_of=_name,
        to_code=to_code,
        datasets=_list_datasets(facts["sources"]),
    )


def _name(place: str) -> str:
    """Names what is here without its folders, and what is on the hub in full."""
    return place if is_hub_address(place) else Path(place).name


def _list_datasets(sources: Sequence[str]) -> list[str]:
    """Lists the data sets on the hub, as a card's header names them."""
    found = [
        parse_address(source, DataError, kind="dataset").repository
        for source in sources
        if is_hub_address(source)
    ]
    return list(dict.fromkeys(found))


def _describe_likeness(metrics: Mapping[str, Any]) -> str:
    """Says how like the originals the codes decode; empty if that was not measured."""
    forms = {"reconstruction_psnr": "PSNR {:.1f} dB", "reconstruction_ssim": "SSIM {:.2f}"}
    return ", ".join(
        form.format(metrics[name]["value"]) for name, form in forms.items() if name in metrics
    )


def _describe_loss(loss: ReconstructionLossSettings) -> str:
    """Lists the parts of the tokenizer's loss with their weights."""
    weights = {"pixel MSE": loss.mse, "L1": loss.l1, "LPIPS": loss.lpips}
    network = NETWORKS[loss.perceptual.network].name
    weights |= {f"{network} {layer}": weight for layer, weight in loss.perceptual.layers.items()}
    weights["discriminator"] = loss.adversarial.weight
    return ", ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)
