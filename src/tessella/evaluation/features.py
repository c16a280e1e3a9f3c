"""pictures → one named feature vector each: what FID and KID compare.

A name is `NETWORK-LAYER`: `squeezenet-fire9`, `resnet18-layer3`. The vector is the mean over the
layer's places. Numbers on different features cannot be compared, so the name goes with them.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from tessella.errors import ConfigError
from tessella.evaluation.squeezenet import load_squeezenet
from tessella.images import Pixels, to_float
from tessella.tokenizer.perceptual import load_resnet18

DEFAULT_FEATURES = "squeezenet-fire9"
"""Of a network that no loss is trained on."""

_BATCH = 32


class FeatureNetwork(Protocol):
    """A network that looks at images: SqueezeNet or ResNet-18."""

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Computes (B, channels, …) of some layers of images (B, 3, H, W) in [-1, 1]."""

    def to(self, device: torch.device) -> object:
        """Moves the weights."""


_NETWORKS: dict[str, Callable[[Path | None], FeatureNetwork]] = {
    "squeezenet": load_squeezenet,
    "resnet18": load_resnet18,
}


class FeatureExtractor:
    """Turns pictures into feature vectors.

    Args:
        name: NETWORK-LAYER.
        network: loaded.
        layer: one that it has.
        device: where it computes.

    Raises:
        ConfigError: the network has no such layer.
    """

    def __init__(
        self, name: str, network: FeatureNetwork, layer: str, device: torch.device | str = "cpu"
    ) -> None:
        self.name = name
        self._network = network
        self._layer = layer
        self._device = torch.device(device)
        network.to(self._device)
        self.num_features = self(torch.zeros(1, 3, 64, 64)).shape[1]
        """Length F of a vector."""

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Computes (B, F) in float64 of images (B, 3, H, W) in [-1, 1], on the CPU."""
        hidden = self._network.features(image.to(self._device), (self._layer,))[self._layer]
        if hidden.ndim > 2:
            hidden = hidden.flatten(2).mean(2)
        return hidden.cpu().double()

    def extract(self, pixels: Pixels) -> Tensor:
        """Computes the features of pictures.

        Args:
            pixels: (B, H, W, 3) uint8, B >= 1.

        Returns:
            (B, F) in float64, on the CPU.
        """
        batches = (pixels[start : start + _BATCH] for start in range(0, len(pixels), _BATCH))
        return torch.cat([self(to_float(batch)) for batch in batches])


def create_extractor(
    name: str = DEFAULT_FEATURES,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
) -> FeatureExtractor:
    """Loads named features.

    Args:
        name: NETWORK-LAYER: squeezenet with a layer of `squeezenet.LAYERS`, or resnet18 with
            one of `perceptual.LAYERS`.
        weights: a local file, which goes before the environment variable.
        device: where they are computed.

    Raises:
        ConfigError: there is no such network or layer, or its weights cannot be had.
        CheckpointError: the file of the weights is damaged or holds something else.
    """
    network, _, layer = name.partition("-")
    if network not in _NETWORKS:
        raise ConfigError(
            f"Features are named NETWORK-LAYER, with one of the networks "
            f"{', '.join(_NETWORKS)}: `{name}`. For example {DEFAULT_FEATURES}."
        )
    return FeatureExtractor(name, _NETWORKS[network](weights), layer, device)
