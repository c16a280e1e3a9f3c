"""Larger pictures, edits, variations, scores and the best of several: all from one canvas."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tessella.errors import ConfigError, GenerationError
from tessella.model import sampler
from tessella.model.canvas import Canvas
from tessella.model.mask import half_mask
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.objectives import GenerationBatch, GenerationStep, OnStep
from tessella.objectives.parallel import predict_everywhere
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from untrained import create_untrained, describe_tokenizer

GENERATES_CODES = ("any_order", "autoregressive", "masked", "parallel", "shared_latent")
SCORING = GENERATES_CODES[:4]
GRID, SIDE, SIZE = (4, 4), 4, 16
PROMPT = "a red star"


MODELS = {name: create_untrained(name) for name in (*GENERATES_CODES, "latent_mse")}
MODEL = MODELS["any_order"]
# Of two codes a position.
PAIRS = {
    f"{name}_of_pairs": create_untrained(name, tokenizer=describe_tokenizer(2, composition))
    for name, composition in (("any_order", "residual"), ("masked", "product"))
}
OF_PAIRS = PAIRS["any_order_of_pairs"]


def with_models(names: Iterable[str]) -> pytest.MarkDecorator:
    chosen = {name: MODELS[name] for name in names} | PAIRS
    return pytest.mark.parametrize("model", chosen.values(), ids=chosen.keys())


EVERY, HAS_CODES, HAS_LIKELIHOOD = map(with_models, (MODELS, GENERATES_CODES, SCORING))
ONE_AND_TWO_CODES = pytest.mark.parametrize("model", [MODEL, OF_PAIRS], ids=["one", "two"])

NOISE = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
IMAGE = Image.fromarray(NOISE)
CORNER = np.zeros((SIZE, SIZE), dtype=bool)
CORNER[:3, :6] = True  # touches the first two tiles of the first row


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


def decode(model: TextToImage, codes: Tensor) -> np.ndarray:
    with torch.no_grad():
        image = model.tokenizer.decode(codes)
    return ((image.movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy()


@pytest.fixture
def record_batches(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextToImage], list[Any]]:
    """Records the batches of a model's objective, with the codes that it generates."""

    def record(model: TextToImage) -> list[Any]:
        recorded: list[Any] = []
        generate = model.objective.generate

        def record_one(batch: GenerationBatch, on_step: OnStep | None = None) -> Any:
            generated = generate(batch, on_step)
            recorded.append((batch, generated.codes))
            return generated

        monkeypatch.setattr(model.objective, "generate", record_one)
        return recorded

    return record


# While it comes.


