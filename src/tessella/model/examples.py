"""What a model looks at while it paints: your references first, then what the prompt finds."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from PIL import Image

from tessella.errors import GenerationError
from tessella.model.canvas import fit_images
from tessella.model.codec import encode_stored
from tessella.model.request import ImageRequest
from tessella.retrieval import Example, ExampleMemory
from tessella.tokenizer import VQAutoencoder


class ExampleFinder:
    """Finds the examples of prompts.

    Args:
        memory: of the model; None if it has none, and looks at references alone.
        most: the most examples that the model learned to look at; 0 is none.
    """

    def __init__(self, memory: ExampleMemory | None, most: int) -> None:
        self.memory, self.most = memory, most

    def find(
        self,
        prompt: str,
        count: int | None = None,
        *,
        references: Sequence[Example] = (),
        excluded: Collection[int] = (),
    ) -> tuple[Example, ...]:
        """Finds what the model looks at for a prompt.

        Args:
            prompt: its words are looked up among the captions of the examples.
            count: examples, references included; None is as many as the model learned to look at.
                The references are looked at in any case.
            references: your own pictures, or examples of the memory that stay.
            excluded: examples of the memory that are not looked at.

        Returns:
            The references, then the best examples; fewer where the prompt finds no more.

        Raises:
            GenerationError: there are more references, or more examples are asked for, than the
                model learned to look at.
        """
        self.check(len(references), count)
        free = (self.most if count is None else count) - len(references)
        if self.memory is None or free <= 0:
            return tuple(references)
        kept = {one.index for one in references if one.index is not None}
        return (*references, *self.memory.find(prompt, free, excluded=kept | set(excluded)))

    def complete(self, requests: Sequence[ImageRequest], count: int | None) -> list[ImageRequest]:
        """Finds examples for the requests that do not name theirs, once for each prompt."""
        prompts = {one.prompt for one in requests if one.examples is None}
        found = {prompt: self.find(prompt, count) for prompt in prompts}
        return [
            replace(one, examples=found[one.prompt]) if one.examples is None else one
            for one in requests
        ]

    def check(self, num_references: int, count: int | None = None) -> None:
        """Refuses more references or examples than the model learned to look at.

        Raises:
            GenerationError: says how many there may be.
        """
        if not self.most and (num_references or count):
            raise GenerationError(
                "The model does not look at examples: it was trained without "
                "(retrieval.neighbors is 0). Leave references and neighbors out, or train with "
                "retrieval.neighbors."
            )
        if num_references > self.most:
            raise GenerationError(
                f"The model looks at {self.most} pictures at most: `{num_references}` references. "
                "Give fewer."
            )
        if count is not None and count > self.most:
            raise GenerationError(
                f"The model learned to look at {self.most} examples at most: neighbors `{count}`. "
                "Give fewer."
            )


def encode_references(
    images: Sequence[Image.Image], tokenizer: VQAutoencoder, size: int
) -> list[Example]:
    """Encodes your own pictures, to be looked at like examples of the memory.

    Args:
        images: of any size; cropped to the square in the middle and resized.
        tokenizer: of the model.
        size: of the model's pictures, in pixels.
    """
    if not images:
        return []
    codes = encode_stored(tokenizer, fit_images(images, size))
    return [Example(one, "", f"reference {number}") for number, one in enumerate(codes, start=1)]
