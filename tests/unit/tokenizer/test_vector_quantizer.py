"""The vector quantizer: hand-worked numbers, and equality with vector-quantize-pytorch."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vector_quantize_pytorch import VectorQuantize

from tessella.errors import ConfigError, ShapeError
from tessella.tokenizer import VectorQuantizer, VectorQuantizerSettings, vector_quantizer
from tessella.tokenizer.vector_quantizer import nearest_codes


def as_latent(rows: list[list[float]]) -> Tensor:
    """Vectors (N, C) as a latent (1, C, 1, N)."""
    return torch.tensor(rows).T[None, :, None]


def create(start: Tensor | None = None, **changes: object) -> VectorQuantizer:
    """A quantizer in training; `start` takes the place of k-means."""
    quantizer = VectorQuantizer(VectorQuantizerSettings.model_validate(changes))
    if start is not None:
        with torch.no_grad():
            quantizer.vectors.copy_(start)
            if quantizer.settings.learning == "ema":
                quantizer.cluster_sum.copy_(start)
            quantizer.started.fill_(True)
    return quantizer.train()


# The nearest code.


def test_nearest_by_hand() -> None:
    codebook = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    # (1, 1) is 2, 10 and 5 away (squared); (3, 1) 10, 2, 13; (1, 3) 10, 18, 1.
    codes = nearest_codes(as_latent([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0]]), codebook)
    assert codes.tolist() == [[[0, 1, 2]]]
    assert codes.dtype == torch.int64


def test_a_tie_goes_to_the_lower_index() -> None:
    codebook = torch.tensor([[5.0], [1.0], [-1.0], [1.0]])
    assert nearest_codes(as_latent([[0.0], [1.0]]), codebook).tolist() == [[[1, 1]]]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(0, 99),
    st.booleans(),
    st.integers(1, 100),
)
def test_nearest_is_nearest(
    batch: int, size: int, width: int, seed: int, far: bool, at_once: int
) -> None:
    """Whole numbers, so that no rounding hides a wrong choice; however few scores at once."""
    rng = np.random.default_rng(seed)
    reach = 100 if far else 3
    latent = torch.from_numpy(rng.integers(-reach, reach, (batch, width, 2, 3))).float()
    codebook = torch.from_numpy(rng.integers(-reach, reach, (size, width))).float()
    differences = latent.movedim(1, -1)[..., None, :] - codebook
    expected = differences.square().sum(-1).numpy().argmin(-1)  # NumPy's takes the first
    with mock.patch.dict(vector_quantizer._SCORES_AT_ONCE, cpu=at_once):
        assert np.array_equal(nearest_codes(latent, codebook).numpy(), expected)


class LargestTensor(TorchDispatchMode):
    """Watches how large the largest tensor gets that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
        made = function(*arguments, **(named or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return made


def test_no_tensor_holds_the_scores_of_all_places_for_all_codes() -> None:
    """1,024 places and 2,048 codes: 2 M scores, of which at most half a million are there."""
    latent, codebook = torch.randn(1, 4, 32, 32), torch.randn(2048, 4)
    with LargestTensor() as watched:
        nearest_codes(latent, codebook)
    assert watched.numel == 2**19


def test_double_precision_is_kept() -> None:
    codebook = torch.tensor([[1000.0], [1000.001]], dtype=torch.float64)
    assert nearest_codes(codebook.T[None, :, None], codebook).tolist() == [[[0, 1]]]


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="has 3 channels, the codebook 2: they must be equal"):
        nearest_codes(torch.zeros(1, 3, 2, 2), torch.zeros(4, 2))


# Losses and gradients, by hand.


def test_losses_by_hand() -> None:
    """One latent (1, 1), its code (0, 3): the mean squared difference is (1 + 4) / 2 = 2.5."""
    quantizer = create(
        torch.tensor([[0.0, 3.0], [9.0, 9.0]]),
        codebook_size=2,
        code_width=2,
        normalize=False,
        commitment_weight=0.25,
    )
    latent = as_latent([[1.0, 1.0]]).requires_grad_()
    made = quantizer(latent)
    assert made.loss.item() == pytest.approx(0.25 * 2.5 + 2.5)
    assert made.quantized.flatten().tolist() == [0.0, 3.0]
    made.loss.backward()
    # d/dlatent: 0.25 · 2 · (latent - code) / 2; d/dcode: 2 · (code - latent) / 2.
    assert latent.grad is not None
    assert latent.grad.flatten().tolist() == pytest.approx([0.25, -0.5])
    assert quantizer.vectors.grad is not None
    assert quantizer.vectors.grad.tolist() == [[-1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_the_gradient_passes_straight_through(learning: str) -> None:
    quantizer = create(
        torch.randn(4, 2), codebook_size=4, code_width=2, normalize=False, learning=learning
    )
    latent = torch.randn(1, 2, 2, 2, requires_grad=True)
    weight = torch.randn(1, 2, 2, 2)
    (quantizer(latent).quantized * weight).sum().backward()
    assert torch.equal(latent.grad, weight)
    assert quantizer.vectors.grad is None  # nor does it reach the codebook this way


def test_the_rotation_by_hand() -> None:
    """(1, 0) becomes (0, 2): a quarter turn and twice the length, which gradients take back."""
    quantizer = create(
        torch.tensor([[0.0, 2.0], [-9.0, -9.0]]),
        codebook_size=2,
        code_width=2,
        normalize=False,
        gradient="rotation",
    )
    for weight, expected in (([1.0, 0.0], [0.0, -2.0]), ([0.0, 1.0], [2.0, 0.0])):
        latent = as_latent([[1.0, 0.0]]).requires_grad_()
        made = quantizer(latent)
        assert made.quantized.flatten().tolist() == [0.0, 2.0]
        (made.quantized.flatten() @ torch.tensor(weight)).backward()
        assert latent.grad is not None
        assert latent.grad.flatten().tolist() == pytest.approx(expected, abs=1e-6)
        assert quantizer.vectors.grad is None


def test_a_rotated_gradient_keeps_its_angle_to_the_latent() -> None:
    torch.manual_seed(0)
    quantizer = create(
        torch.randn(6, 5), codebook_size=6, code_width=5, normalize=False, gradient="rotation"
    )
    latent = torch.randn(2, 5, 3, 4, requires_grad=True)
    weight = torch.randn(latent.shape)
    made = quantizer(latent)
    (made.quantized * weight).sum().backward()
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(latent.grad, latent), cosine(weight, made.quantized))
    # All lengths change as the latent's does.
    torch.testing.assert_close(
        latent.grad.norm(dim=1) / weight.norm(dim=1),
        made.quantized.norm(dim=1) / latent.norm(dim=1),
    )


def test_a_latent_of_nothing_is_not_lost_by_the_rotation() -> None:
    """Zero has no direction to turn from; it still gets its code, and finite gradients."""
    quantizer = create(
        torch.tensor([[3.0, 4.0]]).repeat(2, 1),
        codebook_size=2,
        code_width=2,
        normalize=False,
        gradient="rotation",
    )
    latent = torch.zeros(1, 2, 1, 1, requires_grad=True)
    made = quantizer(latent)
    assert made.quantized.flatten().tolist() == [3.0, 4.0]
    made.quantized.sum().backward()
    assert latent.grad is not None
    assert latent.grad.isfinite().all()


# Equality with vector-quantize-pytorch.

SIZE, WIDTH = 12, 4


def pair(
    cosine: bool, learning: str, rule: str = "straight_through"
) -> tuple[VectorQuantizer, VectorQuantize]:
    """Both quantizers with the same codebook.

    Theirs weights its one loss by `commitment_weight`, and lets it reach the codebook where that is
    learned by gradient: with a weight of 1 that is our commitment loss plus our codebook loss.
    """
    gradient = learning == "gradient"
    theirs = VectorQuantize(
        dim=WIDTH,
        codebook_size=SIZE,
        accept_image_fmap=True,
        use_cosine_sim=cosine,
        learnable_codebook=gradient,
        ema_update=not gradient,
        decay=0.9,
        eps=1e-5,
        commitment_weight=1.0,
        rotation_trick=rule == "rotation",
    ).train()
    start = torch.randn(SIZE, WIDTH)
    if cosine:
        start = torch.nn.functional.normalize(start, dim=-1)
    inner = theirs._codebook
    with torch.no_grad():
        inner.embed.copy_(start[None])
        inner.embed_avg.copy_(start[None])
        inner.cluster_size.fill_(1.0)
    ours = create(
        start,
        codebook_size=SIZE,
        code_width=WIDTH,
        normalize=cosine,
        learning=learning,
        gradient=rule,
        ema_decay=0.9,
        commitment_weight=1.0,
        revive_after_images=10**9,
    )
    return ours, theirs


@pytest.mark.parametrize("rule", ["straight_through", "rotation"])
@pytest.mark.parametrize(
    ("cosine", "learning"), [(False, "gradient"), (False, "ema"), (True, "ema")]
)
def test_the_same_as_the_peer(cosine: bool, learning: str, rule: str) -> None:
    torch.manual_seed(0)
    ours, theirs = pair(cosine, learning, rule)
    mine = torch.randn(3, WIDTH, 4, 5, requires_grad=True)
    other = mine.detach().clone().requires_grad_()
    weight = torch.randn(mine.shape)

    made = ours(mine)
    quantized, codes, loss = theirs(other)
    assert torch.equal(made.codes, codes)
    torch.testing.assert_close(made.quantized, quantized)
    # Ours adds the codebook loss, which is the same number once more.
    shares = 2 if learning == "gradient" else 1
    torch.testing.assert_close(made.loss / shares, loss.squeeze())

    # The gradient through the choice, and the commitment loss's.
    ((made.quantized * weight).sum() + made.loss).backward()
    ((quantized * weight).sum() + loss.sum()).backward()
    torch.testing.assert_close(mine.grad, other.grad)
    if learning == "gradient":
        torch.testing.assert_close(ours.vectors.grad, theirs._codebook.embed.grad[0])


def test_a_normalised_codebook_learns_by_its_gradient() -> None:
    """The peer has no such codebook: its gradient is compared with differences of the loss."""
    torch.manual_seed(0)
    start = torch.nn.functional.normalize(torch.randn(SIZE, WIDTH), dim=1)
    ours = create(start, codebook_size=SIZE, code_width=WIDTH, commitment_weight=0.0)
    latent = torch.randn(3, WIDTH, 4, 5)
    made = ours(latent)
    made.loss.backward()
    assert ours.vectors.grad is not None
    rows = torch.nn.functional.normalize(latent, dim=1).movedim(1, -1).double()

    def codebook_loss(vectors: Tensor) -> float:
        codebook = vectors / vectors.norm(dim=1, keepdim=True)
        return (codebook[made.codes] - rows).square().mean().item()

    expected = torch.zeros(SIZE, WIDTH, dtype=torch.float64)
    for code in range(SIZE):
        for channel in range(WIDTH):
            step = torch.zeros(SIZE, WIDTH, dtype=torch.float64)
            step[code, channel] = 1e-5
            up, down = codebook_loss(start + step), codebook_loss(start - step)
            expected[code, channel] = (up - down) / 2e-5
    torch.testing.assert_close(ours.vectors.grad.double(), expected, atol=1e-6, rtol=1e-4)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("cosine", [False, True])
def test_moving_averages_follow_as_the_peer_s(cosine: bool) -> None:
    """After each of six steps: sizes and sums of the clusters, and the codebook made of them."""
    torch.manual_seed(1)
    ours, theirs = pair(cosine, "ema")
    inner = theirs._codebook
    before = ours.vectors.clone()
    for _ in range(6):
        latent = torch.randn(2, WIDTH, 3, 3)
        ours(latent)
        theirs(latent)
        torch.testing.assert_close(ours.cluster_size, inner.cluster_size[0])
        torch.testing.assert_close(ours.cluster_sum, inner.embed_avg[0])
        torch.testing.assert_close(ours.codebook, inner.embed[0])
    assert not torch.allclose(ours.vectors, before, atol=1e-2)


# How the codebook starts and stays alive.


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_k_means_starts_it_from_the_data(learning: str) -> None:
    """Four tight clusters far from the random start, four codes: one goes to each."""
    torch.manual_seed(3)
    centres = torch.tensor([[50.0, 0.0], [0.0, 50.0], [-50.0, 0.0], [0.0, -50.0]])
    rows = centres.repeat(64, 1) + 0.1 * torch.randn(256, 2)
    quantizer = VectorQuantizer(
        VectorQuantizerSettings(
            codebook_size=16, code_width=2, normalize=False, learning=learning, ema_decay=0.5
        )
    ).train()
    assert not quantizer.started
    made = quantizer(rows.T[None, :, None])
    assert quantizer.started
    assert (made.quantized[0, :, 0].T - rows).norm(dim=1).max() < 1.0
    torch.testing.assert_close(
        quantizer.vectors.norm(dim=1), torch.full((16,), 50.0), atol=1.0, rtol=0
    )


def test_k_means_has_come_to_rest() -> None:
    """Lloyd's steps end where each code is the mean of the latents that choose it."""
    torch.manual_seed(0)
    rows = torch.randn(40, 2)
    settings = VectorQuantizerSettings(codebook_size=3, code_width=2, normalize=False)
    quantizer = VectorQuantizer(settings).train()
    codes = quantizer(rows.T[None, :, None]).codes.flatten()
    means = torch.stack([rows[codes == code].mean(0) for code in range(3)])
    torch.testing.assert_close(quantizer.vectors.detach(), means)


def test_it_starts_once() -> None:
    quantizer = VectorQuantizer(VectorQuantizerSettings(codebook_size=4, code_width=2)).train()
    quantizer(torch.randn(2, 2, 4, 4))
    started = quantizer.vectors.clone()
    quantizer(torch.randn(2, 2, 4, 4))
    assert torch.equal(quantizer.vectors, started)


def test_it_starts_again_where_an_untrained_state_was_loaded() -> None:
    """Whether it has started is asked once, then remembered; what is loaded may differ."""
    settings = VectorQuantizerSettings(codebook_size=4, code_width=2)
    quantizer = VectorQuantizer(settings).train()
    quantizer(torch.randn(2, 2, 4, 4))
    untrained = VectorQuantizer(settings).state_dict()
    quantizer.load_state_dict(untrained)
    quantizer(torch.randn(2, 2, 4, 4))
    assert quantizer.started
    assert not torch.equal(quantizer.vectors, untrained["vectors"])


def test_idle_images_are_counted() -> None:
    """Two images a step; code 0 is chosen at first, code 1 later, code 2 never."""
    quantizer = create(
        torch.tensor([[0.0], [10.0], [100.0]]),
        codebook_size=3,
        code_width=1,
        normalize=False,
        revive_after_images=1000,
    )
    near_0, near_1 = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 10.0)
    quantizer(near_0)
    assert quantizer.idle_images.tolist() == [0, 2, 2]
    quantizer(near_0)
    assert quantizer.idle_images.tolist() == [0, 4, 4]
    quantizer(near_1)
    assert quantizer.idle_images.tolist() == [2, 0, 6]


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_a_dead_code_is_moved_to_a_latent(learning: str) -> None:
    quantizer = create(
        torch.tensor([[0.0], [100.0]]),
        codebook_size=2,
        code_width=1,
        normalize=False,
        learning=learning,
        revive_after_images=4,
    )
    latent = torch.linspace(0.0, 1.0, 8).reshape(2, 1, 2, 2)
    quantizer(latent)
    quantizer(latent)  # after it, code 1 has been idle for 4 images
    assert quantizer.vectors[1].item() == pytest.approx(100.0, abs=0.1)
    assert quantizer.idle_images.tolist() == [0, 4]
    made = quantizer(latent)
    assert quantizer.idle_images.tolist() == [0, 0]
    assert set(made.codes.flatten().tolist()) == {0, 1}
    assert 0.0 <= quantizer.vectors[1].item() <= 1.0


def test_a_revived_code_is_given_its_time_again() -> None:
    """All latents are alike, so that of two revived codes one stays idle: since now, not before."""
    quantizer = create(
        torch.tensor([[0.0], [100.0], [200.0]]),
        codebook_size=3,
        code_width=1,
        normalize=False,
        revive_after_images=4,
    )
    for _ in range(3):
        quantizer(torch.full((2, 1, 2, 2), 0.5))
    assert quantizer.vectors.flatten().tolist() == [0.0, 0.5, 0.5]
    assert quantizer.idle_images.tolist() == [2, 0, 2]


def test_codes_in_use_are_not_moved() -> None:
    start = torch.tensor([[0.0], [1.0], [100.0]])
    quantizer = create(start, codebook_size=3, code_width=1, normalize=False, revive_after_images=2)
    latent = torch.tensor([0.1, 0.9, 0.2, 0.8]).reshape(1, 1, 2, 2)
    for _ in range(2):
        quantizer(latent)
    assert torch.equal(quantizer.vectors[:2], start[:2])
    quantizer(latent)
    assert torch.equal(quantizer.vectors[:2], start[:2])
    assert quantizer.vectors[2].item() in latent.flatten().tolist()


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_a_drifting_encoder_does_not_empty_the_codebook(learning: str) -> None:
    """Codes that lose their latents never learn again; revived, most stay in use."""
    used = {}
    for revive_after in (8, 10**9):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(
            VectorQuantizerSettings(
                codebook_size=32,
                code_width=2,
                normalize=False,
                learning=learning,
                revive_after_images=revive_after,
            )
        ).train()
        centres = 10 * torch.randn(16, 2)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1)), quantizer.vectors], 0.5)
        for step in range(40):
            rows = centres[torch.randint(16, (256,))] + torch.randn(256, 2) + 1.0 * step
            made = quantizer(rows.reshape(2, 128, 2).movedim(-1, 1)[..., None])
            if learning == "gradient":
                optimizer.zero_grad()
                made.loss.backward()
                optimizer.step()
        used[revive_after] = made.codes.unique().numel()
    assert used[8] >= 16
    assert used[10**9] <= 8


