"""`shared_latent`: what the text decoder sees, what is learned and what is generated."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from tessella.errors import ConfigError
from tessella.generation import GenerationSettings
from tessella.objectives import GenerationBatch, SharedLatentSettings, create_transformer
from tessella.objectives.shared_latent import SharedLatent, SharedLatentTransformer
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

PAD, K, N, V = 0, 7, 6, 11
SHAPE = TransformerShape(V, 6, PAD, codebook_size=K, grid=(2, 3), code_width=2)
SIZE = TransformerSettings(width=16, depth=4, heads=2)
TEXT = torch.tensor([[1, 5, 2, PAD, PAD], [1, 6, 7, 8, 2]])
CODEBOOK = torch.randn(1, K, 2, generator=torch.Generator().manual_seed(5))


def create() -> SharedLatentTransformer:
    torch.manual_seed(0)
    transformer = SharedLatentTransformer(SIZE, SHAPE).eval()
    for parameter in transformer.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4)
    return transformer.requires_grad_(False)


TRANSFORMER = create()
LATENT = torch.randn(2, N, 2, generator=torch.Generator().manual_seed(3))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(1, V - 1))
def test_the_text_decoder_sees_no_token_before_its_turn(changed: int, by: int) -> None:
    others = TEXT.clone()
    others[:, changed] = (others[:, changed] + by) % V
    before, after = (TRANSFORMER.decode_text(LATENT, text) for text in (TEXT, others))
    assert before.shape == (2, 4, V)
    # The logits at index i are of token i + 1 and see the tokens up to i.
    torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-5, rtol=1e-5)
    assert ((after - before)[:, changed:].abs().amax(2) > 1e-4).all()


def test_the_text_decoder_sees_the_whole_latent() -> None:
    before = TRANSFORMER.decode_text(LATENT, TEXT)
    for position in range(N):
        moved = LATENT.clone()
        moved[:, position] += 1
        after = TRANSFORMER.decode_text(moved, TEXT)
        assert ((after - before).abs().amax(2) > 1e-4).all(), position
    turned = TRANSFORMER.decode_text(LATENT.flip(1), TEXT)  # and where each part of it lies
    assert ((turned - before).abs().amax(2) > 1e-4).all()


def test_the_latent_is_of_the_text_and_not_of_its_padding() -> None:
    latent = TRANSFORMER.encode_latent(TEXT)
    assert latent.shape == (2, N, 2)
    alone = TRANSFORMER.encode_latent(TEXT[:1, :3])
    torch.testing.assert_close(alone, latent[:1], atol=1e-5, rtol=1e-5)
    assert ((latent[0] - latent[1]).abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_the_loss_by_hand(weight: float) -> None:
    """Squared distance to the image's latent; cross-entropy of each next word, not of padding."""
    codes = torch.tensor([[[[0, 1, 2], [3, 4, 5]]], [[[6, 5, 4], [3, 2, 1]]]])
    objective = SharedLatent(TRANSFORMER, CODEBOOK, SharedLatentSettings(text_weight=weight))
    scored = objective(TEXT, codes)
    latent = TRANSFORMER.encode_latent(TEXT)
    distance = ((latent - CODEBOOK[0, codes.flatten(1)]) ** 2).mean()
    logits = TRANSFORMER.decode_text(latent, TEXT)
    words = [
        functional.cross_entropy(logits[row, index], TEXT[row, index + 1])
        for row, length in ((0, 3), (1, 5))
        for index in range(length - 1)
    ]
    expected = distance + weight * torch.stack(words).mean()
    assert scored.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    nearest = torch.cdist(latent, CODEBOOK).argmin(-1)
    right = nearest == codes.flatten(1)
    assert scored.accuracy.item() == pytest.approx(right.float().mean().item())


def test_the_words_teach_the_text_encoder_through_the_latent() -> None:
    network = create().requires_grad_(True)
    words = network.decode_text(network.encode_latent(TEXT), TEXT)
    functional.cross_entropy(words.flatten(0, 1), TEXT[:, 1:].flatten()).backward()
    for module in (
        network.latent_out,
        network.cross_decoder[0].query,
        network.self_decoder[0].query,
    ):
        assert module.weight.grad.abs().sum() > 0


