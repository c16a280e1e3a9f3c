"""Several codes at a position: how they are embedded, and how each is predicted from the others."""

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tessella.transformer import Transformer, TransformerSettings, TransformerShape
from tessella.transformer.head import CodeEmbedding, NextCode

K, D, MOST = 5, 16, 4
SHAPE = TransformerShape(11, 6, 0, codebook_size=K, grid=(2, 3), code_width=2)
SIZE = TransformerSettings(width=D, depth=2, heads=2)


def create(books: int) -> Transformer:
    """A transformer whose every weight matters; without gradients."""
    torch.manual_seed(0)
    network = Transformer(SIZE, dataclasses.replace(SHAPE, codes_per_position=books)).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.5)
    return network.requires_grad_(False)


NETWORKS = {books: create(books) for books in range(1, MOST + 1)}
SOME = pytest.mark.parametrize("books", NETWORKS)


def draw(books: int, seed: int = 0, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Hidden rows (B, Q, D) and codes (B, Q, M)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 6, D, generator=generator)
    return hidden, torch.randint(K, (rows, 6, books), generator=generator)


# The embedding.


def test_one_code_is_embedded_as_by_a_plain_table() -> None:
    embedding = CodeEmbedding(K, 1, D)
    codes = torch.tensor([[3], [0], [4]])
    assert torch.equal(embedding(codes), embedding.weight[codes[:, 0]])


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4)])
def test_codes_are_embedded_as_a_scaled_sum(shape: tuple[int, ...]) -> None:
    """Each codebook has its own rows; the sum of four is halved, so that it stays at one's size."""
    torch.manual_seed(0)
    embedding = CodeEmbedding(K, 4, D)
    codes = torch.randint(K, (*shape, 4))
    expected = sum(embedding.weight[m * K + codes[..., m]] for m in range(4)) / 2
    made = embedding(codes)
    assert made.shape == (*shape, D)
    torch.testing.assert_close(made, expected)
    for m in range(4):
        one = embedding.embed_one(codes[..., m], m)
        assert torch.equal(one, embedding.weight[m * K + codes[..., m]])


@pytest.mark.parametrize("books", [1, 2, 8])
def test_the_scale_of_an_embedding_does_not_depend_on_how_many_codes_there_are(books: int) -> None:
    torch.manual_seed(0)
    embedding = CodeEmbedding(64, books, 64)
    made = embedding(torch.randint(64, (500, books)))
    assert made.std().item() == pytest.approx(embedding.weight.std().item(), rel=0.05)


# From each code to the next.


def test_a_step_starts_by_adding_the_code_alone() -> None:
    torch.manual_seed(0)
    step, (hidden, code) = NextCode(D), torch.randn(2, 3, 4, D)
    expected = functional.layer_norm(hidden + code, (D,))
    torch.testing.assert_close(step(hidden, code), expected)


def compute_by_hand(network: Transformer, hidden: Tensor, codes: Tensor) -> Tensor:
    """Logits (M, K) of one position: D numbers and M codes, written out plainly."""

    def norm(row: Tensor, weight: Tensor) -> Tensor:
        centred = row - row.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * weight

    logits = []
    for m, code in enumerate(codes.tolist()):
        of_book = slice(m * K, m * K + K)
        logits.append(network.out.weight[of_book] @ hidden + network.out.bias[of_book])
        if m < len(codes) - 1:
            step = network.next_code[m]
            hidden = hidden + network.code_embedding.weight[m * K + code]
            inside = step.mlp_in.weight @ norm(hidden, step.norm.weight)
            hidden = hidden + step.mlp_out.weight @ inside.clamp(min=0) ** 2
            hidden = norm(hidden, step.out_norm.weight)
    return torch.stack(logits)


@SOME
def test_logits_by_hand(books: int) -> None:
    network, (hidden, codes) = NETWORKS[books], draw(books)
    made = network.compute_logits(hidden, codes)
    assert made.shape == (3, 6, books, K)
    for picture, query in itertools.product(range(3), range(6)):
        expected = compute_by_hand(network, hidden[picture, query], codes[picture, query])
        torch.testing.assert_close(made[picture, query], expected, atol=1e-4, rtol=1e-4)


def test_one_code_has_the_logits_of_one_projection() -> None:
    """And the network has no weight besides."""
    network, (hidden, codes) = NETWORKS[1], draw(1)
    expected = functional.linear(hidden, network.out.weight, network.out.bias)
    assert torch.equal(network.compute_logits(hidden, codes), expected[:, :, None])
    assert torch.equal(
        network.choose_codes(hidden, lambda logits: logits.argmax(-1)),
        expected.argmax(-1)[:, :, None],
    )
    assert not len(network.next_code)
    assert network.code_embedding.weight.shape == network.out.weight.shape == (K, D)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, MOST), st.integers(0, MOST - 1), st.integers(1, K - 1), st.integers(0, 99))
def test_a_code_changes_the_logits_of_those_after_it_alone(
    books: int, changed: int, by: int, seed: int
) -> None:
    changed = min(changed, books - 1)
    network, (hidden, codes) = NETWORKS[books], draw(books, seed)
    others = codes.clone()
    others[:, 2, changed] = (others[:, 2, changed] + by) % K
    before, after = (network.compute_logits(hidden, now) for now in (codes, others))
    assert torch.equal(after[:, :, : changed + 1], before[:, :, : changed + 1])
    moved = (after - before).abs().amax(-1)[:, :, changed + 1 :]
    assert (moved[:, 2] > 1e-4).all()
    moved[:, 2] = 0
    assert not moved.any()  # nor does another position read it


