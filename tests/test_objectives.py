"""One suite for every objective: what learning and generating must be, whatever the rule."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import ConfigError, GenerationError
from tessella.objectives import (
    AnyOrderSettings,
    AutoregressiveSettings,
    Generated,
    GenerationBatch,
    GenerationSettings,
    GenerationStep,
    LatentMSESettings,
    MaskedSettings,
    Objective,
    ParallelSettings,
    SharedLatentSettings,
    SharedLatentTransformer,
    create_objective,
    create_transformer,
)
from tessella.objectives.sampling import split_positions
from tessella.training.optimizer import MuonAdamW, OptimizerSettings
from tessella.training.stages import TransformerLearner
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

SETTINGS = {
    settings.name: settings
    for settings in (
        AnyOrderSettings(),
        AutoregressiveSettings(),
        LatentMSESettings(),
        MaskedSettings(),
        ParallelSettings(),
        SharedLatentSettings(),
    )
}
OBJECTIVES = {name: create_objective(settings) for name, settings in SETTINGS.items()}
EVERY = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
SAMPLING = ["any_order", "autoregressive", "masked", "parallel"]
"""Those that draw codes; the others paint the same whatever the seed."""
SAMPLES = pytest.mark.parametrize("objective", [OBJECTIVES[n] for n in SAMPLING], ids=SAMPLING)
ORDERED = ["any_order", "masked"]
"""Those that may go in any order, in any number of steps."""
ORDERS = [
    (name, order) for name in ORDERED for order in ("auto", "random", "halton", "confidence")
] + [(name, "auto") for name in OBJECTIVES if name not in ORDERED]

K, GRID, PAD = 7, (3, 4), 0
N = GRID[0] * GRID[1]
SHAPE = TransformerShape(
    vocabulary_size=11, max_text_tokens=6, pad_id=PAD, codebook_size=K, grid=GRID, code_width=2
)
# Three prompts: a word, three words, another word.
TEXT = torch.tensor([[1, 5, 2, PAD, PAD], [1, 6, 7, 8, 2], [1, 9, 2, PAD, PAD]])
# What guidance moves away from: nothing, and something longer than any prompt.
NEGATIVE = torch.tensor([[1, 2, PAD, PAD, PAD, PAD], [1, 4, 10, 3, 4, 2]])
EMPTY = NEGATIVE[:1, :2]
CODEBOOK = torch.randn(K, 2, generator=torch.Generator().manual_seed(5))


def create(name: str, scale: float = 0.5) -> Transformer:
    """The network of an objective whose every weight matters."""
    torch.manual_seed(0)
    size = TransformerSettings(width=16, depth=2, heads=2)
    made = create_transformer(SETTINGS[name], size, SHAPE).eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=scale)
    return made


NETWORKS = {name: create(name).requires_grad_(False) for name in OBJECTIVES}


def request(
    prompt_of: Sequence[int],
    seeds: Sequence[int],
    *,
    negative_of: Sequence[int] | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    **changes: Any,
) -> GenerationBatch:
    """Asks for one picture a seed; `known` is which positions and their codes."""
    negative_of = [0] * len(prompt_of) if negative_of is None else negative_of
    return GenerationBatch(
        text=TEXT,
        negative_text=NEGATIVE,
        prompt_of=torch.tensor(prompt_of),
        negative_of=torch.tensor(negative_of),
        seeds=seeds,
        settings=GenerationSettings().replace(**{"temperature": 1.0, "steps": 4, **changes}),
        known=None if known is None else known[0],
        known_codes=None if known is None else known[1],
    )


def generate(objective: Objective, asked: GenerationBatch, **more: Any) -> Generated:
    return objective.generate(NETWORKS[objective.name], CODEBOOK, GRID, asked, **more)


def generate_codes(objective: Objective, asked: GenerationBatch) -> Tensor:
    """Codes (B, N)."""
    codes = generate(objective, asked).codes
    assert codes is not None
    return codes.flatten(1)


def draw_codes(batch: int) -> Tensor:
    return torch.randint(K, (batch, *GRID), generator=torch.Generator().manual_seed(2))


def draw_known(batch: int, count: int) -> tuple[Tensor, Tensor]:
    """Positions of each picture's own and their codes; -1 where nothing may look."""
    generator = torch.Generator().manual_seed(6)
    rank = torch.stack([torch.randperm(N, generator=generator) for _ in range(batch)])
    known = rank < count
    return known, draw_codes(batch).flatten(1).masked_fill(~known, -1)