@HAS_CODES
def test_steps_are_shown_with_what_is_open_blank(model: TextToImage) -> None:
    """A callback once got codes that no public method could turn into a picture."""
    steps: list[GenerationStep] = []
    generated = pixels(model.generate(PROMPT, count=2, seed=1, on_step=steps.append))
    tokenizer = model.tokenizer
    for step in steps:
        vectors = [book[step.codes[:, m]] for m, book in enumerate(tokenizer.codebook)]
        latent = torch.stack(vectors).sum(0)  # (B, N, C)
        latent[~step.is_decoded] = tokenizer.codebook.mean(1).sum(0)
        with torch.no_grad():
            image = tokenizer.decode_latent(latent.unflatten(1, GRID).movedim(-1, 1))
        expected = ((image.movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
        shown = model.decode_codes(step.codes, step.is_decoded)
        assert np.array_equal(shown, expected)
        assert np.array_equal(shown, generated) is bool(step.is_decoded.all())
    assert np.array_equal(model.decode_codes(steps[-1].codes), generated)


def test_what_is_open_is_not_shown_as_the_first_code() -> None:
    codes, is_decoded = torch.full((1, 1, 16), 7), torch.arange(16)[None] < 8
    for other in (0, 3):
        shown = MODEL.decode_codes(codes.where(is_decoded, other), is_decoded)
        assert np.array_equal(shown, MODEL.decode_codes(codes, is_decoded))
    assert not np.array_equal(shown, MODEL.decode_codes(codes.where(is_decoded, 0)))


def test_codes_of_any_grid_are_decoded() -> None:
    codes = torch.randint(16, (3, 1, 4, 6), generator=torch.Generator().manual_seed(0))
    assert np.array_equal(MODEL.decode_codes(codes), decode(MODEL, codes))
    assert MODEL.decode_codes(codes, codes[:, 0] > 7).shape == (3, 16, 24, 3)


def test_codes_are_decoded_in_the_order_of_their_codebooks() -> None:
    """As a step has them, (B, M, N), and as pictures have them, (B, M, h, w)."""
    codes = torch.arange(32).view(1, 2, 4, 4) % 16
    shown = OF_PAIRS.decode_codes(codes)
    assert np.array_equal(shown, decode(OF_PAIRS, codes))
    assert np.array_equal(OF_PAIRS.decode_codes(codes.flatten(2)), shown)
    swapped = codes.clone()
    swapped[0, 0, 0, 0], swapped[0, 1, 0, 0] = 3, 5
    other = swapped.clone()
    other[0, :, 0, 0] = torch.tensor([5, 3])
    assert not np.array_equal(OF_PAIRS.decode_codes(swapped), OF_PAIRS.decode_codes(other))


# Larger pictures.


@EVERY
def test_the_models_own_size_changes_nothing(model: TextToImage) -> None:
    expected = pixels(model.generate(["a red star", "a blue star"], count=2, seed=4))
    sized = model.generate(["a red star", "a blue star"], count=2, seed=4, size=(SIZE, SIZE))
    assert np.array_equal(pixels(sized), expected)


@HAS_CODES
def test_every_position_of_a_larger_picture_is_decoded_once(
    model: TextToImage, record_batches: Callable[[TextToImage], list[Any]]
) -> None:
    recorded = record_batches(model)
    [image] = model.generate(PROMPT, seed=3, canvas=(2.25, 1.5))  # 6 × 9 positions
    assert image.size == (36, 24)
    canvas = torch.zeros(len(model.tokenizer.codebook), 6, 9, dtype=torch.int64)
    is_decoded = torch.zeros(6, 9, dtype=torch.int64)
    corners = [(row, column) for row in (0, 2) for column in (0, 2, 4, 5)]
    for (row, column), (batch, codes) in zip(corners, recorded, strict=True):
        window = (..., slice(row, row + 4), slice(column, column + 4))
        known = batch.known.view(GRID)
        assert torch.equal(known, is_decoded[window] == 1)
        assert torch.equal(codes[0][:, known], canvas[window][:, known])
        is_decoded[window] += (~known).long()
        canvas[window] = codes[0]
    assert (is_decoded == 1).all()
    assert np.array_equal(np.asarray(image), decode(model, canvas[None])[0])
    first = model.generate_images([ImageRequest(PROMPT, 3)]).codes
    assert first is not None
    assert torch.equal(canvas[:, :4, :4], first[0])


@HAS_CODES
def test_larger_pictures_do_not_depend_on_their_batch(model: TextToImage) -> None:
    made = model.generate([PROMPT, "a blue star"], count=2, seed=7, canvas=(1.5, 1.25))
    again = model.generate([PROMPT, "a blue star"], count=2, seed=7, canvas=(1.5, 1.25))
    assert np.array_equal(pixels(made), pixels(again))
    [alone] = model.generate("a blue star", seed=8, canvas=(1.5, 1.25))
    assert np.array_equal(np.asarray(alone), np.asarray(made[3]))


def test_windows_are_not_copies_of_each_other() -> None:
    """With the picture's seed in every window, a prompt that says little once gave stripes."""
    request = ImageRequest(PROMPT, 0, canvas=Canvas.new((4, 34)))
    codes = MODELS["parallel"].generate_images([request]).codes
    assert codes is not None
    strips = codes[0, 0][:, 4:].unfold(1, 2, 2).movedim(1, 0).flatten(1)
    assert len(strips.unique(dim=0)) == 15


def test_without_codes_there_is_no_larger_picture() -> None:
    model = MODELS["latent_mse"]
    with pytest.raises(GenerationError, match=r"generated code by code, which .*: `latent_mse`"):
        model.generate(PROMPT, canvas="2x1")
    with pytest.raises(GenerationError, match="generated code by code"):
        model.outpaint(IMAGE, PROMPT, left=4)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "residual", "widths": (16, 16)},
        {"network": "taming", "widths": (32, 32)},
        {"network": "report2021", "nhid": 8, "quantizer": {"code_width": 8}},
        {
            "network": "palette",
            "quantizer": {"name": "vq", "code_width": 3, "normalize": False},
        },
    ],
    ids=lambda settings: settings["network"],
)
def test_every_decoder_takes_any_size(settings: dict[str, Any]) -> None:
    tokenizer = VQAutoencoder(TokenizerSettings.model_validate(settings)).eval()
    side = tokenizer.settings.downsampling
    with torch.no_grad():
        image = tokenizer.decode(torch.zeros(1, 1, 3, 7, dtype=torch.int64))
    assert image.shape == (1, 3, 3 * side, 7 * side)


