"""The precision of training: fp32, or bf16 by autocast; `auto` asks the device, and measures a CPU.

In bf16 matrix products and convolutions alone are rounded. Weights, their average, the optimizer's
state and the losses stay in fp32, and codes are chosen in fp32.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch.nn import functional

from tessella.precision import CLEARLY, Precision, PrecisionChoice, Work, measure_speedup

PrecisionSetting = Literal["auto", "fp32", "bf16"]


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
    if speedup >= CLEARLY:
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
    """Measures how many times as fast as in fp32 this CPU trains in bf16: below 1 it is slower."""
    return measure_speedup(_list_works())


def _list_works() -> Iterator[tuple[Work, Work]]:
    """Lists the work that is timed, in both precisions: a small product, then a step."""
    for create in (_create_product, _create_step):
        work = create()
        yield _work_in("fp32", work), _work_in("bf16", work)


def _work_in(precision: Precision, work: Work) -> Work:
    def run() -> None:
        with autocast(torch.device("cpu"), precision):
            work()

    return run


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