# To learn.


@EVERY
def test_the_loss_teaches_the_transformer_and_not_the_codebook(objective: Objective) -> None:
    transformer, codebook = create(objective.name), nn.Parameter(CODEBOOK.clone())
    learner = TransformerLearner(transformer, objective, codebook).train()
    result = learner(TEXT, draw_codes(3))
    assert result.loss.shape == ()
    assert result.loss.isfinite()
    assert 0 <= result.metrics["accuracy"] <= 1
    result.loss.backward()
    assert codebook.grad is None
    assert "codebook" not in learner.state_dict()
    idle = {n for n, p in transformer.named_parameters() if p.grad is None or not p.grad.any()}
    # What reads codes has nothing to learn where only the text is read.
    reads_text_alone = ("latent_mse", "parallel", "shared_latent")
    expected = {"code_embedding.weight"} if objective.name in reads_text_alone else set()
    if objective.name == "shared_latent":
        expected |= {"out.weight", "out.bias"}
    assert idle == expected


@EVERY
def test_the_loss_is_a_mean_over_pictures(objective: Objective) -> None:
    """Doubling a batch of equal pictures keeps the loss, in expectation and where nothing is
    drawn."""
    codes = draw_codes(1)
    losses = {}
    torch.manual_seed(0)
    for copies in (1, 128):
        losses[copies] = torch.stack(
            [
                objective.compute_loss(
                    NETWORKS[objective.name],
                    CODEBOOK,
                    TEXT[:1].expand(copies, -1),
                    codes.expand(copies, -1, -1),
                ).loss
                for _ in range(128 // copies)
            ]
        ).mean()
    spread = 0.1 if objective.name in ORDERED else 1e-5
    assert losses[1].item() == pytest.approx(losses[128].item(), rel=spread)


@EVERY
def test_a_toy_mapping_is_learned_and_painted(objective: Objective) -> None:
    """Three captions, three mosaics: after some hundred steps the right one is painted."""
    torch.manual_seed(0)
    # Codes well apart, as a trained codebook's are.
    codebook, codes = functional.one_hot(torch.arange(K), K).float(), draw_codes(3)
    shape = TransformerShape(11, 6, PAD, codebook_size=K, grid=GRID, code_width=K)
    size = TransformerSettings(width=32, depth=2, heads=2)
    transformer = create_transformer(SETTINGS[objective.name], size, shape).train()
    hidden = transformer.hidden_matrices()
    inside = {id(p) for p in hidden}
    rest = [p for p in transformer.parameters() if id(p) not in inside]
    optimizer = MuonAdamW(
        [{"params": hidden, "muon": True}, {"params": rest, "muon": False}], OptimizerSettings()
    )
    losses = []
    for step in range(150):
        optimizer.set_learning_rate(1 - step / 150)
        made = objective.compute_loss(transformer, codebook, TEXT, codes)
        made.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(made.loss.item())
    assert losses[-1] < losses[0] / 10
    assert made.accuracy == 1.0

    asked = request([2, 0, 1, 0], [5, 6, 7, 8], temperature=0.5)
    painted = objective.generate(transformer.eval(), codebook, GRID, asked)
    nearest = torch.einsum("bchw,kc->bhwk", painted.latent, codebook).argmax(-1)
    assert torch.equal(nearest, codes[[2, 0, 1, 0]])


def test_each_objective_has_its_network() -> None:
    for name, network in NETWORKS.items():
        expected = SharedLatentTransformer if name == "shared_latent" else Transformer
        assert type(network) is expected
        assert OBJECTIVES[name].name == name


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.1])
def test_a_weight_that_cannot_be(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"`text_weight`: got: `{weight}`"):
        SharedLatentSettings().replace(text_weight=weight)


# To generate.


@EVERY
def test_what_is_painted(objective: Objective) -> None:
    painted = generate(objective, request([0, 1, 1], [3, 4, 5]))
    assert painted.latent.shape == (3, 2, *GRID)
    assert painted.latent.isfinite().all()
    assert (painted.codes is None) is (objective.name == "latent_mse")
    if painted.codes is not None:
        assert painted.codes.shape == (3, *GRID)
        assert painted.codes.dtype == torch.int64
        assert 0 <= painted.codes.min() <= painted.codes.max() < K
        assert torch.equal(painted.latent, CODEBOOK[painted.codes].movedim(-1, 1))


