"""The model card: what a model was made of, what it can do, how to use it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessella.training.loop import TrainingSettings
from tessella.training.recipe import Recipe


@dataclass(frozen=True)
class CardFacts:
    """What only the run knows."""

    sources: Sequence[str]  # as given on the command line
    counts: Mapping[str, Any]  # images, captions, train, validation, skipped
    sample_captions: Sequence[str]  # some of the prompts that samples.png shows
    metrics: Mapping[str, Any]  # as in metrics.json
    parameters: Mapping[str, int]  # tokenizer, transformer
    licence: str | None  # of the data, as its owner gives it
    seed: int


def write_card(recipe: Recipe, facts: CardFacts) -> str:
    """Writes the model card as Markdown with the header that model hubs read."""
    licence = facts.licence or "not given (set data.licence)"
    skipped = sum(facts.counts["skipped"].values())
    size = recipe.data.image_size
    side = size // recipe.tokenizer.downsampling
    lines = [
        "---",
        "library_name: tessella",
        "pipeline_tag: text-to-image",
        f"license: {facts.licence or 'other'}",
        "---",
        "",
        "# A tessella model",
        "",
        f"Paints {size}×{size} pictures from a prompt: {side}×{side} codes out of "
        f"{recipe.tokenizer.quantizer.codebook_size}.",
        "",
        "![Samples: held-out captions and what the model paints](samples.png)",
        "",
        "## Use",
        "",
        "```python",
        "import tessella",
        "",
        'model = tessella.load("path/to/this/folder")',
        f"[image] = model.generate({_first(facts.sample_captions)!r}, seed=7)",
        "```",
        "",
        *_list_captions(facts.sample_captions),
        "## What it cannot do",
        "",
        *_list_limits(recipe, facts),
        "",
        "## Data",
        "",
        f"- Sources: {', '.join(f'`{source}`' for source in facts.sources)}",
        f"- Images: {facts.counts['images']:,} with {facts.counts['captions']:,} captions; "
        f"{facts.counts['train']:,} to train on, {facts.counts['validation']:,} kept out, "
        f"{skipped:,} skipped",
        f"- Licence of the data: {licence}",
        "",
        "## Training",
        "",
        f"- Image tokenizer: `{recipe.tokenizer.network}`, "
        f"{facts.parameters['tokenizer'] / 1e6:.2f} M parameters, {_describe_tokenizer(recipe)}",
        *_describe_loss(recipe),
        f"- Transformer: objective `{recipe.objective.name}`, "
        f"{facts.parameters['transformer'] / 1e6:.2f} M parameters, "
        f"{_describe_length(recipe.transformer_training)}",
        f"- Seed: {facts.seed}",
        "",
        "## Measured",
        "",
        "| what | value | protocol |",
        "|---|---|---|",
        *(
            f"| {name} | {entry['value']:.4g} | {entry['protocol']} |"
            for name, entry in facts.metrics.items()
        ),
        "",
    ]
    return "\n".join(lines)


def _list_captions(captions: Sequence[str]) -> list[str]:
    """Shows what can be asked for; nothing where no caption could be read whole."""
    shown = [f"- {caption}" for caption in captions if caption]
    return ["It paints what captions like these describe:", "", *shown, ""] if shown else []


def _list_limits(recipe: Recipe, facts: CardFacts) -> list[str]:
    """Says what no such model can do, a line each."""
    size, copies = recipe.data.image_size, facts.metrics.get("copy_rate")
    known = " beyond what its text encoder knows of them" if recipe.text.encoder else ""
    near = f"the measured copy rate is {copies['value']:.1%}" if copies else "it was not measured"
    return [
        f"- It paints {size}×{size} pictures. A larger one, where the objective can lay it, is "
        "laid by a window that slides over it, and repeats objects.",
        f"- Words that no caption had mean nothing to it{known}.",
        "- It cannot write: the letters that it paints spell nothing.",
        f"- It was trained on {facts.counts['train']:,} pictures and may come near to some of "
        f"them: {near}.",
    ]


def _describe_tokenizer(recipe: Recipe) -> str:
    """Says how the tokenizer came to what it knows."""
    if recipe.tokenizer.network == "palette":
        return "its colours chosen by k-means"
    settings = recipe.tokenizer_training
    part = "its decoder alone, " if settings.learn == "decoder" else ""
    return part + _describe_length(settings)


def _describe_loss(recipe: Recipe) -> list[str]:
    """Says what the tokenizer's reconstructions were compared by, a line; none for a palette."""
    if recipe.tokenizer.network == "palette":
        return []
    loss = recipe.tokenizer_training.loss
    weights = {"pixel MSE": loss.mse, "L1": loss.l1, "LPIPS": loss.lpips}
    weights |= {f"ResNet-18 {layer}": weight for layer, weight in loss.perceptual.layers.items()}
    weights["discriminator"] = loss.adversarial.weight
    parts = [f"{weight:g} {name}" for name, weight in weights.items() if weight]
    return [f"- Its loss: {', '.join(parts)}"]


def _describe_length(settings: TrainingSettings) -> str:
    """Says how many images were seen, and by what model before."""
    start = settings.init_from
    return f"{settings.images:,} images seen" + (
        f" after those of `{Path(start).name}`" if start else ""
    )


def _first(captions: Sequence[str]) -> str:
    return next(filter(None, captions), "a prompt")
