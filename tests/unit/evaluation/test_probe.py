"""Distances at every layer: by hand, against another implementation, and drawn."""

import math
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tessella.errors import ConfigError, DataError
from tessella.evaluation.probe import (
    LayerDistances,
    Separation,
    check_can_plot,
    compute_cosine_distance,
    compute_mse,
    compute_separation,
    draw_noise,
    find_best,
    measure_distances,
    plot_distances,
)

LIKE = (True, False, False)


class StubFeatures:
    """Two layers that can be worked out by hand: the image doubled, and its first value."""

    available = ("double", "first")

    def features(self, image: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        assert image.shape[0] == 1
        every = {"double": 2 * image, "first": image[:, :1, 0, 0]}
        return {layer: every[layer] for layer in layers}


def layers() -> list[LayerDistances]:
    """Three pictures and the noise at two layers."""
    near, far = (0.1, 0.2, 0.3, 0.4), (1.0, 4.0, 2.0, 3.0)
    return [
        LayerDistances("pixels", (3, 8, 8), {"mse": near, "cosine": far}, {}),
        LayerDistances("conv1", (4, 4, 4), {"mse": far, "cosine": near}, {}),
    ]


def column(*values: float) -> Tensor:
    """(1, C, 1, 1) from C values."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("features", "other", "mse", "cosine"),
    [
        ((3.0, 4.0), (3.0, 4.0), 0.0, 0.0),
        ((3.0, 4.0), (6.0, 8.0), 12.5, 0.0),  # (9 + 16) / 2; the direction is the same
        ((3.0, 4.0), (4.0, 3.0), 1.0, 0.04),  # 1 − 24 / 25
        ((1.0, 0.0), (0.0, 2.0), 2.5, 1.0),
        ((1.0, 0.0), (-1.0, 0.0), 2.0, 2.0),
        ((0.0, 0.0), (0.0, 0.0), 0.0, 0.0),
        ((0.0, 0.0), (3.0, 4.0), 12.5, 0.5),
    ],
)
def test_distances_of_one_place_by_hand(
    features: tuple[float, ...], other: tuple[float, ...], mse: float, cosine: float
) -> None:
    assert compute_mse(column(*features), column(*other)) == pytest.approx(mse)
    assert compute_cosine_distance(column(*features), column(*other)) == pytest.approx(cosine)
    # A vector without places, as of the pooled layer, is one place.
    flat = torch.tensor([features]), torch.tensor([other])
    assert compute_mse(*flat) == pytest.approx(mse)
    assert compute_cosine_distance(*flat) == pytest.approx(cosine)


def test_the_cosine_is_of_channels_and_the_mean_of_places() -> None:
    """Two places, one alike and one orthogonal: 1/2. Over all values it would be 1 − 1/101."""
    features = torch.tensor([[[[10.0, 1.0]], [[0.0, 0.0]]]])
    other = torch.tensor([[[[10.0, 0.0]], [[0.0, 1.0]]]])
    assert compute_cosine_distance(features, other) == pytest.approx(0.5)


def test_the_cosine_is_that_of_another_implementation() -> None:
    torch.manual_seed(0)
    features, other = torch.randn(2, 1, 16, 5, 7)
    expected = 1 - torch.cosine_similarity(features, other, dim=1).mean()
    assert compute_cosine_distance(features, other) == pytest.approx(float(expected), rel=1e-5)


def test_every_layer_is_measured_from_the_first_image() -> None:
    """Images of one value each, 0.5, 0.25 and −0.5, through a stub."""
    image = torch.tensor([0.5, 0.25, -0.5]).reshape(3, 1, 1, 1).expand(3, 3, 4, 4)
    measured = measure_distances(StubFeatures(), image)
    assert [layer.layer for layer in measured] == ["pixels", "double", "first"]
    assert [layer.shape for layer in measured] == [(3, 4, 4), (3, 4, 4), (1,)]
    for layer, scale in zip(measured, (1, 4, 1), strict=True):
        assert layer.distances["mse"] == pytest.approx((0.0625 * scale, 1.0 * scale))
        assert layer.distances["cosine"] == pytest.approx((0.0, 2.0))
        assert layer.separations == {}


def test_pictures_that_are_named_as_like_add_separations() -> None:
    image = torch.tensor([0.5, -0.25, -0.5, 1.0]).reshape(4, 1, 1, 1).expand(4, 3, 4, 4)
    for layer in measure_distances(StubFeatures(), image, [True, False]):
        for distance, values in layer.distances.items():
            assert layer.separations[distance] == compute_separation(values, [True, False])


def test_separation_by_hand() -> None:
    """Like at 2; unlike at 3 and 5, so 4 on average; noise at 4 is third of four."""
    assert compute_separation((2.0, 3.0, 5.0, 4.0), LIKE) == Separation(2.0, 3, 1.0)
    assert compute_separation((5.0, 4.0, 6.0, 1.0), LIKE) == Separation(1.0, 1, 0.2)
    assert compute_separation((1.0, 3.0, 2.0, 0.0, 8.0), (True, True, False, False)) == Separation(
        0.5, 5, 8.0
    )


@pytest.mark.parametrize(
    ("distances", "kind"), [((0.0, 1.0, 2.0, 3.0), "like"), ((1.0, 0.0, 0.0, 3.0), "unlike")]
)
def test_copies_of_the_first_picture_separate_nothing(
    distances: tuple[float, ...], kind: str
) -> None:
    with pytest.raises(DataError, match=rf"to the {kind} ones is `0`.*not copies of the first"):
        compute_separation(distances, LIKE)


def test_the_best_layer_is_one_of_the_network() -> None:
    scores = {"pixels": 9.0, "conv1": 1.5, "layer1.0": 2.5, "layer1.1": 2.5}
    measured = [
        LayerDistances(layer, (1,), {}, {"mse": Separation(score, 1, 1.0)})
        for layer, score in scores.items()
    ]
    assert find_best(measured, "mse").layer == "layer1.0"


def test_noise_is_uniform_and_follows_from_its_seed() -> None:
    noise = draw_noise(64, seed=3)
    assert noise.shape == (64, 64, 3)
    assert noise.dtype == np.uint8
    assert np.array_equal(noise, draw_noise(64, seed=3))
    assert not np.array_equal(noise, draw_noise(64, seed=4))
    assert (noise.min(), noise.max()) == (0, 255)
    counts = np.bincount(noise.ravel() // 32, minlength=8)
    # 12,288 values in eight parts: five standard deviations (37) from 1536.
    assert abs(counts - 1536).max() < 185


@pytest.mark.parametrize("like", [LIKE, None])
def test_the_plot_is_written_as_png(tmp_path: Path, like: tuple[bool, ...] | None) -> None:
    path = tmp_path / "new" / "probe.png"
    plot_distances(path, layers(), ["a.png", "b.png", "c.png", "d.png"], like)
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels[0, 0] == 255).all()
    blue = (pixels[..., 2] - pixels[..., 0] > 80).sum()
    orange = (pixels[..., 0] - pixels[..., 2] > 80).sum()
    if like is not None:
        assert blue > 100
        assert orange > blue  # two pictures of three


def test_the_plot_is_written_as_svg(tmp_path: Path) -> None:
    path = tmp_path / "probe.svg"
    plot_distances(path, layers(), ["a.png", "b.png", "c.png", "d.png"], LIKE)
    text = path.read_text(encoding="utf-8")
    assert "<svg" in text
    # Matplotlib draws words as outlines and keeps them in comments.
    for word in ("from a.png", "b.png (like)", "c.png (unlike)", "noise", "conv1", "log scale"):
        assert word in text, word
    assert text.count("stroke-dasharray") >= 2


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"package `matplotlib`.* pip install 'tessella\[plot\]'"):
        check_can_plot()


def test_a_name_is_drawn_as_it_is(tmp_path: Path) -> None:
    """Matplotlib takes what stands between dollars for a formula, and hides names with a `_`."""
    path = tmp_path / "probe.svg"
    plot_distances(path, layers(), ["$a^{$.png", "_b.png", "$c$.png", "$.png"], None)
    text = path.read_text(encoding="utf-8")
    for word in ("$a^{$.png", "1  _b.png", "2  $c$.png", "3  $.png"):
        assert word in text, word


def test_the_plot_divides_mse_by_the_mean_of_the_pictures(tmp_path: Path) -> None:
    """Noise is no picture: 0.4 over the mean of 0.1, 0.2 and 0.3 is 2, and 3 over 7/3 is 9/7.

    In the picture that is a ratio of heights: with log axes the noise falls from 2 to 9/7 while
    the first picture falls from 1/2 to 3/7.
    """
    from matplotlib.figure import Figure

    from tessella.evaluation import probe

    axes = Figure().subplots()
    probe._draw_panel(axes, layers(), "mse", [{}, {}, {}, {}])
    drawn = [[float(y) for y in line.get_ydata()] for line in axes.lines]
    assert drawn[3] == pytest.approx([2.0, 9 / 7])
    assert drawn[0] == pytest.approx([0.5, 3 / 7])
    assert axes.get_yscale() == "log"
    assert math.isclose(axes.get_xticks()[-1], 1)
