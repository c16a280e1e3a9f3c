"""Weights that others have published: found on this machine or downloaded once, and read.

Upstream of every network that tessella uses but does not train. A file is read without running
any code that it may hold.

Source: the hash check is torchvision's; it puts the first 8 digits in the file's name.
"""

import hashlib
import http.client
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessella.errors import CheckpointError, ConfigError
from tessella.files import new_file, read_tensors

_TIMEOUT_SECONDS = 30.0  # without a single byte
_CHUNK_BYTES = 1 << 20
_log = logging.getLogger("tessella")


@dataclass(frozen=True)
class PublishedWeights:
    """A file of weights and the ways to name it."""

    name: str  # for messages: ResNet-18
    variable: str  # the environment variable that names a local file
    option: str | None  # what a command takes to name a local file; None: nothing
    url: str | None  # where the file is published; None: nowhere that it may be downloaded from
    sha256: str  # of the file there, its first 8 or more hexadecimal digits; else empty


def find_weights(published: PublishedWeights, given: Path | None = None) -> Path:
    """Finds the file: the one given, the environment variable's, the user's cache, a download.

    What is downloaded goes into the user's cache, `tessella/weights` in `XDG_CACHE_HOME` or
    `~/.cache`, once its hash is checked. Two processes may do that at once.

    Args:
        published: what to find.
        given: a local file, which goes before all else.

    Raises:
        ConfigError: there is no such file, or it cannot be downloaded, or what came is another
            file; says how to get it.
        CheckpointError: the cache cannot be written to.
    """
    by_variable = os.environ.get(published.variable)
    named = given or (Path(by_variable) if by_variable else None)
    if named is not None:
        path = named.expanduser()
        if not path.is_file():
            by = published.option if given else published.variable
            raise ConfigError(
                f"There is no file of the weights of {published.name}: `{path}`, named by {by}. "
                f"{_how_to_get(published)}"
            )
        return path
    if published.url is None:
        raise ConfigError(f"The weights of {published.name} are missing. {_how_to_get(published)}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    path = cache / "tessella" / "weights" / published.url.rpartition("/")[2]
    if not path.is_file():
        _download(published, published.url, path)
    return path


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
    """Downloads a file that is only given its name when its hash is the published one.

    Raises:
        ConfigError: it cannot be reached, or what came is another file.
        CheckpointError: the folder cannot be written to.
    """
    _log.info("Downloading the weights of %s: `%s` to `%s`.", published.name, url, path)
    digest = hashlib.sha256()
    with new_file(path, what=f"the weights of {published.name}") as temporary:
        with temporary.open("wb") as file:
            for chunk in _chunks(published, url, path):
                digest.update(chunk)
                file.write(chunk)
        if not digest.hexdigest().startswith(published.sha256):
            raise ConfigError(
                f"What came from `{url}` is cut off or another file: its SHA-256 begins with "
                f"`{digest.hexdigest()[: len(published.sha256)]}`, expected {published.sha256}. "
                f"Try again later. {_how_to_get(published)}"
            )


def _chunks(published: PublishedWeights, url: str, path: Path) -> Iterator[bytes]:
    """Yields what an address sends.

    Raises:
        ConfigError: it cannot be reached, or the connection breaks.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
            while chunk := response.read(_CHUNK_BYTES):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise ConfigError(
            f"The weights of {published.name} are not at `{path}` and cannot be downloaded: "
            f"{error}. {_how_to_get(published)}"
        ) from error


def _how_to_get(published: PublishedWeights) -> str:
    """Says what to do where the weights are missing."""
    get = f"Download {published.url} yourself and name" if published.url else "Name"
    by_option = f"{published.option} or " if published.option else ""
    return f"{get} a local file with {by_option}the environment variable {published.variable}."