def test_normalised_codes_lie_on_the_sphere_and_scale_does_not_matter() -> None:
    quantizer = VectorQuantizer(VectorQuantizerSettings(codebook_size=16, code_width=3)).eval()
    with torch.no_grad():
        quantizer.vectors.mul_(torch.rand(16, 1) * 10 + 0.1)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(16))
    latent = torch.randn(2, 3, 4, 4)
    assert torch.equal(quantizer.encode(latent), quantizer.encode(1000 * latent))
    cosine = torch.einsum(
        "bchw,kc->bhwk", torch.nn.functional.normalize(latent, dim=1), quantizer.codebook
    )
    assert torch.equal(quantizer.encode(latent), cosine.argmax(-1))


def test_autocast_does_not_coarsen_the_choice() -> None:
    """In bfloat16 1000 and 1001 are the same number."""
    quantizer = create(
        torch.tensor([[1000.0], [1001.0]]), codebook_size=2, code_width=1, normalize=False
    )
    latent = torch.tensor([1000.0, 1001.0]).reshape(1, 1, 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = quantizer(latent)
        codes = quantizer.encode(latent)
    assert made.codes.flatten().tolist() == codes.flatten().tolist() == [0, 1]
    assert made.quantized.dtype == torch.float32


def test_settings_that_cannot_be() -> None:
    for name, value in {"codebook_size": 1, "commitment_weight": -1, "ema_decay": 1.0}.items():
        with pytest.raises(ConfigError, match=rf"Setting `{name}`: got: `{value}`"):
            VectorQuantizerSettings().replace(**{name: value})
