"""Captions and prompts → features (B, T, F) of a pretrained text encoder that does not learn.

On the data's way: after the data, before the transformer, in place of the run's own tokens. The
encoder is read by `transformers` and stays unchanged, in float32 on the CPU. Its tokenizer is a
`tokenizers` file, like the one of `bpe.py`.

    text_tokenizer.json     the encoder's name, the longest caption, a hash of each file below
    text_encoder/           config.json, model.safetensors, tokenizer.json: a copy, so that the
                            folder can be moved and read without a network connection

Each prompt is encoded alone, so that its features never depend on the rest of the batch.
"""

import contextlib
import functools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tessella.checksums import check_own, read_file
from tessella.errors import CheckpointError, ConfigError, first_line, needs_extra
from tessella.files import new_folder, sha256_file, write_json, write_tensors, write_text
from tessella.text.base import Row, TextEncoder
from tessella.text.settings import TextSettings
from tessella.untrusted import parse_json

ENCODER_FOLDER = "text_encoder"
_CONFIG, _WEIGHTS, _TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
_FILES = (_CONFIG, _WEIGHTS, _TOKENIZER)
ENCODER_FILES = tuple(f"{ENCODER_FOLDER}/{name}" for name in _FILES)
"""Of a frozen encoder, below the model folder."""
_CACHED_PROMPTS = 512  # some 20 MB of features
_log = logging.getLogger("tessella")

Features = npt.NDArray[np.float32]


