"""The transformer: which rows see which, caching in pieces or at once, and masked prediction."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.transformer import (
    KVCache,
    Layer,
    Transformer,
    TransformerSettings,
    TransformerShape,
)

PAD = 0
SHAPE = TransformerShape(
    vocabulary_size=11, max_text_tokens=6, pad_id=PAD, codebook_size=7, grid=(3, 3), code_width=2
)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def create(
    depth: int = 4, width: int = 16, heads: int = 2, shape: TransformerShape = SHAPE
) -> Transformer:
    """A transformer whose every weight matters: layers that start as the identity hide mistakes."""
    torch.manual_seed(0)
    transformer = Transformer(
        TransformerSettings(width=width, depth=depth, heads=heads), shape
    ).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    nn.init.normal_(transformer.mask_token)
    return transformer.requires_grad_(False)


TRANSFORMER = create()
TRANSFORMERS = {1: TRANSFORMER, 2: create(shape=dataclasses.replace(SHAPE, codes_per_position=2))}
BOTH = pytest.mark.parametrize("books", TRANSFORMERS)
TEXT = torch.tensor([[1, 5, 3, 2, PAD], [1, 2, PAD, PAD, PAD]])


def draw(batch: int = 2, seed: int = 0, books: int = 1) -> tuple[Tensor, Tensor]:
    """Codes (B, N, M) of all positions, in a random order of positions (B, N)."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.stack([torch.randperm(9, generator=generator) for _ in range(batch)])
    return torch.randint(7, (batch, 9, books), generator=generator), positions


def encode(codes: Tensor, positions: Tensor, text: Tensor = TEXT) -> KVCache:
    """Text, then codes."""
    net = TRANSFORMERS[codes.shape[2]]
    cache = net.encode_context(text)
    net.append_codes(cache, codes, positions)
    return cache


def predict_in_order(codes: Tensor, positions: Tensor, text: Tensor = TEXT) -> Tensor:
    """Predicts every position from the codes before it in the order: hidden rows."""
    cache = encode(codes[:, :-1], positions[:, :-1], text)
    return TRANSFORMERS[codes.shape[2]].predict(cache, positions, torch.arange(9))


def logits_of_all(codes: Tensor, positions: Tensor, text: Tensor = TEXT) -> Tensor:
    """Logits (B, N, K) of every position's first code, given those before, as in training."""
    hidden = predict_in_order(codes, positions, text)
    return TRANSFORMERS[codes.shape[2]].compute_logits(hidden, codes)[:, :, 0]


def score(net: Transformer, hidden: Tensor) -> Tensor:
    """Logits (B, N, K) of the only code of hidden rows."""
    unread = torch.zeros(*hidden.shape[:2], 1, dtype=torch.int64)
    return net.compute_logits(hidden, unread)[:, :, 0]


# Written out plainly: rows and what they see, complex numbers for rotations, no cache.


