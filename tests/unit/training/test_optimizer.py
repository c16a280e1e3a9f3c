"""Muon and AdamW against NumPy, against torch's own, and by hand."""

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tessella.training import optimizer as optimizer_module
from tessella.training.optimizer import MuonAdamW, OptimizerSettings, orthogonalize

Array = npt.NDArray[np.float64]


def muon(params: list[nn.Parameter], **changes: float) -> MuonAdamW:
    return MuonAdamW([{"params": params, "muon": True}], OptimizerSettings(**changes))


def adamw(params: list[nn.Parameter], **changes: float) -> MuonAdamW:
    return MuonAdamW([{"params": params, "muon": False}], OptimizerSettings(**changes))


# Newton-Schulz.


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 24), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3])
)
def test_singular_values_come_near_one(rows: int, columns: int, seed: int, scale: float) -> None:
    """Of a matrix whose own lie between 0.05 and 1 of the largest."""
    rng = np.random.default_rng(seed)
    rank = min(rows, columns)
    left, _ = np.linalg.qr(rng.normal(size=(rows, rank)))
    right, _ = np.linalg.qr(rng.normal(size=(columns, rank)))
    given_values = np.concatenate([[1.0], rng.uniform(0.05, 1.0, rank - 1)])
    matrix = scale * (left * given_values) @ right.T
    made = orthogonalize(torch.from_numpy(matrix).float()).numpy()
    assert made.shape == (rows, columns)
    values = np.linalg.svd(made, compute_uv=False)
    assert values.min() > 0.6
    assert values.max() < 1.25
    # The directions are the matrix's own: what it makes of them is near left @ right.T.
    turned = left.T @ made @ right
    assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-3


def test_a_stack_is_orthogonalized_one_by_one() -> None:
    matrices = torch.randn(3, 6, 4)
    each = torch.stack([orthogonalize(matrix) for matrix in matrices])
    torch.testing.assert_close(orthogonalize(matrices), each)


@pytest.mark.parametrize("shape", [(8, 16), (16, 8), (3, 24, 64), (2, 96, 12)])
def test_a_wide_matrix_is_iterated_on_its_gram_matrix(shape: tuple[int, ...]) -> None:
    """As the plain iteration, which float64 takes, but for fp32's rounding."""
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-3, 0, shape[-1])
    expected = orthogonalize(matrices.double()).float()
    torch.testing.assert_close(orthogonalize(matrices), expected, atol=3e-5, rtol=0)


def test_no_gradient_is_no_update() -> None:
    assert torch.equal(orthogonalize(torch.zeros(4, 3)), torch.zeros(4, 3))


# Muon, step by step.


def reference_step(
    weight: Array, gradient: Array, momentum: Array, rate: float, decay: float, beta: float
) -> tuple[Array, Array]:
    """One step in NumPy, as the author writes it; the momentum is a mean, not a sum."""
    momentum = beta * momentum + (1 - beta) * gradient
    update = beta * momentum + (1 - beta) * gradient  # Nesterov
    turned = update.T if len(update) > update.shape[1] else update
    turned = turned / (np.linalg.norm(turned) + 1e-7)
    for _ in range(5):
        gram = turned @ turned.T
        turned = 3.4445 * turned + (-4.7750 * gram + 2.0315 * gram @ gram) @ turned
    update = turned.T if len(update) > update.shape[1] else turned
    scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
    return weight * (1 - rate * decay) - rate * scale * update, momentum


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_muon_against_numpy(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    optimizer = muon([parameter], muon_learning_rate=0.1, weight_decay=0.3, momentum=0.9)
    weight = parameter.detach().double().numpy()
    momentum = np.zeros(shape)
    for step in range(8):
        gradient = torch.randn(shape)
        parameter.grad = gradient.clone()
        optimizer.set_learning_rate(1 - step / 10)
        optimizer.step()
        rate = 0.1 * (1 - step / 10)
        weight, momentum = reference_step(
            weight, gradient.double().numpy(), momentum, rate, 0.3, 0.9
        )
        np.testing.assert_allclose(parameter.detach().numpy(), weight, atol=2e-5)


def test_a_convolution_is_the_matrix_of_its_outputs() -> None:
    """(out, in, 3, 3) is (out, in · 9), however its memory is laid out."""
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3, 3, 3), torch.randn(3, 5, 3, 3, 3)
    flat = nn.Parameter(start.flatten(1).clone())
    plain = nn.Parameter(start.clone())
    last = nn.Parameter(start.clone().to(memory_format=torch.channels_last))
    optimizers = [muon([p]) for p in (flat, plain, last)]
    for gradient in gradients:
        for p, optimizer in zip((flat, plain, last), optimizers, strict=True):
            p.grad = gradient.clone().reshape(p.shape)
            optimizer.step()
    torch.testing.assert_close(plain.detach().flatten(1), flat.detach())
    torch.testing.assert_close(last.detach(), plain.detach())
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_matrices_of_one_shape_do_not_mix() -> None:
    """They are iterated as one stack; each must get its own update."""
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(4, 6)) for _ in range(3)]
    alone = copy.deepcopy(together)
    joint, single = muon(together), [muon([p]) for p in alone]
    for _ in range(3):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn(4, 6)
            q.grad = p.grad.clone()
        together[1].grad = alone[1].grad = None  # one that was not used
        joint.step()
        for optimizer in single:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_against_torch_s() -> None:
    """Theirs iterates in bfloat16: the same to about a hundredth of the step."""
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(12, 8))
    theirs = nn.Parameter(ours.detach().clone())
    changes: dict[str, Any] = {"momentum": 0.95, "weight_decay": 0.1}
    mine = muon([ours], muon_learning_rate=0.02, **changes)
    other = torch.optim.Muon([theirs], lr=0.02, nesterov=True, **changes)
    start = ours.detach().clone()
    for _ in range(5):
        ours.grad = torch.randn(12, 8)
        theirs.grad = ours.grad.clone()
        mine.step()
        other.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved
    assert moved > 0.1