# Edited.


@EVERY
def test_an_edit_leaves_the_pixels_outside_of_the_mask(model: TextToImage) -> None:
    made = pixels(model.edit(IMAGE, PROMPT, CORNER, count=2, seed=5))
    assert made.shape == (2, SIZE, SIZE, 3)
    assert np.array_equal(made[:, ~CORNER], np.stack([NOISE[~CORNER]] * 2))
    assert (made[:, CORNER] != NOISE[CORNER]).any()
    again = pixels(model.edit(IMAGE, PROMPT, Image.fromarray(CORNER), count=2, seed=5))
    assert np.array_equal(made, again)


@HAS_CODES
def test_an_edit_generates_the_tiles_that_the_mask_touches(
    model: TextToImage, record_batches: Callable[[TextToImage], list[Any]]
) -> None:
    image_codes = model.encode_images(NOISE[None])[0]
    recorded = record_batches(model)
    [made] = model.edit(IMAGE, PROMPT, CORNER, seed=5)
    [(batch, codes)] = recorded
    known = batch.known.view(GRID)
    assert (~known).nonzero().tolist() == [[0, 0], [0, 1]]
    assert image_codes.shape == (len(model.tokenizer.codebook), *GRID)
    assert torch.equal(codes[0][:, known], image_codes[:, known])
    assert torch.equal(batch.known_codes[0].mT.reshape(-1, *GRID)[:, known], image_codes[:, known])
    assert np.array_equal(np.asarray(made)[CORNER], decode(model, codes)[0][CORNER])


@EVERY
def test_a_full_mask_is_a_new_picture(model: TextToImage) -> None:
    everything = Image.new("L", IMAGE.size, 255)
    made = model.edit(IMAGE, PROMPT, everything, count=2, seed=9)
    assert np.array_equal(pixels(made), pixels(model.generate(PROMPT, count=2, seed=9)))


def test_a_half_is_completed() -> None:
    [made] = MODEL.edit(IMAGE, PROMPT, half_mask(IMAGE.size, keep="upper"))
    assert np.array_equal(np.asarray(made)[:8], NOISE[:8])
    assert (np.asarray(made)[8:] != NOISE[8:]).mean() > 0.9


def test_a_wide_picture_and_its_mask_are_cropped_alike() -> None:
    wide, mask = Image.new("L", (32, SIZE)), np.zeros((SIZE, 32), dtype=bool)
    wide = wide.convert("RGB")
    wide.paste(IMAGE, (8, 0))
    mask[:, 8:24] = CORNER
    assert np.array_equal(
        pixels(MODEL.edit(wide, PROMPT, mask)), pixels(MODEL.edit(IMAGE, PROMPT, CORNER))
    )


