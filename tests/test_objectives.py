"""One suite for every objective: what learning and generating must be, whatever the rule."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.objectives import (
    AnyOrder,
    AnyOrderSettings,
    GenerationRequest,
    GenerationSettings,
    GenerationStep,
    LatentMSE,
    LatentMSESettings,
    Objective,
    Painted,
    create_objective,
)
from tessella.objectives.sampling import halton_order
from tessella.training.optimizer import MuonAdamW, OptimizerSettings
from tessella.training.stages import TransformerLearner
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

OBJECTIVES = {
    "any_order": create_objective(AnyOrderSettings()),
    "latent_mse": create_objective(LatentMSESettings()),
}
EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
LAYS_CODES = pytest.mark.parametrize("objective", [OBJECTIVES["any_order"]], ids=["any_order"])

K, GRID, PAD = 7, (3, 4), 0
N = GRID[0] * GRID[1]
SHAPE = TransformerShape(
    vocabulary_size=11, max_text_tokens=6, pad_id=PAD, codebook_size=K, num_places=N
)
# Three prompts: a word, three words, another word.
TEXT = torch.tensor([[1, 5, 2, PAD, PAD], [1, 6, 7, 8, 2], [1, 9, 2, PAD, PAD]])
EMPTY = torch.tensor([[1, 2]])
CODEBOOK = torch.randn(K, 2, generator=torch.Generator().manual_seed(5))


def create(width: int = 16, scale: float = 0.5) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerSettings(width=width, depth=2, heads=2), SHAPE).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=scale)
    return made


TRANSFORMER = create().requires_grad_(False)


def request(prompt_of: Sequence[int], seeds: Sequence[int], **changes: Any) -> GenerationRequest:
    """Asks for one picture a seed."""
    settings = GenerationSettings().replace(**{"temperature": 1.0, "steps": 4, **changes})
    return GenerationRequest(TEXT, EMPTY, torch.tensor(prompt_of), seeds, settings)


def generate(objective: Objective, asked: GenerationRequest, **more: Any) -> Painted:
    return objective.generate(TRANSFORMER, CODEBOOK, GRID, asked, **more)


def draw_codes(batch: int) -> Tensor:
    return torch.randint(K, (batch, *GRID), generator=torch.Generator().manual_seed(2))


# To learn.


@EVERY
def test_the_loss_teaches_the_transformer_and_not_the_codebook(objective: Objective) -> None:
    torch.manual_seed(0)
    transformer, codebook = create(), nn.Parameter(CODEBOOK.clone())
    learner = TransformerLearner(transformer, objective, codebook).train()
    result = learner(TEXT, draw_codes(3))
    assert result.loss.shape == ()
    assert result.loss.isfinite()
    assert 0 <= result.metrics["accuracy"] <= 1
    result.loss.backward()
    assert codebook.grad is None
    assert "codebook" not in learner.state_dict()
    for name in ("text_embedding", "place_embedding", "out"):
        assert transformer.get_submodule(name).weight.grad.abs().sum() > 0, name
    for matrix in transformer.hidden_matrices():
        assert matrix.grad.abs().sum() > 0


@EVERY
def test_the_loss_is_a_mean_over_pictures(objective: Objective) -> None:
    """Doubling a batch of equal pictures keeps the loss, in expectation and where nothing is
    drawn."""
    codes = draw_codes(1)
    losses = {}
    for copies in (1, 64):
        torch.manual_seed(0)
        losses[copies] = torch.stack(
            [
                objective.compute_loss(
                    TRANSFORMER,
                    CODEBOOK,
                    TEXT[:1].expand(copies, -1),
                    codes.expand(copies, -1, -1),
                ).loss
                for _ in range(64 // copies)
            ]
        ).mean()
    spread = 0.1 if isinstance(objective, AnyOrder) else 1e-5
    assert losses[1].item() == pytest.approx(losses[64].item(), rel=spread)


def test_any_order_is_every_question_asked_by_itself() -> None:
    """Brute force: for each place a fresh reading of the text and of the codes before it."""
    torch.manual_seed(3)
    codes, orders = draw_codes(3), []
    ask = TRANSFORMER.ask

    class Spy:
        """The transformer, watched for the order that was drawn."""

        read_text = staticmethod(TRANSFORMER.read_text)
        read_codes = staticmethod(TRANSFORMER.read_codes)

        @staticmethod
        def ask(memory: Any, places: Tensor, visible: Tensor) -> Tensor:
            orders.append(places)
            return ask(memory, places, visible)

    made = AnyOrder().compute_loss(Spy(), CODEBOOK, TEXT, codes)  # type: ignore[arg-type]
    [order] = orders
    assert torch.equal(order.sort(1).values, torch.arange(N).expand(3, -1))
    assert len({tuple(row) for row in order.tolist()}) == 3  # each picture's is its own

    flat, losses, right = codes.flatten(1), [], 0
    for picture, index in itertools.product(range(3), range(N)):
        memory = TRANSFORMER.read_text(TEXT[picture : picture + 1])
        for place in order[picture, :index].tolist():
            memory = TRANSFORMER.read_codes(
                memory, flat[picture, place].reshape(1, 1), torch.tensor([[place]])
            )
        place = int(order[picture, index])
        [[logits]] = TRANSFORMER.ask(memory, torch.tensor([[place]]), torch.tensor([index]))
        losses.append(functional.cross_entropy(logits, flat[picture, place]))
        right += int(logits.argmax() == flat[picture, place])
    assert made.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert made.accuracy.item() == pytest.approx(right / (3 * N))


def test_any_order_draws_a_fresh_order_each_time() -> None:
    losses = {
        AnyOrder().compute_loss(TRANSFORMER, CODEBOOK, TEXT, draw_codes(3)).loss.item()
        for _ in range(4)
    }
    assert len(losses) == 4


class Fixed(nn.Module):
    """A transformer of two places and three codes that always answers the same."""

    shape = TransformerShape(4, 4, PAD, codebook_size=3, num_places=2)

    def __init__(self, shares: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(shares).log()

    def read_text(self, text_tokens: Tensor) -> Any:
        return TRANSFORMER.read_text(text_tokens)

    def ask(self, memory: Any, places: Tensor, visible: Tensor) -> Tensor:
        assert places.tolist() == [[0, 1]] * len(places)
        assert visible.tolist() == [0, 0]
        return self.logits.expand(len(places), -1, -1)


def test_latent_mse_by_hand() -> None:
    """Codes 0, 4 and 8 on a line; expected 4·½ + 8·¼ = 4 and 0; the picture has 8 and 4.

    The squares are 16 and 16: the mean is 16. The likeliest codes are 1 and 0: none is right.
    """
    fixed: Any = Fixed([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    codebook = torch.tensor([[0.0], [4.0], [8.0]])
    made = LatentMSE().compute_loss(fixed, codebook, TEXT[:1], torch.tensor([[[2, 1]]]))
    assert made.loss.item() == pytest.approx(16.0)
    assert made.accuracy.item() == 0.0
    painted = LatentMSE().generate(fixed, codebook, (1, 2), request([0, 1], [1, 2]))
    assert painted.codes is None
    assert painted.latent.tolist() == [[[[4.0, 0.0]]]] * 2


@EVERY
def test_a_toy_mapping_is_learned_and_painted(objective: Objective) -> None:
    """Three captions, three mosaics: after some hundred steps the right one is painted."""
    torch.manual_seed(0)
    transformer = Transformer(TransformerSettings(width=32, depth=2, heads=2), SHAPE).train()
    codes = draw_codes(3)
    hidden = transformer.hidden_matrices()
    inside = {id(p) for p in hidden}
    rest = [p for p in transformer.parameters() if id(p) not in inside]
    optimizer = MuonAdamW(
        [{"params": hidden, "muon": True}, {"params": rest, "muon": False}], OptimizerSettings()
    )
    # Codes well apart, as a trained codebook's are.
    codebook = functional.one_hot(torch.arange(K), K).float()
    first = last = 0.0
    for step in range(200):
        optimizer.set_learning_rate(1 - step / 200)
        made = objective.compute_loss(transformer, codebook, TEXT, codes)
        made.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        last = made.loss.item()
        first = first or last
    assert last < first / 30
    assert made.accuracy == 1.0

    asked = request([2, 0, 1, 0], [5, 6, 7, 8], temperature=0.5)
    painted = objective.generate(transformer.eval(), codebook, GRID, asked)
    nearest = torch.einsum("bchw,kc->bhwk", painted.latent, codebook).argmax(-1)
    assert torch.equal(nearest, codes[[2, 0, 1, 0]])


# To generate.


@EVERY
def test_what_is_painted(objective: Objective) -> None:
    painted = generate(objective, request([0, 1, 1], [3, 4, 5]))
    assert painted.latent.shape == (3, 2, *GRID)
    assert painted.latent.isfinite().all()
    if painted.codes is not None:
        assert painted.codes.shape == (3, *GRID)
        assert painted.codes.dtype == torch.int64
        assert 0 <= painted.codes.min() <= painted.codes.max() < K
        assert torch.equal(painted.latent, CODEBOOK[painted.codes].movedim(-1, 1))


@EVERY
@pytest.mark.parametrize("order", ["random", "halton"])
@pytest.mark.parametrize("steps", [1, 5, N, 4096])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_every_place_is_laid_once(
    objective: Objective, order: str, steps: int, guidance_scale: float
) -> None:
    seen: list[GenerationStep] = []
    asked = request([0, 1, 2], [3, 4, 5], order=order, steps=steps, guidance_scale=guidance_scale)
    painted = generate(objective, asked, watch=seen.append)
    expected = min(steps, N) if painted.codes is not None else 1
    assert [step.step for step in seen] == list(range(1, expected + 1))
    assert {step.steps for step in seen} == {expected}
    laid = torch.zeros(3, N, dtype=torch.bool)
    codes = torch.zeros(3, N, dtype=torch.int64)
    for step in seen:
        assert (step.laid | ~laid).all()  # what is laid stays
        fresh = step.laid & ~laid
        assert (fresh.sum(1) >= 1).all()
        codes = torch.where(fresh, step.codes, codes)
        assert torch.equal(step.codes, codes)  # and is not changed; the rest is 0
        laid = step.laid
    assert laid.all()
    if painted.codes is not None:
        assert torch.equal(codes.unflatten(1, GRID), painted.codes)


@EVERY
def test_a_seed_is_a_picture(objective: Objective) -> None:
    first = generate(objective, request([0, 0, 0], [1, 2, 1])).latent
    again = generate(objective, request([0, 0, 0], [1, 2, 1])).latent
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    differs = not torch.equal(first[0], first[1])
    assert differs is isinstance(objective, AnyOrder)


@EVERY
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_batch_around_a_picture_does_not_matter(
    objective: Objective, guidance_scale: float
) -> None:
    """Alone, beside others, in another order, its prompt shared or not: the same picture."""
    prompts, seeds = [0, 1, 2, 1, 0, 2, 2], [11, 12, 13, 14, 15, 16, 17]
    settings = {"guidance_scale": guidance_scale, "steps": 5}
    together = generate(objective, request(prompts, seeds, **settings))
    turned = generate(objective, request(prompts[::-1], seeds[::-1], **settings))
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = generate(objective, request([prompt], [seed], **settings))
        for other in (alone.latent[0], turned.latent[-1 - index]):
            torch.testing.assert_close(other, together.latent[index], atol=1e-5, rtol=1e-5)
        if together.codes is not None:
            assert torch.equal(alone.codes[0], together.codes[index])
            assert torch.equal(turned.codes[-1 - index], together.codes[index])


@EVERY
def test_the_prompt_matters(objective: Objective) -> None:
    painted = generate(objective, request([0, 1, 2], [1, 1, 1], temperature=0.0)).latent
    assert not torch.equal(painted[0], painted[1])
    assert not torch.equal(painted[0], painted[2])


@LAYS_CODES
def test_guidance_from_nothing_to_beyond(objective: Objective) -> None:
    prompts, seeds = [0, 1, 2, 0], [1, 2, 3, 4]

    def codes(**changes: Any) -> Tensor:
        made = generate(objective, request(prompts, seeds, **changes)).codes
        assert made is not None
        return made

    # 1 is off; a hair beside 1 takes the guided way and paints the same.
    assert torch.equal(codes(guidance_scale=1.0000001), codes())
    # 0 paints the empty prompt.
    empty = GenerationRequest(
        EMPTY, EMPTY, torch.zeros(4, dtype=torch.int64), seeds, request([0], [0]).settings
    )
    assert torch.equal(codes(guidance_scale=0.0), generate(objective, empty).codes)
    assert not torch.equal(codes(guidance_scale=5.0), codes())


@LAYS_CODES
def test_halton_lays_its_first_places_first(objective: Objective) -> None:
    seen: list[GenerationStep] = []
    generate(objective, request([0, 1], [1, 2], order="halton", steps=N), watch=seen.append)
    laid = [step.laid.nonzero()[:, 1].unflatten(0, (2, -1)) for step in seen]
    for count, places in enumerate(laid, start=1):
        expected = halton_order(*GRID)[:count].sort().values
        assert torch.equal(places, expected.expand(2, -1))


@LAYS_CODES
def test_without_chance_the_seed_is_only_the_order(objective: Objective) -> None:
    settings = {"temperature": 0.0, "order": "halton"}
    painted = generate(objective, request([0, 0], [1, 2], **settings)).codes
    assert painted is not None
    assert torch.equal(painted[0], painted[1])


@LAYS_CODES
def test_later_codes_know_the_earlier_ones(objective: Objective) -> None:
    """One place a step at temperature 0 is the chain of likeliest codes, worked out by itself."""
    asked = request([1], [9], temperature=0.0, order="halton", steps=N)
    painted = generate(objective, asked).codes
    assert painted is not None
    memory, expected = TRANSFORMER.read_text(TEXT[1:2]), {}
    for index, place in enumerate(halton_order(*GRID).tolist()):
        here = torch.tensor([[place]])
        code = TRANSFORMER.ask(memory, here, torch.tensor([index])).argmax(-1)
        expected[place] = code.item()
        memory = TRANSFORMER.read_codes(memory, code, here)
    assert painted.flatten().tolist() == [expected[place] for place in range(N)]


@EVERY
def test_generating_leaves_the_rest_alone(objective: Objective) -> None:
    """Neither gradients nor the random numbers of training are touched."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    transformer = create()
    torch.set_rng_state(state)
    painted = objective.generate(transformer, CODEBOOK, GRID, request([0], [1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not painted.latent.requires_grad
    assert torch.is_grad_enabled()