def turn(rows: Tensor, positions: Tensor) -> Tensor:
    """Turns rows (B, heads, S, 8) to positions (B, S) of the 3 × 3 grid; -1 turns nothing."""
    by_axis = torch.stack([positions // 3, positions % 3], -1).masked_fill(
        positions[..., None] < 0, 0
    )
    angles = (by_axis[..., None] * torch.tensor([1.0, 0.1])).flatten(2)[:, None]  # (B, 1, S, 4)
    pairs = torch.complex(rows[..., :4], rows[..., 4:]) * torch.exp(1j * angles)
    return torch.cat([pairs.real, pairs.imag], -1)


def look(
    layer: Layer,
    hidden: Tensor,
    positions: Tensor,
    seen: Tensor,
    seen_positions: Tensor,
    mask: Tensor,
) -> Tensor:
    """One layer: rows (B, Q, D) look at normalised rows (B, S, D) where mask (B, Q, S) lets them.

    Positions are (B, Q) and (B, S), -1 for words.
    """

    def norm(rows: Tensor, module: nn.LayerNorm) -> Tensor:
        return functional.layer_norm(rows, rows.shape[-1:], module.weight)

    def heads(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (2, 8)).transpose(1, 2)

    key_weight, value_weight = layer.key_value.weight.chunk(2)
    queries = heads(norm(hidden, layer.attention_norm) @ layer.query.weight.T)
    queries = turn(norm(queries, layer.query_norm), positions)
    keys = turn(norm(heads(seen @ key_weight.T), layer.key_norm), seen_positions)
    scores = torch.einsum("bhqd,bhsd->bhqs", queries, keys) / 8**0.5
    share = scores.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    found = torch.einsum("bhqs,bhsd->bqhd", share, heads(seen @ value_weight.T)).flatten(2)
    hidden = hidden + found @ layer.attention_out.weight.T
    inside = norm(hidden, layer.mlp_norm) @ layer.mlp_in.weight.T
    return hidden + inside.clamp(min=0) ** 2 @ layer.mlp_out.weight.T


def embed_text(net: Transformer) -> Tensor:
    return net.text_embedding.weight[TEXT] + net.text_position.weight[: TEXT.shape[1]]


def embed_codes(net: Transformer, codes: Tensor) -> Tensor:
    """Rows (B, N, D) of codes (B, N, M): the sum of M tables' rows, kept at one's size."""
    if codes.shape[2] == 1:
        return net.code_embedding.weight[codes[:, :, 0]]
    first, second = net.code_embedding.weight[:7], net.code_embedding.weight[7:]
    return (first[codes[:, :, 0]] + second[codes[:, :, 1]]) / 2**0.5


def norm_out(net: Transformer, hidden: Tensor) -> Tensor:
    return functional.layer_norm(hidden, (16,), net.out_norm.weight)


@BOTH
def test_against_one_pass_over_everything(books: int) -> None:
    """Text and codes as one sequence under one mask, no cache: the same logits."""
    codes, positions = draw(books=books)
    net, length = TRANSFORMERS[books], TEXT.shape[1]
    in_text = torch.full((2, length), -1)
    everywhere = torch.cat([in_text, positions], 1)
    hidden = torch.cat(
        [embed_text(net), embed_codes(net, codes) + net.position_embedding.weight[positions]],
        dim=1,
    )
    text = (TEXT != PAD)[:, None, :].expand(-1, 9, -1)  # who sees which word
    no_code = torch.zeros(2, length, 9, dtype=torch.bool)
    reads = torch.cat([text[:, :1].expand(-1, length, -1), no_code], 2)
    before = torch.ones(9, 9).bool().tril(-1).expand(2, -1, -1)
    asks = torch.cat([text, before], 2)
    reads = torch.cat([reads, torch.cat([text, before | torch.eye(9).bool()], 2)], 1)
    for layer in net.self_decoder:
        normed = layer.attention_norm(hidden)
        hidden = look(layer, hidden, everywhere, normed, everywhere, reads)
    made = net.kv_norm(hidden)
    queries = net.mask_token + net.position_embedding.weight[positions]
    for layer in net.cross_decoder:
        queries = look(layer, queries, positions, made, everywhere, asks)
    expected = norm_out(net, queries)
    made = predict_in_order(codes, positions)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    expected = expected @ net.out.weight[:7].T + net.out.bias[:7]
    torch.testing.assert_close(logits_of_all(codes, positions), expected, atol=1e-4, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("num_known", [0, 4, 9])
def test_masked_prediction_against_one_pass_over_everything(num_known: int, books: int) -> None:
    """Text and positions as one sequence: words see words, positions see everything, in all layers.

    In the cross-decoder the words are the self-decoder's output.
    """
    codes, order = draw(books=books)
    known = order < num_known
    net, length = TRANSFORMERS[books], TEXT.shape[1]
    positions = torch.arange(9).expand(2, -1)
    in_text = torch.full((2, length), -1)
    everywhere = torch.cat([in_text, positions], 1)
    words = (TEXT != PAD)[:, None, :].expand(-1, length, -1)
    everything = torch.cat([TEXT != PAD, torch.ones(2, 9).bool()], 1)[:, None].expand(-1, 9, -1)
    text = embed_text(net)
    hidden = embed_codes(net, codes)
    hidden[~known] = net.mask_token
    hidden = hidden + net.position_embedding.weight
    for layer in net.self_decoder:
        seen = layer.attention_norm(text)
        both = torch.cat([seen, layer.attention_norm(hidden)], 1)
        hidden = look(layer, hidden, positions, both, everywhere, everything)
        text = look(layer, text, in_text, seen, in_text, words)
    for layer in net.cross_decoder:
        both = torch.cat([net.kv_norm(text), layer.attention_norm(hidden)], 1)
        hidden = look(layer, hidden, positions, both, everywhere, everything)
    expected = norm_out(net, hidden)
    made = net.predict_masked(net.encode_context(TEXT), codes, known)
    assert made.shape == (2, 9, 16)
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
    logits = net.compute_logits(made, codes)
    assert logits.shape == (2, 9, books, 7)
    expected = expected @ net.out.weight[:7].T + net.out.bias[:7]
    torch.testing.assert_close(logits[:, :, 0], expected, atol=1e-4, rtol=1e-4)


# Masked prediction.


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 8), st.integers(0, 99))
def test_unknown_codes_are_not_read(num_known: int, seed: int) -> None:
    codes, order = draw(seed=seed)
    known, cache = order < num_known, TRANSFORMER.encode_context(TEXT)
    others = codes.where(known[..., None], (codes + 1 + order[..., None] % 5) % 7)
    made = TRANSFORMER.predict_masked(cache, codes, known)
    assert torch.equal(TRANSFORMER.predict_masked(cache, others, known), made)


