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
from tessella.evaluation.features import FeatureExtractor, create_extractor
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.images import to_float
from tessella.tokenizer.perceptual import ResNet18

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 20, 16, 3), dtype=np.uint8)


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
    found = extractor.extract(PIXELS)
    assert network.batches == [2, 2, 1]
    assert found.dtype == torch.float64
    expected = PIXELS.mean(axis=(1, 2)) / 127.5 - 1
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
        expected = network.features(to_float(PIXELS), ["fire3"])["fire3"].mean((2, 3))
    torch.testing.assert_close(extractor.extract(PIXELS), expected.double())


def test_resnet18_by_name_and_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = ResNet18(("conv1", "layer1.0"), folded=True).state_dict()
    np.savez(tmp_path / "resnet.npz", **{name: value.numpy() for name, value in state.items()})
    monkeypatch.setenv("TESSELLA_RESNET18", str(tmp_path / "resnet.npz"))
    extractor = create_extractor("resnet18-layer1.0")
    assert extractor.num_features == 64
    assert extractor.extract(PIXELS).shape == (5, 64)
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
