"""ResNet-18 against one put together from plain functions, and the loss by hand."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.config import build, merge, parse_assignments, read_config
from tessella.errors import CheckpointError, ConfigError
from tessella.files import write_tensors
from tessella.tokenizer.perceptual import (
    ALIASES,
    LAYERS,
    PerceptualLoss,
    PerceptualLossSettings,
    ResNet18,
    ResNetFeatures,
    load_resnet18,
)

State = dict[str, Tensor]
MEAN = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)


@pytest.fixture(scope="module")
def state() -> State:
    """Weights of the whole network by torchvision's names, batch norm as if trained."""
    torch.manual_seed(0)
    state = ResNet18().state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_(0, 0.2)
        elif name.endswith("running_var"):
            value.uniform_(0.1, 1)
        elif "bn" in name and value.is_floating_point():
            value.normal_(0.5, 0.2)
    return state


@pytest.fixture(scope="module")
def small(state: State) -> State:
    """The first layers, folded by the formula: what a file for `npz` holds."""
    folded = {}
    for conv, norm in convolutions(state):
        if conv.startswith(("conv1", "layer1", "layer2")):
            scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-5).sqrt()
            folded[f"{conv}.weight"] = state[f"{conv}.weight"] * scale.reshape(-1, 1, 1, 1)
            folded[f"{conv}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return folded


def convolutions(state: State) -> Iterator[tuple[str, str]]:
    """Pairs the name of each convolution with that of the batch norm behind it."""
    for name in state:
        if name.endswith("running_mean"):
            norm = name.removesuffix(".running_mean")
            yield norm.replace("bn", "conv").replace("sample.1", "sample.0"), norm


def reference(state: State, image: Tensor) -> State:
    """All features, straight from the paper's table 1 and torchvision's names."""

    def convolve(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return functional.batch_norm(
            x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-5
        )

    x = ((image + 1) / 2 - MEAN) / STD
    found = {"conv1": convolve(x, "conv1", "bn1", stride=2).relu()}
    x = functional.max_pool2d(found["conv1"], 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for number in (0, 1):
            block = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            y = convolve(x, f"{block}.conv1", f"{block}.bn1", stride).relu()
            y = convolve(y, f"{block}.conv2", f"{block}.bn2")
            if stride == 2:
                x = convolve(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = found[block] = (x + y).relu()
        found[f"layer{stage}"] = x
    found["avgpool"] = functional.adaptive_avg_pool2d(x, 1).flatten(1)
    found["fc"] = functional.linear(found["avgpool"], state["fc.weight"], state["fc.bias"])
    return found


# The network.


def test_names_and_number_of_weights_are_torchvisions() -> None:
    with torch.device("meta"):
        network = ResNet18()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    pairs = [("conv1", "bn1")]
    for stage in "1234":
        for block in (f"layer{stage}.0", f"layer{stage}.1"):
            pairs += [(f"{block}.conv{n}", f"{block}.bn{n}") for n in "12"]
            if stage != "1" and block.endswith("0"):
                pairs.append((f"{block}.downsample.0", f"{block}.downsample.1"))
    names = [n for c, b in pairs for n in (f"{c}.weight", *(f"{b}.{x}" for x in norm))]
    assert list(network.state_dict()) == [*names, "fc.weight", "fc.bias"]
    assert len(network.state_dict()) == 122
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_689_512


def test_every_layer_against_plain_functions(state: State) -> None:
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    network = ResNetFeatures(state)
    assert network.available == LAYERS
    expected = reference(state, image)
    got = network.features(image, [*LAYERS, *ALIASES])
    assert got.keys() == expected.keys()
    for layer, value in got.items():
        error = (value - expected[layer]).abs().max()
        assert error < 1e-5 * expected[layer].abs().max().clamp(min=1), layer


def test_the_unfolded_network_computes_the_same(state: State) -> None:
    image = torch.rand(1, 3, 32, 32)
    with torch.device("meta"):
        network = ResNet18()
    network.load_state_dict(state, assign=True)
    before = network.eval()((image - MEAN) / STD)
    torch.testing.assert_close(before, reference(state, image * 2 - 1)["fc"])
    names = list(network.fold().state_dict())
    assert [name for name in names if name.endswith("weight")] == [
        *(f"{conv}.weight" for conv, _ in convolutions(state)),
        "fc.weight",
    ]
    torch.testing.assert_close(network((image - MEAN) / STD), before)


def test_shapes_at_128_pixels(state: State) -> None:
    got = ResNetFeatures(state).features(torch.zeros(1, 3, 128, 128), LAYERS)
    sides = {"conv1": (64, 64), "layer1": (64, 32), "layer2": (128, 16), "layer3": (256, 8)}
    for layer, (width, side) in (sides | {"layer4": (512, 4)}).items():
        for name in [layer] if layer == "conv1" else [f"{layer}.0", f"{layer}.1"]:
            assert got[name].shape == (1, width, side, side)
    assert got["avgpool"].shape == (1, 512)
    assert got["fc"].shape == (1, 1000)


@pytest.mark.parametrize("size", [1, 7, 33])
def test_any_size_will_do(small: State, size: int) -> None:
    got = ResNetFeatures(small).features(torch.zeros(1, 3, size, 40), ["conv1", "layer2"])
    assert got["conv1"].shape[2:] == (math.ceil(size / 2), 20)
    assert got["layer2"].shape[2:] == (math.ceil(size / 8), 5)


def test_folded_weights_of_the_first_layers(state: State, small: State, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{name: value.numpy() for name, value in small.items()})
    network = load_resnet18(tmp_path / "w.npz")
    assert network.available == ("conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1")
    image = torch.rand(1, 3, 24, 24)
    got = network.features(image, ["conv1", "layer2"])
    expected = reference(state, image)
    torch.testing.assert_close(got, {layer: expected[layer] for layer in got}, rtol=0, atol=1e-5)
    have = r"conv1, layer1\.0, layer1\.1, layer2\.0, layer2\.1"
    with pytest.raises(ConfigError, match=rf"no layer `layer3`; they have: {have}\. Choose"):
        network.features(image, ["layer1", "layer3"])
    for layer in ("avgpool", "fc", "layer2.2"):
        with pytest.raises(ConfigError, match=f"no layer `{layer}`"):
            network.require([layer])


def test_torchvisions_file_loads_by_the_variable(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {name: value for name, value in state.items() if name.startswith(("conv1", "bn1"))}
    torch.save(first, tmp_path / "resnet18.pth")  # noqa: TID251
    monkeypatch.setenv("TESSELLA_RESNET18", str(tmp_path / "resnet18.pth"))
    image = torch.rand(1, 3, 16, 16)
    got = load_resnet18().features(image, ["conv1"])["conv1"]
    x = functional.conv2d((image / 2 + 0.5 - MEAN) / STD, state["conv1.weight"], None, 2, 3)
    mean, variance = state["bn1.running_mean"], state["bn1.running_var"]
    x = functional.batch_norm(x, mean, variance, state["bn1.weight"], state["bn1.bias"])
    torch.testing.assert_close(got, x.relu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", ["none", "lacks", "shape", "more"])
def test_foreign_weights(small: State, tmp_path: Path, change: str) -> None:
    changed = {
        "none": {"fire2.weight": torch.zeros(3)},
        "lacks": {name: v for name, v in small.items() if name != "layer1.0.conv2.bias"},
        "shape": small | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
        "more": small | {"fire2.weight": torch.zeros(3)},
    }[change]
    path = tmp_path / "w.safetensors"
    write_tensors(path, changed)
    with pytest.raises(CheckpointError, match=rf"not the weights .*Give torch.* File: `{path}`"):
        load_resnet18(path)


def test_a_damaged_file_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(b"PK no zip")
    with pytest.raises(CheckpointError, match="Cannot read the weights") as caught:
        load_resnet18(path)
    assert str(caught.value).count(str(path)) == 1


def test_computes_no_layer_beyond_the_last_one(
    small: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ResNetFeatures(small)
    calls: list[int] = []
    convolve = nn.Conv2d.forward

    def count(self: nn.Conv2d, hidden: Tensor) -> Tensor:
        calls.append(self.out_channels)
        return convolve(self, hidden)

    monkeypatch.setattr(nn.Conv2d, "forward", count)
    image = torch.zeros(1, 3, 16, 16)
    for layers, number in (([], 0), (["conv1"], 1), (["layer1.0", "conv1"], 3), (["layer1"], 5)):
        calls.clear()
        network.features(image, layers)
        assert len(calls) == number, layers


# Looking at images in training must not change what random numbers the training draws.
def test_loading_draws_no_random_numbers(state: State, small: State) -> None:
    before = torch.get_rng_state()
    ResNetFeatures(state)
    ResNetFeatures(small)
    assert torch.equal(torch.get_rng_state(), before)


# The loss.


@pytest.fixture(scope="module")
def file(small: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    write_tensors(path, small)
    return path


def vectors_file(folder: Path) -> Path:
    """A stem that shows red in channel 0 and green in channel 1, in units of ImageNet's."""
    weight = torch.zeros(64, 3, 7, 7)
    weight[0, 0, 3, 3] = 0.229
    weight[1, 1, 3, 3] = 0.224
    bias = torch.zeros(64)
    bias[:2] = MEAN.flatten()[:2]
    write_tensors(folder / "v.safetensors", {"conv1.weight": weight, "conv1.bias": bias})
    return folder / "v.safetensors"


def test_by_hand(tmp_path: Path) -> None:
    # The features are red and green in [0, 1]: (0.6, 0.8) against (1, 0) at the only place.
    image = torch.tensor([0.6, 0.8, 0.5]).reshape(1, 3, 1, 1) * 2 - 1
    made = torch.tensor([1.0, 0.0, 0.1]).reshape(1, 3, 1, 1) * 2 - 1
    settings = PerceptualLossSettings(layers={"conv1": 3.0}, weights=vectors_file(tmp_path))
    # Both have length 1: 0.4² + 0.8² = 0.8, summed over channels.
    assert PerceptualLoss(settings)(made, image).item() == pytest.approx(3 * 0.8, rel=1e-4)
    raw = PerceptualLoss(settings.replace(normalize=False))
    assert raw(made, image).item() == pytest.approx(3 * 0.8 / 64, rel=1e-4)
    # At half the length the direction is the same: (0.5, 0) for (1, 0).
    half = torch.tensor([0.5, 0.0, 0.1]).reshape(1, 3, 1, 1) * 2 - 1
    assert PerceptualLoss(settings)(half, image).item() == pytest.approx(3 * 0.8, rel=1e-4)
    assert raw(half, image).item() == pytest.approx(3 * (0.1**2 + 0.8**2) / 64, rel=1e-4)


@pytest.mark.parametrize("normalize", [True, False])
def test_is_the_weighted_sum_over_layers(small: State, file: Path, normalize: bool) -> None:
    layers = {"conv1": 0.5, "layer1.0": 2.0, "layer2": 1.0}
    settings = PerceptualLossSettings(layers=layers, normalize=normalize, weights=file)
    image, made = torch.rand(2, 2, 3, 24, 16)
    network = ResNetFeatures(small)
    expected = 0.0
    for layer, weight in layers.items():
        a, b = (network.features(x, [layer])[layer] for x in (made, image))
        if normalize:
            a, b = (x / x.square().sum(1, keepdim=True).sqrt() for x in (a, b))
            expected += weight * (a - b).square().sum(1).mean().item()
        else:
            expected += weight * (a - b).square().mean().item()
    loss = PerceptualLoss(settings)(made, image)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_reach_the_reconstruction_alone(file: Path, normalize: bool) -> None:
    settings = PerceptualLossSettings(
        layers={"layer1": 1.0, "layer2": 0.5}, normalize=normalize, weights=file
    )
    loss = PerceptualLoss(settings)
    image, made = (torch.rand(2, 3, 16, 16, requires_grad=True) for _ in range(2))
    loss(made, image).backward()
    assert image.grad is None
    assert made.grad is not None
    assert made.grad.isfinite().all()
    assert made.grad.abs().max() > 0
    # A step against the gradient is a step towards the image.
    closer = (made - 0.01 * made.grad / made.grad.norm()).detach()
    assert loss(closer, image) < loss(made, image)
    assert loss(image, image).item() == 0


# The length of a vector has an infinite slope at 0, and after a ReLU whole vectors are 0.
def test_no_gradient_is_infinite_where_no_feature_fires(tmp_path: Path) -> None:
    state = {"conv1.weight": torch.ones(64, 3, 7, 7), "conv1.bias": torch.full((64,), -1e6)}
    write_tensors(tmp_path / "w.safetensors", state)
    settings = PerceptualLossSettings(layers={"conv1": 1.0}, weights=tmp_path / "w.safetensors")
    made = torch.rand(1, 3, 8, 8, requires_grad=True)
    PerceptualLoss(settings)(made, torch.rand(1, 3, 8, 8)).backward()
    assert made.grad is not None
    assert made.grad.eq(0).all()


def test_whoever_holds_it_does_not_own_its_weights(file: Path) -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loss = PerceptualLoss(PerceptualLossSettings(layers={"layer1": 1}, weights=file))
            self.network = ResNetFeatures({"conv1.weight": torch.zeros(64, 3, 7, 7)} | BIAS)

    stage = Stage()
    assert not list(stage.parameters())
    assert not stage.state_dict()


BIAS = {"conv1.bias": torch.zeros(64)}


@pytest.mark.gpu
def test_follows_the_image_to_its_device(small: State) -> None:
    network = ResNetFeatures(small)
    image = torch.rand(1, 3, 16, 16)
    on_cpu = network.features(image, ["layer2"])["layer2"]
    on_gpu = network.features(image.cuda(), ["layer2"])["layer2"]
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-2)


def test_bfloat16_is_compared_in_float32(file: Path) -> None:
    loss = PerceptualLoss(PerceptualLossSettings(layers={"layer1": 1}, weights=file))
    image, made = torch.rand(2, 1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss(made, image)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(loss(made, image).item(), rel=0.05)


def test_a_layer_that_the_weights_lack_is_refused_at_once(file: Path) -> None:
    with pytest.raises(ConfigError, match="no layer `layer4`"):
        PerceptualLoss(PerceptualLossSettings(layers={"layer4": 1}, weights=file))


# The settings.


def test_layers_from_toml_and_words(tmp_path: Path) -> None:
    expected = {"layer1.0": 1.0, "layer1.1": 2.0, "layer3": 0.5}
    for text in (
        'layers = { "layer1.0" = 1.0, "layer1.1" = 2, layer3 = 0.5 }',
        "[layers]\nlayer1.0 = 1.0\nlayer1.1 = 2\nlayer3 = 0.5",
        'layers."layer1.0" = 1.0\nlayers.layer1.1 = 2\nlayers.layer3 = 0.5',
    ):
        (tmp_path / "c.toml").write_text(text)
        settings = build(PerceptualLossSettings, read_config(tmp_path / "c.toml"))
        assert settings.layers == expected
    words = ["layers.layer1.0=1.0", "layers.layer1.1=2", "layers.layer3=0.5"]
    assert build(PerceptualLossSettings, parse_assignments(words)).layers == expected
    over = merge({"layers": {"layer1": 1.0}}, parse_assignments(["layers.layer2=3"]))
    assert build(PerceptualLossSettings, over).layers == {"layer1": 1.0, "layer2": 3.0}


def test_settings_can_be_saved_compared_and_hashed() -> None:
    settings = PerceptualLossSettings(layers={"layer1.0": 1, "conv1": 2}, weights=Path("w.npz"))
    saved = settings.model_dump(mode="json")
    assert saved == {
        "network": "resnet18",
        "layers": {"layer1.0": 1.0, "conv1": 2.0},
        "normalize": True,
        "weights": "w.npz",
    }
    again = build(PerceptualLossSettings, saved)
    assert again == settings
    assert hash(again) == hash(settings)
    assert hash(PerceptualLossSettings()) != hash(settings)
    assert not PerceptualLossSettings().layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (
            {"layr1": 1},
            r"`layers`: .* unknown layer of ResNet-18: `layr1`; the nearest is `layer1`\.$",
        ),
        ({"pixels": 1}, r"`pixels`; known are: conv1, layer1\.0, .*, fc, layer1, layer2"),
        ({"layer1": {"5": 1}}, r"layer of ResNet-18: `layer1\.5`; the nearest is `layer1\.\d`\.$"),
        ({"layer1": 0}, r"weight of `layer1` must be a number above 0; leave a layer out"),
        ({"layer1": float("nan")}, r"weight of `layer1` must be a number above 0"),
        ({"layer1": "much"}, r"`layers`: got: `much`; input should be a valid number"),
        ("layer1", r"`layers`: got: `layer1`; input should be a valid dictionary"),
    ],
)
def test_layers_that_are_refused(layers: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        build(PerceptualLossSettings, {"layers": layers})
