"""Metrics in a person's words, for the first lines of a report; the table has what stands behind.

metrics ─▶ "Of new scenes, 98% are painted right in every detail."
"""

from collections.abc import Iterator, Mapping

# What the captions of scenes demand, by its name in metrics.
_DEMANDS = {
    "background": "backgrounds",
    "count": "numbers of objects",
    "size": "sizes",
    "texture": "textures",
    "color": "colours",
    "negation": "colours other than one",
    "shape": "shapes",
    "relation": "relations",
}


def describe_plainly(values: Mapping[str, float]) -> Iterator[str]:
    """Says what metrics mean, one sentence each, what is painted before what is kept.

    Args:
        values: by the names that `evaluate_images` gives them; others are passed over.
    """
    if (seen := values.get("all_correct_seen_pairs")) is not None:
        yield f"Of new scenes, {_percent(seen)} are painted right in every detail."
    if (held_out := values.get("all_correct_held_out_pairs")) is not None:
        yield f"Of those with a pair of words that training never showed, {_percent(held_out)} are."
    for kind, name in (("new scenes", "seen"), ("those with such a pair", "held_out")):
        demands = [
            f"{what} {_percent(value)}"
            for demand, what in _DEMANDS.items()
            if (value := values.get(f"right_{demand}_{name}_pairs")) is not None
        ]
        if demands:
            yield f"Of {kind}, one demand at a time, these are right: {', '.join(demands)}."
    if (own := values.get("retrieval_by_features")) is not None:
        which = "the real picture of their own prompt"
        yield f"{_percent(own)} of the pictures look most like {which}."
    if (precision := _find(values, "painted_precision_")) is not None:
        yield f"{_percent(precision)} of the pictures look like real ones."
    if (recall := _find(values, "painted_recall_")) is not None:
        yield f"{_percent(recall)} of the real ones look like something that the model paints."
    if (copies := values.get("copy_rate")) is not None:
        rate = f"{_percent(copies)} of the pictures are" if copies else "No picture is"
        yield f"{rate} closer to a training picture than 99% of real ones are."
    if (psnr := values.get("reconstruction_psnr")) is not None:
        error = 10 ** (-psnr / 20)
        yield (
            f"Its codes give a picture back with colours off by {error:.1%} of the way from black "
            "to white."
        )


def _percent(fraction: float) -> str:
    """Rounds to whole percent, but nothing to none or all that isn't."""
    rounded = f"{fraction:.0%}"
    if rounded in ("0%", "100%") and 0 < fraction < 1:
        return f"{min(max(fraction, 0.001), 0.999):.1%}"
    return rounded


def _find(values: Mapping[str, float], start: str) -> float | None:
    """Returns the first metric whose name begins so."""
    return next((value for name, value in values.items() if name.startswith(start)), None)
