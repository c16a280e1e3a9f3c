"""Captions and prompts → text tokens: byte-level BPE, trained on the run's own captions.

On the data's way: after the data, before the transformer. Shapes: `text_tokens` (B, T) int64,
each row begin, the words' tokens, end, then padding. Every byte is a token of its own, so
there is no unknown token: any word, script or emoji can be asked for.

Source:
    Sennrich et al., arXiv:1508.07909 (BPE); the byte alphabet is GPT-2's; the work is done by
    Hugging Face `tokenizers`, whose file format is kept.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from tessella.config import Settings
from tessella.errors import CheckpointError
from tessella.files import write_text
from tessella.text.base import (
    TextEncoder,
    TrainingTokens,
    check_is_list,
    check_lengths,
    to_utf8,
)

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
_SPECIAL = (PAD, BEGIN, END)  # their ids are 0, 1, 2
_CHUNK = 4096  # captions at once: keeps the memory flat, and both cores busy
_SMALLEST = 256 + len(_SPECIAL)


class TextSettings(Settings):
    """How captions become what the transformer reads."""

    encoder: str | None = Field(default=None, min_length=1)
    """A frozen text encoder that others have trained: a local folder with its config, safetensors
    and tokenizer files, or its name on the Hugging Face hub (`clip-vit-base-patch32`). Needs
    tessella[text]. Left out, the run learns a vocabulary of its own from the captions."""

    vocabulary_size: int = Field(default=4096, ge=_SMALLEST, le=65536)
    """The most tokens that the vocabulary may hold; few captions give fewer. Means nothing with
    an `encoder`."""

    max_tokens: int = Field(default=64, ge=4, le=1024)
    """The most tokens of one caption, begin and end included; an `encoder` may read fewer."""

    min_frequency: int = Field(default=2, ge=1)
    """How often a pair of tokens must occur in the captions to become a token of its own. Means
    nothing with an `encoder`."""

    lowercase: bool = True
    """Whether capitals are read as small letters, so that `A Red Star` asks for `a red star`. An
    `encoder` has its own way."""


class TextTokenizer(TextEncoder):
    """Turns captions into tokens and back.

    Text is normalised first: NFKC (so that wide letters and ligatures are plain ones), small
    letters if so set, each run of white space one blank, none at the ends.

    Made by `TextTokenizer.train` or `TextTokenizer.load`.

    Args:
        tokenizer: a `tokenizers.Tokenizer` whose tokens 0, 1, 2 are pad, begin, end; it adds
            begin and end itself.
        max_tokens: the most tokens of one caption, begin and end included.
    """

    pad_id = _SPECIAL.index(PAD)
    begin_id = _SPECIAL.index(BEGIN)
    end_id = _SPECIAL.index(END)

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        # For other programs that read the file: cut and padded as in training.
        tokenizer.enable_truncation(max_tokens)
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=PAD)
        self._file_text = tokenizer.to_str(pretty=False)
        # Here a prompt that is too long is refused, and rows are padded in NumPy.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # Else the words `<end>` in a prompt would end it; the file cannot hold this setting.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, captions: Iterable[str], settings: TextSettings) -> "TextTokenizer":
        """Learns the vocabulary.

        The same captions give the same vocabulary, in whatever order they come. They are read
        once, as a stream: only the counts of the words are held in memory.

        Args:
            captions: all training captions; none at all gives the bytes alone.
            settings: how large, how long.
        """
        tokenizer = Tokenizer(models.BPE())
        steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        if settings.lowercase:
            steps.insert(1, normalizers.Lowercase())
        tokenizer.normalizer = normalizers.Sequence(steps)
        # The blank in front makes a word the same token at the start as further on.
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=settings.vocabulary_size,
            min_frequency=settings.min_frequency,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((to_utf8(caption) for caption in captions), trainer)
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BEGIN} $A {END}",
            special_tokens=[(BEGIN, cls.begin_id), (END, cls.end_id)],
        )
        return cls(tokenizer, settings.max_tokens)

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are: V, the size of the word embedding."""
        return int(self._tokenizer.get_vocab_size())

    def normalize(self, text: str) -> str:
        """Returns the text as the model reads it; what `decode` gives back after `encode`."""
        normalizer = self._tokenizer.normalizer
        return normalizer.normalize_str(to_utf8(text)) if normalizer else to_utf8(text)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Turns prompts into tokens.

        Args:
            prompts: any texts; the empty one stands for the dropped caption of guidance and
                becomes begin, end.

        Returns:
            (B, T) int64 in [0, V), T the longest of the batch, at most `max_tokens`; padded
            with `pad_id` after the end token.

        Raises:
            GenerationError: a prompt has more than `max_tokens` tokens; nothing is cut off
                unsaid.
        """
        check_is_list(prompts)
        rows = list(self._rows(prompts))
        check_lengths(prompts, [len(row) for row in rows], self.max_tokens)
        return self._padded(rows)

    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Turns training captions into tokens; over-long ones lose their last words, counted.

        A cut caption keeps its end token, so that every row ends alike.

        Args:
            captions: any number of texts; equal ones are encoded once.
        """
        unique = list(dict.fromkeys(captions))
        cut: dict[str, list[int]] = {}
        too_long = set()
        for caption, row in zip(unique, self._rows(unique), strict=True):
            if len(row) > self.max_tokens:
                too_long.add(caption)
                row = [*row[: self.max_tokens - 1], self.end_id]
            cut[caption] = row
        return TrainingTokens(
            text_tokens=self._padded([cut[caption] for caption in captions]),
            num_truncated=sum(caption in too_long for caption in captions),
        )

    def count_tokens(self, prompt: str) -> int:
        """Counts a prompt's tokens, begin and end included, however many they are."""
        [row] = self._rows([prompt])
        return len(row)

    def decode(self, text_tokens: Tensor) -> list[str]:
        """Turns (B, T) tokens back into normalised text, without begin, end and padding."""
        texts = self._tokenizer.decode_batch(text_tokens.tolist(), skip_special_tokens=True)
        return [text.removeprefix(" ") for text in texts]

    def tokens(self, prompt: str) -> list[str]:
        """Names the tokens of one prompt, begin and end included, whatever its length.

        A token that begins a word begins with a blank; the bytes of a character that has no
        token of its own show as `�`.
        """
        [row] = self._rows([prompt])
        return [self._tokenizer.decode([token], skip_special_tokens=False) for token in row]

    def save(self, path: Path) -> None:
        """Writes the tokenizer, whole, as a `tokenizers` file (`text_tokenizer.json`).

        Raises:
            CheckpointError: the disk is full, or writing there is not allowed.
        """
        write_text(path, self._file_text, what="the text tokenizer")

    @classmethod
    def load(cls, path: Path) -> "TextTokenizer":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: the file is missing, damaged, or not a tokenizer of tessella.
        """
        try:
            text = path.read_text(encoding="utf-8")
            json.loads(text)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"Cannot read the text tokenizer: `{path}`; {error}. The file is missing or "
                "damaged: copy the model folder again."
            ) from error
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower class
            raise CheckpointError(_foreign(path, str(error))) from error
        first = tuple(tokenizer.id_to_token(number) for number in range(len(_SPECIAL)))
        if first != _SPECIAL:
            raise CheckpointError(_foreign(path, f"its first tokens are `{first}`"))
        if any(tokenizer.token_to_id(b) is None for b in pre_tokenizers.ByteLevel.alphabet()):
            raise CheckpointError(_foreign(path, "some bytes have no token"))
        if tokenizer.truncation is None:
            raise CheckpointError(_foreign(path, "it does not say how long a caption may be"))
        return cls(tokenizer, tokenizer.truncation["max_length"])

    def _rows(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """Encodes texts of any length, in order, some thousands at once."""
        remaining = iter(texts)
        while chunk := [to_utf8(text) for text in islice(remaining, _CHUNK)]:
            for encoding in self._tokenizer.encode_batch_fast(chunk):
                yield encoding.ids

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Lays rows of tokens into one tensor (B, T)."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        longest = int(lengths.max(initial=0))
        padded = np.full((len(rows), longest), self.pad_id, dtype=np.int64)
        flat = (token for row in rows for token in row)
        padded[np.arange(longest) < lengths[:, None]] = np.fromiter(flat, dtype=np.int64)
        return torch.from_numpy(padded)


def _foreign(path: Path, why: str) -> str:
    """Says that a file is no text tokenizer of tessella."""
    return (
        f"Not a text tokenizer of tessella: `{path}`; {why}. Expected the text_tokenizer.json "
        "of a model folder: copy the folder again."
    )
