"""One suite for every objective: what learning and generating must be, whatever the rule."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import ConfigError, GenerationError
from tessella.objectives import (
    Generated,
    GenerationBatch,
    GenerationStep,
    Objective,
    SharedLatentSettings,
    create_objective,
    create_transformer,
)
from tessella.objectives.decoding import gather_positions
from tessella.objectives.sampling import split_positions
from tessella.objectives.shared_latent import SharedLatentTransformer
from tessella.training.optimizer import MuonAdamW, OptimizerSettings
from tessella.transformer import Examples, KVCache, Transformer, TransformerSettings, flatten_codes
from toy_objectives import (
    CODEBOOKS,
    EMPTY,
    EVERY,
    EVERY_ORDER,
    GRID,
    NEGATIVE,
    OBJECTIVES,
    ORDERED,
    SAMPLES,
    SAMPLING,
    SETTINGS,
    SHAPE,
    TEXT,
    K,
    N,
    create,
    create_batch,
    draw_codes,
    draw_examples,
    draw_known,
    generate_codes,
    parametrize,
)

# To learn.


@EVERY
@pytest.mark.parametrize("has_examples", [False, True], ids=["alone", "examples"])
def test_the_loss_teaches_the_transformer_and_not_the_codebook(
    objective: Objective, has_examples: bool
) -> None:
    books = len(objective.codebook)
    codebook = nn.Parameter(CODEBOOKS[books].clone())
    learner = create(objective.name, books, codebook).train()
    result = learner(TEXT, draw_codes(3, books), draw_examples(books) if has_examples else None)
    assert result.loss.shape == ()
    assert result.loss.isfinite()
    assert 0 <= result.metrics["accuracy"] <= 1
    result.loss.backward()
    assert codebook.grad is None
    assert "codebook" not in learner.state_dict()
    idle = {
        n for n, p in learner.transformer.named_parameters() if p.grad is None or not p.grad.any()
    }
    names = dict(learner.transformer.named_parameters())
    is_shared, expected = objective.name == "shared_latent", set[str]()
    if objective.name in ("latent_mse", "parallel", "shared_latent"):
        # Only the text is read: not the keys that only encoded codes look at.
        expected.add("example_encoder.key_norms.0.weight")
        # A position's later codes read the ones before.
        if books == 1 or is_shared:
            expected.add("code_embedding.weight")
    if is_shared:
        expected |= {name for name in names if name.startswith(("out.", "next_code."))}
    if not has_examples:
        expected |= {name for name in names if name.startswith("example_encoder")}
    assert idle == expected


@EVERY
def test_the_loss_is_a_mean_over_pictures(objective: Objective) -> None:
    """Doubling a batch of equal pictures keeps the loss, in expectation and where nothing is
    drawn."""
    codes = draw_codes(1, len(objective.codebook))
    losses = {}
    torch.manual_seed(0)
    for copies in (1, 128):
        losses[copies] = torch.stack(
            [
                objective(TEXT[:1].expand(copies, -1), codes.expand(copies, -1, -1, -1)).loss
                for _ in range(128 // copies)
            ]
        ).mean()
    spread = 0.1 if objective.name in ORDERED else 1e-5
    assert losses[1].item() == pytest.approx(losses[128].item(), rel=spread)


def learn(
    name: str, text: Tensor, codes: Tensor, codebook: Tensor, examples: Examples | None = None
) -> Objective:
    """Learns a few pictures by heart in 150 steps."""
    torch.manual_seed(0)
    books, _, width = codebook.shape
    shape = dataclasses.replace(SHAPE, code_width=width, codes_per_position=books)
    size = TransformerSettings(width=32, depth=2, heads=2)
    transformer = create_transformer(SETTINGS[name], size, shape)
    learner = create_objective(SETTINGS[name], transformer, codebook).train()
    hidden = transformer.hidden_matrices()
    inside = {id(p) for p in hidden}
    rest = [p for p in transformer.parameters() if id(p) not in inside]
    optimizer = MuonAdamW(
        [{"params": hidden, "muon": True}, {"params": rest, "muon": False}], OptimizerSettings()
    )
    losses = []
    for step in range(150):
        optimizer.set_learning_rate(1 - step / 150)
        scored = learner(text, codes, examples)
        scored.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(scored.loss.item())
    assert losses[-1] < losses[0] / 10
    assert scored.accuracy == 1.0
    return learner.eval()


def spread_codes(books: int) -> Tensor:
    """Codes well apart, each with a channel of its own (M, K, M · K), as trained ones are."""
    return functional.one_hot(torch.arange(books * K)).float().unflatten(0, (books, K))


def find_painted(generated: Generated) -> Tensor:
    """Codes (B, M, h, w) of what is generated, also where it is not made of codes."""
    return generated.latent.unflatten(1, (-1, K)).argmax(2)


@EVERY
def test_a_toy_mapping_is_learned_and_generated(objective: Objective) -> None:
    """Three captions, three pictures: 150 steps later each caption gives its picture."""
    books = len(objective.codebook)
    codes = draw_codes(3, books)
    learner = learn(objective.name, TEXT, codes, spread_codes(books))
    generated = learner.generate(
        create_batch(objective, [2, 0, 1, 0], [5, 6, 7, 8], temperature=0.5)
    )
    assert torch.equal(find_painted(generated), codes[[2, 0, 1, 0]])


def test_each_objective_has_its_network() -> None:
    for (name, books), objective in OBJECTIVES.items():
        expected = SharedLatentTransformer if name == "shared_latent" else Transformer
        assert type(objective.transformer) is expected
        assert objective.name == name
        assert objective.transformer.shape.codes_per_position == len(objective.codebook) == books


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -0.1])
def test_an_invalid_weight(weight: float) -> None:
    with pytest.raises(ConfigError, match=f"`text_weight`: got: `{weight}`"):
        SharedLatentSettings().replace(text_weight=weight)


# To generate.


@EVERY
def test_what_is_generated(objective: Objective) -> None:
    generated = objective.generate(create_batch(objective, [0, 1, 1], [3, 4, 5]))
    assert generated.latent.shape == (3, 2, *GRID)
    assert generated.latent.isfinite().all()
    assert (generated.codes is None) is (objective.name == "latent_mse")
    if generated.codes is not None:
        assert generated.codes.shape == (3, len(objective.codebook), *GRID)
        assert generated.codes.dtype == torch.int64
        assert 0 <= generated.codes.min() <= generated.codes.max() < K
        assert torch.equal(generated.latent.movedim(1, -1), add_vectors(generated.codes, 1))


def add_vectors(codes: Tensor, dim: int) -> Tensor:
    """Adds up the vectors (…, C) of codes, whose codebooks `dim` counts."""
    each = codes.unbind(dim)
    return sum(CODEBOOKS[len(each)][m][one] for m, one in enumerate(each))


def watch_steps(objective: Objective, batch: GenerationBatch) -> list[GenerationStep]:
    """Generates; checks that steps count up, that codes stay once decoded, and all get decoded."""
    seen: list[GenerationStep] = []
    generated = objective.generate(batch, seen.append)
    assert [step.step for step in seen] == list(range(1, len(seen) + 1))
    assert {step.steps for step in seen} == {len(seen)}
    is_decoded = batch.known
    codes = batch.known_codes.where(is_decoded[..., None], 0).mT
    for step in seen:
        assert (step.is_decoded | ~is_decoded).all()  # what is decoded stays
        is_new = step.is_decoded & ~is_decoded
        codes = torch.where(is_new[:, None], step.codes, codes)
        assert torch.equal(step.codes, codes)  # and is not changed; the rest is 0
        is_decoded = step.is_decoded
    assert is_decoded.all()
    if generated.codes is not None:
        assert torch.equal(codes.unflatten(2, GRID), generated.codes)
    return seen


@EVERY_ORDER
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_every_position_is_decoded_once(
    objective: Objective, order: str, guidance_scale: float
) -> None:
    for steps in (1, 5, 4096):
        batch = create_batch(
            objective, [0, 1, 2], [3, 4, 5], order=order, steps=steps, guidance_scale=guidance_scale
        )
        seen = watch_steps(objective, batch)
        before = torch.zeros(3, dtype=torch.int64)
        sizes = []
        for step in seen:
            now = step.is_decoded.sum(1)
            assert (now == now[0]).all()
            sizes.append(int((now - before)[0]))
            before = now
        if objective.name in ORDERED:
            assert sizes == split_positions(N, steps)
        else:
            assert sizes == ([1] * N if objective.name == "autoregressive" else [N])


@EVERY
def test_a_seed_is_a_picture(objective: Objective) -> None:
    first = objective.generate(create_batch(objective, [0, 0, 0], [1, 2, 1])).latent
    again = objective.generate(create_batch(objective, [0, 0, 0], [1, 2, 1])).latent
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[2])
    differs = not torch.equal(first[0], first[1])
    assert differs is (objective.name in SAMPLING)


@EVERY_ORDER
@pytest.mark.parametrize(("guidance_scale", "num_known"), [(1.0, 0), (3.0, 3)])
def test_the_batch_around_a_picture_does_not_matter(
    objective: Objective, order: str, guidance_scale: float, num_known: int
) -> None:
    """Alone, beside others, in another order, its prompts shared or not: the same picture.

    `autoregressive` once skipped the first positions if all pictures knew them, and drew less then.
    """
    prompts, negatives, seeds = [0, 1, 2, 1, 0], [0, 1, 1, 0, 1], [11, 12, 13, 14, 15]
    known, codes = draw_known(5, num_known, len(objective.codebook))

    def draw(rows: Sequence[int]) -> Tensor:
        batch = create_batch(
            objective,
            [prompts[row] for row in rows],
            [seeds[row] for row in rows],
            negative_of=[negatives[row] for row in rows],
            known=(known[rows], codes[rows]) if num_known else None,
            guidance_scale=guidance_scale,
            order=order,
        )
        return objective.generate(batch).latent

    together, turned = draw([0, 1, 2, 3, 4]), draw([4, 3, 2, 1, 0]).flip(0)
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=1e-5)
    for index in range(5):
        torch.testing.assert_close(draw([index])[0], together[index], atol=1e-5, rtol=1e-5)


@EVERY
def test_the_prompt_matters(objective: Objective) -> None:
    generated = objective.generate(
        create_batch(objective, [0, 1, 2], [1, 1, 1], temperature=0.0)
    ).latent
    assert not torch.equal(generated[0], generated[1])
    assert not torch.equal(generated[0], generated[2])


@SAMPLES
def test_guidance_from_nothing_to_beyond(objective: Objective) -> None:
    prompts, seeds = [0, 1, 2, 0], [1, 2, 3, 4]

    def draw(negative: int = 0, **changes: Any) -> Tensor:
        return generate_codes(
            objective,
            create_batch(objective, prompts, seeds, negative_of=[negative] * 4, **changes),
        )

    # 1 is off; a hair beside 1 computes the guidance and gives the same picture.
    assert torch.equal(draw(guidance_scale=1.0000001), draw())
    assert torch.equal(draw(negative=1), draw())
    # 0 gives what guidance moves away from, as if that were the prompt.
    for negative, text in enumerate((EMPTY, NEGATIVE[1:])):
        itself = dataclasses.replace(
            create_batch(objective, prompts, seeds),
            text=text,
            prompt_of=torch.zeros(4, dtype=torch.int64),
        )
        away = draw(negative, guidance_scale=0.0)
        assert torch.equal(away, generate_codes(objective, itself))
    # Beyond 1 both prompts count.
    assert not torch.equal(draw(guidance_scale=5.0), draw())
    assert not torch.equal(draw(guidance_scale=5.0), draw(1, guidance_scale=5.0))


@EVERY
def test_an_objective_knows_what_it_can(objective: Objective) -> None:
    """Requests are refused by it: a negative prompt that changed nothing was once accepted."""
    moved, still = (
        objective.generate(create_batch(objective, [0, 1], [1, 2], guidance_scale=scale)).latent
        for scale in (8.0, 1.0)
    )
    assert torch.equal(moved, still) is not objective.is_guided
    codes = draw_codes(3, len(objective.codebook))
    if objective.has_likelihood:
        assert objective.compute_log_likelihood(TEXT, codes).shape == (3,)
    else:
        with pytest.raises(GenerationError, match="no likelihood"):
            objective.compute_log_likelihood(TEXT, codes)
    assert (
        len(watch_steps(objective, create_batch(objective, [0], [1]))) > 1
    ) is objective.has_steps


@SAMPLES
def test_a_ramp_of_one_step_changes_nothing(objective: Objective) -> None:
    """The last step has the full scale, so only the steps before it change."""

    def draw(schedule: str, steps: int) -> Tensor:
        changes = {"guidance_schedule": schedule, "steps": steps, "guidance_scale": 6.0}
        return generate_codes(objective, create_batch(objective, [0, 1, 2], [1, 2, 3], **changes))

    one_step = objective.name != "autoregressive"
    assert torch.equal(draw("linear", 1), draw("constant", 1)) is one_step
    is_ramped = objective.name != "parallel"
    assert torch.equal(draw("linear", N), draw("constant", N)) is not is_ramped


@EVERY
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
@pytest.mark.parametrize("order", ["halton", "confidence"])
def test_known_codes_stay(objective: Objective, guidance_scale: float, order: str) -> None:
    """None, some and all of the positions; codes at unknown positions are never read."""
    for count in (0, 1, 5, N - 1, N):
        known, codes = draw_known(3, count, len(objective.codebook))
        batch = create_batch(
            objective,
            [0, 1, 2],
            [1, 2, 3],
            known=(known, codes),
            guidance_scale=guidance_scale,
            guidance_schedule="linear",
            order=order,
        )
        generated = objective.generate(batch)
        latent = generated.latent.flatten(2).movedim(1, -1)[known]
        assert torch.equal(latent, add_vectors(codes[known], 1))
        if generated.codes is not None:
            assert torch.equal(flatten_codes(generated.codes)[known], codes[known])
        if count < N:
            watch_steps(objective, batch)
        if count == 0:
            free = create_batch(
                objective,
                [0, 1, 2],
                [1, 2, 3],
                guidance_scale=guidance_scale,
                guidance_schedule="linear",
                order=order,
            )
            assert torch.equal(generated.latent, objective.generate(free).latent)


@parametrize(["any_order", "autoregressive", "masked"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_known_codes_matter(objective: Objective, guidance_scale: float) -> None:
    """Other known codes change the rest of the picture: of several, each of them."""
    known = (torch.arange(N) < 4).expand(3, -1)
    books = len(objective.codebook)
    changes = {"temperature": 0.0, "order": "halton", "guidance_scale": guidance_scale}

    def draw(*codes: int) -> Tensor:
        known_codes = torch.tensor(codes).expand(3, N, books)
        batch = create_batch(objective, [0, 1, 2], [1, 2, 3], known=(known, known_codes), **changes)
        return generate_codes(objective, batch)[:, 4:]

    before = draw(*[0] * books)
    for m in range(books):
        assert not torch.equal(draw(*[3 * (m == other) for other in range(books)]), before)


@SAMPLES
def test_at_temperature_zero_the_seed_changes_nothing_but_a_random_order(
    objective: Objective,
) -> None:
    for order in ("halton", "confidence"):
        changes = {"temperature": 0.0, "order": order, "confidence_temperature": 0.0}
        generated = generate_codes(objective, create_batch(objective, [0, 0], [1, 2], **changes))
        assert torch.equal(generated[0], generated[1])


@EVERY
def test_generating_leaves_training_alone(objective: Objective) -> None:
    """It touches neither gradients nor the random numbers of training."""
    learner = create(objective.name, len(objective.codebook))
    state = torch.get_rng_state()
    generated = learner.generate(create_batch(objective, [0], [1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not generated.latent.requires_grad
    assert all(p.grad is None for p in learner.parameters())
    assert torch.is_grad_enabled()


# With examples.


def select(examples: Examples, *rows: int) -> Examples:
    return Examples(examples.codes[list(rows)], examples.text[list(rows)])


@EVERY
def test_the_loss_depends_on_the_examples(objective: Objective) -> None:
    """On their codes and captions; not on rows where there is none."""

    books = len(objective.codebook)

    def score(examples: Examples | None) -> float:
        torch.manual_seed(0)
        return objective(TEXT, draw_codes(3, books), examples).loss.item()

    first, codes, text = score(draw_examples(books)), *draw_examples(books)
    assert score(draw_examples(books)) == first
    for other in (None, Examples(codes.flip(0), text), Examples(codes, text.flip(0))):
        assert abs(score(other) - first) > 1e-4
    missing = Examples(torch.full_like(codes, -1), text)
    assert score(missing) == pytest.approx(score(None), rel=1e-5)


@EVERY
def test_what_only_the_examples_tell_is_learned_and_generated(objective: Objective) -> None:
    """One caption, three pictures: each is its example with every code one higher."""
    books = len(objective.codebook)
    text, codes = TEXT[:1].expand(3, -1), draw_codes(3, books)
    shown = Examples((flatten_codes(codes)[:, None] - 1) % K, text[:, None])
    learner = learn(objective.name, text, codes, spread_codes(books), shown)
    batch = create_batch(objective, [2, 0, 1, 0], [5, 6, 7, 8], temperature=0.5, examples=shown)
    generated = learner.generate(dataclasses.replace(batch, text=text))
    assert torch.equal(find_painted(generated), codes[[2, 0, 1, 0]])


@EVERY
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_examples_belong_to_their_prompt(objective: Objective, guidance_scale: float) -> None:
    """Several prompts together, with unequal numbers of examples: each as by itself."""
    prompts, seeds = [2, 0, 1, 0], [5, 6, 7, 8]
    examples = draw_examples(len(objective.codebook))
    changes = {"guidance_scale": guidance_scale}
    together = objective.generate(
        create_batch(objective, prompts, seeds, examples=examples, **changes)
    )
    without = objective.generate(create_batch(objective, prompts, seeds, **changes)).latent
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = dataclasses.replace(
            create_batch(objective, [0], [seed], examples=select(examples, prompt), **changes),
            text=TEXT[prompt : prompt + 1],
        )
        made = objective.generate(alone).latent[0]
        torch.testing.assert_close(made, together.latent[index], atol=1e-5, rtol=1e-5)
    assert not torch.equal(together.latent, without)


@EVERY
def test_without_any_example_it_paints_from_the_prompt_alone(objective: Objective) -> None:
    codes, text = draw_examples(len(objective.codebook))
    expected = objective.generate(
        create_batch(objective, [0, 1, 2], [1, 2, 3], guidance_scale=2.5)
    ).latent
    for missing in (codes[:, :0], torch.full_like(codes, -1)):
        examples = Examples(missing, text[:, : missing.shape[1]])
        batch = create_batch(objective, [0, 1, 2], [1, 2, 3], guidance_scale=2.5, examples=examples)
        torch.testing.assert_close(objective.generate(batch).latent, expected)


@SAMPLES
def test_guidance_moves_away_from_no_examples(objective: Objective) -> None:
    """What it moves away from sees none: scale 0 paints it, as if there were nothing else."""
    prompts, seeds = [0, 1, 2, 0], [1, 2, 3, 4]
    examples = draw_examples(len(objective.codebook))

    def draw(**changes: Any) -> Tensor:
        batch = create_batch(objective, prompts, seeds, examples=examples, **changes)
        return generate_codes(objective, batch)

    nothing = create_batch(objective, [0] * 4, seeds)
    away = generate_codes(objective, dataclasses.replace(nothing, text=EMPTY))
    assert torch.equal(draw(guidance_scale=0.0), away)
    assert torch.equal(draw(guidance_scale=1.0000001), draw())
    assert not torch.equal(draw(guidance_scale=5.0), draw())


@parametrize(["any_order", "autoregressive"])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_a_cache_with_examples_is_the_same_as_none(
    objective: Objective, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step's predictions against one pass that encodes everything before it anew."""
    seen = []
    transformer, predict = objective.transformer, objective.transformer.predict

    def watch(cache: KVCache, positions: Tensor, visible: Tensor) -> Tensor:
        seen.append((positions, predict(cache, positions, visible)))
        return seen[-1][1]

    monkeypatch.setattr(transformer, "predict", watch)
    prompts, examples = [1, 0, 2], draw_examples(len(objective.codebook))
    batch = create_batch(
        objective, prompts, [1, 2, 3], examples=examples, guidance_scale=guidance_scale
    )
    codes = generate_codes(objective, batch)
    monkeypatch.undo()
    assert len(seen) > 1
    order = torch.cat([positions[:3] for positions, _ in seen], 1)
    branches = [(TEXT[prompts], select(examples, *prompts)), (EMPTY.expand(3, -1), None)]
    for branch, (text, beside) in enumerate(branches[: len(seen[0][0]) // 3]):
        before = 0
        for positions, hidden in seen:
            cache = transformer.encode_context(text, beside)
            known = order[:, :before]
            transformer.append_codes(cache, gather_positions(codes, known), known)
            queries = positions[:3]
            visible = torch.full((queries.shape[1],), before)
            anew = predict(cache, queries, visible)
            made = hidden[3 * branch : 3 * branch + 3]
            torch.testing.assert_close(made, anew, atol=1e-4, rtol=1e-4)
            before += queries.shape[1]
