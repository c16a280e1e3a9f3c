"""Weights of a model folder: read, proved, and put into the network that its settings describe.

    file ─ checksum ─▶ tensors ─ their numbers counted ─▶ network of that size ─▶ loaded

Settings may ask for a network of any size. None is built that has more numbers than the file.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tessella.checksums import map_file
from tessella.errors import CheckpointError, first_line
from tessella.files import read_tensors

# The transformer's weights were renamed from format 2 to format 3, the codebook's from 4 to 5.
_RENAMED = {
    "reading.": "self_decoder.",
    "asking.": "cross_decoder.",
    "memory_norm.": "kv_norm.",
    "place_embedding.": "position_embedding.",
    "question": "mask_token",
    "writing.": "text_decoder.",
    **{
        f"quantizer.{name}": f"quantizer.parts.0.{name}"
        for name in ("vectors", "idle_images", "started", "cluster_size", "cluster_sum")
    },
}

_CAPTION_WEIGHT = "example_encoder.caption.weight"  # (D, D)

# What a network computes from its settings is not in its file: rotations, grids of levels. The
# latter have at most 65,536 codes.
_MOST_COMPUTED, _LONGEST_RANGE = 10_000, 1 << 17
_SIZED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}

N = TypeVar("N", bound=nn.Module)


def load_network(
    create: Callable[[], N],
    path: Path,
    upgrade: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> N:
    """Creates a network and loads its weights, of any format, onto the CPU.

    Args:
        create: builds it untrained, as the settings describe it.
        path: of the weights.
        upgrade: adds weights that older formats lack.

    Raises:
        CheckpointError: they are missing, damaged, or of another network.
    """
    tensors = upgrade(read_weights(path))
    network = build_network(create, path, tensors)
    load_weights(network, path, tensors)
    return network


def build_network(create: Callable[[], N], path: Path, tensors: Mapping[str, Tensor]) -> N:
    """Creates a network without a start, unless it is larger than the weights of its file.

    Args:
        create: builds it untrained, as the settings describe it.
        path: of the weights, for messages.
        tensors: the weights.

    Raises:
        CheckpointError: it is larger, or cannot be built.
    """
    num_numbers = sum(tensor.numel() for tensor in tensors.values())
    try:
        with _Uninitialized(num_numbers + _MOST_COMPUTED):
            network = create()
    except _TooLarge as error:
        raise CheckpointError(
            f"The weights do not fit the configuration beside them: `{path}` holds "
            f"{num_numbers:,} numbers, the settings describe a network of {error}. Copy the whole "
            "model folder again."
        ) from None
    except (RuntimeError, ValueError, TypeError, OverflowError, ArithmeticError) as error:
        raise CheckpointError(
            "The configuration describes no network that can be built, beside: "
            f"`{path}`. {first_line(error)}. Copy the whole model folder again."
        ) from None
    return network


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of a network, with the names that they have today.

    Raises:
        CheckpointError: they are missing, damaged, or some are no numbers.
    """
    with contextlib.suppress(OSError):  # `read_tensors` says what is wrong
        map_file(path)
    tensors = read_tensors(path)
    for name in list(tensors):
        for old, new in _RENAMED.items():
            if name.startswith(old):
                tensors[new + name.removeprefix(old)] = tensors.pop(name)
    broken = next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)
    if broken is not None:
        raise CheckpointError(
            f"Some weights are no numbers (NaN or infinite): `{broken}` in `{path}`. The file is "
            "damaged, or training has diverged: copy the whole model folder again, or train with "
            "a lower learning rate."
        )
    return tensors


def load_weights(network: nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Loads weights into the network that the settings describe.

    Raises:
        CheckpointError: they are of another network.
    """
    own = network.state_dict()
    try:
        for name in own.keys() & tensors.keys():
            kind = tensors[name].dtype
            if kind.is_complex or kind.is_floating_point != own[name].is_floating_point():
                raise RuntimeError(f"`{name}` has numbers of another kind: {kind}.")
        network.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"The weights do not fit the configuration beside them: `{path}`. {first} Copy the "
            "whole model folder again."
        ) from None


def align_examples(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds to a transformer's weights those that came with format 6.

    They change nothing, and can still learn. The file holds a weight that bounds their size.
    """
    shape = tensors[_CAPTION_WEIGHT].shape if _CAPTION_WEIGHT in tensors else ()
    if len(shape) != 2 or shape[0] != shape[1]:
        return tensors  # no examples; or of no transformer, which `load_weights` refuses
    width = shape[0]
    added = {
        "example_encoder.prompt_query.weight": torch.eye(32, width),
        "example_encoder.caption_key.weight": torch.eye(32, width),
        "example_encoder.relevance.weight": torch.zeros(1, width),
        "example_encoder.aligned.weight": torch.zeros(width, width),
    }
    return added | tensors


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    # A sum is finite where all are; it may overflow where they are too.
    return math.isfinite(tensor.float().sum()) or bool(tensor.float().isfinite().all())


class _TooLarge(Exception):
    """A network has more numbers than it may have; says how many at least."""


class _Uninitialized(TorchFunctionMode):
    """Counts the numbers of a network that is built, and leaves them as they are in memory.

    Weights that are loaded in a moment need no start. And the sizes are known before any memory is
    asked for.

    Args:
        most: numbers.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most, self._count = most, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        if func in _SIZED:
            size = kwargs.get("size", args[0] if args and not isinstance(args[0], int) else args)
            self._add(math.prod(size))
        elif func is torch.arange and args[0] > _LONGEST_RANGE:
            self._add(args[0])
        return func(*args, **kwargs)

    def _add(self, count: int) -> None:
        self._count += count
        if self._count > self._most:
            raise _TooLarge(f"at least {self._count:,}")