def test_the_nearest_codes_are_generated() -> None:
    rows = torch.tensor([1, 0, 1])
    codes = torch.zeros(3, N, 1, dtype=torch.int64)
    known = torch.zeros(3, N, dtype=torch.bool)
    batch = GenerationBatch(TEXT, TEXT, rows, rows, [1, 2, 3], GenerationSettings(), codes, known)
    generated = SharedLatent(TRANSFORMER, CODEBOOK).generate(batch)
    latent = TRANSFORMER.encode_latent(TEXT)[rows]
    nearest = torch.cdist(latent, CODEBOOK).argmin(-1)
    assert generated.codes is not None
    assert torch.equal(generated.codes.flatten(1), nearest)


def test_autocast_does_not_coarsen_the_choice() -> None:
    """In bfloat16 257 is 256, which once made the wrong code the nearest."""
    objective = SharedLatent(TRANSFORMER, torch.tensor([[[0.0], [255.0], [257.0]]]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nearest = objective._find_nearest(torch.tensor([[[257.0], [128.5]]]))
    assert nearest.tolist() == [[[2], [1]]]


@pytest.mark.parametrize("is_product", [True, False])
def test_the_nearest_of_several_codes(is_product: bool) -> None:
    """With channels of its own each codebook's is the nearest, and so is the sum of all.

    Of residual codes the first is the nearest by itself and the next the nearest to what is left.
    """
    generator = torch.Generator().manual_seed(1)
    books = torch.randn(3, K, 2, generator=generator)
    if is_product:
        codebook = torch.stack(
            [functional.pad(book, (2 * m, 4 - 2 * m)) for m, book in enumerate(books)]
        )
    else:
        codebook = books / torch.tensor([1.0, 3.0, 9.0])[:, None, None]
    shape = dataclasses.replace(SHAPE, code_width=codebook.shape[2], codes_per_position=3)
    objective = SharedLatent(SharedLatentTransformer(SIZE, shape), codebook)
    latent = torch.randn(2, N, codebook.shape[2], generator=generator)
    made = objective._find_nearest(latent)
    assert made.shape == (2, N, 3)
    for picture, position in itertools.product(range(2), range(N)):
        rest = latent[picture, position]
        if is_product:
            sums = [(a + b + c - rest).square().sum() for a, b, c in itertools.product(*codebook)]
            nearest = int(torch.stack(sums).argmin())
            expected = [nearest // K**2, nearest // K % K, nearest % K]
        else:
            expected = []
            for book in codebook:
                expected.append(int((book - rest).norm(dim=1).argmin()))
                rest = rest - book[expected[-1]]
        assert made[picture, position].tolist() == expected
    # A picture's own latent gives its own codes where each codebook has its channels.
    if is_product:
        codes = torch.randint(K, (2, N, 3), generator=generator)
        own = sum(codebook[m][codes[..., m]] for m in range(3))
        assert torch.equal(objective._find_nearest(own), codes)


def test_muon_trains_the_text_decoder_too() -> None:
    names = {id(p): name for name, p in TRANSFORMER.named_parameters()}
    hidden = [names[id(p)] for p in TRANSFORMER.hidden_matrices()]
    assert len(hidden) == len(set(hidden))
    layers = {name.rsplit(".", 2)[0] for name in hidden}
    assert layers == {
        f"{p}.{i}" for p in ("self_decoder", "cross_decoder", "text_decoder") for i in range(2)
    }


def test_features_cannot_be_decoded_into_words() -> None:
    shape = dataclasses.replace(SHAPE, text_features=5)
    with pytest.raises(ConfigError, match="a frozen text encoder does not give: leave text"):
        create_transformer(SharedLatentSettings(), SIZE, shape)


def test_a_transformer_without_a_text_decoder() -> None:
    message = "needs a transformer with a text decoder: `Transformer`. Create it with"
    with pytest.raises(ConfigError, match=message):
        SharedLatent(Transformer(SIZE, SHAPE), CODEBOOK)
