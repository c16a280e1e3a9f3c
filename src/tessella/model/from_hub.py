"""Models on the Hugging Face hub: `hf:USER/NAME@REVISION` becomes a model folder in its cache.

Only the files of a model folder come down, by their names: safetensors, JSON, a card and pictures
for people. Pickles and whatever else lies beside them stay where they are, and a repository that
is no model of ours is refused before anything is fetched. What came down is proved by its
`SHA256SUMS` when it is loaded, as any model folder is. An image tokenizer may be one that others
have published (`published.py`): its configuration comes first, and its weights if they are read.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tessella.checksums import SUMS_FILE
from tessella.errors import CheckpointError
from tessella.hub import HubAddress, download, parse_address
from tessella.model.folder import (
    CAPTIONS_FILE,
    CONFIG_FILE,
    NOTES,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
)
from tessella.model.published import (
    PICKLES,
    PUBLISHED_FILES,
    is_published,
    published_weights,
)
from tessella.retrieval.examples import EXAMPLES_FILES
from tessella.text import TEXT_FILE
from tessella.text.frozen import ENCODER_FILES

MODEL_FILES = frozenset({
    SUMS_FILE, CONFIG_FILE, TOKENIZER_FILE, TRANSFORMER_FILE, TEXT_FILE, CAPTIONS_FILE, *NOTES,
    *EXAMPLES_FILES, *ENCODER_FILES,
})  # fmt: skip
"""All that a model folder may hold, with slashes."""

TOKENIZER_FILES = (CONFIG_FILE, TOKENIZER_FILE)
"""What an image tokenizer cannot be without."""
REQUIRED_FILES = (*TOKENIZER_FILES, TRANSFORMER_FILE, TEXT_FILE)
"""What a model cannot be without."""

_SHOWN = 5
_found: dict[HubAddress, Path] = {}


def find_on_hub(address: str, required: Sequence[str] = REQUIRED_FILES) -> Path:
    """Finds a model on the hub, and fetches it if it is not in the hub's cache.

    A process asks the hub once for each address, and sees one version of a model, whichever files
    it requires.

    Args:
        address: `hf:USER/NAME` or `hf:USER/NAME@REVISION`.
        required: files that the repository must hold.

    Returns:
        The model folder, in the hub's cache.

    Raises:
        CheckpointError: there is no such repository, or it is no model of ours.
    """
    parsed = parse_address(address, CheckpointError)
    folder = _found.get(parsed)
    if folder is not None and folder.is_dir():
        if required != TOKENIZER_FILES or not is_published(folder):
            _require(required, [path.name for path in folder.iterdir()], parsed)
        return folder

    weights: list[str] = []
    listed: list[str] = []

    def choose(names: Sequence[str]) -> list[str]:
        listed[:] = names
        is_other = required == TOKENIZER_FILES and TOKENIZER_FILE not in names
        weights[:] = published_weights(names) if is_other else []
        if weights:
            return sorted(PUBLISHED_FILES)
        _require(required, names, parsed)
        return sorted(MODEL_FILES)

    folder = download(parsed, "model", choose, CheckpointError)
    if weights:
        if not is_published(folder):
            _require(required, listed, parsed)
        wanted = [*sorted(PUBLISHED_FILES), *weights]
        folder = download(parsed, "model", lambda names: wanted, CheckpointError)
    _found[parsed] = folder
    return folder


def forget() -> None:
    """Forgets what was found, so that the hub is asked again."""
    _found.clear()


def _require(required: Sequence[str], names: Sequence[str], address: HubAddress) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise CheckpointError(
            f"This repository is not a tessella model: `{address}` {_describe(names)}. "
            f"Missing: {', '.join(missing)}. Name a model that `tessella push` has put there, or "
            "push it again."
        )


def _describe(names: Sequence[str]) -> str:
    """Says what a repository holds, for people who wonder why it is not read."""
    shown = [name for name in names if not name.startswith(".")]
    kinds = {PurePosixPath(name).suffix.lower() for name in shown}
    pickles = [name for name in shown if PurePosixPath(name).suffix.lower() in PICKLES]
    if "model_index.json" in shown:
        what = "is a pipeline of diffusers"
    elif "adapter_config.json" in shown:
        what = "is an adapter of another model's weights"
    elif ".gguf" in kinds or ".onnx" in kinds:
        what = "is a model in another format"
    elif pickles:
        what = "holds weights as pickles, which could run anything and are never loaded"
    elif "diffusion_pytorch_model.safetensors" in shown:
        what = "is a network of diffusers"
    elif "model.safetensors" in shown:
        what = "is a model of transformers or another library"
    elif not shown:
        return "is empty"
    else:
        what = "holds other files"
    listed = (pickles if "pickles" in what else shown)[:_SHOWN]
    return f"{what} ({', '.join(listed)}{', …' if len(shown) > len(listed) else ''})"
