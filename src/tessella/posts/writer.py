"""Whoever writes posts: a language model (`model_writer.py`) or templates (`offline.py`)."""

import abc
from collections.abc import Iterator, Sequence

from tessella.posts.post import Post
from tessella.posts.request import PostRequest

AT_ONCE = 5
"""Posts that are written together: an answer stays short enough not to be cut off."""


class PostWriter(abc.ABC):
    """Writes posts for a business, with a label each in an image model's language."""

    language_model: str | None = None
    """Its name; None: no language model is asked."""

    @abc.abstractmethod
    def write_some(
        self, request: PostRequest, count: int, earlier: Sequence[Post]
    ) -> Sequence[Post]:
        """Writes a few posts.

        Args:
            request: what is asked.
            count: how many.
            earlier: those of the same request that are written, in order.

        Raises:
            LanguageModelError: there is no usable answer.
        """

    def write(
        self, request: PostRequest, count: int, earlier: Sequence[Post] = ()
    ) -> Iterator[Sequence[Post]]:
        """Writes what is missing of `count` posts, some at a time, as they are taken.

        Raises:
            LanguageModelError: there is no usable answer.
        """
        written = list(earlier)
        while len(written) < count:
            some = self.write_some(request, min(AT_ONCE, count - len(written)), written)
            written += some
            yield some