@BOTH
def test_every_position_sees_the_known_codes(books: int) -> None:
    """Those before it as well as those after it, itself too; of several codes each."""
    codes, _ = draw(books=books)
    net = TRANSFORMERS[books]
    cache, known = net.encode_context(TEXT), torch.ones(2, 9).bool()
    before = net.predict_masked(cache, codes, known)
    for position, m in itertools.product(range(9), range(books)):
        others, less = codes.clone(), known.clone()
        others[:, position, m], less[:, position] = (codes[:, position, m] + 3) % 7, False
        for now in ((others, known), (codes, less)):
            after = net.predict_masked(cache, *now)
            assert ((after - before).abs().amax((0, 2)) > 1e-4).all()


def test_masked_prediction_sees_the_text_and_not_its_padding() -> None:
    codes, order = draw()
    known = order < 4
    made = TRANSFORMER.predict_masked(TRANSFORMER.encode_context(TEXT), codes, known)
    alone = TRANSFORMER.predict_masked(
        TRANSFORMER.encode_context(TEXT[1:, :2]), codes[1:], known[1:]
    )
    torch.testing.assert_close(alone, made[1:], **CLOSE)
    other = TRANSFORMER.predict_masked(TRANSFORMER.encode_context(TEXT.flip(0)), codes, known)
    assert ((other - made).abs().amax((0, 2)) > 1e-3).all()


# Caching and predicting.


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 8), max_size=4, unique=True), st.integers(0, 99))
def test_appending_in_pieces_is_appending_at_once(cuts: list[int], seed: int) -> None:
    codes, positions = draw(seed=seed)
    at_once = encode(codes, positions)
    pieces = TRANSFORMER.encode_context(TEXT)
    edges = [0, *sorted(cuts), 9]
    for start, end in itertools.pairwise(edges):
        TRANSFORMER.append_codes(pieces, codes[:, start:end], positions[:, start:end])
    assert pieces.num_codes == at_once.num_codes == 9
    for mine, theirs in zip(
        pieces.keys + pieces.values, at_once.keys + at_once.values, strict=True
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    everything = torch.full((9,), 9)
    torch.testing.assert_close(
        TRANSFORMER.predict(pieces, positions, everything),
        TRANSFORMER.predict(at_once, positions, everything),
        **CLOSE,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 7), st.sampled_from([(1, 0), (2, 0), (2, 1)]), st.integers(0, 99))
def test_a_code_changes_only_what_comes_after_it(
    changed: int, one_of: tuple[int, int], seed: int
) -> None:
    books, m = one_of
    codes, positions = draw(seed=seed, books=books)
    others = codes.clone()
    others[:, changed, m] = (others[:, changed, m] + 3) % 7
    before, after = logits_of_all(codes, positions), logits_of_all(others, positions)
    # The query at index i sees the codes 0 to i - 1.
    torch.testing.assert_close(after[:, : changed + 1], before[:, : changed + 1], **CLOSE)
    moved = (after[:, changed + 1 :] - before[:, changed + 1 :]).abs().amax((0, 2))
    assert (moved > 1e-3).all()


def test_where_a_code_lies_matters() -> None:
    codes, positions = draw()
    moved = positions.clone()
    moved[:, [0, 1]] = moved[:, [1, 0]]
    queries, visible = positions[:, 2:], torch.full((7,), 2)
    before, after = (
        TRANSFORMER.predict(encode(codes[:, :2], where[:, :2]), queries, visible)
        for where in (positions, moved)
    )
    assert (before - after).abs().max() > 1e-3


def test_padding_changes_nothing() -> None:
    """A prompt gives the same alone as beside a longer one; what the padding holds is not read."""
    codes, positions = draw()
    expected = logits_of_all(codes, positions)[1:]
    alone = logits_of_all(codes[1:], positions[1:], TEXT[1:, :2])
    torch.testing.assert_close(alone, expected, **CLOSE)
    cache = TRANSFORMER.encode_context(TEXT[1:])
    for layer in (*cache.keys, *cache.values):
        layer[:, :, 2:] = 1e3  # keys and values of the padding
    TRANSFORMER.append_codes(cache, codes[1:, :-1], positions[1:, :-1])
    made = TRANSFORMER.predict(cache, positions[1:], torch.arange(9))
    torch.testing.assert_close(score(TRANSFORMER, made), expected, **CLOSE)