@HAS_CODES
def test_what_is_generated_around_a_picture_leaves_it(model: TextToImage) -> None:
    margins: dict[str, Any] = {"left": 4, "top": 12, "right": 20, "bottom": 8}
    made = model.outpaint(IMAGE, PROMPT, count=2, seed=2, **margins)
    assert [image.size for image in made] == [(40, 36)] * 2
    for image in pixels(made):
        assert np.array_equal(image[12:28, 4:20], NOISE)
    around = np.ones((36, 40), dtype=bool)
    around[12:28, 4:20] = False
    if model is not MODELS["shared_latent"]:  # which is the same whatever the seed
        assert (pixels(made)[0][around] != pixels(made)[1][around]).any()
    assert np.array_equal(
        pixels(model.outpaint(IMAGE, PROMPT, count=2, seed=2, **margins)), pixels(made)
    )


@HAS_CODES
@pytest.mark.parametrize(("strength", "anew"), [(1e-9, 1), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_a_variation_keeps_a_fraction_of_the_codes(
    model: TextToImage,
    strength: float,
    anew: int,
    record_batches: Callable[[TextToImage], list[Any]],
) -> None:
    image_codes = model.encode_images(NOISE[None])[0].flatten(1)  # (M, N)
    recorded = record_batches(model)
    made = model.vary(IMAGE, strength=strength, count=3, seed=1)
    [(batch, codes)] = recorded
    assert (~batch.known).sum(1).tolist() == [anew] * 3
    for known, row in zip(batch.known, codes.flatten(2), strict=True):
        assert torch.equal(row[:, known], image_codes[:, known])
    assert np.array_equal(pixels(made), decode(model, codes))
    if anew == 8:
        assert len(batch.known.unique(dim=0)) == 3
        [alone] = model.vary(IMAGE, strength=strength, seed=3)
        assert np.array_equal(np.asarray(alone), np.asarray(made[2]))


def test_a_variation_of_everything_is_a_new_picture() -> None:
    made = MODEL.vary(IMAGE, PROMPT, strength=1, count=2, seed=6)
    assert np.array_equal(pixels(made), pixels(MODEL.generate(PROMPT, count=2, seed=6)))
    without = MODEL.vary(IMAGE, " ", strength=1, seed=6)
    assert np.array_equal(pixels(without), pixels(MODEL.vary(IMAGE, strength=1, seed=6)))
    assert not np.array_equal(pixels(without)[0], pixels(made)[0])


def test_a_negative_prompt_moves_the_picture_elsewhere() -> None:
    base = pixels(MODEL.generate(PROMPT, guidance_scale=3.0))
    away = pixels(MODEL.generate(PROMPT, guidance_scale=3.0, negative_prompt="a blue star"))
    blank = pixels(MODEL.generate(PROMPT, guidance_scale=3.0, negative_prompt=" "))
    assert not np.array_equal(base, away)
    assert np.array_equal(base, blank)


# Scored.


@HAS_LIKELIHOOD
def test_scores_are_each_pair_by_itself(
    model: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [IMAGE, *model.generate("a blue star", count=2)]
    prompts = ["a blue star", PROMPT, "a green star or two"]
    scores = model.score(images, prompts, num_orders=3, seed=8)
    assert scores.pmi.shape == scores.log_likelihood.shape == (3, 3)
    assert scores.pmi.dtype == np.float64
    for row, image in enumerate(images):
        codes = model.encode_images(np.asarray(image)[None])

        def alone(prompt: str, codes: Tensor = codes) -> Any:
            text = model.sampler.encode_text([prompt])
            likelihood = model.objective.compute_log_likelihood(text, codes, num_orders=3, seed=8)
            return likelihood.item()

        for column, prompt in enumerate(prompts):
            assert scores.log_likelihood[row, column] == pytest.approx(alone(prompt), abs=1e-4)
            gained = alone(prompt) - alone("")
            assert scores.pmi[row, column] == pytest.approx(gained, abs=1e-4)
    again = model.score(pixels(images), prompts, num_orders=3, seed=8)
    assert np.array_equal(again.pmi, scores.pmi)
    monkeypatch.setitem(sampler._BATCH_SIZES, "cpu", 5)
    chunked = model.score(images, prompts, num_orders=3, seed=8)
    assert np.allclose(chunked.log_likelihood, scores.log_likelihood, atol=1e-4)


def test_the_score_of_independent_positions_by_hand() -> None:
    model = MODELS["parallel"]
    codes = model.encode_images(NOISE[None])
    sums = []
    for prompt in (PROMPT, ""):
        hidden = predict_everywhere(model.transformer, model.sampler.encode_text([prompt]))
        logits = model.transformer.out(hidden)
        sums.append(-functional.cross_entropy(logits[0], codes.flatten(), reduction="sum").item())
    scores = model.score([IMAGE], PROMPT)
    assert scores.log_likelihood[0, 0] == pytest.approx(sums[0], abs=1e-4)
    assert scores.pmi[0, 0] == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_the_score_of_two_codes_by_hand() -> None:
    """The second code of a position, too, has a logit of its own: after the first."""
    model = create_untrained("parallel", tokenizer=describe_tokenizer(2))
    network, codes = model.transformer, model.encode_images(NOISE[None])[0].flatten(1)
    hidden = predict_everywhere(network, model.sampler.encode_text([PROMPT]))[0]
    expected = 0.0
    for place in range(16):
        first, second = codes[:, place].tolist()
        row = hidden[place]
        logits = network.out(row)[:16]
        expected += logits.log_softmax(0)[first].item()
        row = network.next_code[0](row, network.code_embedding.weight[first])
        expected += network.out(row)[16:].log_softmax(0)[second].item()
    scores = model.score([IMAGE], PROMPT)
    assert scores.log_likelihood[0, 0] == pytest.approx(expected, abs=1e-3)


def test_rows_of_codes_are_scored_as_their_pictures() -> None:
    images = MODEL.generate([PROMPT, "a blue star"], seed=3)
    table = MODEL.score(images, [PROMPT, "a blue star"])
    codes = MODEL.encode_images(pixels(images))
    rows = MODEL.sampler.score_codes(codes, ["a blue star", PROMPT])
    assert np.allclose(rows.pmi, table.pmi[[0, 1], [1, 0]], atol=1e-4)
    assert np.allclose(rows.log_likelihood, table.log_likelihood[[0, 1], [1, 0]], atol=1e-4)


@ONE_AND_TWO_CODES
def test_a_larger_picture_is_scored_window_by_window(model: TextToImage) -> None:
    size = (2, len(model.tokenizer.codebook), 4, 6)
    codes = torch.randint(16, size, generator=torch.Generator().manual_seed(0))
    whole = model.sampler.score_codes(codes, [PROMPT, "a blue star"])
    parts = [
        model.sampler.score_codes(codes[..., c : c + 4], [PROMPT, "a blue star"]) for c in (0, 2)
    ]
    assert np.allclose(whole.pmi, parts[0].pmi + parts[1].pmi, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "There is no picture. Give at least one"),
        ({"images": ["a.png"]}, "This is not a picture: `str`"),
        ({"prompts": []}, "There is no prompt. Give at least one"),
        ({"prompts": [PROMPT, " "]}, "A prompt must say something: ` `"),
        ({"prompts": "star " * 80}, "at most 64 can be read"),
        ({"num_orders": 0}, "number of orders must be between 1 and 1000: `0`"),
        ({"num_orders": 1_000_000}, "between 1 and 1000: `1000000`"),
        ({"seed": -1}, r"seed must be between 0 and \d+: `-1`"),
    ],
)
def test_what_cannot_be_scored(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        MODEL.score(**({"images": [IMAGE], "prompts": PROMPT} | changes))


# The best of several.


@HAS_LIKELIHOOD
@pytest.mark.parametrize("size", [(SIZE, SIZE), (24, SIZE)])
def test_the_best_of_several_gains_most(model: TextToImage, size: tuple[int, int]) -> None:
    prompts = [PROMPT, "a blue star"]
    canvas = (size[0] / SIZE, size[1] / SIZE)
    best_images = pixels(model.generate(prompts, count=3, seed=10, best_of=3, canvas=canvas))
    assert best_images.shape == (6, size[1], size[0], 3)
    ranks = []
    for number, prompt in enumerate(prompts):
        empty = model.canvases.new(size)
        for picture in range(3):
            # Each picture has candidates of its own: 10, 11, 12, then 13, 14, 15, …
            seeds = range(10 + 3 * picture, 13 + 3 * picture)
            candidates = model.generate_images(
                [ImageRequest(prompt, seed, canvas=empty) for seed in seeds]
            )
            assert candidates.codes is not None
            best = int(model.sampler.score_codes(candidates.codes, [prompt] * 3).pmi.argmax())
            assert np.array_equal(best_images[3 * number + picture], candidates.pixels[best])
            ranks.append(best)
    assert len(set(ranks)) > 1


def test_more_candidates_than_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pixels(MODEL.generate(PROMPT, count=3, best_of=4))
    monkeypatch.setitem(sampler._BATCH_SIZES, "cpu", 3)
    steps: list[GenerationStep] = []
    made = MODEL.generate(PROMPT, count=3, best_of=4, on_step=steps.append)
    assert np.array_equal(pixels(made), expected)
    # All candidates of a picture, up to 64, were once generated at once.
    assert [len(step.codes) for step in steps] == [3, 3, 3, 1, 1, 1] * 3


def test_edits_have_candidates_too() -> None:
    made = pixels(MODEL.edit(IMAGE, PROMPT, CORNER, seed=4, best_of=5))
    candidates = pixels(MODEL.edit(IMAGE, PROMPT, CORNER, count=5, seed=4))
    assert any(np.array_equal(made[0], candidate) for candidate in candidates)
    varied = MODEL.vary(IMAGE, PROMPT, best_of=2)
    grown = MODEL.outpaint(IMAGE, PROMPT, right=8, best_of=2)
    assert (varied[0].size, grown[0].size) == ((16, 16), (24, 16))


@pytest.mark.parametrize("name", ["latent_mse", "shared_latent"])
def test_without_a_likelihood_there_is_no_score_and_no_best(name: str) -> None:
    model = MODELS[name]
    steps: list[GenerationStep] = []
    with pytest.raises(GenerationError, match=f"no likelihood.*: `{name}`"):
        model.score([IMAGE], PROMPT)
    with pytest.raises(GenerationError, match=f"no likelihood.*: `{name}`"):
        model.generate(PROMPT, best_of=2, on_step=steps.append)
    assert not steps  # refused before the work


# Refused.


def every_method(**changes: Any) -> list[Callable[[], Any]]:
    prompt = changes.pop("prompt", PROMPT)
    return [
        lambda: MODEL.generate(prompt, **changes),
        lambda: MODEL.edit(IMAGE, prompt, CORNER, **changes),
        lambda: MODEL.outpaint(IMAGE, prompt, left=4, **changes),
        lambda: MODEL.vary(IMAGE, prompt, **changes),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "count of pictures must be between 1 and 10000: `0`"),
        ({"count": 1_000_000}, "between 1 and 10000: `1000000`"),
        ({"best_of": 0}, "candidates, best_of, must be between 1 and 64: `0`"),
        ({"best_of": 1_000_000}, "between 1 and 64: `1000000`"),
        ({"seed": -1}, r"seed must be between 0 and \d+: `-1`"),
        ({"seed": 2**63 - 1, "count": 2}, r"seed must be .*: `9223372036854775808`"),
        ({"seed": 2**63 - 1, "best_of": 2}, r"seed must be .*: `9223372036854775808`"),
        ({"prompt": "star " * 80}, "at most 64 can be read"),
        ({"negative_prompt": "star " * 80, "guidance_scale": 2.0}, "at most 64 can be read"),
        ({"negative_prompt": "blue"}, r"by guidance, which is off: guidance_scale is `1`"),
    ],
)
def test_what_every_method_refuses(changes: dict[str, Any], message: str) -> None:
    for paint in every_method(**changes):
        with pytest.raises(GenerationError, match=message):
            paint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": float("nan")}, "Setting `temperature`: got: `nan`"),
        ({"steps": 0}, "Setting `steps`: got: `0`"),
        ({"steps": 1_000_000}, "Setting `steps`: got: `1000000`"),
        ({"guidance": 1}, "Unknown setting `guidance`; did you mean"),
    ],
)
def test_settings_that_every_method_refuses(changes: dict[str, Any], message: str) -> None:
    for paint in every_method(**changes):
        with pytest.raises(ConfigError, match=message):
            paint()


