"""A training batch that several processes share: each has its rows, all see what one would see.

With R processes the first has the first R-th of the batch's rows, and so on. What is drawn for a
row, and what is counted or averaged over rows, is that of the whole batch, so that a run learns
the same on one process and on many but for the rounding of sums.

Inside of `drawing` random numbers come from a generator that is seeded alike in every process:
each draws for the whole batch, which costs next to nothing, and keeps its own rows. Outside of it,
as in evaluation, rows draw from torch's global generator and nobody else is asked.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed
from torch import Tensor

_generator: ContextVar[torch.Generator | None] = ContextVar("generator", default=None)


def count_processes() -> int:
    """Counts the processes that train together."""
    return torch.distributed.get_world_size() if _is_distributed() else 1


@contextlib.contextmanager
def drawing(seed: int, device: torch.device) -> Iterator[None]:
    """Makes draws for rows those of the whole batch; every process must pass the same seed."""
    token = _generator.set(torch.Generator(device).manual_seed(seed))
    try:
        yield
    finally:
        _generator.reset(token)


def draw_rows(count: int, draw: Callable[[int, torch.Generator | None], Tensor]) -> Tensor:
    """Draws random numbers for this process's rows of the batch.

    Args:
        count: rows of this process; equally many in every one.
        draw: draws for a number of rows, (rows, …), from a generator of the batch's device; None
            is torch's own.
    """
    generator = _generator.get()
    if generator is None:
        return draw(count, None)
    start = _rank() * count
    return draw(count * count_processes(), generator)[start : start + count]


def pick_rows(rows: Tensor, count: int) -> Tensor:
    """Picks random rows of the whole batch, with repetition, the same ones in every process.

    Args:
        rows: (N, C), those of this process; equally many in every one.
        count: how many to pick.

    Returns:
        (count, C).
    """
    processes = count_processes()
    indices = torch.randint(
        processes * len(rows), (count,), device=rows.device, generator=_generator.get()
    )
    if processes == 1:
        return rows[indices]
    if _generator.get() is None:  # each has drawn by itself
        torch.distributed.broadcast(indices, src=0)
    own = indices - _rank() * len(rows)
    is_own = (own >= 0) & (own < len(rows))
    # The one that has a row gives it, the others add 0: the sum is the row, to the bit.
    return sum_over_batch(rows[own.clamp(0, len(rows) - 1)].where(is_own[:, None], 0.0))


def sum_over_batch(tensor: Tensor) -> Tensor:
    """Adds up a tensor in place over all processes; returns it."""
    if count_processes() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def average_over_batch(tensor: Tensor) -> Tensor:
    """Averages a tensor in place over all processes; returns it."""
    return sum_over_batch(tensor).div_(count_processes()) if count_processes() > 1 else tensor


def average_in_graph(tensor: Tensor) -> Tensor:
    """Averages over all processes in the middle of a graph: its gradient is averaged as well.

    The gradients of parameters are averaged over processes too. With both, each process's own loss
    being a mean over its rows, they are those of the mean over the whole batch.
    """
    averaged: Tensor = _AverageInGraph.apply(tensor)  # type: ignore[no-untyped-call]
    return averaged


class _AverageInGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return average_over_batch(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # A value that all share matters to the loss of each.
        return average_over_batch(gradients[0].clone())


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _is_distributed() else 0
