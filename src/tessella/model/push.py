"""Puts a model on the Hugging Face hub, so that `hf:USER/NAME` means it.

    model folder ─ loaded, copied, its card completed, pictures painted ─▶ files ─ one commit ─▶ hub

The model is proved and painted with before anything is sent. All files arrive in one commit: a
reader finds the old version or the new one.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tessella.checksums import SUMS_FILE, write_sums
from tessella.errors import CheckpointError, ConfigError
from tessella.files import explained, write_text
from tessella.hub import HubAddress, import_client, reaching
from tessella.images import save_png
from tessella.model.folder import CARD_FILE, METRICS_FILE, TOKENIZER_FILE
from tessella.model.from_hub import MODEL_FILES
from tessella.model.hub_card import PICTURES_FOLDER, complete_card
from tessella.model.memory import export_model
from tessella.model.pipeline import TextToImage
from tessella.untrusted import parse_json, to_printable

_NUM_PICTURES = 8
_MAX_CAPTION = 300  # characters beside a picture
# What a repository may hold before a model is put there.
_BESIDE = (".", "readme", "license", "licence", "notice")


@dataclass(frozen=True)
class Push:
    """What is put on the hub."""

    address: HubAddress
    folder: Path  # of the files, complete
    sizes: Mapping[str, int]  # bytes of each file by its name, with slashes
    left_out: Sequence[str]  # names of files in the model folder that are no part of a model
    licence: str  # as the hub knows it
    examples: int  # pictures that it looks at, which travel along


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now."""

    page: str  # its address for people
    commit: str  # of 40 digits
    is_new: bool  # whether the repository was created


@contextlib.contextmanager
def prepare_push(
    folder: Path,
    address: HubAddress,
    *,
    licence: str | None = None,
    without_examples: bool = False,
    device: str = "auto",
) -> Iterator[Push]:
    """Loads a model, and writes what is put on the hub into a temporary folder; sends nothing.

    Args:
        folder: of a model.
        address: where it goes; the revision is a branch.
        licence: goes before that of its card.
        without_examples: whether the pictures that it looks at stay here.
        device: paints the pictures that the hub shows.

    Raises:
        ConfigError: no licence is known, or a commit is named instead of a branch.
        CheckpointError: the model is damaged, or there is no room for the copy.
    """
    if address.is_commit:
        raise ConfigError(f"A commit cannot be pushed to: `{address}`. Name a branch, or nothing.")
    model = TextToImage.load(folder, device)
    with tempfile.TemporaryDirectory(prefix="tessella-push-") as temporary:
        files = Path(temporary) / address.name
        count = export_model(folder, files, without_examples=without_examples)
        left_out = _leave_out_others(files)
        captions = _choose_captions(model)
        painted = model.generate(captions, seed=0) if captions else []
        pictures = {f"{PICTURES_FOLDER}/{n}.png": text for n, text in enumerate(captions, start=1)}
        card = files / CARD_FILE
        text, named = complete_card(
            card.read_text("utf-8") if card.exists() else f"# {address.name}\n",
            address,
            licence=licence,
            metrics=_read_metrics(files / METRICS_FILE),
            widget=[(to_printable(caption), name) for name, caption in pictures.items()],
        )
        with explained(files, "what is pushed"):
            write_text(card, text)
            write_sums(files)
            for name, image in zip(pictures, painted, strict=True):
                save_png(files / name, np.asarray(image))  # for the hub's page alone
        sizes = {
            path.relative_to(files).as_posix(): path.stat().st_size
            for path in sorted(files.rglob("*"))
            if path.is_file()
        }
        yield Push(address, files, sizes, left_out, named, count)


def push(prepared: Push, *, private: bool = False) -> Pushed:
    """Sends a model to the hub, in one commit; creates the repository and the branch if necessary.

    Files of a model that was there before and that this one lacks are removed; others stay.

    Args:
        prepared: by `prepare_push`.
        private: whether only its owner may see it. A public repository is then refused.

    Raises:
        CheckpointError: the hub does not let us, cannot be reached, or the repository holds
            something else.
    """
    address, branch = prepared.address, prepared.address.revision
    client = import_client("`tessella push`", CheckpointError)
    if client.get_token() is None:
        raise CheckpointError(
            f"The hub asks who you are: `{address}`. Log in with `hf auth login`, or set HF_TOKEN, "
            "to a token with the right to write."
        )
    api = client.HfApi()
    with reaching(address, CheckpointError, is_writing=True):
        is_new = _open_repository(api, address, private)
        info = _read_branch(api, address)
        present = {file.rfilename for file in info.siblings or ()}
        _check_present(address, present)
        if branch is not None:
            api.create_branch(address.repository, branch=branch, exist_ok=True)
        stale = {
            name
            for name in present - prepared.sizes.keys()
            if name in MODEL_FILES or name.startswith(f"{PICTURES_FOLDER}/")
        }
        commit = api.create_commit(
            address.repository,
            [
                *(
                    client.CommitOperationAdd(name, prepared.folder / name)
                    for name in prepared.sizes
                ),
                *(client.CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=f"Pushed by tessella {metadata.version('tessella')}",
            revision=branch,
            parent_commit=info.sha,
        )
    page = f"{api.endpoint}/{address.repository}"
    return Pushed(f"{page}/tree/{branch}" if branch else page, commit.oid, is_new)


def _open_repository(api: Any, address: HubAddress, private: bool) -> bool:
    """Creates the repository unless it is there; says whether it did."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = api.model_info(address.repository)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        api.create_repo(address.repository, private=private, exist_ok=True)
        return True
    if private and not info.private:
        raise CheckpointError(
            f"The repository is there, and everybody may see it: `{address}`. Make it private in "
            "its settings, name another, or leave --private out."
        )
    return False


def _read_branch(api: Any, address: HubAddress) -> Any:
    """Asks what a branch holds; of one that is not there, the main branch, where it will begin."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(address.repository, revision=address.revision)
    except RevisionNotFoundError:
        return api.model_info(address.repository)


def _check_present(address: HubAddress, present: set[str]) -> None:
    others = sorted(name for name in present if not name.lower().startswith(_BESIDE))
    if others and TOKENIZER_FILE not in present:
        raise CheckpointError(
            f"The repository holds something other than a tessella model: `{address}` "
            f"({', '.join(others[:3])}{', …' if len(others) > 3 else ''}). Name another one, or "
            "one that is not there yet: it is created."
        )


def _leave_out_others(files: Path) -> list[str]:
    """Removes what is no part of a model from a copy; returns the names."""
    names = {path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()}
    others = sorted(names - MODEL_FILES)
    for name in others:
        (files / name).unlink()
    (files / SUMS_FILE).unlink(missing_ok=True)  # written anew
    return others


def _choose_captions(model: TextToImage) -> list[str]:
    """Chooses different captions of the training; none if the model does not know any."""
    examples = model.captions.examples if model.captions else ()
    stripped = (caption.strip() for caption in examples)
    fitting = dict.fromkeys(text for text in stripped if 0 < len(text) <= _MAX_CAPTION)
    return list(fitting)[:_NUM_PICTURES]


def _read_metrics(path: Path) -> dict[str, Any]:
    """Reads the measures of a model; none where people have removed or changed the file."""
    with contextlib.suppress(OSError, ValueError):
        metrics = parse_json(path.read_bytes())
        if isinstance(metrics, dict):
            return {
                name: values
                for name, values in metrics.items()
                if isinstance(values, dict) and {"value", "protocol"} <= values.keys()
            }
    return {}
