"""SqueezeNet 1.1 against the published description, written a second time without modules."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import CheckpointError, ConfigError
from tessella.evaluation import squeezenet
from tessella.evaluation.squeezenet import LAYERS, SqueezeNet, load_squeezenet


def draw_weights() -> dict[str, Tensor]:
    """Random weights under Caffe's names, large enough that signals reach the last layer."""
    torch.manual_seed(0)
    shapes = {"conv1": (64, 3, 3), "conv10": (1000, 512, 1)}
    inputs = (64, 128, 128, 256, 256, 384, 384, 512)
    for number, width in enumerate(inputs, start=2):
        squeezed = 16 * (number // 2)
        shapes[f"fire{number}/squeeze1x1"] = (squeezed, width, 1)
        shapes[f"fire{number}/expand1x1"] = (4 * squeezed, squeezed, 1)
        shapes[f"fire{number}/expand3x3"] = (4 * squeezed, squeezed, 3)
    weights = {}
    for name, (out, width, side) in shapes.items():
        scale = (2 / (width * side * side)) ** 0.5
        weights[f"{name}.weight"] = torch.randn(out, width, side, side) * scale
        weights[f"{name}.bias"] = torch.randn(out)
    return weights


WEIGHTS = draw_weights()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as small as they come: matrices in half precision."""
    path = tmp_path_factory.mktemp("weights") / "squeezenet.npz"
    halves: dict[str, Any] = {
        name: (value.half() if name.endswith("weight") else value).numpy()
        for name, value in WEIGHTS.items()
    }
    np.savez(path, **halves)
    return path


def compute_reference(image: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network line by line, as its deploy.prototxt has it."""

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        w, b = weights[f"{name}.weight"].half().float(), weights[f"{name}.bias"]
        return functional.conv2d(x, w, b, stride, padding).clamp(min=0)

    def pool(x: Tensor) -> Tensor:
        # Caffe's last window may hang over the edge: there it sees less.
        over = [(0 if (side - 3) % 2 == 0 else 1) for side in x.shape[-2:]]
        x = functional.pad(x, (0, over[1], 0, over[0]), value=-torch.inf)
        return functional.max_pool2d(x, 3, 2)

    x = functional.interpolate(image, (227, 227), mode="bilinear", antialias=True)
    red, green, blue = ((x + 1) * 127.5).unbind(1)
    x = torch.stack([blue - 104, green - 117, red - 123], 1)
    x = conv("conv1", x, stride=2)
    found = {"conv1": x}
    x = pool(x)
    for number in range(2, 10):
        squeezed = conv(f"fire{number}/squeeze1x1", x)
        wide = conv(f"fire{number}/expand3x3", squeezed, padding=1)
        x = torch.cat([conv(f"fire{number}/expand1x1", squeezed), wide], 1)
        found[f"fire{number}"] = x
        if number in (3, 5):
            x = pool(x)
    found["conv10"] = conv("conv10", x)
    return found


@pytest.mark.parametrize("size", [(40, 52), (256, 227)])
def test_every_layer_is_the_published_one(path: Path, size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size) * 2 - 1
    with torch.inference_mode():
        found = load_squeezenet(path).features(image, LAYERS)
    expected = compute_reference(image, WEIGHTS)
    assert list(found) == list(LAYERS) == list(expected)
    for name in LAYERS:
        scale = float(expected[name].abs().max())
        assert scale > 0.1
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4 * scale)
    places = {name: found[name].shape[-1] for name in ("conv1", "fire3", "fire5", "fire9")}
    assert places == {"conv1": 113, "fire3": 56, "fire5": 28, "fire9": 14}


def test_a_class_has_its_mean_over_places(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squeezenet, "INPUT_SIZE_PX", 63)
    network, image = load_squeezenet(path), torch.rand(2, 3, 20, 20)
    hidden = network.features(image, ["conv10"])["conv10"]
    assert hidden.shape == (2, 1000, 3, 3)
    torch.testing.assert_close(network(image), hidden.sum((2, 3)) / 9)


def test_it_reads_blue_green_red_minus_their_means() -> None:
    """By hand: (223, 150, 200) becomes 200 - 104, 150 - 117, 223 - 123 in that order."""
    network = SqueezeNet()
    with torch.no_grad():
        for parameter in network.conv1.parameters():
            parameter.zero_()
        for channel in range(3):
            network.conv1.weight[channel, channel, 1, 1] = 1
    image = torch.tensor([223.0, 150.0, 200.0]).reshape(1, 3, 1, 1).expand(1, 3, 8, 12)
    with torch.inference_mode():
        seen = network.features(image / 127.5 - 1, ["conv1"])["conv1"][0, :3, 50, 50]
    assert seen.tolist() == pytest.approx([96, 33, 100], abs=1e-3)


def test_it_goes_no_further_than_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError("computed for nothing")

    network = load_squeezenet(path)
    monkeypatch.setattr(network.get_submodule("fire4"), "forward", refuse)
    image = torch.zeros(1, 3, 16, 16)
    assert list(network.features(image, ["fire3", "conv1"])) == ["fire3", "conv1"]
    with pytest.raises(AssertionError):
        network.features(image, ["fire4"])


def test_nothing_trains_it(path: Path) -> None:
    network = load_squeezenet(path)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no layer `fire1`; it has: conv1, fire2, .*conv10"):
        SqueezeNet().features(torch.zeros(1, 3, 8, 8), ["fire1"])


def test_it_is_found_by_its_variable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(path))
    assert torch.equal(load_squeezenet().state_dict()["conv1.bias"], WEIGHTS["conv1.bias"])
    monkeypatch.delenv("TESSELLA_SQUEEZENET")
    with pytest.raises(ConfigError, match=r"weights of SqueezeNet 1\.1 .*TESSELLA_SQUEEZENET"):
        load_squeezenet()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other: dict[str, Any] = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    np.savez(tmp_path / "other.npz", **other)
    with pytest.raises(CheckpointError, match=r"not the weights of SqueezeNet 1\.1: `.*other\.npz"):
        load_squeezenet(tmp_path / "other.npz")
