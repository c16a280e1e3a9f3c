"""What every reader of text has in common: prompts in, what the transformer reads out.

On the data's way: after the data, before the transformer. Shapes: tokens (B, T) int64, padded with
`pad_id`; or a frozen encoder's features (B, T, F) float32, padded with rows of zeros.
"""

import abc
import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tessella.errors import GenerationError

TEXT_FILE = "text_tokenizer.json"
"""Of a model folder: a `tokenizers` file, or the note of a frozen encoder's files beside it."""


@dataclass(frozen=True, eq=False)
class TrainingTokens:
    """Training captions as the transformer reads them."""

    text_tokens: Tensor
    """(B, T) int64, or (B, T, F) float32 features, padded to the longest."""

    num_truncated: int
    """How many of the captions were longer than `max_tokens` and lost their last words."""


class TextEncoder(abc.ABC):
    """Turns captions and prompts into tokens that the transformer embeds, or into features."""

    pad_id: int
    max_tokens: int  # of one caption, begin and end included
    num_features: int | None = None  # F; None: it gives tokens

    @property
    @abc.abstractmethod
    def vocabulary_size(self) -> int:
        """How many tokens there are: V."""

    @abc.abstractmethod
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Reads prompts.

        Args:
            prompts: any texts; the empty one stands for the dropped caption of guidance and is
                begin, end.

        Returns:
            (B, T) tokens or (B, T, F) features on the CPU, T the longest of the batch.

        Raises:
            GenerationError: a prompt has more than `max_tokens` tokens; nothing is cut off
                unsaid.
        """

    @abc.abstractmethod
    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Reads training captions; over-long ones lose their last words, counted.

        A cut caption keeps its end token, so that every row ends alike.
        """

    @abc.abstractmethod
    def count_tokens(self, prompt: str) -> int:
        """Counts a prompt's tokens, begin and end included, however many they are."""

    def shorten(self, prompt: str) -> str:
        """Returns as many of a prompt's first words as can be read; all of it if it can be.

        Of a first word that is too long by itself it is the first letters.
        """
        if self.count_tokens(prompt) <= self.max_tokens:
            return prompt
        return self._find_longest(" ", prompt.split()) or self._find_longest("", prompt.strip())

    def _find_longest(self, gap: str, parts: Sequence[str]) -> str:
        """Joins as many of the first parts as can be read."""
        counts = range(1, len(parts) + 1)
        fitting = bisect.bisect_right(
            counts, self.max_tokens, key=lambda count: self.count_tokens(gap.join(parts[:count]))
        )
        return gap.join(parts[:fitting])

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Writes all that `load_text` needs, to `TEXT_FILE` of a folder and beside it.

        Raises:
            CheckpointError: the disk is full, or writing there is not allowed.
        """


def check_lengths(prompts: Sequence[str], lengths: Sequence[int], max_tokens: int) -> None:
    """Refuses prompts that cannot be read whole.

    Args:
        prompts: the texts.
        lengths: of each, in tokens.
        max_tokens: the most that one may have.

    Raises:
        GenerationError: a prompt has more.
    """
    for prompt, length in zip(prompts, lengths, strict=True):
        if length > max_tokens:
            raise GenerationError(
                f"The prompt has {length} tokens (begin and end included), at most "
                f"{max_tokens} can be read: `{_shortened(prompt)}`. Shorten it, or "
                "train a model with a larger text.max_tokens."
            )


def check_is_list(prompts: Sequence[str]) -> None:
    """Refuses one text where a list of texts belongs.

    Raises:
        GenerationError: it is one text.
    """
    if isinstance(prompts, str):
        raise GenerationError(f"Expected a list of prompts, got one text: `{prompts}`.")


def to_utf8(text: str) -> str:
    """Replaces lone surrogates, which JSON may carry and UTF-8 cannot, by question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _shortened(text: str, length: int = 60) -> str:
    """Cuts a text for a message."""
    return text if len(text) <= length else text[:length] + "…"