def watch_steps(objective: Objective, asked: GenerationBatch) -> list[GenerationStep]:
    """Generates; checks that steps count up, that what is is_decoded stays, and that all is is_decoded."""
    seen: list[GenerationStep] = []
    painted = generate(objective, asked, on_step=seen.append)
    assert [step.step for step in seen] == list(range(1, len(seen) + 1))
    assert {step.steps for step in seen} == {len(seen)}
    is_decoded = torch.zeros(len(asked.seeds), N, dtype=torch.bool)
    codes = torch.zeros(len(asked.seeds), N, dtype=torch.int64)
    if asked.known is not None and asked.known_codes is not None:
        is_decoded, codes = asked.known, asked.known_codes.where(asked.known, 0)
    for step in seen:
        assert (step.is_decoded | ~is_decoded).all()  # what is is_decoded stays
        codes = torch.where(step.is_decoded & ~is_decoded, step.codes, codes)
        assert torch.equal(step.codes, codes)  # and is not changed; the rest is 0
        is_decoded = step.is_decoded
    assert is_decoded.all()
    if painted.codes is not None:
        assert torch.equal(codes.unflatten(1, GRID), painted.codes)
    return seen


@pytest.mark.parametrize(("name", "order"), ORDERS)
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_every_place_is_laid_once(name: str, order: str, guidance_scale: float) -> None:
    for steps in (1, 5, 4096):
        asked = request(
            [0, 1, 2], [3, 4, 5], order=order, steps=steps, guidance_scale=guidance_scale
        )
        seen = watch_steps(OBJECTIVES[name], asked)
        before = torch.zeros(3, dtype=torch.int64)
        sizes = []
        for step in seen:
            now = step.is_decoded.sum(1)
            assert (now == now[0]).all()
            sizes.append(int((now - before)[0]))
            before = now
        if name in ORDERED:
            assert sizes == split_positions(N, steps)
        else:
            assert sizes == ([1] * N if name == "autoregressive" else [N])


@EVERY
def test_a_seed_is_a_picture(objective: Objective) -> None:
    first = generate(objective, request([0, 0, 0], [1, 2, 1])).latent
    again = generate(objective, request([0, 0, 0], [1, 2, 1])).latent
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    differs = not torch.equal(first[0], first[1])
    assert differs is (objective.name in SAMPLING)


@pytest.mark.parametrize(("name", "order"), ORDERS)
@pytest.mark.parametrize(("guidance_scale", "num_known"), [(1.0, 0), (3.0, 3)])
def test_the_batch_around_a_picture_does_not_matter(
    name: str, order: str, guidance_scale: float, num_known: int
) -> None:
    """Alone, beside others, in another order, its prompts shared or not: the same picture.

    `autoregressive` once skipped the first positions if all pictures knew them, and drew less then.
    """
    prompts, negatives, seeds = [0, 1, 2, 1, 0], [0, 1, 1, 0, 1], [11, 12, 13, 14, 15]
    known, codes = draw_known(5, num_known)

    def paint(rows: Sequence[int]) -> Tensor:
        asked = request(
            [prompts[row] for row in rows],
            [seeds[row] for row in rows],
            negative_of=[negatives[row] for row in rows],
            known=(known[rows], codes[rows]) if num_known else None,
            guidance_scale=guidance_scale,
            order=order,
        )
        return generate(OBJECTIVES[name], asked).latent

    together, turned = paint([0, 1, 2, 3, 4]), paint([4, 3, 2, 1, 0]).flip(0)
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=1e-5)
    for index in range(5):
        torch.testing.assert_close(paint([index])[0], together[index], atol=1e-5, rtol=1e-5)


@EVERY
def test_the_prompt_matters(objective: Objective) -> None:
    painted = generate(objective, request([0, 1, 2], [1, 1, 1], temperature=0.0)).latent
    assert not torch.equal(painted[0], painted[1])
    assert not torch.equal(painted[0], painted[2])


@SAMPLES
def test_guidance_from_nothing_to_beyond(objective: Objective) -> None:
    prompts, seeds = [0, 1, 2, 0], [1, 2, 3, 4]

    def paint(negative: int = 0, **changes: Any) -> Tensor:
        return generate_codes(
            objective, request(prompts, seeds, negative_of=[negative] * 4, **changes)
        )

    # 1 is off; a hair beside 1 takes the guided way and paints the same.
    assert torch.equal(paint(guidance_scale=1.0000001), paint())
    assert torch.equal(paint(negative=1), paint())
    # 0 paints what guidance moves away from, as a prompt of its own would.
    for negative, text in enumerate((EMPTY, NEGATIVE[1:])):
        zeros = torch.zeros(4, dtype=torch.int64)
        itself = GenerationBatch(text, text, zeros, zeros, seeds, request([0], [0]).settings)
        made = paint(negative, guidance_scale=0.0)
        assert torch.equal(made, generate_codes(objective, itself))
    # Beyond 1 both prompts count.
    assert not torch.equal(paint(guidance_scale=5.0), paint())
    assert not torch.equal(paint(guidance_scale=5.0), paint(1, guidance_scale=5.0))


