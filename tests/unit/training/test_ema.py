"""The averaged weights, by hand."""

import pytest
import torch
from torch import nn

from tessella.training.ema import create_average, update_average


def filled(value: float) -> nn.Linear:
    network = nn.Linear(2, 2)
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    return network


def update(average: nn.Module, network: nn.Module, **changes: float) -> None:
    settings = {"half_life_images": 100, "images_seen": 1_000_000, "step_images": 50} | changes
    update_average(average, network, **settings)  # type: ignore[arg-type]


def test_a_weight_counts_half_after_its_half_life() -> None:
    average, network = create_average(filled(1.0)), filled(0.0)
    update(average, network)
    update(average, network)
    torch.testing.assert_close(average.weight, torch.full((2, 2), 0.5))
    update(average, network, step_images=100)
    torch.testing.assert_close(average.bias, torch.full((2,), 0.25))


@pytest.mark.parametrize("step_images", [1, 7, 400])
def test_the_half_life_is_in_images_whatever_the_batch(step_images: int) -> None:
    average, network = create_average(filled(1.0)), filled(0.0)
    for _ in range(2800 // step_images):
        update(average, network, half_life_images=1400, step_images=step_images)
    torch.testing.assert_close(average.weight, torch.full((2, 2), 0.25))


def test_early_on_the_start_is_soon_forgotten() -> None:
    """After 1000 images the half-life is at most 50, a twentieth."""
    average = create_average(filled(1.0))
    update(average, filled(0.0), half_life_images=5000, images_seen=1000, step_images=50)
    torch.testing.assert_close(average.weight, torch.full((2, 2), 0.5))


def test_no_half_life_is_no_average() -> None:
    average, network = create_average(filled(1.0)), filled(0.3)
    update(average, network, half_life_images=0)
    assert torch.equal(average.weight, network.weight)


def test_buffers_are_copied() -> None:
    """Running statistics and counters are averages or numbers already."""
    network = nn.BatchNorm1d(3)
    average = create_average(network)
    network(torch.randn(8, 3) + 5)
    update(average, network)
    assert torch.equal(average.running_mean, network.running_mean)
    assert average.num_batches_tracked == 1


def test_the_average_neither_learns_nor_drops() -> None:
    network = nn.Sequential(filled(1.0), nn.Dropout(0.5)).train()
    average = create_average(network)
    assert not average.training
    assert network.training
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in network.parameters())
    # It is a copy: the network's next step does not move it.
    nn.init.zeros_(network[0].weight)
    assert (average[0].weight == 1).all()


def test_the_layout_in_memory_stays() -> None:
    network = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    average = create_average(network)
    update(average, network)
    assert average.weight.is_contiguous(memory_format=torch.channels_last)
