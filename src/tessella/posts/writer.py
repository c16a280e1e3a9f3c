"""Writers of posts: a language model (`model_writer.py`) or templates (`offline.py`)."""

import abc
from collections.abc import Iterator, Sequence

from tessella.posts.post import Post
from tessella.posts.request import PostRequest

BATCH_SIZE = 5
"""Posts that are written together; more would risk an answer that is cut off."""


class PostWriter(abc.ABC):
    """Writes posts for a business, each with a label in the image model's language."""

    language_model: str | None = None
    """The name of the language model that is asked; None: none is."""

    @abc.abstractmethod
    def write_batch(
        self, request: PostRequest, count: int, earlier: Sequence[Post]
    ) -> Sequence[Post]:
        """Writes a few posts.

        Args:
            request: the business and its wishes.
            count: number of posts.
            earlier: the posts of this request that exist already, in order.

        Raises:
            LanguageModelError: the language model gave no usable answer.
        """

    def write(
        self, request: PostRequest, count: int, earlier: Sequence[Post] = ()
    ) -> Iterator[Sequence[Post]]:
        """Writes the posts that are missing from `count`, batch by batch.

        Raises:
            LanguageModelError: the language model gave no usable answer.
        """
        posts = list(earlier)
        while len(posts) < count:
            batch = self.write_batch(request, min(BATCH_SIZE, count - len(posts)), posts)
            posts += batch
            yield batch
