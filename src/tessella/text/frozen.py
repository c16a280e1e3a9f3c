"""Captions and prompts → features (B, T, F) of a text encoder that others have trained.

On the data's way: after the data, before the transformer, in place of the run's own tokens. The
encoder is read by `transformers`; it stays as it is, in float32 on the CPU. Its tokenizer is a
`tokenizers` file, as `bpe.py` writes one too.

    text_tokenizer.json     which encoder, how long a caption may be, a hash of each file below
    text_encoder/           config.json, model.safetensors, tokenizer.json: a copy, so that the
                            folder can be moved and read without a network

Each prompt is read alone, so that its features never depend on what it is asked beside.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from tessella.errors import CheckpointError, ConfigError
from tessella.files import new_folder, sha256_file, write_json, write_tensors, write_text
from tessella.text.base import (
    TextEncoder,
    TrainingTokens,
    check_is_list,
    check_lengths,
    to_utf8,
)
from tessella.text.bpe import TextSettings

KIND = "frozen"
ENCODER_FOLDER = "text_encoder"
_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_FILES = (_CONFIG, _WEIGHTS, _TOKENIZER)
_REMEMBERED = 512  # prompts: some 20 MB of features
_log = logging.getLogger("tessella")

Row = tuple[int, ...]  # the tokens of one text, begin and end included
Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CutRows:
    """Captions as the encoder's tokens, none longer than it may be."""

    rows: list[Row]
    truncated: list[bool]  # which lost their last words


