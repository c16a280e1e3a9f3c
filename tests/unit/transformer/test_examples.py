"""Examples beside the prompt: what they add to the cache, and what must not depend on them."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import ShapeError
from tessella.transformer import (
    Examples,
    KVCache,
    Transformer,
    TransformerSettings,
    TransformerShape,
)
from tessella.transformer.examples import average_tokens

PAD, K, N, MOST = 0, 7, 6, 3
SHAPE = TransformerShape(
    vocabulary_size=11,
    max_text_tokens=6,
    pad_id=PAD,
    codebook_size=K,
    grid=(3, 2),
    code_width=2,
    max_examples=MOST,
)
FEATURES = dataclasses.replace(SHAPE, text_features=5)
PAIRS = dataclasses.replace(SHAPE, codes_per_position=2)
SIZE = TransformerSettings(width=16, depth=4, heads=2)
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
EVERY = pytest.mark.parametrize(
    "shape", [SHAPE, FEATURES, PAIRS], ids=["tokens", "features", "pairs"]
)
TEXT = torch.tensor([[1, 5, 3, 2, PAD], [1, 2, PAD, PAD, PAD]])
FEATURE_ROWS = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
EVERYWHERE = torch.arange(N).expand(2, -1)


def create(shape: TransformerShape = SHAPE) -> Transformer:
    """A transformer whose every weight matters."""
    torch.manual_seed(0)
    network = Transformer(SIZE, shape).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    nn.init.normal_(network.mask_token)
    return network.requires_grad_(False)


def as_input(tokens: Tensor, shape: TransformerShape) -> Tensor:
    """Tokens as they are, or as features whose padding is zero."""
    if shape.text_features is None:
        return tokens
    return FEATURE_ROWS[tokens] * (tokens != PAD)[..., None]


def draw(counts: tuple[int, ...], shape: TransformerShape = SHAPE) -> Examples:
    """Draws a row of examples a picture, the missing ones last."""
    generator = torch.Generator().manual_seed(0)
    size = (len(counts), max(counts))
    codes = torch.randint(K, (*size, N, shape.codes_per_position), generator=generator)
    tokens = torch.randint(1, 11, (*size, 4), generator=generator)
    tokens[:, :, 3] = PAD
    tokens[:, ::2, 2] = PAD
    missing = torch.arange(size[1]) >= torch.tensor(counts)[:, None]
    return Examples(codes.masked_fill(missing[..., None, None], -1), as_input(tokens, shape))


def pick(examples: Examples, *key: Any) -> Examples:
    return Examples(examples.codes[key], examples.text[key])


def predict(network: Transformer, text: Tensor, examples: Examples | None) -> Tensor:
    """Hidden rows of every position after three codes."""
    cache = network.encode_context(text, examples)
    codes = torch.tensor([4, 1, 6])[None, :, None]
    codes = codes.expand(len(text), -1, network.shape.codes_per_position)
    network.append_codes(cache, codes, torch.tensor([[5, 0, 3]]).expand(len(text), -1))
    return network.predict(cache, EVERYWHERE[: len(text)], torch.full((N,), 3))


# Written out plainly: loops over the places around, complex numbers for rotations.


def embed(network: Transformer, codes: Tensor, tokens: Tensor, shape: TransformerShape) -> Tensor:
    """Rows (N, D) of one example."""
    encoder = network.example_encoder
    assert encoder is not None
    words = network.text_embedding(as_input(tokens[tokens != PAD], shape))
    tables = encoder.code_embedding.weight.split(K)
    rows = sum(table[one] for table, one in zip(tables, codes.unbind(1), strict=True))
    rows = rows / len(tables) ** 0.5 + network.position_embedding.weight
    rows = rows + encoder.caption.weight @ words.mean(0)
    height, width = shape.grid
    mixed = []
    for place in range(N):
        near = encoder.mix_in.bias
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                y, x = place // width + down, place % width + right
                if 0 <= y < height and 0 <= x < width:
                    weight = encoder.mix_in.weight[:, 0, 1 + down, 1 + right]
                    near = near + weight * rows[y * width + x]
        mixed.append(encoder.mix_out.weight @ near.clamp(min=0) ** 2)
    rows = rows + torch.stack(mixed)
    return functional.layer_norm(rows, (16,), encoder.norm.weight)


def turn(rows: Tensor, width: int) -> Tensor:
    """Turns rows (heads, N, 8) to their places of a grid."""
    places = torch.arange(N)
    by_axis = torch.stack([places // width, places % width], -1)[..., None]
    angles = (by_axis * torch.tensor([1.0, 0.1])).flatten(1)  # (N, 4)
    pairs = torch.complex(rows[..., :4], rows[..., 4:]) * torch.exp(1j * angles)
    return torch.cat([pairs.real, pairs.imag], -1)


@EVERY
def test_keys_and_values_by_hand(shape: TransformerShape) -> None:
    """Each example by itself, from its embedding; the same in all layers of a half."""
    network = create(shape)
    tokens = draw((3, 3)).text
    examples = Examples(draw((3, 3), shape).codes, as_input(tokens, shape))
    cache = network.encode_context(as_input(TEXT, shape), examples)
    assert cache.length == TEXT.shape[1] + 3 * N
    assert cache.num_codes == 0
    encoder = network.example_encoder
    assert encoder is not None
    weights = encoder.key_value.weight.chunk(4)  # keys and values of the first half, the second
    for index in range(network.settings.depth):
        half = index // (network.settings.depth // 2)
        key_weight, value_weight = weights[2 * half : 2 * half + 2]
        norm = encoder.key_norms[half].weight
        for picture in range(2):
            for number in range(3):
                rows = embed(
                    network, examples.codes[picture, number], tokens[picture, number], shape
                )
                keys, values = (
                    (rows @ weight.T).unflatten(-1, (2, 8)).transpose(0, 1)
                    for weight in (key_weight, value_weight)
                )
                keys = turn(functional.layer_norm(keys, (8,), norm), 2)
                start = TEXT.shape[1] + number * N
                made = (
                    part[index][picture, :, start : start + N]
                    for part in (cache.keys, cache.values)
                )
                for mine, theirs in zip(made, (keys, values), strict=True):
                    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@EVERY
def test_what_they_show_at_each_position_by_hand(shape: TransformerShape) -> None:
    """The second picture has one example, the third none."""
    network = create(shape)
    tokens = draw((2, 1, 0)).text
    examples = Examples(draw((2, 1, 0), shape).codes, as_input(tokens, shape))
    prompts = torch.cat([TEXT, TEXT[:1]])
    cache = network.encode_context(as_input(prompts, shape), examples)
    encoder = network.example_encoder
    assert encoder is not None
    assert cache.aligned is not None

    def average(tokens: Tensor) -> Tensor:
        return network.text_embedding(as_input(tokens[tokens != PAD], shape)).mean(0)

    for picture, count in enumerate((2, 1, 0)):
        expected = torch.zeros(N, 16)
        if count:
            rows = torch.stack(
                [
                    embed(network, examples.codes[picture, one], tokens[picture, one], shape)
                    for one in range(count)
                ]
            )
            query = encoder.prompt_query.weight @ average(prompts[picture])
            keys = [encoder.caption_key.weight @ average(one) for one in tokens[picture, :count]]
            said = 3 * torch.stack([key @ query for key in keys])
            worth = (rows @ encoder.relevance.weight[0] + said[:, None]).exp()
            mean = (rows * worth[..., None]).sum(0) / worth.sum(0)[..., None]
            expected = mean @ encoder.aligned.weight.T
        torch.testing.assert_close(cache.aligned[picture], expected, atol=1e-4, rtol=1e-4)
    embedded = network._embed_positions(cache, EVERYWHERE[:1].expand(3, -1).flip(1))
    expected = cache.aligned.flip(1) + network.position_embedding.weight.flip(0)
    torch.testing.assert_close(embedded, expected)


def test_captions_are_averaged_without_padding() -> None:
    rows = torch.tensor([[[2.0, 4.0], [4.0, 0.0], [9.0, 9.0]], [[1.0, 1.0]] * 3])
    visible = torch.tensor([[True, True, False], [False, False, False]])
    assert average_tokens(rows, visible).tolist() == [[3.0, 2.0], [0.0, 0.0]]


# What an example changes, and what it must not.


@EVERY
def test_the_text_s_rows_stay_as_they_are(shape: TransformerShape) -> None:
    network, text = create(shape), as_input(TEXT, shape)
    alone, beside = network.encode_context(text), network.encode_context(text, draw((2, 3), shape))
    for mine, theirs in zip(beside.keys + beside.values, alone.keys + alone.values, strict=True):
        assert torch.equal(mine[:, :, : TEXT.shape[1]], theirs)
    assert torch.equal(beside.context_visible[:, : TEXT.shape[1]], alone.context_visible)


@EVERY
def test_any_number_of_examples(shape: TransformerShape) -> None:
    """One beside three in a batch: each picture as alone with its own."""
    network, text = create(shape), as_input(TEXT, shape)
    for counts in ((1, 3), (3, 0), (2, 1), (0, 2)):
        examples = draw(counts, shape)
        together = predict(network, text, examples)
        for row, count in enumerate(counts):
            own = pick(examples, slice(row, row + 1), slice(0, count))
            alone = predict(network, text[row : row + 1], own if count else None)
            torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)


def test_what_is_missing_is_not_read() -> None:
    """Not even its caption; and a missing example may stand before a present one."""
    network, examples = create(), draw((1, 3))
    before = predict(network, TEXT, examples)
    text = examples.text.clone()
    text[0, 1:] = 9
    assert torch.equal(predict(network, TEXT, Examples(examples.codes, text)), before)
    last_first = pick(examples, slice(None), [2, 1, 0])
    torch.testing.assert_close(predict(network, TEXT, last_first), before, **CLOSE)

    cache = network.encode_context(TEXT, examples)
    for layer in (*cache.keys, *cache.values):
        layer[0, :, TEXT.shape[1] + N :] = 1e3
    none = torch.zeros(N, dtype=torch.int64)
    expected = network.predict(network.encode_context(TEXT, examples), EVERYWHERE, none)
    torch.testing.assert_close(network.predict(cache, EVERYWHERE, none), expected, **CLOSE)


@EVERY
def test_the_order_of_examples_does_not_matter(shape: TransformerShape) -> None:
    network, text, examples = create(shape), as_input(TEXT, shape), draw((3, 3), shape)
    before = predict(network, text, examples)
    for order in ([1, 2, 0], [2, 1, 0]):
        torch.testing.assert_close(
            predict(network, text, pick(examples, slice(None), order)), before, **CLOSE
        )


def test_without_examples_it_is_the_text_alone_bit_for_bit() -> None:
    network = create()
    expected = predict(network, TEXT, None)
    nothing = pick(draw((1, 1)), slice(None), slice(0, 0))
    assert torch.equal(predict(network, TEXT, nothing), expected)
    plain = Transformer(SIZE, dataclasses.replace(SHAPE, max_examples=0)).eval()
    plain.load_state_dict(
        {n: p for n, p in network.state_dict().items() if not n.startswith("example_encoder")}
    )
    assert torch.equal(predict(plain, TEXT, None), expected)
    assert torch.equal(predict(plain, TEXT, nothing), expected)


@EVERY
def test_everything_of_an_example_matters(shape: TransformerShape) -> None:
    """Each of its codes, where they lie, and its caption: to every position, in both passes."""
    network, text, examples = create(shape), as_input(TEXT, shape), draw((2, 2), shape)

    def masked(now: Examples) -> Tensor:
        known = EVERYWHERE < 2
        cache = network.encode_context(text, now)
        codes = EVERYWHERE[..., None].expand(-1, -1, shape.codes_per_position)
        return network.predict_masked(cache, codes, known)

    changed = []
    for place, m in itertools.product(range(N), range(shape.codes_per_position)):
        codes = examples.codes.clone()
        codes[:, 1, place, m] = (codes[:, 1, place, m] + 3) % K
        changed.append(Examples(codes, examples.text))
    changed.append(Examples(examples.codes.flip(2), examples.text))
    changed.append(Examples(examples.codes, examples.text.flip(1)))
    for look in (masked, lambda now: predict(network, text, now)):
        before = look(examples)
        for now in changed:
            assert ((look(now) - before).abs().amax(-1) > 1e-4).all()


def test_one_encoding_of_examples_serves_many_pictures() -> None:
    network, examples, rows = create(), draw((1, 3)), torch.tensor([1, 0, 1])
    codes, positions = torch.randint(K, (3, N, 1)), torch.arange(N).expand(3, -1)
    everything = torch.arange(N)
    once = network.encode_context(TEXT, examples).select(rows, capacity=N)
    each = network.encode_context(TEXT[rows], pick(examples, rows))
    made = []
    for cache in (once, each):
        assert isinstance(cache, KVCache)
        network.append_codes(cache, codes, positions)
        assert cache.num_codes == N
        made.append(network.predict(cache, positions, everything))
    torch.testing.assert_close(*made, **CLOSE)


def test_empty_rows_are_added() -> None:
    examples = draw((1, 3))
    longer = examples.add_empty(2)
    assert longer.codes.shape == (4, 3, N, 1)
    assert longer.text.shape == (4, 3, 4)
    assert longer.visible.tolist() == [[True, False, False], [True] * 3, *[[False] * 3] * 2]
    assert torch.equal(longer.codes[:2], examples.codes)


@pytest.mark.parametrize("most", [0, 2])
def test_more_examples_than_it_was_made_for(most: int) -> None:
    network = Transformer(SIZE, dataclasses.replace(SHAPE, max_examples=most))
    message = f"The transformer looks at {most} examples at most: `3`."
    with pytest.raises(ShapeError, match=message):
        network.encode_context(TEXT, draw((1, 3)))


# Learning.


@EVERY
def test_gradients_reach_the_encoder(shape: TransformerShape) -> None:
    network = create(shape).requires_grad_(True)
    examples = draw((3, 1), shape)
    predict(network, as_input(TEXT, shape), examples).square().sum().backward()
    assert network.example_encoder is not None
    for name, parameter in network.example_encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    # Of codes that stand in an example alone, in the table of their codebook.
    seen = [one[one >= 0] for one in examples.codes.unbind(-1)]
    is_seen = torch.cat([torch.bincount(one, minlength=K) for one in seen]) > 0
    learned = network.example_encoder.code_embedding.weight.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert torch.equal(learned, is_seen)


def test_missing_examples_teach_nothing() -> None:
    """A batch without examples leaves zeros as gradients, not numbers that are not."""
    network = create().requires_grad_(True)
    examples = draw((1, 1))
    nothing = Examples(torch.full_like(examples.codes, -1), examples.text)
    predict(network, TEXT, nothing).sum().backward()
    assert network.example_encoder is not None
    for parameter in network.example_encoder.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_the_other_weights_begin_as_without_examples() -> None:
    """So that a run with examples and one without differ in the examples alone."""
    made = []
    for most in (0, 3):
        torch.manual_seed(4)
        shape = dataclasses.replace(SHAPE, max_examples=most)
        made.append(Transformer(SIZE, shape).state_dict())
    without, beside = made
    added = {name for name in beside if name not in without}
    assert without.keys() < beside.keys()
    assert {name.split(".")[0] for name in added} == {"example_encoder"}
    for name, tensor in without.items():
        assert torch.equal(beside[name], tensor), name


def test_a_fresh_encoder_does_not_mix() -> None:
    """What lies around comes in as it is learned."""
    torch.manual_seed(0)
    encoder = Transformer(SIZE, SHAPE).example_encoder
    assert encoder is not None
    codes, positions, captions = draw((1,)).codes, torch.randn(N, 16), torch.randn(1, 1, 16)
    rows = encoder.code_embedding(codes) + positions + encoder.caption(captions)[:, :, None]
    expected = functional.layer_norm(rows, (16,)).flatten(1, 2)
    torch.testing.assert_close(encoder(codes, positions, captions), expected, **CLOSE)


def test_similar_codes_begin_with_similar_embeddings() -> None:
    """Codes on a circle: neighbours are alike, opposite ones are not; the scale stays."""
    torch.manual_seed(0)
    count = 64
    network = Transformer(
        TransformerSettings(width=64, depth=2, heads=2),
        dataclasses.replace(SHAPE, codebook_size=count),
    )
    assert network.example_encoder is not None
    tables = {
        "code": network.code_embedding,
        "example": network.example_encoder.code_embedding,
        "out": network.out,
    }
    before = {name: float(table.weight.detach().std()) for name, table in tables.items()}
    angles = torch.arange(count) * (2 * math.pi / count)
    network.embed_codebook(5 + 100 * torch.stack([angles.cos(), 0.01 * angles.sin()], 1)[None])
    for name, table in tables.items():
        rows = table.weight.detach()
        assert float(rows.std()) == pytest.approx(before[name], rel=0.4)
        normed = functional.normalize(rows, dim=1)
        assert (normed * normed.roll(1, 0)).sum(1).min() > 0.9
        assert (normed * normed.roll(count // 2, 0)).sum(1).max() < -0.9
    first, second, _ = (functional.normalize(t.weight.detach(), dim=1) for t in tables.values())
    assert (first * second).sum(1).abs().mean() < 0.5  # each has its own projection


def test_muon_trains_the_encoder_s_matrices() -> None:
    network = create()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    hidden = {names[id(parameter)] for parameter in network.hidden_matrices()}
    added = {name for name in hidden if name.startswith("example_encoder")}
    matrices = ("caption", "mix_out", "key_value", "prompt_query", "caption_key", "aligned")
    assert added == {f"example_encoder.{name}.weight" for name in matrices}
