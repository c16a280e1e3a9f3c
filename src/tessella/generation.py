"""How a picture is sampled: one class that the command line, the API and Python read.

It imports nothing heavy, so that `--help` can be made from it.
"""

from typing import Literal

from pydantic import Field

from tessella.config import Settings

MAX_NEIGHBORS = 16
"""Of a prompt, in any model."""


class GenerationSettings(Settings):
    """How a picture is sampled from what the transformer predicts.

    Not every objective uses every setting:

        any_order, masked            all of them
        autoregressive, parallel     temperature, top_k, top_p, guidance_scale, guidance_schedule
        latent_mse, shared_latent    none: there is nothing to sample, to guide or to order
    """

    steps: int = Field(16, ge=1, le=4096)
    """Sampling steps, at most one for each position of the picture. Only for models of the
    objectives `any_order` and `masked`: `autoregressive` samples one position per step, the others
    all in one step."""
    temperature: float = Field(0.6, ge=0.0, le=100.0, allow_inf_nan=False)
    """Divides the logits: below 1 makes likely codes likelier; 0 always takes the likeliest."""
    top_k: int | None = Field(None, ge=1)
    """Sample from this many of the likeliest codes; all if left out."""
    top_p: float = Field(1.0, gt=0.0, le=1.0, allow_inf_nan=False)
    """Sample from the likeliest codes whose probabilities add up to this."""
    guidance_scale: float = Field(1.0, ge=0.0, le=100.0, allow_inf_nan=False)
    """How strongly to follow the prompt (classifier-free guidance); 1 is off."""
    guidance_schedule: Literal["constant", "linear"] = "constant"
    """How the guidance scale changes over the steps: `constant`, or `linear` from 1 up to it."""
    order: Literal["auto", "random", "halton", "confidence"] = "auto"
    """Order in which positions are filled: `random`; `halton`, spread evenly from the start;
    `confidence`, where the transformer is most certain; `auto`, the objective's own (random for
    `any_order`, confidence for `masked`). Other objectives have a fixed order, or none."""
    confidence_temperature: float = Field(4.5, ge=0.0, le=1000.0, allow_inf_nan=False)
    """Noise in the order `confidence`; it fades to zero by the last step."""
    neighbors: int | None = Field(None, ge=0, le=MAX_NEIGHBORS)
    """Examples to look up for each prompt, at most as many as the model was trained with, which
    is the number if left out; 0 paints from the weights alone."""
    step_schedule: Literal["cosine", "arccos"] = "cosine"
    """How many positions each step fills: `cosine`, few at first and many at the end; `arccos`,
    nearly the same number, with more at the end."""