@EVERY
def test_an_objective_knows_what_it_can(objective: Objective) -> None:
    """What is refused goes by it: once a negative prompt that changed nothing was taken."""
    moved, still = (
        generate(objective, request([0, 1], [1, 2], guidance_scale=scale)).latent
        for scale in (8.0, 1.0)
    )
    assert torch.equal(moved, still) is not objective.is_guided
    network, codes = NETWORKS[objective.name], draw_codes(3)
    if objective.has_likelihood:
        assert objective.compute_log_likelihood(network, TEXT, codes).shape == (3,)
    else:
        with pytest.raises(GenerationError, match="no likelihood"):
            objective.compute_log_likelihood(network, TEXT, codes)


@SAMPLES
def test_a_ramp_of_one_step_is_no_ramp(objective: Objective) -> None:
    """The last step has the scale in full, so only what has steps before it is changed."""

    def paint(schedule: str, steps: int) -> Tensor:
        asked = {"guidance_schedule": schedule, "steps": steps, "guidance_scale": 6.0}
        return generate_codes(objective, request([0, 1, 2], [1, 2, 3], **asked))

    one_step = objective.name != "autoregressive"
    assert torch.equal(paint("linear", 1), paint("constant", 1)) is one_step
    is_ramped = objective.name != "parallel"
    assert torch.equal(paint("linear", N), paint("constant", N)) is not is_ramped


@EVERY
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_known_codes_are_kept(objective: Objective, guidance_scale: float, order: str) -> None:
    """None, some and all of the positions; what stands where nothing is known is never looked at."""
    for count in (0, 1, 5, N - 1, N):
        known, codes = draw_known(3, count)
        asked = request(
            [0, 1, 2],
            [1, 2, 3],
            known=(known, codes),
            guidance_scale=guidance_scale,
            guidance_schedule="linear",
            order=order,
        )
        painted = generate(objective, asked)
        kept = painted.latent.flatten(2).movedim(1, -1)[known]
        assert torch.equal(kept, CODEBOOK[codes[known]])
        if painted.codes is not None:
            assert torch.equal(painted.codes.flatten(1)[known], codes[known])
        if count < N:
            watch_steps(objective, asked)
        if count == 0:
            free = request(
                [0, 1, 2],
                [1, 2, 3],
                guidance_scale=guidance_scale,
                guidance_schedule="linear",
                order=order,
            )
            assert torch.equal(painted.latent, generate(objective, free).latent)


@pytest.mark.parametrize("name", ["any_order", "autoregressive", "masked"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_known_codes_are_looked_at(name: str, guidance_scale: float) -> None:
    """The rest of the picture is another one beside other known codes."""
    known = (torch.arange(N) < 4).expand(3, -1)
    changes = {"temperature": 0.0, "order": "halton", "guidance_scale": guidance_scale}
    painted = [
        generate_codes(
            OBJECTIVES[name],
            request([0, 1, 2], [1, 2, 3], known=(known, torch.full((3, N), code)), **changes),
        )
        for code in (0, 3)
    ]
    assert (painted[0] != painted[1])[:, 4:].any()


@SAMPLES
def test_without_chance_the_seed_is_only_the_order(objective: Objective) -> None:
    for order in ("halton", "confidence"):
        changes = {"temperature": 0.0, "order": order, "confidence_temperature": 0.0}
        painted = generate_codes(objective, request([0, 0], [1, 2], **changes))
        assert torch.equal(painted[0], painted[1])


@EVERY
def test_generating_leaves_the_rest_alone(objective: Objective) -> None:
    """Neither gradients nor the random numbers of training are touched."""
    transformer = create(objective.name)
    state = torch.get_rng_state()
    painted = objective.generate(transformer, CODEBOOK, GRID, request([0], [1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not painted.latent.requires_grad
    assert all(p.grad is None for p in transformer.parameters())
    assert torch.is_grad_enabled()
