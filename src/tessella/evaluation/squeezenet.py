"""image → features of SqueezeNet 1.1, which no loss of tessella uses.

Evaluation looks at pictures with it: a model cannot have learned to please a network that it
never met. Its layers keep the names of the published Caffe model.

Source: network arXiv:1602.07360; version 1.1, its weights and the form of its input:
github.com/forresti/SqueezeNet, SqueezeNet_v1.1/deploy.prototxt.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import CheckpointError, ConfigError
from tessella.tokenizer.weights import PublishedWeights, find_weights, read_weights

INPUT_SIZE_PX = 227
"""Side of the square that every image is resized to."""

# Channels of each fire module: in, after its squeeze, out of each of its two expansions.
_FIRES = {
    "fire2": (64, 16, 64),
    "fire3": (128, 16, 64),
    "fire4": (128, 32, 128),
    "fire5": (256, 32, 128),
    "fire6": (256, 48, 192),
    "fire7": (384, 48, 192),
    "fire8": (384, 64, 256),
    "fire9": (512, 64, 256),
}
_POOLED_AFTER = ("conv1", "fire3", "fire5")

LAYERS = ("conv1", *_FIRES, "conv10")
"""The layers that give features, in the network's order, each after its ReLU and before max
pooling. ImageNet's classes, `conv10`, are computed from `fire9`."""

SQUEEZENET = PublishedWeights(
    name="SqueezeNet 1.1",
    variable="TESSELLA_SQUEEZENET",
    option=None,
    url=None,
    sha256="",
    alternative_option="--features efficientnet-head",
)
"""The published Caffe model, its arrays by name: `conv1.weight`, `fire2/squeeze1x1.bias`, …"""

_MEAN_BGR = (104.0, 117.0, 123.0)


class _Fire(nn.Module):
    """(B, width_in, H, W) → (B, 2 · width_out, H, W): squeezes the channels, expands them twice."""

    def __init__(self, width_in: int, squeezed: int, width_out: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(width_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, width_out, 1)
        self.expand3x3 = nn.Conv2d(squeezed, width_out, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = functional.relu(self.squeeze1x1(hidden))
        return functional.relu(torch.cat([self.expand1x1(hidden), self.expand3x3(hidden)], 1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1: features of images in [-1, 1] of any size."""

    name = SQUEEZENET.name
    perceptual_layers = ("conv1", "fire3", "fire5", "fire6", "fire7", "fire8", "fire9")
    """The ones that LPIPS compares too."""

    def __init__(self) -> None:
        """Creates an untrained network; `load_squeezenet` loads the published one."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for name, widths in _FIRES.items():
            self.add_module(name, _Fire(*widths))
        self.conv10 = nn.Conv2d(512, 1000, 1)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.conv10.weight.device

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Computes the features of some layers; stops after the last of them.

        Args:
            image: (B, 3, H, W) in [-1, 1], RGB; resized to 227×227.
            layers: names of `LAYERS`, one at least.

        Returns:
            By name (B, channels, h, w): 113×113 positions at conv1, 56×56 at fire2 and fire3,
            28×28 at fire4 and fire5, 14×14 beyond.

        Raises:
            ConfigError: a layer is unknown; lists the known ones.
        """
        names = list(layers)
        for layer in names:
            if layer not in LAYERS:
                raise ConfigError(
                    f"SqueezeNet 1.1 has no layer `{layer}`; it has: {', '.join(LAYERS)}. "
                    "Choose one of these."
                )
        features: dict[str, Tensor] = {}
        hidden = _to_caffe(image)
        for name in LAYERS[: 1 + max(map(LAYERS.index, names))]:
            hidden = functional.relu(self.get_submodule(name)(hidden))
            if name in names:
                features[name] = hidden
            if name in _POOLED_AFTER:
                # Caffe rounds the number of positions up.
                hidden = functional.max_pool2d(hidden, 3, stride=2, ceil_mode=True)
        return {name: features[name] for name in names}

    def forward(self, image: Tensor) -> Tensor:
        """Computes a score for each of ImageNet's classes, (B, 1000), before the softmax."""
        return self.features(image, ("conv10",))["conv10"].mean((2, 3))


def _to_caffe(image: Tensor) -> Tensor:
    """Turns an image into what the Caffe model reads: 227×227, BGR, 0 to 255 minus the mean."""
    size = (INPUT_SIZE_PX, INPUT_SIZE_PX)
    resized = functional.interpolate(
        image, size, mode="bilinear", align_corners=False, antialias=True
    )
    mean = resized.new_tensor(_MEAN_BGR).reshape(3, 1, 1)
    return (resized.flip(1) + 1) * 127.5 - mean


def load_squeezenet(path: Path | None = None) -> SqueezeNet:
    """Loads the published network from a file, or from where `find_weights` finds it.

    Raises:
        ConfigError: the file is missing, or none is named; says how to name it.
        CheckpointError: the file is damaged or holds something else.
    """
    path = find_weights(SQUEEZENET, path)
    state = {name.replace("/", "."): value for name, value in read_weights(path).items()}
    # On `meta`: the weights come from the file, so none are drawn.
    with torch.device("meta"):
        network = SqueezeNet()
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"These are not the weights of SqueezeNet 1.1: `{path}`. {error}"
        ) from error
    return network.eval().requires_grad_(False)
