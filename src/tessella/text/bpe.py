"""Captions and prompts → text tokens: byte-level BPE, trained on the run's own captions.

On the data's way: after the data, before the transformer. Shapes: `text_tokens` (B, T) int64,
each row begin, the words' tokens, end, then padding. Every byte has a token, so nothing is
unknown: prompts may contain any word, script or emoji.

Source:
    Sennrich et al., arXiv:1508.07909 (BPE), with GPT-2's byte alphabet; implementation and file
    format are those of Hugging Face `tokenizers`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tessella.checksums import read_file
from tessella.errors import CheckpointError, ConfigError
from tessella.files import write_text
from tessella.text.base import Row, TextEncoder, to_utf8
from tessella.text.bpe_file import find_fault
from tessella.text.merges import Pieces, learn_merges
from tessella.text.settings import TextSettings
from tessella.untrusted import panics_as_errors, parse_json

PAD, BEGIN, END = "<pad>", "<begin>", "<end>"
_SPECIAL = (PAD, BEGIN, END)  # their ids are 0, 1, 2
_MAX_FILE_BYTES = 64_000_000  # of 65,536 tokens some 4 MB


class TextTokenizer(TextEncoder):
    """Turns captions into tokens and back.

    Text is normalised first: NFKC (wide letters and ligatures become plain ones), small letters
    if the settings say so, single blanks for white space, none at the ends.

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
        # Other programs that read the file should cut and pad as training does.
        tokenizer.enable_truncation(max_tokens)
        tokenizer.enable_padding(pad_id=self.pad_id, pad_token=PAD)
        self._file_text = tokenizer.to_str(pretty=False)
        super().__init__(tokenizer, max_tokens)

    @classmethod
    def train(cls, captions: Iterable[str], settings: TextSettings) -> "TextTokenizer":
        """Learns the vocabulary.

        The same captions give the same vocabulary in any order. They are read once, as a stream:
        only the counts of their words are held in memory.

        Args:
            captions: all training captions; without any, the vocabulary is just the bytes.
            settings: sizes and limits.
        """
        tokenizer = Tokenizer(models.BPE())
        steps = [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        if settings.lowercase:
            steps.insert(1, normalizers.Lowercase())
        tokenizer.normalizer = normalizers.Sequence(steps)
        # The blank in front gives a word the same token at the start of a text as inside it.
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

    def grow(self, captions: Iterable[str], settings: TextSettings) -> "TextTokenizer":
        """Adds tokens for words that this vocabulary splits; all others keep their numbers.

        Args:
            captions: all training captions; the same ones in any order give the same vocabulary.
            settings: how large the vocabulary may become, and how frequent a pair has to be. How
                texts are normalised and cut stays as it is.
        """
        words: Counter[Pieces] = Counter()
        for word, count in self._count_words(captions).items():
            pieces = tuple(token.value for token in self._tokenizer.model.tokenize(word))
            if len(pieces) > 1:
                words[pieces] += count
        room = settings.vocabulary_size - self.vocabulary_size
        merges = learn_merges(words, room, settings.min_frequency)
        values = json.loads(self._file_text)
        model = values["model"]
        size = len(model["vocab"])
        # Two merges may make the same token.
        new = [t for t in dict.fromkeys(map("".join, merges)) if t not in model["vocab"]]
        model["vocab"] |= {token: size + n for n, token in enumerate(new)}
        model["merges"] += map(list, merges)
        return TextTokenizer(Tokenizer.from_str(json.dumps(values)), self.max_tokens)

    def split_new_tokens(self, old: "TextTokenizer") -> list[list[int]]:
        """Returns, for each token that `old` lacks, the tokens of `old` that it is made of.

        Raises:
            ConfigError: this vocabulary is not that of `old` with more tokens at its end.
        """
        known, now = (one._tokenizer.get_vocab() for one in (old, self))
        if known.items() - now.items():
            raise ConfigError(
                f"The vocabulary of {len(now):,} tokens does not continue that of {len(known):,} "
                "tokens which the transformer was trained with. Begin a new run in another --out."
            )
        new = sorted(now.keys() - known.keys(), key=now.__getitem__)
        return [[token.id for token in old._tokenizer.model.tokenize(text)] for text in new]

    def _count_words(self, captions: Iterable[str]) -> Counter[str]:
        """Counts words as the merges see them, bytes as letters."""
        words: Counter[str] = Counter()
        split = self._tokenizer.pre_tokenizer.pre_tokenize_str
        for caption in captions:
            words.update(word for word, _ in split(self.normalize(caption)))
        return words

    def normalize(self, text: str) -> str:
        """Returns the text as the model reads it, and as `decode` returns it after `encode`."""
        normalizer = self._tokenizer.normalizer
        return normalizer.normalize_str(to_utf8(text)) if normalizer else to_utf8(text)

    def decode(self, text_tokens: Tensor) -> list[str]:
        """Turns (B, T) tokens back into normalised texts without begin, end and padding."""
        texts = self._tokenizer.decode_batch(text_tokens.tolist(), skip_special_tokens=True)
        return [text.removeprefix(" ") for text in texts]

    def tokens(self, prompt: str) -> list[str]:
        """Lists the tokens of a prompt of any length as text, begin and end included.

        A token that starts a word starts with a blank; the bytes of a character without a token
        of its own appear as `�`.
        """
        [row] = self._tokenize([prompt])
        return [self._tokenizer.decode([token], skip_special_tokens=False) for token in row]

    def save(self, path: Path) -> None:
        """Writes the whole tokenizer as a `tokenizers` file (`text_tokenizer.json`).

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
            text = read_file(path, most_bytes=_MAX_FILE_BYTES).decode()
            values = parse_json(text)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"Cannot read the text tokenizer: `{path}`; {error}. The file is missing or "
                "damaged: copy the model folder again."
            ) from error
        if fault := find_fault(values, _SPECIAL):
            raise CheckpointError(_foreign(path, fault))
        try:
            with panics_as_errors():
                tokenizer = Tokenizer.from_str(text)
                tokenizer.no_padding()  # to any length
                tokenizer.encode("a word")  # some faults show only now
                vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        except Exception as error:  # the library raises no narrower class
            raise CheckpointError(_foreign(path, str(error))) from error
        first = tuple(tokenizer.id_to_token(number) for number in range(len(_SPECIAL)))
        if first != _SPECIAL:
            raise CheckpointError(_foreign(path, f"its first tokens are `{first}`"))
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise CheckpointError(_foreign(path, "its tokens are not numbered one after the other"))
        if any(byte not in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet()):
            raise CheckpointError(_foreign(path, "some bytes have no token"))
        return cls(tokenizer, values["truncation"]["max_length"])

    def _pad(self, rows: Sequence[Row]) -> Tensor:
        """Lays rows of tokens into one tensor (B, T)."""
        if not rows:
            return torch.zeros(0, 0, dtype=torch.int64)
        tokens = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return pad_sequence(tokens, batch_first=True, padding_value=self.pad_id)


def _foreign(path: Path, why: str) -> str:
    """Says that a file is not a text tokenizer of tessella."""
    return (
        f"Not a text tokenizer of tessella: `{path}`; {why}. Expected the text_tokenizer.json "
        "of a model folder: copy the folder again."
    )
