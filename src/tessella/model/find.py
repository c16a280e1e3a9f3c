"""Finds the model that `--model` and `tessella.load` name: bundled, a run's, a folder, the hub's.

The bundled models are model folders in `tessella/models/`, installed with the package. Nothing
heavy is imported here; `pipeline.py` loads what is found.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tessella.errors import CheckpointError
from tessella.hub import find_hub_repository, is_hub_address, parse_address

DEFAULT_MODEL = "scenes"

_BUNDLED = Path(__file__).parent.parent / "models"
_MODEL_FILE = "config.json"  # of every model folder
_RUN_FILE = "run.json"  # of every run's folder
_MODEL_IN_RUN = "model"
_TOKENIZER_IN_RUN = "tokenizer/model"


def list_bundled() -> list[str]:
    """Names the models that are installed with the package."""
    return sorted(path.parent.name for path in _BUNDLED.glob(f"*/{_MODEL_FILE}"))


def is_bundled(folder: Path) -> bool:
    """Returns whether a folder is a part of the installed package."""
    return folder.resolve().is_relative_to(_BUNDLED.resolve())


def explain_fixed(folder: Path) -> str | None:
    """Says why a model folder must stay as it is; None if it may be changed."""
    if is_bundled(folder):
        return f"A bundled model is a part of the installed package: `{folder.name}`"
    if find_hub_repository(folder):
        return f"A model from the hub lies in the hub's cache: `{folder}`"
    return None


def find_model(folder_or_name: str | Path = DEFAULT_MODEL) -> Path:
    """Finds a model folder; whether it is a good one shows when it is loaded.

    Args:
        folder_or_name: the name of a bundled model, which goes before a folder of that name
            (`./scenes` is the folder); a model folder; a run's folder; or `hf:USER/NAME` or
            `hf:USER/NAME@REVISION`, which is fetched from the Hugging Face hub.

    Raises:
        CheckpointError: there is no such model; says which ones are bundled.
    """
    if is_hub_address(folder_or_name):
        from tessella.model.from_hub import find_on_hub

        return find_on_hub(str(folder_or_name))
    bundled = list_bundled()
    if folder_or_name in bundled:
        return _BUNDLED / folder_or_name
    folder = Path(folder_or_name).expanduser()
    if not folder.is_dir():
        what = "That is a file, not a model folder" if folder.exists() else "There is no such model"
        raise CheckpointError(
            f"{what}: `{folder_or_name}`. Give a model folder, the folder of a run of "
            "`tessella fit`, hf:USER/NAME for one on the Hugging Face hub, or the name of a "
            f"bundled model: {', '.join(bundled) or 'none here'}."
        )
    if (folder / _MODEL_FILE).exists() or not (folder / _RUN_FILE).exists():
        return folder
    if not (folder / _MODEL_IN_RUN).is_dir():
        raise CheckpointError(
            f"The run has no finished model yet: `{folder_or_name}`. Rerun its command to resume; "
            "after `fit-tokenizer`, run `fit-transformer`."
        )
    return folder / _MODEL_IN_RUN


def name_model(folder: Path) -> str:
    """Names a model after its folder, its run or its repository on the hub."""
    folder = folder.resolve()
    repository = find_hub_repository(folder)
    if repository is not None and repository.name.startswith("models--"):
        return repository.name.split("--")[-1]
    parts = (folder.parent, _MODEL_IN_RUN), (folder.parent.parent, _TOKENIZER_IN_RUN)
    for run, part in parts:
        if folder == run / part and (run / _RUN_FILE).exists():
            return run.name
    return folder.name


def find_tokenizer(folder_or_name: str | Path = DEFAULT_MODEL) -> Path:
    """Finds a folder that holds an image tokenizer, with or without a transformer.

    Args:
        folder_or_name: as for `find_model`; of a run whose transformer is not trained, what
            `fit-tokenizer` left.

    Raises:
        CheckpointError: there is none.
    """
    if is_hub_address(folder_or_name):
        from tessella.model.from_hub import TOKENIZER_FILES, find_on_hub

        return find_on_hub(str(folder_or_name), TOKENIZER_FILES)
    alone = Path(folder_or_name).expanduser() / _TOKENIZER_IN_RUN
    whole = alone.parent.parent / _MODEL_IN_RUN
    if folder_or_name not in list_bundled() and alone.is_dir() and not whole.is_dir():
        return alone
    return find_model(folder_or_name)


def pin(name: str, find: Callable[[str], Path] = find_model) -> str:
    """Names the version of a model on the hub by its commit, which stays; other names are kept.

    Args:
        name: as for `find_model`.
        find: `find_model` or `find_tokenizer`.

    Raises:
        CheckpointError: the hub has no such model.
    """
    if not is_hub_address(name):
        return name
    # The hub's cache calls the folder of a version by its commit.
    return str(replace(parse_address(name, CheckpointError), revision=find(name).name))