def test_every_word_matters_to_every_position() -> None:
    """The text is read in both directions: the last word reaches the first and the other way."""
    codes, positions = draw(1)
    before = logits_of_all(codes, positions, TEXT[:1])
    for index in range(4):
        text = TEXT[:1].clone()
        text[0, index] = 7
        moved = (logits_of_all(codes, positions, text) - before).abs().amax((0, 2))
        assert (moved > 1e-4).all(), index
    exchanged = logits_of_all(codes, positions, TEXT[:1, [0, 2, 1, 3]])
    assert (exchanged - before).abs().max() > 1e-4


def test_the_text_does_not_see_the_codes() -> None:
    codes, positions = draw()
    cache = TRANSFORMER.encode_context(TEXT)
    text_rows = [tensor.clone() for tensor in (*cache.keys, *cache.values)]
    TRANSFORMER.append_codes(cache, codes, positions)
    for before, now in zip(text_rows, cache.keys + cache.values, strict=True):
        assert torch.equal(now[:, :, : TEXT.shape[1]], before)
    assert cache.num_codes == 9


@pytest.mark.parametrize("seen", [0, 4, 9])
def test_queries_do_not_see_each_other(seen: int) -> None:
    codes, positions = draw()
    cache = encode(codes, positions)
    together = TRANSFORMER.predict(cache, positions, torch.full((9,), seen))
    for index in range(9):
        alone = TRANSFORMER.predict(cache, positions[:, index : index + 1], torch.tensor([seen]))
        torch.testing.assert_close(alone[:, 0], together[:, index], **CLOSE)
    # And each position is a query of its own.
    assert (together[:, 1:] - together[:, :-1]).abs().amax((0, 2)).min() > 1e-3


def test_one_encoding_serves_many_pictures() -> None:
    codes, positions = draw(3)
    rows = torch.tensor([1, 0, 1])
    cache = TRANSFORMER.encode_context(TEXT).select(rows)
    TRANSFORMER.append_codes(cache, codes, positions)
    once = TRANSFORMER.predict(cache, positions, torch.arange(9))
    each = TRANSFORMER.predict(encode(codes, positions, TEXT[rows]), positions, torch.arange(9))
    torch.testing.assert_close(once, each, **CLOSE)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 8), max_size=4, unique=True), st.integers(0, 9), st.integers(0, 99))
def test_capacity_changes_nothing(cuts: list[int], missing: int, seed: int) -> None:
    """Capacity for all codes or only some: rows and predictions are the same."""
    codes, positions = draw(seed=seed)
    rows, everywhere = torch.tensor([1, 0]), torch.arange(9).expand(2, -1)
    plain = TRANSFORMER.encode_context(TEXT).select(rows)
    roomy = TRANSFORMER.encode_context(TEXT).select(rows, capacity=9 - missing)
    for start, end in itertools.pairwise([0, *sorted(cuts), 9]):
        now = codes[:, start:end], positions[:, start:end]
        for cache in (plain, roomy):
            TRANSFORMER.append_codes(cache, *now)
        assert roomy.length == plain.length == TEXT.shape[1] + end
        for mine, theirs in zip(roomy.keys + roomy.values, plain.keys + plain.values, strict=True):
            torch.testing.assert_close(mine[:, :, : plain.length], theirs, **CLOSE)
        visible = torch.full((9,), end)
        torch.testing.assert_close(
            TRANSFORMER.predict(roomy, everywhere, visible),
            TRANSFORMER.predict(plain, everywhere, visible),
            **CLOSE,
        )


def test_appending_no_codes_changes_nothing() -> None:
    """A picture of a single position trains so: no code comes before it."""
    cache = TRANSFORMER.encode_context(TEXT)
    nothing = torch.empty(2, 0, 1, dtype=torch.int64)
    longer = encode(nothing, nothing[..., 0])
    assert longer.num_codes == 0
    positions = torch.tensor([[3], [4]])
    torch.testing.assert_close(
        TRANSFORMER.predict(longer, positions, torch.tensor([0])),
        TRANSFORMER.predict(cache, positions, torch.tensor([0])),
    )