class FrozenTextEncoder(TextEncoder):
    """A text encoder that does not learn.

    Made by `FrozenTextEncoder.create` or `FrozenTextEncoder.load`. Counting and cutting use its
    tokenizer alone; the network computes features only, and remembers some hundred prompts.

    Args:
        name: tells people where it came from.
        tokenizer: adds begin and end itself.
        network: a model of `transformers`.
        max_tokens: the most tokens of one caption, begin and end included.

    Raises:
        ValueError: the tokenizer adds neither begin nor end.
    """

    pad_id = 0  # unused: padding is rows of zeros

    def __init__(self, name: str, tokenizer: Tokenizer, network: nn.Module, max_tokens: int):
        super().__init__(tokenizer, max_tokens)
        self.name = name
        self._file_text = tokenizer.to_str(pretty=False)
        # Sums up a whole text; here only the features of its tokens are used.
        if isinstance(getattr(network, "pooler", None), nn.Module):
            network.register_module("pooler", None)
        self.network = network.eval().requires_grad_(False)
        self._read_cached = functools.lru_cache(_CACHED_PROMPTS)(lambda row: self.read([row])[0])
        [empty] = self._tokenize([""])
        if not empty:
            raise ValueError("it has no token for an empty caption, which guidance needs")
        self.num_features: int = self._read_cached(empty).shape[-1]

    @classmethod
    def create(cls, settings: TextSettings) -> "FrozenTextEncoder":
        """Reads the encoder that the settings name; downloads it from the hub if necessary.

        Raises:
            ConfigError: `transformers` or the encoder is missing, or it is not a text encoder with
                safetensors.
        """
        name = settings.encoder or ""
        folder = Path(name).expanduser()
        is_local = folder.is_dir()
        if is_local:
            _check_folder(folder)
            source, advice = str(folder), _FOLDER_CONTENTS
        elif name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(
                f"The text encoder's folder does not exist: `{name}`. {_FOLDER_CONTENTS}"
            )
        else:
            # OpenAI's names are known without their owner.
            source = f"openai/{name}" if name.startswith("clip-vit-") else name
            advice = (
                "Check the name on huggingface.co and the connection (only the first `fit` needs "
                "one), or set text.encoder to a local folder."
            )
            _log.info("Reading the text encoder from the Hugging Face hub: `%s`.", source)
        transformers = _import_transformers()
        try:
            with _quiet(transformers, is_local):
                wrapper = transformers.AutoTokenizer.from_pretrained(
                    source, local_files_only=is_local, trust_remote_code=False
                )
                network = _read_network(transformers, source, is_local)
            # A copy: the wrapper may change its own.
            tokenizer = Tokenizer.from_str(wrapper.backend_tokenizer.to_str())
            longest = getattr(network.config, "max_position_embeddings", settings.max_tokens)
            limit = min(settings.max_tokens, wrapper.model_max_length, longest)
            return cls(folder.resolve().name if is_local else source, tokenizer, network, limit)
        except Exception as error:  # many libraries, each with its own errors
            raise ConfigError(
                f"Cannot use this text encoder: `{source}`; {first_line(error)}. {advice}"
            ) from error

    @classmethod
    def load(cls, path: Path) -> "FrozenTextEncoder":
        """Reads what `save` wrote; nothing is ever downloaded.

        Raises:
            CheckpointError: a file is missing, damaged or foreign.
            ConfigError: `transformers` is missing.
        """
        folder = path.with_name(ENCODER_FOLDER)
        transformers = _import_transformers()
        try:
            note = parse_json(read_file(path))
            name, max_tokens, hashes = note["encoder"], int(note["max_tokens"]), note["files"]
            for file in _FILES:
                check_own(folder / file)
                if sha256_file(folder / file) != hashes[file]:
                    raise ValueError(f"`{file}` is damaged or another file")
            with _quiet(transformers, is_local=True):
                network = _read_network(transformers, str(folder), is_local=True)
            tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
            return cls(name, tokenizer, network, max_tokens)
        except Exception as error:  # an older transformers may not know the network
            raise CheckpointError(
                f"Cannot read the model's text encoder: `{folder}`; {first_line(error)}. A file is "
                "missing, damaged or foreign: copy the whole model folder again."
            ) from error

    def save(self, path: Path) -> None:
        """Writes the note and, beside it, the encoder.

        Raises:
            CheckpointError: the disk is full, or writing there is not allowed.
        """
        config: Any = self.network.config
        with new_folder(path.with_name(ENCODER_FOLDER), what="the text encoder") as folder:
            values = json.loads(config.to_json_string(use_diff=False))
            values.pop("_name_or_path", None)  # a path on this machine
            write_json(folder / _CONFIG, values)
            write_tensors(folder / _WEIGHTS, self.network.state_dict(), {"format": "pt"})
            write_text(folder / _TOKENIZER, self._file_text)
            hashes = {file: sha256_file(folder / file) for file in _FILES}
        note = {"kind": "frozen", "encoder": self.name, "max_tokens": self.max_tokens}
        write_json(path, {**note, "files": hashes}, what="the text encoder's note")

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> Features:
        """Computes (B, T, F) features of rows that all have T tokens."""
        tokens = torch.tensor(rows, dtype=torch.int64)
        output = self.network(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        features: Features = output.last_hidden_state.float().numpy()
        return features

    def _pad(self, rows: Sequence[Row]) -> Tensor:
        return pad_features([self._read_cached(row) for row in rows])


def pad_features(texts: Sequence[npt.NDArray[np.floating[Any]]]) -> Tensor:
    """Lays features (T, F) of several texts into one float32 tensor (B, T, F), zeros behind."""
    if not texts:
        return torch.zeros(0, 0, 0)
    return pad_sequence([torch.tensor(t, dtype=torch.float32) for t in texts], batch_first=True)


_FOLDER_CONTENTS = (
    f"Name one with {_CONFIG}, {_WEIGHTS} and {_TOKENIZER}, as transformers' `save_pretrained` "
    "writes it."
)


def _check_folder(folder: Path) -> None:
    """Names a missing file in clearer words than the library would."""
    if not (folder / _CONFIG).is_file():
        raise ConfigError(
            f"Not the folder of a text encoder: `{folder}` has no {_CONFIG}. {_FOLDER_CONTENTS}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"The text encoder has no safetensors: `{folder}`. Pickled weights (.bin) can run any "
            f"code and are not read. {_FOLDER_CONTENTS}"
        )


def _import_transformers() -> Any:
    with needs_extra("text", "A frozen text encoder"):
        import transformers
    return transformers


def _read_network(transformers: Any, source: str, is_local: bool) -> Any:
    """Reads a network; of CLIP only the text half.

    Raises:
        ValueError: some of its weights are missing.
    """
    config = transformers.AutoConfig.from_pretrained(
        source, local_files_only=is_local, trust_remote_code=False
    )
    is_clip = config.model_type in {"clip", "clip_text_model"}
    model_class = transformers.CLIPTextModel if is_clip else transformers.AutoModel
    return read_whole(model_class, source, dtype=torch.float32, local_files_only=is_local)


def read_whole(model_class: Any, source: str, **options: Any) -> Any:
    """Reads a network of `transformers` from safetensors, with all weights that it uses.

    Raises:
        ValueError: some are missing, which transformers would draw at random.
    """
    network, report = model_class.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"its weights lack `{missing[0]}`")
    return network


@contextlib.contextmanager
def _quiet(transformers: Any, is_local: bool) -> Iterator[None]:
    """Silences reports about weights that are not needed; a download still shows its bar."""
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