@pytest.mark.parametrize(
    ("device", "in_fp32", "dtype"),
    [
        ("cpu", False, torch.float32),
        ("meta", False, torch.bfloat16),  # stands for an accelerator
        ("meta", True, torch.float32),
    ],
)
def test_what_muon_iterates_in(
    device: str, in_fp32: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterated = []

    def note(matrices: torch.Tensor) -> torch.Tensor:
        iterated.append(matrices.dtype)
        return matrices

    monkeypatch.setattr(optimizer_module, "orthogonalize", note)
    param = nn.Parameter(torch.ones(4, 4, device=device))
    param.grad = torch.ones(4, 4, device=device)
    groups = [{"params": [param], "muon": True}]
    MuonAdamW(groups, OptimizerSettings(), in_fp32=in_fp32).step()
    assert iterated == [dtype]


# AdamW.


def test_adamw_against_torch_s() -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (7,), ()]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = copy.deepcopy(ours)
    mine = adamw(ours, adamw_learning_rate=0.01, beta1=0.8, beta2=0.97)
    other = torch.optim.AdamW(theirs, lr=0.01, betas=(0.8, 0.97), eps=1e-8, weight_decay=0.0)
    for step in range(10):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = 10 ** (step - 5.0) * torch.randn(p.shape)
            q.grad = p.grad.clone()
        mine.step()
        other.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-6)


def test_adamw_by_hand() -> None:
    """The first step is the learning rate against the gradient's sign."""
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = adamw([parameter], adamw_learning_rate=0.1)
    parameter.grad = torch.tensor([5.0, -0.001])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.9, -1.9]), atol=1e-5, rtol=0)


# Groups, rates, decay.


def test_each_group_has_its_rule_and_its_peak() -> None:
    matrix, vector = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))
    optimizer = MuonAdamW(
        [{"params": [matrix], "muon": True}, {"params": [vector], "muon": False}],
        OptimizerSettings(muon_learning_rate=0.02, adamw_learning_rate=0.003),
    )
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.003]
    optimizer.set_learning_rate(0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.0015]
    matrix.grad, vector.grad = torch.randn(4, 4), torch.randn(4)
    optimizer.step()
    assert set(optimizer.state[matrix]) == {"momentum"}
    assert set(optimizer.state[vector]) == {"step", "mean", "square"}


def test_weight_decay_is_of_the_matrices_alone() -> None:
    """Without a gradient a matrix shrinks by rate · decay a step; a bias or an embedding stays."""
    matrix, vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    optimizer = MuonAdamW(
        [{"params": [matrix], "muon": True}, {"params": [vector], "muon": False}],
        OptimizerSettings(muon_learning_rate=0.5, weight_decay=0.2),
    )
    for _ in range(2):
        matrix.grad, vector.grad = torch.zeros(3, 3), torch.zeros(3)
        optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((3, 3), 0.9**2))
    assert torch.equal(vector.detach(), torch.ones(3))


def test_a_share_of_nothing_moves_nothing() -> None:
    matrix, vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    optimizer = MuonAdamW(
        [{"params": [matrix], "muon": True}, {"params": [vector], "muon": False}],
        OptimizerSettings(weight_decay=0.2),
    )
    matrix.grad, vector.grad = torch.randn(3, 3), torch.randn(3)
    optimizer.set_learning_rate(0.0)
    optimizer.step()
    assert torch.equal(matrix.detach(), torch.ones(3, 3))
    assert torch.equal(vector.detach(), torch.ones(3))
