"""The layer against torch's own attention, with the same weights."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.transformer.layers import Layer
from tessella.transformer.memory import Memory, build_mask

WIDTH, HEADS = 24, 3


def learned_layer() -> Layer:
    """A layer whose every weight matters: the zeros that it starts with are replaced."""
    torch.manual_seed(0)
    layer = Layer(WIDTH, HEADS, dropout=0.0).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return layer


def apply(layer: Layer, rows: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Lets `rows` look at `seen`."""
    keys, values = layer.remember(layer.attention_norm(seen))
    return layer(rows, layer.attention_norm(rows), keys, values, mask)


def test_against_a_reference_row_by_row() -> None:
    """Softmax of the scaled products of normalised queries and keys, one head at a time."""
    layer = learned_layer()
    rows, seen = torch.randn(2, 4, WIDTH), torch.randn(2, 5, WIDTH)
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
        query = norm(queries[..., part], layer.query_norm.weight)
        key = norm(both[..., :WIDTH][..., part], layer.key_norm.weight)
        value = both[..., WIDTH:][..., part]
        scores = torch.einsum("bqc,bsc->bqs", query, key) / size**0.5
        share = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(-1)
        heads.append(torch.einsum("bqs,bsc->bqc", share, value))
    expected = rows + torch.cat(heads, -1) @ layer.attention_out.weight.T
    update = norm(expected, layer.mlp_norm.weight) @ layer.mlp_in.weight.T
    expected = expected + functional.gelu(update) @ layer.mlp_out.weight.T

    torch.testing.assert_close(apply(layer, rows, seen, mask), expected, atol=1e-4, rtol=1e-4)


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
    memory = Memory(
        keys=tuple(torch.randn(3, 2, 4, 5) for _ in range(2)),
        values=tuple(torch.randn(3, 2, 4, 5) for _ in range(2)),
        text_visible=torch.tensor([[True, True], [True, False], [False, True]]),
        num_codes=2,
    )
    chosen = memory.select(torch.tensor(rows))
    for kept, given in ((chosen.keys, memory.keys), (chosen.values, memory.values)):
        for mine, theirs in zip(kept, given, strict=True):
            assert torch.equal(mine, theirs[rows])
    assert torch.equal(chosen.text_visible, memory.text_visible[rows])
    assert chosen.num_codes == 2