@pytest.mark.parametrize("name", ["latent_mse", "shared_latent"])
def test_without_guidance_there_is_nothing_to_move_away_from(name: str) -> None:
    """There a negative prompt once changed nothing, silently."""
    message = f"guidance, which the model's objective does not have: `{name}`. Leave it out"
    for scale in (None, 3.0):
        with pytest.raises(GenerationError, match=message):
            MODELS[name].generate(PROMPT, negative_prompt="a blue star", guidance_scale=scale)
    assert len(MODELS[name].generate(PROMPT, negative_prompt=" ")) == 1


def test_one_text_is_no_list_of_prompts() -> None:
    """`encode_text("a cat")` once encoded its letters."""
    with pytest.raises(GenerationError, match=f"a list of prompts, got one text: `{PROMPT}`"):
        MODEL.sampler.encode_text(PROMPT)


@pytest.mark.parametrize(
    ("requests", "best_of", "message"),
    [
        ([], 1, "There is no prompt. Give at least one"),
        ([ImageRequest(PROMPT, -1)], 1, r"seed must be between 0 and \d+: `-1`"),
        ([ImageRequest(PROMPT, 2**63 - 1)], 2, r"seed must be .*: `9223372036854775808`"),
        ([ImageRequest(PROMPT, 0)], 65, "best_of, must be between 1 and 64: `65`"),
        ([ImageRequest(" ", 0)], 2, "chosen by the prompt, and there is none"),
        ([ImageRequest(PROMPT, 0, "blue")], 1, "by guidance, which is off"),
    ],
)
def test_requests_are_checked_before_the_work(
    requests: list[ImageRequest], best_of: int, message: str
) -> None:
    """Whoever lists them: the command line, a server, Python."""
    steps: list[GenerationStep] = []
    with pytest.raises(GenerationError, match=message):
        MODEL.generate_images(requests, best_of=best_of, on_step=steps.append)
    assert not steps


