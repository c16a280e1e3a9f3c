"""What had no effect is told, and what is told had none."""

from typing import Any

import numpy as np
import pytest

from tessella.model.notices import (
    list_unknown,
    warn_cut,
    warn_idle,
    warn_negative_prompt,
    warn_settings,
    warn_unknown,
)
from tessella.model.request import ImageRequest
from tessella.retrieval import Example
from tessella.text.vocabulary import CaptionSummary, Vocabulary
from untrained import create_untrained

OBJECTIVES = (
    "any_order", "masked", "autoregressive", "parallel", "latent_mse", "shared_latent",
)  # fmt: skip
MODEL = create_untrained()

CHANGES: dict[str, Any] = {
    "steps": 2,
    "temperature": 0.1,
    "top_k": 2,
    "top_p": 0.2,
    "guidance_scale": 6.0,
    "guidance_schedule": "linear",
    "order": "halton",
    "confidence_temperature": 90.0,
    "step_schedule": "arccos",
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_settings_are_told_where_they_change_nothing(objective: str, name: str) -> None:
    model = create_untrained(objective)
    seeds: dict[str, Any] = {"seed": 1, "count": 4}
    own = np.stack(model.generate("a red star", **seeds))
    made = model.generate("a red star", **seeds, **{name: CHANGES[name]})
    told = [one for one in made.warnings if one.startswith(f"No effect: `{name}`.")]
    assert bool(told) == np.array_equal(own, np.stack(made))


def test_at_temperature_0_nothing_is_filtered() -> None:
    settings = MODEL.generation_settings(temperature=0.0, top_k=3)
    [said] = warn_settings(MODEL.objective, settings, ["temperature", "top_k"])
    assert said == "No effect: `top_k`. At temperature 0 the likeliest code is taken."


def test_settings_that_nobody_asked_for_are_not_told() -> None:
    settings = MODEL.generation_settings(temperature=0.0, top_k=3)
    assert warn_settings(MODEL.objective, settings, []) == []
    assert MODEL.generate("star", guidance_schedule=None).warnings == []


def test_the_order_by_confidence_has_its_temperature() -> None:
    settings = MODEL.generation_settings(order="confidence")
    assert warn_settings(MODEL.objective, settings, ["confidence_temperature"]) == []


def test_negative_prompts() -> None:
    settings = MODEL.generation_settings()
    [said] = warn_negative_prompt(MODEL.objective, settings)
    assert said.endswith(
        "It works by guidance, which is off: guidance_scale is 1. Give one above 1."
    )
    settings = MODEL.generation_settings(guidance_scale=2.0)
    assert warn_negative_prompt(MODEL.objective, settings) == []
    [said] = warn_negative_prompt(create_untrained("latent_mse").objective, settings)
    assert said.endswith("Guidance is nothing that the model's objective has: `latent_mse`.")


def test_what_was_cut() -> None:
    assert warn_cut("prompt", "a star", "a star") == []
    [said] = warn_cut("prompt", "a star and so on", "a star")
    assert said == "The prompt is longer than the model reads. It was cut to: `a star`."
    [said] = warn_cut("prompt", "", "x" * 300)
    assert said.endswith(f"`{'x' * 200}…`.")


def test_unknown_words() -> None:
    assert warn_unknown([]) == []
    many = [f"w{number}" for number in range(23)]
    assert "`w18`, `w19` and 3 more. Its captions" in warn_unknown(many)[0]
    assert warn_idle([], "So.") == []


def test_an_example_explains_words_and_signs() -> None:
    words = Vocabulary(MODEL.text_tokenizer, CaptionSummary(1, {"star": 1}, []))
    codes = np.zeros((1, 4, 4), np.uint16)
    seen = Example(codes, "a ⭐️ in the sky", "sky.png")
    requests = [
        ImageRequest("🔴⭐ star", 0, examples=(seen,)),
        ImageRequest("🔴 skies", 1, examples=(seen,)),
        ImageRequest("⭐", 2),
    ]
    assert list_unknown(words, requests[:2]) == ["🔴"]
    assert list_unknown(words, requests) == ["🔴", "⭐"]


def test_python_tells_unknown_words() -> None:
    """They were told on the command line alone."""
    [said] = MODEL.generate(["🔴⭐", "a xyzzy"]).warnings
    assert said.startswith("Not in the model's vocabulary: `🔴`, `⭐`, `xyzzy`.")
    image = MODEL.generate("star")[0]
    assert MODEL.vary(image, "xyzzy").warnings[0].startswith("Not in the model's vocabulary")
    assert MODEL.outpaint(image, "xyzzy", left=4).warnings
