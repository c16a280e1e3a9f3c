"""One picture that is asked for, as it travels from the command line, the API or Python.

`list_requests` is the one place that says which picture gets which seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessella.errors import GenerationError
from tessella.images import Pixels
from tessella.model.canvas import Canvas, KnownCodes

MAX_COUNT = 10_000
MAX_BEST_OF = 64
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, eq=False)
class ImageRequest:
    """One picture to generate."""

    prompt: str  # "" is no prompt
    seed: int
    negative_prompt: str = ""  # what guidance moves away from; "" is no prompt
    canvas: Canvas | None = None  # None: a new picture of the model's own size

    def known_codes(self, grid: tuple[int, int]) -> KnownCodes:
        """Returns the codes that the canvas keeps (one row), of a model's grid (h, w) if new."""
        return KnownCodes.nothing(grid) if self.canvas is None else self.canvas.known

    def finish(self, image: Pixels) -> Pixels:
        """Puts what the canvas keeps of a picture back into the generated one (H, W, 3)."""
        return image if self.canvas is None else self.canvas.finish(image)


def list_requests(
    prompts: Sequence[str],
    *,
    count: int = 1,
    seed: int = 0,
    best_of: int = 1,
    negative_prompt: str = "",
    plan: Callable[[Sequence[int]], Sequence[Canvas]] | None = None,
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

    Raises:
        GenerationError: a number is out of range.
    """
    check_range("The count of pictures", count, MAX_COUNT)
    check_range("The number of candidates, best_of,", best_of, MAX_BEST_OF)
    seeds = [seed + number * best_of for number in range(count)]
    check_seeds(seeds)
    canvases: Sequence[Canvas | None] = [None] * count if plan is None else plan(seeds)
    return [
        ImageRequest(prompt, seed, negative_prompt, canvas)
        for prompt in prompts
        for seed, canvas in zip(seeds, canvases, strict=True)
    ]


def enumerate_requests(prompts: Sequence[str]) -> list[ImageRequest]:
    """Lists one picture a prompt, picture i with the seed i."""
    return [ImageRequest(prompt, seed) for seed, prompt in enumerate(prompts)]


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuses an empty list and blank prompts.

    Any word can be read: one that no caption had is read letter by letter, and what the model
    makes of it is chance.

    Raises:
        GenerationError: there is no prompt, or one is blank.
    """
    if not prompts:
        raise GenerationError("There is no prompt. Give at least one.")
    for prompt in prompts:
        if not prompt.strip():
            raise GenerationError(
                f"A prompt must say something: `{prompt}`. Describe the picture as the captions do."
            )


def check_range(what: str, count: int, most: int) -> None:
    """Refuses a number outside [1, most].

    Raises:
        GenerationError: names the number.
    """
    if not 1 <= count <= most:
        raise GenerationError(f"{what} must be between 1 and {most}: `{count}`.")


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuses seeds that are out of range.

    Raises:
        GenerationError: names the first.
    """
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise GenerationError(f"A seed must be between 0 and {MAX_SEED}: `{seed}`.")
