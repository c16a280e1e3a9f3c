"""The precision of training: fp32, or bf16 by autocast; `auto` asks the device, and measures a CPU.

In bf16 matrix products and convolutions alone are rounded. Weights, their average, the optimizer's
state and the losses stay in fp32, and codes are chosen in fp32.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

Precision = Literal["fp32", "bf16"]
PrecisionSetting = Literal["auto", "fp32", "bf16"]

_CLEARLY = 1.2  # times as fast: less isn't worth the rounding
_HOPELESS = 1 / 3
_PAIRS = 9
_SECONDS = 0.3  # after which no other pair is measured

# A thread's own time doesn't pass while other programs have the processor. Windows counts it in
# steps of 16 ms, too coarse here.
_clock = time.perf_counter if os.name == "nt" else time.thread_time


@dataclass(frozen=True)
class PrecisionChoice:
    """What a run trains in."""

    name: Precision
    why: str  # for people

    def __str__(self) -> str:
        return f"{self.name}; {self.why}"


def choose_precision(setting: PrecisionSetting, device: torch.device) -> PrecisionChoice:
    """Chooses the precision of a new run.

    Args:
        setting: `auto` is bf16 on CUDA, the faster one on a CPU, fp32 elsewhere.
        device: where the run trains.
    """
    if setting != "auto":
        return PrecisionChoice(setting, "as the settings say")
    if device.type != "cpu":
        return PrecisionChoice(
            settle_precision("auto", device), f"as on every {device.type} device"
        )
    speedup = measure_bf16_speedup()
    if speedup >= _CLEARLY:
        return PrecisionChoice("bf16", f"{speedup:.1f} times as fast as fp32 here")
    if speedup >= 1:
        return PrecisionChoice("fp32", f"bf16 is only {speedup:.2f} times as fast here")
    return PrecisionChoice("fp32", f"bf16 takes {1 / speedup:.3g} times as long here")


def settle_precision(setting: PrecisionSetting, device: torch.device) -> Precision:
    """Settles the precision without measuring: `auto` is bf16 on CUDA and fp32 elsewhere.

    So trained every run that began before there was this setting.
    """
    if setting != "auto":
        return setting
    return "bf16" if device.type == "cuda" else "fp32"


def autocast(
    device: torch.device, precision: Precision, *, cache_enabled: bool = True
) -> torch.autocast:
    """Returns the context in which a network computes its loss."""
    return torch.autocast(
        device.type,
        dtype=torch.bfloat16,
        enabled=precision == "bf16",
        cache_enabled=cache_enabled,
    )


def measure_bf16_speedup() -> float:
    """Measures how many times as fast as in fp32 this CPU trains in bf16: below 1 it is slower.

    One thread computes, by its own clock, so that a busy machine looks like a quiet one. Both are
    timed in turn, and the median pair counts. A small product comes first: without instructions
    for bf16 it may take a hundred times as long, and then nothing else is measured.
    """
    deadline = time.monotonic() + _SECONDS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speedup = _compare(_create_product(), deadline)
        if speedup >= _HOPELESS:
            speedup = _compare(_create_step(), deadline)
    finally:
        torch.set_num_threads(threads)
    return speedup


def _compare(work: Callable[[], object], deadline: float) -> float:
    """Returns the median, over pairs of calls, of fp32's time over bf16's."""
    _time(work, "fp32"), _time(work, "bf16")  # to warm up
    ratios: list[float] = []
    while len(ratios) < _PAIRS and (not ratios or time.monotonic() < deadline):
        fp32, bf16 = _time(work, "fp32"), _time(work, "bf16")
        ratios.append(fp32 / max(bf16, 1e-9))
    return statistics.median(ratios)


def _time(work: Callable[[], object], precision: Precision) -> float:
    began = _clock()
    with autocast(torch.device("cpu"), precision):
        work()
    return _clock() - began


def _create_product() -> Callable[[], object]:
    """Creates a matrix product that takes a tenth of a millisecond in fp32."""
    left, right = torch.ones(128, 128), torch.ones(128, 128)
    return lambda: left @ right


def _create_step() -> Callable[[], object]:
    """Creates a training step of two linear layers and a convolution, a few milliseconds long."""
    generator = torch.Generator().manual_seed(0)  # torch's own stays where it is

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    rows, up, down = draw(256, 128), draw(384, 128), draw(128, 384)
    maps = draw(2, 48, 16, 16).contiguous(memory_format=torch.channels_last)
    kernel = draw(48, 48, 3, 3)
    learning = [tensor.requires_grad_() for tensor in (rows, up, down, maps, kernel)]

    def step() -> None:
        hidden = functional.linear(functional.gelu(functional.linear(rows, up)), down)
        convolved = functional.conv2d(maps, kernel, padding=1)
        loss = hidden.float().square().mean() + convolved.float().square().mean()
        torch.autograd.grad(loss, learning)

    return step
