"""Muon for the matrices inside a network, AdamW for everything else, in one optimizer.

Muon replaces a matrix's momentum by the nearest orthogonal matrix, so that every direction of a
layer learns at the same pace. It iterates in fp32 on a CPU (bfloat16 is slow on most), and in
bfloat16 on an accelerator unless the run trains in fp32.

Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024);
arXiv:1711.05101 (AdamW).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tessella.config import Settings
from tessella.training.shards import count_holders, count_together, local, map_matrices

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_NEWTON_SCHULZ_STEPS = 5
_EPSILON = 1e-7


class OptimizerSettings(Settings):
    """How fast the weights follow the gradients."""

    muon_learning_rate: float = Field(0.02, gt=0.0)
    """Peak learning rate of the matrices inside the network."""
    adamw_learning_rate: float = Field(3e-3, gt=0.0)
    """Peak learning rate of everything else: embeddings, norms, biases, first and last layers."""
    momentum: float = Field(0.95, ge=0.0, lt=1.0)
    """Momentum of Muon (Nesterov)."""
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """AdamW's decay of the gradient's mean."""
    beta2: float = Field(0.95, ge=0.0, lt=1.0)
    """AdamW's decay of the gradient's square."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled weight decay of the matrices."""
    max_gradient_norm: float = Field(1.0, gt=0.0)
    """Gradients longer than this (all of them as one vector) are shortened to it."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """Brings the singular values of each matrix near 1 by a quintic Newton-Schulz iteration.

    Where one side is at least twice the other it runs on the small side's Gram matrix alone: the
    steps are polynomials of it, and only their product is multiplied by the matrix at the end.

    Args:
        matrices: (..., rows, columns) floating; iterated in its own precision.

    Returns:
        The same shape; singular values about in [0.7, 1.2].

    Source:
        Keller Jordan, "Muon" (2024).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    update = matrices.mT if tall else matrices
    update = update / (update.norm(dim=(-2, -1), keepdim=True) + _EPSILON)
    # In fp32 only: the Gram matrix squares what is small, and bfloat16 would lose it.
    is_wide = update.shape[-1] >= 2 * update.shape[-2] and update.dtype == torch.float32
    orthogonal = _iterate_gram(update) if is_wide else _iterate(update)
    return orthogonal.mT if tall else orthogonal


def _iterate(update: Tensor) -> Tensor:
    a, b, c = _NEWTON_SCHULZ
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = update @ update.mT
        update = a * update + (b * gram + c * gram @ gram) @ update
    return update


def _iterate_gram(update: Tensor) -> Tensor:
    """Does the same: the factors a + b G + c G² of all steps commute with G and each other."""
    a, b, c = _NEWTON_SCHULZ
    gram = update @ update.mT
    product: Tensor | None = None
    for step in range(_NEWTON_SCHULZ_STEPS):
        factor = b * gram + c * gram @ gram
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < _NEWTON_SCHULZ_STEPS:
            gram = factor @ gram @ factor
    return update if product is None else product @ update


def group_parameters(
    network: nn.Module, hidden_matrices: Sequence[nn.Parameter]
) -> list[dict[str, Any]]:
    """Sorts the parameters that learn, with their names, into the two groups of `MuonAdamW`."""
    hidden = {id(parameter) for parameter in hidden_matrices}
    groups: dict[bool, list[tuple[str, nn.Parameter]]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups[id(parameter) in hidden].append((name, parameter))
    return [{"params": named, "muon": muon} for muon, named in groups.items() if named]


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the parameter groups that say `muon`, AdamW on the others."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        settings: OptimizerSettings,
        *,
        in_fp32: bool = False,
    ) -> None:
        """Takes the parameters; learning rates start at their peak.

        Args:
            groups: of `params`, with `muon` (bool).
            settings: learning rates and momentum.
            in_fp32: Muon iterates in fp32 on every device, not on a CPU alone.
        """
        groups = list(groups)
        for group in groups:
            muon = group["muon"]
            group["peak"] = settings.muon_learning_rate if muon else settings.adamw_learning_rate
            group["weight_decay"] = settings.weight_decay if muon else 0.0
        super().__init__(groups, {"lr": 0.0})
        self.settings = settings
        self._in_fp32 = in_fp32
        self.set_learning_rate(1.0)

    def set_learning_rate(self, lr_multiplier: float) -> None:
        """Sets every learning rate to a multiple of its peak."""
        for group in self.param_groups:
            group["lr"] = lr_multiplier * group["peak"]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Takes one step; unlike torch's own, without a closure."""
        for group in self.param_groups:
            gradients = {p: p.grad for p in group["params"] if p.grad is not None}
            if group["muon"]:
                self._step_muon(gradients, group["lr"], group["weight_decay"])
            else:
                self._step_adamw(gradients, group["lr"])

    def _step_muon(
        self, gradients: dict[nn.Parameter, Tensor], rate: float, weight_decay: float
    ) -> None:
        # Matrices of one shape are iterated together: one large product instead of many small.
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for param in gradients:
            shape = param.shape[0], param.shape[1:].numel()
            by_shape.setdefault(shape, []).append(param)
        for (rows, columns), same_shape in by_shape.items():
            scale = max(1.0, rows / columns) ** 0.5
            for together in _split_rounds(same_shape):
                updates = torch.stack(
                    [self._momentum(p, gradients[p]).reshape(-1, columns) for p in together]
                )
                in_fp32 = self._in_fp32 or updates.device.type == "cpu"
                work = updates.to(torch.float32 if in_fp32 else torch.bfloat16)
                updates = map_matrices(orthogonalize, work, together[0]).to(updates.dtype)
                for own, update in zip(map(local, together), updates, strict=True):
                    own.mul_(1 - rate * weight_decay)
                    own.add_(update.reshape(own.shape), alpha=-rate * scale)

    def _momentum(self, param: nn.Parameter, gradient: Tensor) -> Tensor:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        momentum, gradient = local(state["momentum"]), local(gradient)
        momentum.lerp_(gradient, 1 - self.settings.momentum)
        return gradient.lerp(momentum, self.settings.momentum)

    def _step_adamw(self, gradients: dict[nn.Parameter, Tensor], rate: float) -> None:
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        for param, gradient in gradients.items():
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(param)
                state["square"] = torch.zeros_like(param)
            state["step"] += 1
            step = state["step"].item()
            own, gradient = local(param), local(gradient)
            means, squares = local(state["mean"]), local(state["square"])
            means.lerp_(gradient, 1 - beta1)
            squares.lerp_(gradient.square(), 1 - beta2)
            mean = means / (1 - beta1**step)
            deviation = (squares / (1 - beta2**step)).sqrt()
            own.sub_(rate * mean / (deviation + 1e-8))


def _split_rounds(same_shape: Sequence[nn.Parameter]) -> list[Sequence[nn.Parameter]]:
    """Splits matrices into those iterated together: all, or if they are spread, some at a time."""
    count = len(same_shape)
    if count_holders(same_shape[0]) > 1:
        count = count_together(same_shape[0])
    return [same_shape[start : start + count] for start in range(0, len(same_shape), count)]