def test_only_a_variation_needs_no_prompt() -> None:
    *others, _ = every_method(prompt=" ")
    for paint in others:
        with pytest.raises(GenerationError, match="A prompt must say something"):
            paint()
    with pytest.raises(GenerationError, match="chosen by the prompt, and there is none"):
        MODEL.vary(IMAGE, best_of=2)


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan")])
def test_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(GenerationError, match=rf"above 0 and at most 1: `{strength}`\. Try 0\.5"):
        MODEL.vary(IMAGE, strength=strength)


def test_words_that_no_caption_had_are_read_all_the_same() -> None:
    """The text tokenizer reads any bytes: there is no unknown word to refuse."""
    assert len(MODEL.generate("Ωμέγα", seed=1)) == 1


# Canvases and their steps.


@ONE_AND_TWO_CODES
def test_the_steps_of_a_larger_picture_show_all_of_it(model: TextToImage) -> None:
    """A step of a window once showed the window alone."""
    steps: list[GenerationStep] = []
    [generated] = pixels(model.generate(PROMPT, canvas="2x1", seed=2, on_step=steps.append))
    # Three windows of three steps.
    assert [(step.step, step.steps) for step in steps] == [(n, 9) for n in range(1, 10)]
    is_decoded = [step.is_decoded for step in steps]
    for step, before in zip(steps[1:], is_decoded, strict=False):
        assert step.codes.shape == (1, len(model.tokenizer.codebook), 4, 8)
        assert step.is_decoded.shape == (1, 4, 8)
        assert step.is_decoded[before].all()  # what is decoded stays decoded
        assert not step.codes.movedim(1, -1)[~step.is_decoded].any()
    assert not is_decoded[0][:, :, 4:].any()
    assert bool(is_decoded[-1].all())
    assert np.array_equal(model.decode_codes(steps[-1].codes)[0], generated)
    shown = model.decode_codes(steps[1].codes, steps[1].is_decoded)
    assert shown.shape == (1, 16, 32, 3)
    assert is_decoded[2][:, :, :4].all()
    # Each step has tensors of its own: what was shown doesn't change later.
    assert len({step.codes.data_ptr() for step in steps}) == 9