class FrozenTextEncoder(TextEncoder):
    """A text encoder that does not learn.

    Made by `FrozenTextEncoder.create` or `FrozenTextEncoder.load`.

    Args:
        name: for people: where it came from.
        tokenizer: adds begin and end itself.
        network: a model of `transformers`.
        max_tokens: the most tokens of one caption, begin and end included.

    Raises:
        ValueError: it makes no features of text, or none of the empty one.
    """

    pad_id = 0  # of no meaning: padding is rows of zeros

    def __init__(self, name: str, tokenizer: Tokenizer, network: nn.Module, max_tokens: int):
        self.name = name
        self.max_tokens = max_tokens
        # Its file may say how to cut and pad; here a prompt that is too long is refused.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._file_text = tokenizer.to_str(pretty=False)
        # Else `[SEP]` in a prompt would end it; the file cannot hold this setting.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        # What sums up a whole text; only the features of its tokens are read here.
        if isinstance(getattr(network, "pooler", None), nn.Module):
            network.register_module("pooler", None)
        self.network = network.eval().requires_grad_(False)
        self._remembered = functools.lru_cache(maxsize=_REMEMBERED)(self._read_alone)
        [empty] = self._rows([""])
        if not empty:
            raise ValueError("it makes no token of an empty caption, which guidance needs")
        self.num_features: int = self._remembered(empty).shape[-1]

    @classmethod
    def create(cls, settings: TextSettings) -> "FrozenTextEncoder":
        """Reads the encoder that the settings name; one on the hub is downloaded if need be.

        Raises:
            ConfigError: `transformers` is missing, or there is no such folder or name, or what
                is there is no text encoder with safetensors.
        """
        named = settings.encoder or ""
        folder = Path(named).expanduser()
        if folder.is_dir():
            _check_folder(folder)
            source, how_to_mend = str(folder), _WHAT_A_FOLDER_HOLDS
        elif named.startswith((".", "/", "~")) or named.count("/") > 1:
            raise ConfigError(
                f"There is no such folder of a text encoder: `{named}`. {_WHAT_A_FOLDER_HOLDS}"
            )
        else:
            # OpenAI's names are known without their owner.
            source = f"openai/{named}" if named.startswith("clip-vit-") else named
            how_to_mend = (
                "Check the name on huggingface.co and the connection (only the first `fit` needs "
                "one), or set text.encoder to a local folder."
            )
            _log.info("Reading the text encoder from the Hugging Face hub: `%s`.", source)
        is_local = folder.is_dir()
        transformers = _import_transformers()
        try:
            with _quiet(transformers, is_local):
                wrapper = transformers.AutoTokenizer.from_pretrained(
                    source, local_files_only=is_local, trust_remote_code=False
                )
                network = _read_network(transformers, source, is_local)
            # A copy: a wrapper's own would change under it.
            tokenizer = Tokenizer.from_str(wrapper.backend_tokenizer.to_str())
            longest = getattr(network.config, "max_position_embeddings", settings.max_tokens)
            limit = min(settings.max_tokens, wrapper.model_max_length, longest)
            return cls(folder.resolve().name if is_local else source, tokenizer, network, limit)
        except Exception as error:  # many libraries, each with errors of its own
            raise ConfigError(
                f"Cannot use this text encoder: `{source}`; {_first_line(error)}. {how_to_mend}"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "FrozenTextEncoder":
        """Reads what `save` wrote; nothing is ever downloaded.

        Raises:
            CheckpointError: a file is missing, damaged or foreign.
            ConfigError: `transformers` is missing.
        """
        folder = path.with_name(ENCODER_FOLDER)
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            name, max_tokens, hashes = note["encoder"], int(note["max_tokens"]), note["files"]
            for file in _FILES:
                if sha256_file(folder / file) != hashes[file]:
                    raise ValueError(f"`{file}` is damaged or another file")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(_damaged(folder, error)) from error
        transformers = _import_transformers()
        try:
            with _quiet(transformers, is_local=True):
                network = _read_network(transformers, str(folder), is_local=True)
            tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
            return cls(name, tokenizer, network, max_tokens)
        except Exception as error:  # an older transformers may not know the network
            raise CheckpointError(_damaged(folder, error)) from error

    def save(self, path: Path) -> None:
        """Writes the note and, beside it, the encoder.

        Raises:
            CheckpointError: the disk is full, or writing there is not allowed.
        """
        config: Any = self.network.config
        with new_folder(path.with_name(ENCODER_FOLDER), what="the text encoder") as folder:
            values = json.loads(config.to_json_string(use_diff=False))
            values.pop("_name_or_path", None)  # where it lay on this machine
            write_json(folder / _CONFIG, values)
            write_tensors(folder / _WEIGHTS, self.network.state_dict(), {"format": "pt"})
            write_text(folder / _TOKENIZER, self._file_text)
            hashes = {file: sha256_file(folder / file) for file in _FILES}
        note = {"kind": KIND, "encoder": self.name, "max_tokens": self.max_tokens}
        write_json(path, {**note, "files": hashes}, what="the text encoder's note")

    @property
    def vocabulary_size(self) -> int:
        """How many tokens the encoder's own vocabulary has."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Reads prompts as features (B, T, F) float32; some hundred of them are remembered.

        Raises:
            GenerationError: a prompt has more than `max_tokens` tokens.
        """
        check_is_list(prompts)
        rows = self._rows(prompts)
        check_lengths(prompts, [len(row) for row in rows], self.max_tokens)
        return pad_features([self._remembered(row) for row in rows])

    def count_tokens(self, prompt: str) -> int:
        """Counts a prompt's tokens, begin and end included, however many they are."""
        [row] = self._rows([prompt])
        return len(row)

    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Reads training captions as features; over-long ones lose their last words, counted.

        Long trainings read each caption once instead: `training/text_features.py`.
        """
        cut = self.cut(captions)
        made = pad_features([self._remembered(row) for row in cut.rows])
        return TrainingTokens(made, sum(cut.truncated))

    def cut(self, captions: Sequence[str]) -> CutRows:
        """Turns captions into the encoder's tokens; over-long ones keep their end token."""
        whole = self._rows(captions)
        longest = self.max_tokens
        truncated = [len(row) > longest for row in whole]
        rows = [
            row[: longest - 1] + row[-1:] if too_long else row
            for row, too_long in zip(whole, truncated, strict=True)
        ]
        return CutRows(rows, truncated)

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> Features:
        """Computes (B, T, F) features of tokens, the same number T in each row."""
        tokens = torch.tensor(rows, dtype=torch.int64)
        made = self.network(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        features: Features = made.last_hidden_state.float().numpy()
        return features

    def _read_alone(self, row: Row) -> Features:
        alone: Features = self.read([row])[0]
        return alone

    def _rows(self, texts: Sequence[str]) -> list[Row]:
        encodings = self._tokenizer.encode_batch_fast([to_utf8(text) for text in texts])
        return [tuple(encoding.ids) for encoding in encodings]


def pad_features(texts: Sequence[npt.NDArray[np.floating[Any]]]) -> Tensor:
    """Lays features (T, F) of several texts into one float32 tensor (B, T, F), zeros behind."""
    longest = max((len(features) for features in texts), default=0)
    width = texts[0].shape[-1] if texts else 0
    padded = np.zeros((len(texts), longest, width), dtype=np.float32)
    for row, features in zip(padded, texts, strict=True):
        row[: len(features)] = features
    return torch.from_numpy(padded)


_WHAT_A_FOLDER_HOLDS = (
    f"Name one with {_CONFIG}, {_WEIGHTS} and {_TOKENIZER}, as `save_pretrained` of transformers "
    "writes it."
)


def _check_folder(folder: Path) -> None:
    """Says what a folder lacks before a library says it in its own words."""
    if not (folder / _CONFIG).is_file():
        raise ConfigError(
            f"This is no folder of a text encoder: `{folder}` has no {_CONFIG}. "
            f"{_WHAT_A_FOLDER_HOLDS}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"The text encoder has no safetensors: `{folder}`. Pickled weights (.bin) can run "
            f"anything and are not read. {_WHAT_A_FOLDER_HOLDS}"
        )


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"A frozen text encoder needs the package `transformers`: {error}. Install it with "
            "pip install 'tessella[text]'."
        ) from error
    return transformers


def _read_network(transformers: Any, source: str, is_local: bool) -> Any:
    """Reads a network; of CLIP the half that reads text.

    Raises:
        ValueError: some of its weights are missing.
    """
    options = {"local_files_only": is_local, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(source, **options)
    is_clip = config.model_type in {"clip", "clip_text_model"}
    kind = transformers.CLIPTextModel if is_clip else transformers.AutoModel
    network, report = kind.from_pretrained(
        source,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"its weights lack `{missing[0]}`")
    return network


@contextlib.contextmanager
def _quiet(transformers: Any, is_local: bool) -> Iterator[None]:
    """Keeps reports on weights that are not needed off the terminal; a download shows its bar."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if is_local and bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if is_local and bars:
            log.enable_progress_bar()


def _first_line(error: Exception) -> str:
    """Shortens what a library says, which may be a page."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__


def _damaged(folder: Path, error: Exception) -> str:
    """Says that a model folder's text encoder cannot be read."""
    return (
        f"Cannot read the model's text encoder: `{folder}`; {_first_line(error)}. A file is "
        "missing, damaged or foreign: copy the whole model folder again."
    )