def test_a_picture_of_one_position_is_learned() -> None:
    """No code comes before the only one; appending none once crashed training."""
    shape = dataclasses.replace(SHAPE, grid=(1, 1))
    network = create(shape=shape).train().requires_grad_(True)
    nothing = torch.zeros(2, 0, 1, dtype=torch.int64)
    cache = network.encode_context(TEXT)
    network.append_codes(cache, nothing, nothing[..., 0])
    hidden = network.predict(cache, torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1).long())
    logits = score(network, hidden)
    logits.sum().backward()
    assert logits.shape == (2, 1, 7)
    assert network.mask_token.grad is not None


def test_predictions_are_the_projected_hidden_rows() -> None:
    codes, positions = draw()
    hidden = predict_in_order(codes, positions)
    assert hidden.shape == (2, 9, 16)
    expected = hidden @ TRANSFORMER.out.weight.T + TRANSFORMER.out.bias
    torch.testing.assert_close(score(TRANSFORMER, hidden), expected, **CLOSE)
    torch.testing.assert_close(logits_of_all(codes, positions), expected, **CLOSE)


def test_features_of_a_frozen_encoder_are_encoded_as_tokens_are() -> None:
    """A linear map instead of the embedding; rows of zeros are padding and are not looked at."""
    net = create(shape=dataclasses.replace(SHAPE, text_features=5))
    torch.manual_seed(0)
    features = torch.randn(2, 4, 5)
    features[1, 2:] = 0
    cache = net.encode_context(features)
    assert cache.context_visible.tolist() == [[True] * 4, [True, True, False, False]]
    everywhere, none = torch.arange(9).expand(2, -1), torch.zeros(9, dtype=torch.int64)
    made = net.predict(cache, everywhere, none)
    alone = net.predict(net.encode_context(features[1:, :2]), everywhere[1:], none)
    torch.testing.assert_close(made[1:], alone, **CLOSE)
    assert (made[0] - made[1]).abs().amax(1).min() > 1e-3
    # The same rows, once embedded, are read the same.
    tokens = create()
    state = net.state_dict()
    embedded = state.pop("text_embedding.weight"), state.pop("text_embedding.bias")
    rows = torch.zeros(11, 16)
    rows[1:5] = features[0] @ embedded[0].T + embedded[1]
    tokens.load_state_dict({**state, "text_embedding.weight": rows})
    expected = tokens.predict(
        tokens.encode_context(torch.tensor([[1, 2, 3, 4]])), everywhere[:1], none
    )
    torch.testing.assert_close(made[:1], expected, **CLOSE)


def test_the_positions_of_a_picture_that_is_not_square() -> None:
    """Three rows of two: the second axis has its own rotation, and no weight is kept for it."""
    shape = dataclasses.replace(SHAPE, grid=(3, 2))
    assert shape.num_positions == 6
    net = create(shape=shape)
    assert net.rotation_cosine.shape == net.rotation_sine.shape == (6, 4)
    torch.testing.assert_close(net.rotation_sine[3], torch.tensor([1.0, 0.1, 1.0, 0.1]).sin())
    assert not any("rotation" in name for name in net.state_dict())


def test_half_the_layers_encode_and_half_predict() -> None:
    made = create(depth=6)
    assert len(made.self_decoder) == len(made.cross_decoder) == 3
    cache = made.encode_context(TEXT)
    assert isinstance(cache, KVCache)
    assert len(cache.keys) == len(cache.values) == 6
    assert cache.keys[0].shape == (2, 2, 5, 8)


@BOTH
def test_muon_gets_the_matrices_inside_the_layers(books: int) -> None:
    """And those of the step from a code to the next."""
    net = TRANSFORMERS[books]
    names = {id(p): name for name, p in net.named_parameters()}
    hidden = {names[id(p)] for p in net.hidden_matrices()}
    steps = {f"next_code.0.{matrix}.weight" for matrix in ("mlp_in", "mlp_out")}
    matrices = ("query", "key_value", "attention_out", "mlp_in", "mlp_out")
    assert hidden == {
        f"{half}.{index}.{matrix}.weight"
        for half in ("self_decoder", "cross_decoder")
        for index in range(2)
        for matrix in matrices
    } | (steps if books == 2 else set())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "`heads` must divide `width`: 3 does not divide 128"),
        (
            {"width": 24, "heads": 4},
            "`width` over `heads` must be a multiple of 4, for the positions along two axes: "
            "24 / 4 is 6",
        ),
        ({"depth": 3}, "`depth`: got: `3`; input should be a multiple of 2"),
        ({"depth": 0}, "`depth`: got: `0`; input should be greater than or equal to 2"),
        ({"dropout": 1.0}, "`dropout`: got: `1.0`; input should be less than 1"),
        ({"dropout": float("nan")}, "`dropout`: got: `nan`; input should be"),
    ],
)
def test_invalid_settings(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TransformerSettings().replace(**changes)