@ONE_AND_TWO_CODES
def test_steps_show_what_is_known(model: TextToImage) -> None:
    steps: list[GenerationStep] = []
    model.outpaint(IMAGE, PROMPT, left=8, seed=2, on_step=steps.append)
    image_codes = model.encode_images(NOISE[None])
    for step in steps:
        assert torch.equal(step.codes[..., 2:], image_codes)
        assert step.is_decoded[:, :, 2:].all()
    progress = [step.step / step.steps for step in steps]
    assert progress == sorted(progress)
    assert progress[-1] == 1


def test_requests_of_different_users_may_share_a_batch() -> None:
    """A server joins them; each gets what it would get alone."""
    edit = ImageRequest(
        PROMPT, 3, canvas=MODEL.canvases.edit(IMAGE, MODEL.canvases.mark(IMAGE, CORNER))
    )
    [varied] = MODEL.canvases.variations(IMAGE, [9], strength=2 / 16)
    variation = ImageRequest("a blue star", 4, canvas=varied)
    together = MODEL.generate_images([edit, variation])
    [edited] = MODEL.edit(IMAGE, PROMPT, CORNER, seed=3)
    assert np.array_equal(together.pixels[0], np.asarray(edited))
    alone = MODEL.generate_images([variation])
    assert np.array_equal(together.pixels[1], alone.pixels[0])
    assert not MODEL.canvases.new().known.any()


