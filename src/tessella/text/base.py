"""Common parts of all text encoders: prompts and captions in, the transformer's input out.

On the data's way: after the data, before the transformer. Shapes: tokens (B, T) int64, padded with
`pad_id`; or a frozen encoder's features (B, T, F) float32, padded with rows of zeros.
"""

import abc
import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from tessella.errors import GenerationError

TEXT_FILE = "text_tokenizer.json"
"""Of a model folder: a `tokenizers` file, or a note about the frozen encoder's files beside it."""

_CHUNK = 4096  # texts at once: keeps memory flat and both cores busy

Row = tuple[int, ...]  # the tokens of one text, begin and end included


@dataclass(frozen=True, eq=False)
class TrainingTokens:
    """Training captions as the transformer reads them."""

    text_tokens: Tensor
    """(B, T) int64, or (B, T, F) float32 features, padded to the longest."""

    num_truncated: int
    """How many captions were longer than `max_tokens` and lost their last words."""


@dataclass(frozen=True)
class CutRows:
    """Tokens of captions, none longer than `max_tokens`."""

    rows: list[Row]
    truncated: list[bool]  # which captions lost their last words


class TextEncoder(abc.ABC):
    """Turns captions and prompts into tokens that the transformer embeds, or into features.

    Args:
        tokenizer: adds begin and end itself; it is changed.
        max_tokens: the most tokens of one caption, begin and end included.
    """

    pad_id: int
    num_features: int | None = None  # F; None: it gives tokens

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        # A tokenizer's file may say how to cut and pad; here a prompt that is too long is refused.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Otherwise the words `<end>` in a prompt would end it; a file cannot hold this setting.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens, V."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encodes prompts.

        Args:
            prompts: any texts; the empty one, begin and end, is the dropped caption of guidance.

        Returns:
            (B, T) tokens in [0, V) or (B, T, F) features on the CPU, T the longest of the batch.

        Raises:
            GenerationError: a prompt has more than `max_tokens` tokens; prompts are never cut.
        """
        return self._pad(self._tokenize_whole(prompts))

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Refuses prompts that `encode` would refuse; a frozen encoder runs no network for it.

        Raises:
            GenerationError: as `encode`.
        """
        self._tokenize_whole(prompts)

    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Encodes training captions; those that are too long lose their last words, counted.

        Frozen encoders would compute a caption again each time; training reads their features
        from a file instead (`training/text_features.py`).
        """
        cut = self.cut(captions)
        return TrainingTokens(self._pad(cut.rows), sum(cut.truncated))

    def cut(self, captions: Sequence[str]) -> CutRows:
        """Turns captions into tokens; those that are too long are cut but keep their end token.

        Equal captions are tokenized once.
        """
        longest = self.max_tokens
        unique = list(dict.fromkeys(captions))
        row_of = dict(zip(unique, self._tokenize(unique), strict=True))
        rows = [row_of[caption] for caption in captions]
        return CutRows(
            [row if len(row) <= longest else row[: longest - 1] + row[-1:] for row in rows],
            [len(row) > longest for row in rows],
        )

    def count_truncated(self, captions: Sequence[str]) -> int:
        """Counts the training captions that are too long."""
        return sum(self.cut(captions).truncated)

    def count_tokens(self, prompt: str) -> int:
        """Counts the tokens of a prompt of any length, begin and end included."""
        return len(self._tokenize([prompt])[0])

    def shorten(self, prompt: str) -> str:
        """Returns as many of a prompt's first words as can be read, all of them if possible.

        If even the first word is too long, its first letters are returned.
        """
        if self.count_tokens(prompt) <= self.max_tokens:
            return prompt
        return self._find_longest(" ", prompt.split()) or self._find_longest("", prompt.strip())

    @abc.abstractmethod
    def save(self, path: Path) -> None:
        """Writes everything that `load_text` needs, to `TEXT_FILE` of a folder and beside it.

        Raises:
            CheckpointError: the disk is full, or writing there is not allowed.
        """

    @abc.abstractmethod
    def _pad(self, rows: Sequence[Row]) -> Tensor:
        """Turns rows of tokens into one tensor, (B, T) or (B, T, F)."""

    def _tokenize(self, texts: Sequence[str]) -> list[Row]:
        """Tokenizes texts of any length."""
        return [
            tuple(encoding.ids)
            for start in range(0, len(texts), _CHUNK)
            for encoding in self._tokenizer.encode_batch_fast(
                [to_utf8(text) for text in texts[start : start + _CHUNK]]
            )
        ]

    def _tokenize_whole(self, prompts: Sequence[str]) -> list[Row]:
        """Tokenizes prompts, none of which may be too long."""
        if isinstance(prompts, str):
            raise GenerationError(f"Expected a list of prompts, got one text: `{prompts}`.")
        rows = self._tokenize(prompts)
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) > self.max_tokens:
                raise GenerationError(
                    f"The prompt has {len(row)} tokens (begin and end included), at most "
                    f"{self.max_tokens} can be read: `{_shorten_quote(prompt)}`. Shorten it, or "
                    "train a model with a larger text.max_tokens."
                )
        return rows

    def _find_longest(self, gap: str, parts: Sequence[str]) -> str:
        """Joins as many of the first parts as can be read."""
        counts = range(1, len(parts) + 1)
        fitting = bisect.bisect_right(
            counts, self.max_tokens, key=lambda count: self.count_tokens(gap.join(parts[:count]))
        )
        return gap.join(parts[:fitting])


def to_utf8(text: str) -> str:
    """Replaces lone surrogates, which JSON may carry and UTF-8 cannot, with question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _shorten_quote(text: str, length: int = 60) -> str:
    return text if len(text) <= length else text[:length] + "…"
