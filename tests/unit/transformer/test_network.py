"""The transformer: who sees what, and that reading in pieces is reading at once."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tessella.errors import ConfigError
from tessella.transformer import Memory, Transformer, TransformerSettings, TransformerShape

PAD = 0
SHAPE = TransformerShape(
    vocabulary_size=11, max_text_tokens=6, pad_id=PAD, codebook_size=7, num_places=9
)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def create(depth: int = 4, width: int = 16, heads: int = 2) -> Transformer:
    """A transformer whose every weight matters: layers that start as the identity hide mistakes."""
    torch.manual_seed(0)
    made = Transformer(TransformerSettings(width=width, depth=depth, heads=heads), SHAPE).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    nn.init.normal_(made.question)
    return made.requires_grad_(False)


TRANSFORMER = create()
TEXT = torch.tensor([[1, 5, 3, 2, PAD], [1, 2, PAD, PAD, PAD]])


def draw(batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes of all places, in a random order of places."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.stack([torch.randperm(9, generator=generator) for _ in range(batch)])
    return torch.randint(7, (batch, 9), generator=generator), places


def logits_of_all(codes: Tensor, places: Tensor, text: Tensor = TEXT) -> Tensor:
    """Every place asked with the codes before it in the order, as in training."""
    memory = TRANSFORMER.read_text(text)
    memory = TRANSFORMER.read_codes(memory, codes[:, :-1], places[:, :-1])
    return TRANSFORMER.ask(memory, places, torch.arange(9))


def test_against_one_pass_over_everything() -> None:
    """Text and codes as one sequence under one mask, no memory: the same logits."""
    codes, places = draw()
    net, length = TRANSFORMER, TEXT.shape[1]
    hidden = torch.cat(
        [
            net.text_embedding.weight[TEXT] + net.text_position.weight[:length],
            net.code_embedding.weight[codes] + net.place_embedding.weight[places],
        ],
        dim=1,
    )
    text = (TEXT != PAD)[:, None, :].expand(-1, 9, -1)  # who sees which word
    no_code = torch.zeros(2, length, 9, dtype=torch.bool)
    reads = torch.cat([text[:, :1].expand(-1, length, -1), no_code], 2)
    before = torch.ones(9, 9).bool().tril(-1).expand(2, -1, -1)
    asks = torch.cat([text, before], 2)
    reads = torch.cat([reads, torch.cat([text, before | torch.eye(9).bool()], 2)], 1)
    for layer in net.reading:
        normed = layer.attention_norm(hidden)
        hidden = layer(hidden, normed, *layer.remember(normed), reads[:, None])
    made = net.memory_norm(hidden)
    questions = net.question + net.place_embedding.weight[places]
    for layer in net.asking:
        normed = layer.attention_norm(questions)
        questions = layer(questions, normed, *layer.remember(made), asks[:, None])
    expected = net.out_norm(questions) @ net.out.weight.T + net.out.bias
    torch.testing.assert_close(logits_of_all(codes, places), expected, **CLOSE)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 8), max_size=4, unique=True), st.integers(0, 99))
def test_reading_in_pieces_is_reading_at_once(cuts: list[int], seed: int) -> None:
    codes, places = draw(seed=seed)
    at_once = TRANSFORMER.read_codes(TRANSFORMER.read_text(TEXT), codes, places)
    pieces = TRANSFORMER.read_text(TEXT)
    edges = [0, *sorted(cuts), 9]
    for start, end in itertools.pairwise(edges):
        pieces = TRANSFORMER.read_codes(pieces, codes[:, start:end], places[:, start:end])
    assert pieces.num_codes == at_once.num_codes == 9
    for mine, theirs in zip(
        pieces.keys + pieces.values, at_once.keys + at_once.values, strict=True
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    everything = torch.full((9,), 9)
    torch.testing.assert_close(
        TRANSFORMER.ask(pieces, places, everything),
        TRANSFORMER.ask(at_once, places, everything),
        **CLOSE,
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 7), st.integers(0, 99))
def test_a_code_changes_only_what_comes_after_it(changed: int, seed: int) -> None:
    codes, places = draw(seed=seed)
    others = codes.clone()
    others[:, changed] = (others[:, changed] + 3) % 7
    before, after = logits_of_all(codes, places), logits_of_all(others, places)
    # The question at index i sees the codes 0 to i - 1.
    torch.testing.assert_close(after[:, : changed + 1], before[:, : changed + 1], **CLOSE)
    moved = (after[:, changed + 1 :] - before[:, changed + 1 :]).abs().amax((0, 2))
    assert (moved > 1e-3).all()


def test_where_a_code_lies_matters() -> None:
    codes, places = draw()
    moved = places.clone()
    moved[:, [0, 1]] = moved[:, [1, 0]]
    memory = TRANSFORMER.read_text(TEXT)
    asked, seen = places[:, 2:], torch.full((7,), 2)
    before = TRANSFORMER.ask(
        TRANSFORMER.read_codes(memory, codes[:, :2], places[:, :2]), asked, seen
    )
    after = TRANSFORMER.ask(TRANSFORMER.read_codes(memory, codes[:, :2], moved[:, :2]), asked, seen)
    assert (before - after).abs().max() > 1e-3


def test_padding_changes_nothing() -> None:
    """A prompt gives the same alone as beside a longer one; what the padding holds is not read."""
    codes, places = draw()
    expected = logits_of_all(codes, places)[1:]
    alone = logits_of_all(codes[1:], places[1:], TEXT[1:, :2])
    torch.testing.assert_close(alone, expected, **CLOSE)
    memory = TRANSFORMER.read_text(TEXT[1:])
    for layer in (*memory.keys, *memory.values):
        layer[:, :, 2:] = 1e3  # keys and values of the padding
    memory = TRANSFORMER.read_codes(memory, codes[1:, :-1], places[1:, :-1])
    made = TRANSFORMER.ask(memory, places[1:], torch.arange(9))
    torch.testing.assert_close(made, expected, **CLOSE)


def test_every_word_matters_to_every_place() -> None:
    """The text is read in both directions: the last word reaches the first and the other way."""
    codes, places = draw(1)
    before = logits_of_all(codes, places, TEXT[:1])
    for index in range(4):
        text = TEXT[:1].clone()
        text[0, index] = 7
        moved = (logits_of_all(codes, places, text) - before).abs().amax((0, 2))
        assert (moved > 1e-4).all(), index
    exchanged = logits_of_all(codes, places, TEXT[:1, [0, 2, 1, 3]])
    assert (exchanged - before).abs().max() > 1e-4


def test_the_text_does_not_see_the_codes() -> None:
    codes, places = draw()
    memory = TRANSFORMER.read_text(TEXT)
    kept = [tensor.clone() for tensor in (*memory.keys, *memory.values)]
    longer = TRANSFORMER.read_codes(memory, codes, places)
    for before, now, given_ in zip(
        kept, longer.keys + longer.values, memory.keys + memory.values, strict=True
    ):
        assert torch.equal(now[:, :, : TEXT.shape[1]], before)
        assert torch.equal(given_, before)  # the memory given stays as it is
    assert memory.num_codes == 0


@pytest.mark.parametrize("seen", [0, 4, 9])
def test_questions_do_not_see_each_other(seen: int) -> None:
    codes, places = draw()
    memory = TRANSFORMER.read_codes(TRANSFORMER.read_text(TEXT), codes, places)
    together = TRANSFORMER.ask(memory, places, torch.full((9,), seen))
    for index in range(9):
        alone = TRANSFORMER.ask(memory, places[:, index : index + 1], torch.tensor([seen]))
        torch.testing.assert_close(alone[:, 0], together[:, index], **CLOSE)
    # And each place is a question of its own.
    assert (together[:, 1:] - together[:, :-1]).abs().amax((0, 2)).min() > 1e-3


def test_one_reading_serves_many_pictures() -> None:
    codes, places = draw(3)
    rows = torch.tensor([1, 0, 1])
    once = TRANSFORMER.read_text(TEXT).select(rows)
    once = TRANSFORMER.ask(TRANSFORMER.read_codes(once, codes, places), places, torch.arange(9))
    each = TRANSFORMER.read_text(TEXT[rows])
    each = TRANSFORMER.ask(TRANSFORMER.read_codes(each, codes, places), places, torch.arange(9))
    torch.testing.assert_close(once, each, **CLOSE)


def test_no_codes_may_be_read() -> None:
    """A picture of a single place is trained so: there is no code before it."""
    memory = TRANSFORMER.read_text(TEXT)
    nothing = torch.empty(2, 0, dtype=torch.int64)
    longer = TRANSFORMER.read_codes(memory, nothing, nothing)
    assert longer.num_codes == 0
    places = torch.tensor([[3], [4]])
    torch.testing.assert_close(
        TRANSFORMER.ask(longer, places, torch.tensor([0])),
        TRANSFORMER.ask(memory, places, torch.tensor([0])),
    )


def test_layers_are_read_and_asked_half_and_half() -> None:
    made = create(depth=6)
    assert len(made.reading) == len(made.asking) == 3
    memory = made.read_text(TEXT)
    assert isinstance(memory, Memory)
    assert len(memory.keys) == len(memory.values) == 6
    assert memory.keys[0].shape == (2, 2, 5, 8)


def test_muon_gets_the_matrices_inside_the_layers() -> None:
    names = {id(p): name for name, p in TRANSFORMER.named_parameters()}
    hidden = {names[id(p)] for p in TRANSFORMER.hidden_matrices()}
    matrices = ("query", "key_value", "attention_out", "mlp_in", "mlp_out")
    assert hidden == {
        f"{half}.{index}.{matrix}.weight"
        for half in ("reading", "asking")
        for index in range(2)
        for matrix in matrices
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": 3}, "`heads` must divide `width`: 3 does not divide 128"),
        ({"depth": 3}, "`depth`: got: `3`; input should be a multiple of 2"),
        ({"depth": 0}, "`depth`: got: `0`; input should be greater than or equal to 2"),
        ({"dropout": 1.0}, "`dropout`: got: `1.0`; input should be less than 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TransformerSettings().replace(**changes)
