"""Several codes at a position: by hand, as quantizers alone, and as the peer's residual codes."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from vector_quantize_pytorch import ResidualVQ

from tessella.config import build
from tessella.errors import ShapeError
from tessella.tokenizer import (
    Codebooks,
    FiniteScalarQuantizer,
    FiniteScalarSettings,
    Quantized,
    VectorQuantizer,
    VectorQuantizerSettings,
    look_up_codes,
    number_codes,
)

PLAIN = VectorQuantizerSettings(codebook_size=12, code_width=3, normalize=False)
ROTATED = PLAIN.replace(gradient="rotation")
AVERAGED = PLAIN.replace(learning="ema")
ON_SPHERE = PLAIN.replace(normalize=True)
GRID = FiniteScalarSettings(levels=(3, 4, 5))
RESIDUAL = PLAIN.replace(codes_per_position=3, composition="residual")


def train(codebooks: Codebooks | VectorQuantizer, latents: list[Tensor]) -> list[Quantized]:
    """Learns from some latents, by gradient too."""
    made = []
    for latent in latents:
        made.append(codebooks(latent))
        if made[-1].loss.requires_grad:
            codebooks.zero_grad()
            made[-1].loss.backward()
            with torch.no_grad():
                for parameter in codebooks.parameters():
                    parameter.sub_(parameter.grad)
    return made


@pytest.mark.parametrize("composition", ["product", "residual"])
@pytest.mark.parametrize(
    "settings", [PLAIN, ROTATED, AVERAGED, ON_SPHERE], ids=["plain", "rotated", "ema", "sphere"]
)
def test_one_code_is_a_quantizer_alone_bit_for_bit(
    settings: VectorQuantizerSettings, composition: str
) -> None:
    """Codes, values, losses, what is learned, gradients, and the random numbers that it takes."""
    latents = [torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(3)]
    found = []
    for create in (Codebooks, VectorQuantizer):
        torch.manual_seed(1)
        quantizer = create(settings.replace(composition=composition)).train()
        made = train(quantizer, [latent.detach() for latent in latents])
        latents[0].grad = None
        last = quantizer(latents[0])
        (last.quantized.square().sum() + last.loss).backward()
        codes = [one.codes.flatten() for one in made]
        values = [value for one in made for value in (one.quantized, one.loss)]
        state = [*quantizer.state_dict().values(), torch.get_rng_state()]
        found.append([*codes, *values, *state, latents[0].grad])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("settings", [PLAIN, AVERAGED, ON_SPHERE], ids=["plain", "ema", "sphere"])
def test_product_codes_are_independent_quantizers(settings: VectorQuantizerSettings) -> None:
    latents = [torch.randn(2, 9, 4, 5) for _ in range(3)]
    torch.manual_seed(1)
    ours = Codebooks(settings.replace(codes_per_position=3)).train()
    torch.manual_seed(1)
    alone = [VectorQuantizer(settings).train() for _ in range(3)]
    torch.manual_seed(2)
    for latent in latents:
        made = ours(latent)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    for latent in latents:
        each = [one(latent[:, 3 * m : 3 * m + 3]) for m, one in enumerate(alone)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(made.codes, torch.stack([one.codes for one in each], 1))
    assert torch.equal(made.quantized, torch.cat([one.quantized for one in each], 1))
    torch.testing.assert_close(made.loss, sum(one.loss for one in each) / 3)
    for m, one in enumerate(alone):
        groups = ours.codebook[m].view(12, 3, 3)
        assert torch.equal(groups[:, m], one.codebook)
        assert not groups[:, [other for other in range(3) if other != m]].any()
    latent = torch.randn(2, 9, 3, 3)
    codes = ours.encode(latent)
    for m, one in enumerate(alone):
        assert torch.equal(codes[:, m], one.encode(latent[:, 3 * m : 3 * m + 3]))


def test_a_grid_has_product_codes_too() -> None:
    """Two grids side by side, and their vectors the sum of both."""
    ours, alone = Codebooks(GRID.replace(codes_per_position=2)), FiniteScalarQuantizer(GRID)
    latent = torch.randn(2, 6, 4, 4)
    halves = [alone(half) for half in latent.chunk(2, 1)]
    made = ours(latent)
    assert torch.equal(made.codes, torch.stack([half.codes for half in halves], 1))
    assert torch.equal(made.quantized, torch.cat([half.quantized for half in halves], 1))
    torch.testing.assert_close(ours.look_up(made.codes), made.quantized)


def create_residual(books: Tensor, **changes: Any) -> Codebooks:
    """Residual codebooks (M, K, C) in training, whose tails are kept."""
    values = {"composition": "residual", "normalize": False, "tail_dropout": 0.0, **changes}
    num_codes, size, width = books.shape
    values |= {"codes_per_position": num_codes, "codebook_size": size, "code_width": width}
    codebooks = Codebooks(build(VectorQuantizerSettings, values))
    for part, vectors in zip(codebooks.parts, books, strict=True):
        changed = {"vectors": vectors, "cluster_sum": vectors, "started": torch.tensor(True)}
        state = part.state_dict()
        part.load_state_dict({name: changed.get(name, state[name]) for name in state})
    return codebooks.train()


def test_residual_codes_by_hand() -> None:
    """(10, 4): the nearest of the first is (9, 0), of what is left (1, 4), it is (0, 3)."""
    books = torch.tensor([[[0.0, 0.0], [9.0, 0.0]], [[0.0, 3.0], [5.0, 5.0]]])
    latent = torch.tensor([10.0, 4.0])[None, :, None, None]
    codebooks = create_residual(books, commitment_weight=0.25)
    made = codebooks(latent)
    assert made.codes.flatten().tolist() == [1, 0]
    assert made.quantized.flatten().tolist() == [9.0, 3.0]
    # What is left over is (1, 4), then (1, 1): mean squares 8.5 and 1.
    assert made.loss.item() == pytest.approx(1.25 * (8.5 + 1.0) / 2)
    assert codebooks.look_up(made.codes[:, :1]).flatten().tolist() == [9.0, 0.0]


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_residual_codes_are_the_peer_s(learning: str) -> None:
    """Over three steps of training, codebooks that move by their averages included.

    The peer's one loss has the gradient of our commitment and of our codebook loss. Gradients of
    the values differ: theirs, passed straight through, is counted once for each codebook.
    """
    torch.manual_seed(0)
    books = torch.randn(3, 6, 4)
    is_ema = learning == "ema"
    theirs = ResidualVQ(
        dim=4,
        num_quantizers=3,
        codebook_size=6,
        learnable_codebook=not is_ema,
        ema_update=is_ema,
        decay=0.9,
        commitment_weight=1.0,
        rotation_trick=False,
    ).train()
    for layer, vectors in zip(theirs.layers, books, strict=True):
        with torch.no_grad():
            layer._codebook.embed.copy_(vectors[None])
            layer._codebook.embed_avg.copy_(vectors[None])
            layer._codebook.cluster_size.fill_(1.0)
    ours = create_residual(
        books, learning=learning, ema_decay=0.9, commitment_weight=1.0, revive_after_images=10**9
    )
    for _ in range(3):
        mine = torch.randn(2, 4, 3, 5, requires_grad=True)
        other = mine.detach().clone().requires_grad_()
        made = ours(mine)
        quantized, codes, losses = theirs(other.flatten(2).mT)
        assert torch.equal(made.codes.flatten(2), codes.mT)
        torch.testing.assert_close(made.quantized.flatten(2), quantized.mT)
        torch.testing.assert_close(made.loss / (1 if is_ema else 2), losses.mean())
        torch.testing.assert_close(ours.codebook, theirs.codebooks)
        made.loss.backward()
        losses.mean().backward()
        torch.testing.assert_close(mine.grad, other.grad)
    latent = torch.randn(2, 4, 3, 5)
    quantized, codes, _ = theirs.eval()(latent.flatten(2).mT)
    assert torch.equal(ours.eval().encode(latent).flatten(2), codes.mT)
    torch.testing.assert_close(ours(latent).quantized.flatten(2), quantized.mT)


def test_the_decoder_sees_the_vectors_that_were_chosen() -> None:
    """Averages have moved the codebook by then: what is left over is of the codebook before."""
    torch.manual_seed(0)
    books = torch.randn(3, 6, 4)
    codebooks = create_residual(books, learning="ema", ema_decay=0.5)
    made = codebooks(torch.randn(2, 4, 3, 5))
    assert torch.equal(made.quantized, look_up_codes(books, made.codes))
    assert not torch.allclose(codebooks.codebook, books, atol=0.1)


@pytest.mark.parametrize("normalize", [False, True])
def test_every_residual_code_comes_nearer(normalize: bool) -> None:
    """Of the pictures that it started from and of others; with the normal settings too."""
    torch.manual_seed(0)
    settings = VectorQuantizerSettings(
        codebook_size=16, codes_per_position=4, composition="residual", normalize=normalize
    )
    codebooks = Codebooks(settings).train()
    codebooks(torch.randn(4, 8, 16, 16))
    latent = torch.randn(4, 8, 16, 16)
    codes = codebooks.eval().encode(latent)
    target = functional.normalize(latent, dim=1) if normalize else latent
    errors = [
        functional.mse_loss(codebooks.look_up(codes[:, :m]), target).item() for m in range(1, 5)
    ]
    whole = target.square().mean().item()
    for before, after in zip([whole, *errors], errors, strict=False):
        assert after < 0.85 * before


def test_normalised_residual_codes_tell_directions_only() -> None:
    """Latents are put on the sphere once, codebooks are not: what is left over is shorter."""
    torch.manual_seed(0)
    codebooks = Codebooks(RESIDUAL.replace(normalize=True, tail_dropout=0.0)).train()
    latent = torch.randn(2, 3, 6, 6, requires_grad=True)
    made = codebooks(latent)
    first, *_, last = codebooks.codebook.norm(dim=2)
    assert first.mean() > 0.8
    assert last.max() < 0.6
    assert torch.equal(codebooks.eval().encode(latent), codebooks.encode(1024 * latent))
    # The gradient passes through the normalisation.
    weight = torch.randn(latent.shape)
    (made.quantized * weight).sum().backward()
    other = latent.detach().clone().requires_grad_()
    (functional.normalize(other, dim=1) * weight).sum().backward()
    torch.testing.assert_close(latent.grad, other.grad)


@pytest.mark.parametrize("tail_dropout", [0.0, 0.25, 1.0])
def test_tails_are_dropped_in_training_only(tail_dropout: float) -> None:
    """Of 3,000 pictures as many as were asked for (three deviations), at all places alike."""
    torch.manual_seed(0)
    settings = RESIDUAL.replace(tail_dropout=tail_dropout)
    codebooks = Codebooks(settings).train()
    codebooks(torch.randn(4, 3, 8, 8))
    latent = torch.randn(3000, 3, 1, 2, requires_grad=True)
    weight = torch.randn(latent.shape)
    made = codebooks(latent)
    (made.quantized * weight).sum().backward()
    assert torch.equal(latent.grad, weight)  # straight through, cut or not
    assert torch.equal(made.codes, codebooks.encode(latent))  # all of them, whatever is decoded
    prefixes = [codebooks.look_up(made.codes[:, :m]) for m in range(1, 4)]
    is_prefix = torch.stack([(made.quantized == one).flatten(1).all(1) for one in prefixes])
    one, two, whole = is_prefix.sum(1).tolist()
    assert one + two + whole == 3000
    spread = 3 * (3000 * tail_dropout * (1 - tail_dropout)) ** 0.5
    assert abs(one + two - 3000 * tail_dropout) <= spread
    assert abs(one - two) <= 3 * (3000 * tail_dropout) ** 0.5
    seen = codebooks.eval()(latent)
    assert torch.equal(seen.quantized, codebooks.look_up(seen.codes))


def test_the_rotation_of_residual_codes_by_hand() -> None:
    """(1, 0) becomes (0, 1.5) + (0, 0.5): a quarter turn and twice the length."""
    far = [-9.0, -9.0]
    books = torch.tensor([[[0.0, 1.5], far], [[0.0, 0.5], far]])
    codebooks = create_residual(books, gradient="rotation")
    for weight, expected in (([1.0, 0.0], [0.0, -2.0]), ([0.0, 1.0], [2.0, 0.0])):
        latent = torch.tensor([1.0, 0.0])[None, :, None, None].requires_grad_()
        made = codebooks(latent)
        assert made.quantized.flatten().tolist() == [0.0, 2.0]
        (made.quantized.flatten() @ torch.tensor(weight)).backward()
        assert latent.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_autocast_does_not_coarsen_what_is_left_over() -> None:
    """1000.25 is 1000 and 0.25; in bfloat16 it would be 1000 and nothing."""
    books = torch.tensor([[[1000.0], [0.0]], [[0.0], [0.25]]])
    codebooks = create_residual(books)
    latent = torch.full((1, 1, 1, 1), 1000.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = codebooks(latent)
        codes = codebooks.encode(latent)
    assert made.codes.flatten().tolist() == codes.flatten().tolist() == [0, 1]
    assert made.quantized.item() == 1000.25


def test_looking_up_adds_the_vectors() -> None:
    codebook = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])
    codes = torch.tensor([[[0, 1, 1], [1, 1, 0]]])  # (1, 2, 3)
    assert look_up_codes(codebook, codes).tolist() == [[[21.0, 22.0, 12.0]]]
    assert look_up_codes(codebook, codes[:, :1]).tolist() == [[[1.0, 2.0, 2.0]]]
    for wrong in (codes.movedim(2, 1), codes[:, :0]):
        with pytest.raises(ShapeError, match=r"number of codebooks, 2: `\(1, .*codes\[:, None\]"):
            look_up_codes(codebook, wrong)


def test_codes_of_all_codebooks_are_numbered() -> None:
    codes = torch.tensor([[[0, 1, 4], [0, 1, 4]]])  # (1, 2, 3)
    expected = torch.tensor([[[0, 1, 4], [5, 6, 9]]])
    assert torch.equal(number_codes(codes, 5), expected)
    assert torch.equal(number_codes(codes[..., None], 5), expected[..., None])
    for dim in (2, -1):
        assert torch.equal(number_codes(codes.mT, 5, dim), expected.mT)
    assert torch.equal(number_codes(codes[0], 5, 0), expected[0])
