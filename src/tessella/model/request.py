"""One requested picture, as it travels from the command line, the API or Python to the sampler.

`list_requests` alone decides which picture gets which seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from PIL import Image
from torch import Tensor

from tessella.errors import GenerationError
from tessella.images import Pixels
from tessella.model.canvas import Canvas
from tessella.objectives import OnStep
from tessella.retrieval import Example

MAX_COUNT = 10_000
MAX_BEST_OF = 64
MAX_ORDERS = 1000
MAX_SEED = 2**63 - 1


class GenerationOptions(TypedDict, total=False):
    """The options that `generate`, `edit`, `outpaint` and `vary` share; all may be left out.

    Below `on_step` follow the fields of `GenerationSettings`; None, or left out, is the model's own
    setting. All four methods refuse the same. They raise a `GenerationError` if a prompt is blank
    or too long, a number is out of range, a negative prompt comes without guidance (or with an
    objective that has none), `best_of` with an objective that has no likelihood, or more references
    or neighbors than the model learned to look at; a
    `ConfigError` if a setting is unknown or out of range.
    """

    count: int  # pictures a prompt; 1
    seed: int  # picture i, counted from 0, has seed + i · best_of; 0
    negative_prompt: str  # what guidance moves away from, instead of from no prompt
    best_of: int  # candidates a picture; the one whose likelihood the prompt raises most is kept
    references: Sequence[Image.Image] | None  # your own pictures to look at beside the prompt
    on_step: OnStep | None  # called after each step of a batch; `decode_codes` makes it visible
    steps: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance_scale: float | None
    guidance_schedule: Literal["constant", "linear"] | None
    order: Literal["auto", "random", "halton", "confidence"] | None
    confidence_temperature: float | None
    neighbors: int | None
    step_schedule: Literal["cosine", "arccos"] | None


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """One picture to generate."""

    prompt: str  # "" is no prompt
    seed: int
    negative_prompt: str = ""  # what guidance moves away from; "" is no prompt
    canvas: Canvas | None = None  # None: a new picture of the model's own size
    examples: tuple[Example, ...] | None = None  # what is looked at; None: what the prompt finds

    def canvas_on(self, grid: tuple[int, int]) -> Canvas:
        """Returns the canvas, by default an empty one of the model's grid (h, w)."""
        return Canvas.new(grid) if self.canvas is None else self.canvas

    def finish(self, image: Pixels) -> Pixels:
        """Puts the pixels that the canvas keeps back into the generated picture (H, W, 3)."""
        return image if self.canvas is None else self.canvas.finish(image)


@dataclass(frozen=True)
class GeneratedImages:
    """Pictures as pixels, with the codes that they are made of."""

    pixels: Pixels  # (B, H, W, 3) uint8
    codes: Tensor | None  # (B, M, h, w) int64; None where the objective generates no codes
    examples: Sequence[tuple[Example, ...]]  # B: what each picture was painted beside


def list_requests(
    prompts: Sequence[str],
    *,
    count: int = 1,
    seed: int = 0,
    best_of: int = 1,
    negative_prompt: str = "",
    plan: Callable[[Sequence[int]], Sequence[Canvas]] | None = None,
    look_up: Callable[[str], tuple[Example, ...]] | None = None,
) -> list[ImageRequest]:
    """Lists the pictures of some prompts, prompt after prompt.

    Args:
        prompts: each gets `count` pictures, all with the same seeds.
        count: pictures a prompt.
        seed: picture i of a prompt, counted from 0, has the seed `seed + i · best_of`: that of its
            first candidate, so that no two pictures share one.
        best_of: candidates a picture.
        negative_prompt: of every picture.
        plan: makes one canvas for each of a prompt's seeds.
        look_up: finds what is looked at for a prompt; by default it is found when it is painted.

    Raises:
        GenerationError: a number is out of range.
    """
    check_range("The count of pictures", count, MAX_COUNT)
    check_range("The number of candidates, best_of,", best_of, MAX_BEST_OF)
    seeds = [seed + number * best_of for number in range(count)]
    check_seeds(seeds)
    canvases: Sequence[Canvas | None] = [None] * count if plan is None else plan(seeds)
    examples = [None if look_up is None else look_up(prompt) for prompt in prompts]
    return [
        ImageRequest(prompt, seed, negative_prompt, canvas, looked_at)
        for prompt, looked_at in zip(prompts, examples, strict=True)
        for seed, canvas in zip(seeds, canvases, strict=True)
    ]


def enumerate_requests(prompts: Sequence[str]) -> list[ImageRequest]:
    """Lists one picture a prompt, picture i with the seed i."""
    return [ImageRequest(prompt, seed) for seed, prompt in enumerate(prompts)]


def check_prompts(prompts: str | Sequence[str]) -> list[str]:
    """Lists one prompt or several, but refuses an empty list and blank prompts.

    Any word can be encoded: one that no caption had is spelled letter by letter, and its picture
    is left to chance.

    Raises:
        GenerationError: there is no prompt, or one is blank.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise GenerationError("There is no prompt. Give at least one.")
    for prompt in prompts:
        if not prompt.strip():
            raise GenerationError(
                f"A prompt must say something: `{prompt}`. Describe the picture as the captions do."
            )
    return prompts


def check_range(name: str, number: int, most: int, *, least: int = 1) -> None:
    """Refuses a number outside [least, most].

    Raises:
        GenerationError: names the number.
    """
    if not least <= number <= most:
        raise GenerationError(f"{name} must be between {least} and {most}: `{number}`.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that are out of range.

    Raises:
        GenerationError: names the first.
    """
    for seed in seeds:
        check_range("A seed", seed, MAX_SEED, least=0)
