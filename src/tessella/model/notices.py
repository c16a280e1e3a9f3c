"""What of a request had no effect, in words: the `warnings` of Python, `--json` and the API.

A request may ask for what a model cannot do, and is painted all the same. What was left out, cut or
may mean anything is said here, in the same words wherever it was asked.
"""

from collections.abc import Collection, Iterable, Sequence

from tessella.generation import GenerationSettings
from tessella.model.provenance import find_unexplained
from tessella.model.request import ImageRequest
from tessella.objectives import Objective
from tessella.text.vocabulary import Vocabulary

_MAX_NAMED = 20  # unknown words
_MAX_SHOWN = 200  # characters of a prompt that was cut

_SAMPLED = ("temperature", "top_k", "top_p", "guidance_scale", "guidance_schedule")
_USED: dict[str, tuple[str, ...]] = {
    "autoregressive": (*_SAMPLED, "neighbors"),
    "parallel": (*_SAMPLED, "neighbors"),
    "latent_mse": ("neighbors",),
    "shared_latent": ("neighbors",),
}
"""The settings that an objective reads; one that is not named here reads all."""


def list_unknown(vocabulary: Vocabulary, requests: Iterable[ImageRequest]) -> list[str]:
    """Lists the words of prompts that neither training nor anything looked at explains."""
    examples_of = {one.prompt: one.examples or () for one in requests}
    words = [
        word
        for prompt, examples in examples_of.items()
        for word in find_unexplained(vocabulary.find_unknown(prompt), examples)
    ]
    return list(dict.fromkeys(words))


def warn_unknown(words: Sequence[str]) -> list[str]:
    """Names words that the model may paint anything for, if there are any."""
    if not words:
        return []
    named = ", ".join(f"`{word}`" for word in words[:_MAX_NAMED])
    more = f" and {len(words) - _MAX_NAMED:,} more" if len(words) > _MAX_NAMED else ""
    return [
        f"Not in the model's vocabulary: {named}{more}. Its captions rarely or never had these "
        "words, so results for them are unpredictable."
    ]


def warn_cut(name: str, given: str, read: str) -> list[str]:
    """Says to what a prompt was cut, if it was."""
    if given == read:
        return []
    shown = read if len(read) <= _MAX_SHOWN else f"{read[:_MAX_SHOWN]}…"
    return [f"The {name} is longer than the model reads. It was cut to: `{shown}`."]


def warn_idle(names: Sequence[str], reason: str) -> list[str]:
    """Names fields or options that had no effect, for a reason."""
    named = ", ".join(f"`{name}`" for name in names)
    return [f"No effect: {named}. {reason}"] if names else []


def warn_negative_prompt(objective: Objective, settings: GenerationSettings) -> list[str]:
    """Says why a negative prompt has no effect, if it has none."""
    if not objective.is_guided:
        reason = f"Guidance is nothing that the model's objective has: `{objective.name}`."
    elif settings.guidance_scale == 1:
        reason = "It works by guidance, which is off: guidance_scale is 1. Give one above 1."
    else:
        return []
    return warn_idle(["negative_prompt"], reason)


def warn_settings(
    objective: Objective, settings: GenerationSettings, asked: Collection[str]
) -> list[str]:
    """Names the settings that were asked for and that this objective, or another one, idles.

    Args:
        objective: of the model.
        settings: what is painted with.
        asked: the settings that the request names.
    """
    used = _USED.get(objective.name, tuple(GenerationSettings.model_fields))
    unused = [name for name in asked if name not in used]
    said = warn_idle(unused, f"The model's objective does not use it: `{objective.name}`.")
    idle: dict[str, str] = {}
    auto = "confidence" if objective.name == "masked" else "random"
    if (auto if settings.order == "auto" else settings.order) != "confidence":
        idle["confidence_temperature"] = "It belongs to the order `confidence`."
    if settings.guidance_scale == 1:
        idle["guidance_schedule"] = "Guidance is off: guidance_scale is 1."
    if settings.temperature == 0:
        idle |= dict.fromkeys(("top_k", "top_p"), "At temperature 0 the likeliest code is taken.")
    for name, reason in idle.items():
        if name in asked and name in used:
            said += warn_idle([name], reason)
    return said
