"""The layer against torch's own attention, with the same weights; the positions' rotations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tessella.transformer.kv_cache import KVCache, build_mask
from tessella.transformer.layers import Layer, Rotation, compute_rotations, rotate

WIDTH, HEADS = 24, 3


def learned_layer() -> Layer:
    """A layer whose every weight matters: the zeros that it starts with are replaced."""
    torch.manual_seed(0)
    layer = Layer(WIDTH, HEADS, dropout=0.0).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return layer


def apply(
    layer: Layer,
    rows: Tensor,
    seen: Tensor,
    mask: Tensor,
    turn_rows: Rotation | None = None,
    turn_seen: Rotation | None = None,
) -> Tensor:
    """Lets `rows` look at `seen`."""
    keys, values = layer.project_kv(layer.attention_norm(seen), turn_seen)
    return layer(rows, layer.attention_norm(rows), keys, values, mask, turn_rows)


def turn(rows: Tensor, angles: Tensor) -> Tensor:
    """Turns rows (..., S, D) by angles (S, D / 2) as complex numbers."""
    half = rows.shape[-1] // 2
    turned = torch.complex(rows[..., :half], rows[..., half:]) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([turned.real, turned.imag], dim=-1)


def test_against_a_reference_row_by_row() -> None:
    """Softmax of the scaled products of normalised, turned queries and keys, head by head."""
    layer = learned_layer()
    rows, seen = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)
    turn_rows, turn_seen = torch.randn(4, WIDTH // HEADS // 2), torch.randn(5, WIDTH // HEADS // 2)
    mask = torch.rand(2, 1, 4, 5) > 0.4
    mask[..., 0] = True
    size = WIDTH // HEADS

    def norm(hidden: Tensor, weight: Tensor) -> Tensor:
        centred = hidden - hidden.mean(-1, keepdim=True)
        return centred / (hidden.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * weight

    queries = norm(rows, layer.attention_norm.weight) @ layer.query.weight.T
    both = norm(seen, layer.attention_norm.weight) @ layer.key_value.weight.T
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        query = turn(norm(queries[..., part], layer.query_norm.weight), turn_rows)
        key = turn(norm(both[..., :WIDTH][..., part], layer.key_norm.weight), turn_seen)
        value = both[..., WIDTH:][..., part]
        scores = torch.einsum("bqc,bsc->bqs", query, key) / size**0.5
        share = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1)
        heads.append(torch.einsum("bqs,bsc->bqc", share, value))
    expected = rows + torch.cat(heads, -1) @ layer.attention_out.weight.T
    inside = norm(expected, layer.mlp_norm.weight) @ layer.mlp_in.weight.T
    expected = expected + inside.clamp(min=0) ** 2 @ layer.mlp_out.weight.T

    made = apply(
        layer,
        rows,
        seen,
        mask,
        (turn_rows.cos()[None, None], turn_rows.sin()[None, None]),
        (turn_seen.cos()[None, None], turn_seen.sin()[None, None]),
    )
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_against_multihead_attention() -> None:
    """torch's module has no query-key normalisation: switched off here, all else is the same."""
    layer = learned_layer()
    layer.query_norm = nn.Identity()
    layer.key_norm = nn.Identity()
    nn.init.zeros_(layer.mlp_out.weight)
    theirs = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key_value.weight]))
        theirs.out_proj.weight.copy_(layer.attention_out.weight)
    rows, seen = torch.randn(2, 4, WIDTH), torch.randn(2, 6, WIDTH)
    mask = torch.ones(4, 6).tril(2).bool()
    normed = layer.attention_norm(seen)
    expected, _ = theirs(layer.attention_norm(rows), normed, normed, attn_mask=~mask)
    made = apply(layer, rows, seen, mask.expand(2, 1, -1, -1))
    torch.testing.assert_close(made, rows + expected, atol=1e-5, rtol=1e-5)


def test_it_starts_as_the_identity() -> None:
    layer = Layer(WIDTH, HEADS, dropout=0.5)
    rows = torch.randn(2, 3, WIDTH)
    assert torch.equal(apply(layer, rows, rows, torch.ones(2, 1, 3, 3).bool()), rows)


def test_dropout_is_of_training_alone() -> None:
    layer = learned_layer()
    layer.dropout.p = 0.5
    rows, mask = torch.randn(1, 3, WIDTH), torch.ones(1, 1, 3, 3).bool()
    assert torch.equal(apply(layer, rows, rows, mask), apply(layer, rows, rows, mask))
    layer.train()
    assert not torch.equal(apply(layer, rows, rows, mask), apply(layer, rows, rows, mask))


# Where a row lies.


def test_the_rotations_by_hand() -> None:
    """Heads of 8: two pairs turn with the row, two with the column, by 1 and by 1/10 a position."""
    cosine, sine = compute_rotations((2, 3), 8)
    assert cosine.shape == sine.shape == (6, 4)
    angles = torch.tensor(
        [
            [0, 0, 0, 0],
            [0, 0, 1, 0.1],
            [0, 0, 2, 0.2],
            [1, 0.1, 0, 0],
            [1, 0.1, 1, 0.1],
            [1, 0.1, 2, 0.2],
        ]
    )
    torch.testing.assert_close(cosine, angles.cos())
    torch.testing.assert_close(sine, angles.sin())