@SOME
def test_the_likeliest_codes_one_after_the_other(books: int) -> None:
    """Each is the likeliest where those before it are the right ones."""
    network, (hidden, codes) = NETWORKS[books], draw(books)
    chosen = network.choose_codes(hidden, lambda logits: logits.argmax(-1))
    assert chosen.shape == codes.shape
    assert torch.equal(network.compute_logits(hidden, chosen).argmax(-1), chosen)
    assert chosen.unique().numel() > 1


@SOME
def test_what_is_chosen_is_given_the_logits_of_teacher_forcing(books: int) -> None:
    """Whatever the choice, it sees what training computes from the codes chosen before."""
    network, (hidden, codes) = NETWORKS[books], draw(books, seed=1)
    seen: list[Tensor] = []

    def choose(logits: Tensor) -> Tensor:
        seen.append(logits)
        return codes[:, :, len(seen) - 1]

    assert torch.equal(network.choose_codes(hidden, choose), codes)
    assert torch.equal(torch.stack(seen, 2), network.compute_logits(hidden, codes))


@SOME
@pytest.mark.parametrize("branches", [1, 2, 3])
def test_branches_share_their_codes(books: int, branches: int) -> None:
    """Guidance chooses from several branches' logits; all of them go on from what is chosen."""
    network = NETWORKS[books]
    hidden, _ = draw(books, seed=2, rows=2 * branches)
    seen: list[Tensor] = []

    def choose(logits: Tensor) -> Tensor:
        seen.append(logits)
        return (logits[:2] - 2 * logits[-2:]).argmax(-1)

    chosen = network.choose_codes(hidden, choose)
    assert chosen.shape == (2, 6, books)
    expected = network.compute_logits(hidden, chosen.repeat(branches, 1, 1))
    assert torch.equal(torch.stack(seen, 2), expected)


def test_gradients_reach_every_step_through_the_codes_before() -> None:
    network = create(3).requires_grad_(True)
    hidden, codes = draw(3)
    network.compute_logits(hidden, codes)[:, :, 2].square().sum().backward()
    for name, parameter in network.next_code.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    # Of the codes that stand first or second, in the table of their codebook.
    embedding = network.code_embedding.weight
    assert embedding.grad is not None
    is_read = [torch.bincount(codes[..., m].flatten(), minlength=K) > 0 for m in (0, 1)]
    assert torch.equal(embedding.grad.any(1), torch.cat([*is_read, torch.zeros(K).bool()]))


# How it starts.


def test_more_codes_add_a_step_each_and_rows_to_the_tables() -> None:
    shapes = {m: {n: p.shape for n, p in NETWORKS[m].named_parameters()} for m in (1, 3)}
    added = {name for name in shapes[3] if name not in shapes[1]}
    assert {name.rsplit(".", 2)[0] for name in added} == {"next_code.0", "next_code.1"}
    differ = {name for name, shape in shapes[1].items() if shapes[3][name] != shape}
    assert differ == {"code_embedding.weight", "out.weight", "out.bias"}


@pytest.mark.parametrize("is_product", [True, False])
def test_each_codebook_begins_with_a_projection_of_its_own(is_product: bool) -> None:
    """Codes on circles: neighbours are alike, opposite ones are not; the scale stays.

    The channels of the other codebooks, where they are zero, change nothing.
    """
    torch.manual_seed(0)
    size, count = TransformerSettings(width=64, depth=2, heads=2), 32
    shape = dataclasses.replace(
        SHAPE, codebook_size=count, codes_per_position=2, max_examples=1, code_width=4
    )
    network = Transformer(size, shape)
    assert network.example_encoder is not None
    tables = [network.code_embedding, network.out, network.example_encoder.code_embedding]
    scales = [float(table.weight.detach().std()) for table in tables]
    angles = torch.arange(count) * (2 * math.pi / count)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    codebook = torch.stack([5 + 100 * circle, 0.01 * circle])  # (2, K, 2)
    if is_product:
        nothing = torch.zeros(count, 2)
        first, second = codebook
        codebook = torch.stack([torch.cat([first, nothing], 1), torch.cat([nothing, second], 1)])
    network.embed_codebook(codebook)
    for table, scale in zip(tables, scales, strict=True):
        assert table.weight.isfinite().all()
        books = table.weight.detach().split(count)
        for rows in books:
            assert float(rows.std()) == pytest.approx(scale, rel=0.4)
            normed = functional.normalize(rows, dim=1)
            assert (normed * normed.roll(1, 0)).sum(1).min() > 0.9
            assert (normed * normed.roll(count // 2, 0)).sum(1).max() < -0.9
        one, other = (functional.normalize(rows, dim=1) for rows in books)
        assert (one * other).sum(1).abs().mean() < 0.5


def test_the_projection_of_one_codebook_by_hand() -> None:
    """Standardised vectors times a random matrix, at the scale that the table had."""
    network = create(1)
    codebook = torch.randn(K, 3, generator=torch.Generator().manual_seed(1)) * 7 + 2
    before = network.code_embedding.weight.std()
    torch.manual_seed(3)
    network.embed_codebook(codebook[None])
    torch.manual_seed(3)
    standard = (codebook - codebook.mean(0)) / codebook.std(0)
    expected = standard @ torch.randn(3, D) / math.sqrt(3) * before
    torch.testing.assert_close(network.code_embedding.weight, expected)
