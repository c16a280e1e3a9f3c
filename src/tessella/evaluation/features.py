"""pictures → one named feature vector each: what FID and KID compare.

A name is `NETWORK-LAYER`: `squeezenet-fire9`, `resnet18-layer3`. The vector is the mean over the
layer's positions. Numbers on different features cannot be compared, so the name goes with them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tessella.errors import ConfigError
from tessella.evaluation.squeezenet import SqueezeNet, load_squeezenet
from tessella.images import Pixels, to_float
from tessella.tokenizer.perceptual import ResNetFeatures, load_resnet18

DEFAULT_FEATURES = "squeezenet-fire9"
"""Of a network that no loss uses."""

_BATCH = 32


FeatureNetwork = SqueezeNet | ResNetFeatures
_NETWORKS: dict[str, Callable[[], FeatureNetwork]] = {
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

    def describe(self) -> str:
        """Names the features for a protocol."""
        return f"{self.name} features ({self.num_features}, mean over places)"

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
        return torch.cat([self(to_float(part)) for part in torch.tensor(pixels).split(_BATCH)])


def create_extractor(
    name: str = DEFAULT_FEATURES, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Loads named features.

    Args:
        name: NETWORK-LAYER: squeezenet with a layer of `squeezenet.LAYERS`, or resnet18 with
            one of `perceptual.LAYERS`.
        device: where they are computed.

    Raises:
        ConfigError: the network or layer is unknown, or its weights are missing.
        CheckpointError: the file of the weights is damaged or holds something else.
    """
    network, _, layer = name.partition("-")
    if network not in _NETWORKS:
        raise ConfigError(
            f"Features are named NETWORK-LAYER, with one of the networks "
            f"{', '.join(_NETWORKS)}: `{name}`. For example {DEFAULT_FEATURES}."
        )
    return FeatureExtractor(name, _NETWORKS[network](), layer, device)


@dataclass(frozen=True)
class EvalNetworks:
    """The networks that compare pictures in an evaluation; by default, none."""

    squeezenet: SqueezeNet | None = None  # adds the perceptual distance of reconstructions
    extractor: FeatureExtractor | None = None  # of SqueezeNet; adds retrieval and copies
    # By name; each adds FID, KID, precision and recall. None: its weights are missing.
    features: Mapping[str, FeatureExtractor | None] = field(default_factory=dict)
    missing: str = ""  # why there is no SqueezeNet

    @classmethod
    def load(cls, names: Sequence[str] = (), device: torch.device | str = "cpu") -> "EvalNetworks":
        """Loads SqueezeNet if its weights are installed, and named features.

        Args:
            names: of the features, which must be there; by default SqueezeNet's, if it is there.
            device: where the networks compute.

        Raises:
            ConfigError: a name is unknown, or its weights are missing.
            CheckpointError: a file of weights is damaged.
        """
        features = {name: create_extractor(name, device) for name in names}
        try:
            squeezenet = load_squeezenet().to(device)
        except ConfigError as error:
            return cls(features=features or {DEFAULT_FEATURES: None}, missing=str(error))
        layer = DEFAULT_FEATURES.partition("-")[2]
        extractor = FeatureExtractor(DEFAULT_FEATURES, squeezenet, layer, device)
        return cls(squeezenet, extractor, features or {DEFAULT_FEATURES: extractor})


NO_NETWORKS = EvalNetworks()
