"""Tensors of which each process holds some rows, and what has to be asked of them as a whole.

FSDP keeps a parameter as a `DTensor`: of R processes the first has the first R-th of its rows,
rounded up, and so on; of a few rows the last processes may have none. What works number by number
(averages, AdamW, momentum) works on each process's own rows, which `local` gives. What needs whole
matrices (Muon) or all gradients (their norm) is here. Tensors that are no `DTensor` are whole in
every process and pass through unchanged.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

M = TypeVar("M", bound=nn.Module)

_ROUND_BYTES = 64 * 2**20


def local(tensor: Tensor) -> Tensor:
    """Returns this process's rows of a tensor, in the same memory."""
    if _is_spread(tensor):
        rows: Tensor = tensor.to_local()
        return rows
    return tensor


def count_holders(tensor: Tensor) -> int:
    """Counts the processes that a tensor is spread over; 1 if each has all of it."""
    return tensor.device_mesh.size() if _is_spread(tensor) else 1


def count_together(matrix: Tensor) -> int:
    """Returns how many matrices of this size `map_matrices` should get at a time.

    Each process then holds as many whole ones as fill some memory, and at least one.
    """
    whole_bytes = matrix.shape.numel() * matrix.element_size()
    return count_holders(matrix) * max(1, _ROUND_BYTES // max(1, whole_bytes))


def map_matrices(function: Callable[[Tensor], Tensor], parts: Tensor, like: Tensor) -> Tensor:
    """Applies a function of whole matrices to matrices of which each process holds some rows.

    The matrices are dealt out: each process gets all rows of its share of them, applies the
    function to those alone, and sends every process its rows of the results. That moves each
    number twice, whatever the number of processes, and no two processes do the same work.

    Args:
        function: (n, rows, columns) → the same shape, each matrix by itself.
        parts: (N, r, columns), this process's rows of all matrices.
        like: (rows, …) a parameter that is spread as they are.

    Returns:
        (N, r, columns), this process's rows of the results.
    """
    if not _is_spread(like):
        return function(parts)
    group, holders = like.device_mesh.get_group(), count_holders(like)
    rank = torch.distributed.get_rank(group)
    columns, dealt = parts.shape[2], _split_evenly(len(parts), holders)
    rows = _split_evenly(like.shape[0], holders)
    own = dealt[rank]
    numbers = [count * rows[rank] * columns for count in dealt]  # of mine, to each process
    numbers_back = [own * count * columns for count in rows]  # of my matrices, from each process
    received = parts.new_empty(sum(numbers_back))
    torch.distributed.all_to_all_single(
        received, parts.reshape(-1), numbers_back, numbers, group=group
    )
    pieces = zip(received.split(numbers_back), rows, strict=True)
    whole = torch.cat([piece.view(own, count, columns) for piece, count in pieces], 1)
    results = function(whole) if own else whole
    sent = torch.cat([piece.reshape(-1) for piece in results.split(rows, 1)])
    back = torch.empty_like(parts)
    torch.distributed.all_to_all_single(back.view(-1), sent, numbers, numbers_back, group=group)
    return back


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Shortens the gradients, all of them as one vector, to a length; returns the length before.

    Args:
        parameters: some spread over processes, some whole and alike in every one.
        max_norm: the most that is left as it is.

    Returns:
        (), the same in every process.
    """
    gradients = [one.grad for one in parameters if one.grad is not None]
    spread = [local(one) for one in gradients if _is_spread(one)]
    whole = [one for one in gradients if not _is_spread(one)]
    squares = torch.nn.utils.get_total_norm(spread).square()
    torch.distributed.all_reduce(squares)
    norm = (squares + torch.nn.utils.get_total_norm(whole).to(squares.device).square()).sqrt()
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch's clip_grad_norm_
    torch._foreach_mul_([*spread, *whole], scale)
    return norm


def gather(module: M) -> M:
    """Puts a module without hooks together from all processes; every one must call it.

    Args:
        module: of which parameters may be spread. It stays as it is.

    Returns:
        A copy whose parameters are whole and do not learn.
    """
    wholes: dict[int, Any] = {}
    for parameter in module.parameters():
        whole = parameter.full_tensor() if _is_spread(parameter) else parameter.clone()
        wholes[id(parameter)] = nn.Parameter(whole.detach(), requires_grad=False)
    return copy.deepcopy(module, wholes)


def _is_spread(tensor: Tensor) -> "TypeGuard[DTensor]":
    if type(tensor) in (Tensor, nn.Parameter):
        return False  # without an import that takes a second, in a run that needs none
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _split_evenly(count: int, holders: int) -> list[int]:
    """Splits a count as `torch.chunk` does rows: rounded up, the last ones get what is left."""
    most = -(-count // holders)
    return [max(0, min(most, count - rank * most)) for rank in range(holders)]


def replace_parameters(module: nn.Module, parameters: Sequence[tuple[str, Tensor]]) -> None:
    """Puts other parameters, which do not learn, in the place of a module's own, by name."""
    for name, value in parameters:
        path, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
