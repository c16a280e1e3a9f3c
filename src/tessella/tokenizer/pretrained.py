"""image → features of a network that others have trained, layer by layer.

What a perceptual loss, the probe and the evaluation share of ResNet-18 (`perceptual.py`) and
EfficientNet-Lite0 (`efficientnet.py`), neither of which is trained here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from tessella.errors import ConfigError


class LayeredNetwork(nn.Module):
    """A network that can stop at any of its layers, the last of which is ImageNet's classes."""

    def walk(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each layer's name and features, computed as they are needed."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Computes the logits of ImageNet's classes (B, 1000) of normalised images."""
        return dict(self.walk(image))["fc"]


class PretrainedFeatures:
    """Computes the features of images with a network that nothing trains.

    It is not an `nn.Module`: a network that holds it neither saves nor counts its weights.

    Args:
        network: with its weights.
        available: the layers that the weights have, in the network's order.
        mean: of each colour, of values in [0, 1], which the network wants to be 0.
        std: the same, which it wants to be 1.
        side_px: side of the square that every image is resized to; None leaves images as they are.
    """

    name: ClassVar[str]
    """For messages and protocols."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other names of layers."""

    def __init__(
        self,
        network: LayeredNetwork,
        available: tuple[str, ...],
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        side_px: int | None = None,
    ) -> None:
        self.available = available
        """The layers that the weights have."""
        self._network = network.eval().requires_grad_(False)
        self._side_px = side_px
        convert_conv2d_weight_memory_format(network, torch.channels_last)
        # From [-1, 1] to zero mean and unit variance.
        deviation = torch.tensor(std).reshape(3, 1, 1)
        self._scale = 0.5 / deviation
        self._shift = (0.5 - torch.tensor(mean).reshape(3, 1, 1)) / deviation

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._scale.device

    def to(self, device: torch.device | str) -> Self:
        """Moves the weights; `features` does so by itself for an image on another device."""
        self._network.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        return self

    def require(self, layers: Iterable[str]) -> None:
        """Checks that the weights have these layers.

        Raises:
            ConfigError: they lack one; the message lists those that they have.
        """
        for layer in layers:
            if self.aliases.get(layer, layer) not in self.available:
                raise ConfigError(
                    f"These weights of {self.name} have no layer `{layer}`; they have: "
                    f"{', '.join(self.available)}. Choose one of these, or other weights."
                )

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Computes the features of some layers, and no layer beyond the last of them.

        Args:
            image: (B, 3, H, W) in [-1, 1], of any size; gradients flow to it.
            layers: names of `available` or `aliases`.

        Returns:
            By the given names: (B, channels, height, width), H and W halved up to five times and
            rounded up; (B, channels) for `avgpool` and `fc`.

        Raises:
            ConfigError: the weights lack a layer.
        """
        names = {layer: self.aliases.get(layer, layer) for layer in layers}
        self.require(names)
        if self.device != image.device:
            self.to(image.device)
        if self._side_px is not None:
            size = (self._side_px, self._side_px)
            image = functional.interpolate(image, size, mode="bilinear", antialias=True)
        image = image.contiguous(memory_format=torch.channels_last) * self._scale + self._shift
        needed = set(names.values())
        features: dict[str, Tensor] = {}
        walk = self._network.walk(image)
        while len(features) < len(needed):
            name, hidden = next(walk)
            if name in needed:
                features[name] = hidden
        return {layer: features[name] for layer, name in names.items()}