@pytest.mark.parametrize("size", [4, 12, 32])
def test_the_frequencies_go_down_to_almost_a_hundredth(size: int) -> None:
    _, sine = compute_rotations((1, 2), size)
    row, column = sine[1].asin().chunk(2)
    assert row.tolist() == [0.0] * (size // 4)
    expected = [math.exp(-math.log(100) * i / (size // 4)) for i in range(size // 4)]
    assert column.tolist() == pytest.approx(expected, rel=1e-5)


def test_turning_is_a_product_of_complex_numbers() -> None:
    torch.manual_seed(0)
    rows, angles = torch.randn(2, 3, 6, 8), torch.randn(6, 4)
    made = rotate(rows, (angles.cos(), angles.sin()))
    torch.testing.assert_close(made, turn(rows, angles), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.norm(dim=-1), rows.norm(dim=-1))
    assert rotate(rows, None) is rows


@settings(max_examples=40, deadline=None)
@given(*[st.integers(0, 5)] * 6, st.integers(0, 99))
def test_a_score_depends_on_how_far_positions_are_apart(
    row: int, column: int, down: int, right: int, other_row: int, other_column: int, seed: int
) -> None:
    """A query and a key moved by the same rows and columns look at each other as before."""
    grid = (11, 11)
    cosine, sine = compute_rotations(grid, 12)
    query, key = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed))

    def score(query_place: tuple[int, int], key_place: tuple[int, int]) -> Tensor:
        at, to = (position[0] * grid[1] + position[1] for position in (query_place, key_place))
        return rotate(query, (cosine[at], sine[at])) @ rotate(key, (cosine[to], sine[to]))

    torch.testing.assert_close(
        score((row + down, column + right), (other_row + down, other_column + right)),
        score((row, column), (other_row, other_column)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_score_depends_on_the_way_along_each_axis() -> None:
    """One row down, one row up, one column right and one left are four different things."""
    cosine, sine = compute_rotations((3, 3), 8)
    torch.manual_seed(0)
    query, key = torch.randn(2, 8)
    turned = rotate(key.expand(9, 8), (cosine, sine)) @ rotate(query, (cosine[4], sine[4]))
    assert turned.unique().numel() == 9


# What was read, and who may look at it.


def test_the_mask_by_hand() -> None:
    """Two texts of three tokens, the second with one of padding; three codes were read."""
    text = torch.tensor([[True, True, True], [True, True, False]])
    mask = build_mask(text, torch.tensor([0, 2, 3]), 3)
    assert mask.shape == (2, 1, 3, 6)
    assert mask[:, 0].int().tolist() == [
        [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]],
        [[1, 1, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]],
    ]


def test_the_mask_before_any_code() -> None:
    mask = build_mask(torch.tensor([[True, False]]), torch.tensor([0]), 0)
    assert mask.tolist() == [[[[True, False]]]]


@pytest.mark.parametrize("rows", [[1], [0, 0, 2], [2, 1, 0, 1]])
def test_select_takes_entries_as_often_as_named(rows: list[int]) -> None:
    cache = KVCache(
        context_visible=torch.tensor([[True, True], [True, False], [False, True]]),
        keys=[torch.randn(3, 2, 4, 5) for _ in range(2)],
        values=[torch.randn(3, 2, 4, 5) for _ in range(2)],
        length=4,
    )
    selected = cache.select(torch.tensor(rows))
    for copies, original in ((selected.keys, cache.keys), (selected.values, cache.values)):
        for mine, theirs in zip(copies, original, strict=True):
            assert torch.equal(mine, theirs[rows])
    assert torch.equal(selected.context_visible, cache.context_visible[rows])
    assert selected.num_codes == 2
    assert selected.length == 4


def test_a_selected_cache_grows_apart_from_its_source() -> None:
    cache = KVCache(torch.ones(1, 2).bool(), [torch.ones(1, 1, 2, 4)], [torch.ones(1, 1, 2, 4)], 2)
    for capacity in (0, 3):
        selected = cache.select(torch.tensor([0]), capacity=capacity)
        keys, values = selected.insert(0, torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
        assert keys.shape == values.shape == (1, 1, 5, 4)
        keys.zero_()
        assert cache.length == 2
        assert torch.equal(cache.keys[0], torch.ones(1, 1, 2, 4))


def test_spare_capacity_follows_the_rows() -> None:
    keys = torch.randn(2, 1, 3, 4)
    cache = KVCache(torch.ones(2, 3).bool(), [keys], [2 * keys], length=3)
    selected = cache.select(torch.tensor([1, 0]), capacity=2)
    assert selected.keys[0].shape == selected.values[0].shape == (2, 1, 5, 4)
    assert torch.equal(selected.keys[0][:, :, :3], keys[[1, 0]])
    assert torch.equal(selected.values[0][:, :, :3], 2 * keys[[1, 0]])
    assert selected.length == cache.length == 3


@pytest.mark.parametrize("capacity", [0, 1, 2, 5])
def test_rows_are_inserted_in_place_where_there_is_capacity(capacity: int) -> None:
    past, new = torch.randn(2, 1, 3 + capacity, 4), torch.randn(2, 1, 2, 4)
    before = past[:, :, :3].clone()
    cache = KVCache(torch.ones(2, 3).bool(), [past], [2 * past], length=3)
    keys, values = cache.insert(0, new, 2 * new)
    assert torch.equal(keys, torch.cat([before, new], dim=2))
    assert torch.equal(values, 2 * keys)
    assert (cache.keys[0] is past) is (capacity >= 2)
    assert cache.length == 3  # until every layer has its rows