def test_a_request_without_a_canvas_is_a_new_picture() -> None:
    plain = MODEL.generate_images([ImageRequest(PROMPT, 3)])
    planned = MODEL.generate_images([ImageRequest(PROMPT, 3, canvas=MODEL.canvases.new())])
    assert np.array_equal(plain.pixels, planned.pixels)
    [image] = MODEL.generate(PROMPT, seed=3)
    assert np.array_equal(plain.pixels[0], np.asarray(image))


def test_a_planned_outpainting_has_the_picture_in_its_place() -> None:
    canvas = MODEL.canvases.outpaint(IMAGE, top=4, right=8)
    assert canvas.repainted is not None
    assert canvas.repainted.shape == (20, 24)
    black = np.zeros((20, 24, 3), dtype=np.uint8)
    finished = canvas.finish(black)
    assert np.array_equal(finished[4:, :16], NOISE)
    assert not finished[:4].any()
    assert not finished[:, 16:].any()
    assert torch.equal(canvas.codes[:, 1:, :4], MODEL.encode_images(NOISE[None])[0])
    assert int(canvas.known.sum()) == 16


# Ninety-six pictures were painted before the hundredth prompt was found to be too long.
def test_a_long_prompt_is_refused_before_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sampler._BATCH_SIZES, "cpu", 2)
    steps: list[GenerationStep] = []
    prompts = ["a red star", "a red star", "a red star", "star " * 80]
    with pytest.raises(GenerationError, match="at most 64 can be read"):
        MODEL.generate(prompts, on_step=steps.append)
    assert not steps


# Windows follow from the first canvas: where only another one was open, code 0 stayed.
def test_canvases_of_different_layouts_are_refused() -> None:
    whole, wide = MODEL.canvases.new(), MODEL.canvases.new((32, 16))
    requests = [ImageRequest("a red star", 0, canvas=canvas) for canvas in (whole, wide)]
    with pytest.raises(GenerationError, match=r"must have one layout .*: `2` different ones"):
        MODEL.generate_images(requests)
