"""How far an evaluation is: told to whoever waits for it, as it takes minutes."""

from collections.abc import Callable, Sequence

from tessella.model.pipeline import TextToImage
from tessella.model.request import GeneratedImages, ImageRequest
from tessella.objectives import GenerationStep

Tell = Callable[[str, str], None]
"""Takes what is being done, and how far that is: empty when it begins."""


def tell_nobody(what: str, how_far: str) -> None:
    """Takes what nobody wants to know."""


def paint(
    model: TextToImage, requests: Sequence[ImageRequest], what: str, tell: Tell
) -> GeneratedImages:
    """Paints a picture a request, and tells after each batch how many there are."""
    num_painted = 0

    def count(step: GenerationStep) -> None:
        nonlocal num_painted
        if step.step == step.steps:
            num_painted += len(step.codes)
            tell(what, f"{num_painted:,} of {len(requests):,}")

    tell(what, "")
    return model.generate_images(requests, on_step=count)
