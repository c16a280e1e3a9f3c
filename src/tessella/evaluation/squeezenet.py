"""image → features of SqueezeNet 1.1, which no loss of tessella is trained on.

Evaluation looks at pictures with it: a model cannot have learned to please a network that it
never met. It is written out with the names of the published Caffe model.

Source: network arXiv:1602.07360; version 1.1, its weights and the form of its input:
github.com/forresti/SqueezeNet, SqueezeNet_v1.1/deploy.prototxt.
"""

from collections.abc import Iterable, Iterator
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
"""The layers whose features can be had, in the network's order, each after its ReLU and before
max pooling. `fire9` is what the classes of ImageNet, `conv10`, are read off."""

SQUEEZENET = PublishedWeights(
    name="SqueezeNet 1.1",
    variable="TESSELLA_SQUEEZENET",
    option=None,
    url=None,
    sha256="",
)
"""The published Caffe model, its arrays by name: `conv1.weight`, `fire2/squeeze1x1.bias`, …"""

_MEAN_BGR = (104.0, 117.0, 123.0)


class _Fire(nn.Module):
    """(B, width in, H, W) → (B, 2 width out, H, W): few channels, then two kinds of many."""

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

    def __init__(self) -> None:
        """Creates an untrained network; `load_squeezenet` loads the published one."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2)
        for name, widths in _FIRES.items():
            self.add_module(name, _Fire(*widths))
        self.conv10 = nn.Conv2d(512, 1000, 1)

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Computes the features of some layers, and no layer beyond the last of them.

        Args:
            image: (B, 3, H, W) in [-1, 1], RGB; resized to 227×227.
            layers: names of `LAYERS`.

        Returns:
            By name (B, channels, places, places): 113×113 places at conv1, 56×56 at fire2 and
            fire3, 28×28 at fire4 and fire5, 14×14 beyond.

        Raises:
            ConfigError: there is no such layer; lists those that there are.
        """
        wanted = list(layers)
        for layer in wanted:
            if layer not in LAYERS:
                raise ConfigError(
                    f"SqueezeNet 1.1 has no layer `{layer}`; it has: {', '.join(LAYERS)}. "
                    "Choose one of these."
                )
        found: dict[str, Tensor] = {}
        walk = self._walk(_to_caffe(image))
        while len(found) < len(set(wanted)):
            name, hidden = next(walk)
            if name in wanted:
                found[name] = hidden
        return {layer: found[layer] for layer in wanted}

    def forward(self, image: Tensor) -> Tensor:
        """Computes a score for each of ImageNet's classes, (B, 1000), before the softmax."""
        return self.features(image, ("conv10",))["conv10"].mean((2, 3))

    def _walk(self, hidden: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields the name and the features of one layer after the other, each when asked for."""
        for name in LAYERS:
            hidden = functional.relu(self.get_submodule(name)(hidden))
            yield name, hidden
            if name in _POOLED_AFTER:
                # Caffe rounds the number of places up.
                hidden = functional.max_pool2d(hidden, 3, stride=2, ceil_mode=True)


def _to_caffe(image: Tensor) -> Tensor:
    """Turns an image into what the Caffe model reads: 227×227, BGR, 0 to 255 minus the mean."""
    size = (INPUT_SIZE_PX, INPUT_SIZE_PX)
    resized = functional.interpolate(
        image, size, mode="bilinear", align_corners=False, antialias=True
    )
    mean = resized.new_tensor(_MEAN_BGR).reshape(3, 1, 1)
    return (resized.flip(1) + 1) * 127.5 - mean


def load_squeezenet(path: Path | None = None) -> SqueezeNet:
    """Loads the published network from a file, or else from where `find_weights` finds it.

    Raises:
        ConfigError: there is no such file, or none is named; says how to name it.
        CheckpointError: the file is damaged or holds something else.
    """
    path = find_weights(SQUEEZENET, path)
    state = {name.replace("/", "."): value for name, value in read_weights(path).items()}
    # Without memory of its own: the weights come from the file, no random ones are drawn.
    with torch.device("meta"):
        network = SqueezeNet()
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"These are not the weights of SqueezeNet 1.1: `{path}`. {error}"
        ) from error
    return network.eval().requires_grad_(False)
