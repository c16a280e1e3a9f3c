"""Larger pictures, edits, variations, scores and choices: all from one canvas."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from tessella.errors import ConfigError, GenerationError
from tessella.model.pipeline import KnownCodes, TextToImage, half_mask
from tessella.objectives import GenerationBatch, GenerationStep
from tessella.objectives.parallel import ask_everywhere
from tessella.tokenizer import ImageTokenizer, TokenizerSettings
from untrained import create_untrained

LAYING = ("any_order", "autoregressive", "masked", "parallel", "shared_latent")
SCORING = LAYING[:4]
GRID, SIDE, SIZE = (4, 4), 4, 16
PROMPT = "a red star"


MODELS = {name: create_untrained(name) for name in (*LAYING, "latent_mse")}
MODEL = MODELS["any_order"]
EVERY = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
LAYS_CODES = pytest.mark.parametrize("model", [MODELS[name] for name in LAYING], ids=LAYING)
HAS_LIKELIHOOD = pytest.mark.parametrize("model", [MODELS[n] for n in SCORING], ids=SCORING)

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
def requests(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextToImage], list[Any]]:
    """Records what a model's objective is asked, with the codes that it is_decoded."""

    def on_step(model: TextToImage) -> list[Any]:
        seen: list[Any] = []
        generate = model.objective.generate

        def record(t: Any, c: Any, g: Any, asked: GenerationBatch, *more: Any) -> Any:
            painted = generate(t, c, g, asked, *more)
            seen.append((asked, painted.codes))
            return painted

        monkeypatch.setattr(model.objective, "generate", record)
        return seen

    return on_step


# While it comes.


@LAYS_CODES
def test_steps_are_shown_with_what_is_open_blank(model: TextToImage) -> None:
    """A callback once got codes that nothing public could turn into a picture."""
    steps: list[GenerationStep] = []
    painted = pixels(model.generate(PROMPT, count=2, seed=1, on_step=steps.append))
    tokenizer = model.tokenizer
    for step in steps:
        latent = functional.embedding(step.codes, tokenizer.codebook)
        latent[~step.is_decoded] = tokenizer.codebook.mean(0)
        with torch.no_grad():
            image = tokenizer.decode_latent(latent.unflatten(1, GRID).movedim(-1, 1))
        expected = ((image.movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
        shown = model.decode_codes(step.codes, step.is_decoded)
        assert np.array_equal(shown, expected)
        assert np.array_equal(shown, painted) is bool(step.is_decoded.all())
    assert np.array_equal(model.decode_codes(steps[-1].codes), painted)


def test_what_is_open_is_not_shown_as_the_first_code() -> None:
    codes, is_decoded = torch.full((1, 16), 7), torch.arange(16)[None] < 8
    for other in (0, 3):
        shown = MODEL.decode_codes(codes.where(is_decoded, other), is_decoded)
        assert np.array_equal(shown, MODEL.decode_codes(codes, is_decoded))
    assert not np.array_equal(shown, MODEL.decode_codes(codes.where(is_decoded, 0)))


def test_mosaics_of_any_size_are_decoded() -> None:
    codes = torch.randint(16, (3, 4, 6), generator=torch.Generator().manual_seed(0))
    assert np.array_equal(MODEL.decode_codes(codes), decode(MODEL, codes))
    assert MODEL.decode_codes(codes, codes > 7).shape == (3, 16, 24, 3)


# Larger pictures.


@EVERY
def test_the_models_own_size_changes_nothing(model: TextToImage) -> None:
    expected = pixels(model.generate(["a red star", "a blue star"], count=2, seed=4))
    sized = model.generate(["a red star", "a blue star"], count=2, seed=4, size=(SIZE, SIZE))
    assert np.array_equal(pixels(sized), expected)


@LAYS_CODES
def test_every_place_of_a_larger_picture_is_laid_once(
    model: TextToImage, requests: Callable[[TextToImage], list[Any]]
) -> None:
    seen = requests(model)
    [image] = model.generate(PROMPT, seed=3, size=(36, 24))  # 6 × 9 positions
    assert image.size == (36, 24)
    canvas, is_decoded = torch.zeros(6, 9, dtype=torch.int64), torch.zeros(6, 9, dtype=torch.int64)
    corners = [(row, column) for row in (0, 2) for column in (0, 2, 4, 5)]
    for (row, column), (asked, codes) in zip(corners, seen, strict=True):
        window = (slice(row, row + 4), slice(column, column + 4))
        known = asked.known.view(GRID)
        assert torch.equal(known, is_decoded[window] == 1)
        assert torch.equal(codes[0][known], canvas[window][known])
        is_decoded[window] += (~known).long()
        canvas[window] = codes[0]
    assert (is_decoded == 1).all()
    assert np.array_equal(np.asarray(image), decode(model, canvas[None])[0])
    first = model.paint([PROMPT], seeds=[3]).codes
    assert first is not None
    assert torch.equal(canvas[:4, :4], first[0])


@LAYS_CODES
def test_larger_pictures_do_not_depend_on_their_batch(model: TextToImage) -> None:
    made = model.generate([PROMPT, "a blue star"], count=2, seed=7, size=(24, 20))
    again = model.generate([PROMPT, "a blue star"], count=2, seed=7, size=(24, 20))
    assert np.array_equal(pixels(made), pixels(again))
    [alone] = model.generate("a blue star", seed=8, size=(24, 20))
    assert np.array_equal(np.asarray(alone), np.asarray(made[3]))


def test_windows_are_not_copies_of_each_other() -> None:
    """Where each window had the picture's own seed, a prompt that says nothing gave stripes."""
    nothing = KnownCodes.nothing((4, 34))
    codes = MODELS["parallel"].paint([PROMPT], seeds=[0], known=nothing).codes
    assert codes is not None
    strips = codes[0][:, 4:].unfold(1, 2, 2).movedim(1, 0).flatten(1)
    assert len(strips.unique(dim=0)) == 15


def test_an_objective_without_codes_paints_no_larger_picture() -> None:
    model = MODELS["latent_mse"]
    with pytest.raises(GenerationError, match=r"is_decoded code by code, which .*: `latent_mse`"):
        model.generate(PROMPT, size=(32, 16))
    with pytest.raises(GenerationError, match="is_decoded code by code"):
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
    tokenizer = ImageTokenizer(TokenizerSettings.model_validate(settings)).eval()
    side = tokenizer.settings.downsampling
    with torch.no_grad():
        image = tokenizer.decode(torch.zeros(1, 3, 7, dtype=torch.int64))
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


@LAYS_CODES
def test_an_edit_lays_the_tiles_that_the_mask_touches(
    model: TextToImage, requests: Callable[[TextToImage], list[Any]]
) -> None:
    own = model.encode_images(NOISE[None])[0]
    seen = requests(model)
    [made] = model.edit(IMAGE, PROMPT, CORNER, seed=5)
    [(asked, codes)] = seen
    known = asked.known.view(GRID)
    assert (~known).nonzero().tolist() == [[0, 0], [0, 1]]
    assert torch.equal(codes[0][known], own[known])
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


@LAYS_CODES
def test_what_is_painted_around_a_picture_leaves_it(model: TextToImage) -> None:
    margins: dict[str, Any] = {"left": 4, "top": 12, "right": 20, "bottom": 8}
    made = model.outpaint(IMAGE, PROMPT, count=2, seed=2, **margins)
    assert [image.size for image in made] == [(40, 36)] * 2
    for image in pixels(made):
        assert np.array_equal(image[12:28, 4:20], NOISE)
    around = np.ones((36, 40), dtype=bool)
    around[12:28, 4:20] = False
    if model is not MODELS["shared_latent"]:  # which paints alike whatever the seed
        assert (pixels(made)[0][around] != pixels(made)[1][around]).any()
    assert np.array_equal(
        pixels(model.outpaint(IMAGE, PROMPT, count=2, seed=2, **margins)), pixels(made)
    )


@LAYS_CODES
@pytest.mark.parametrize(("strength", "anew"), [(1e-9, 1), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_a_variation_keeps_a_share_of_the_codes(
    model: TextToImage,
    strength: float,
    anew: int,
    requests: Callable[[TextToImage], list[Any]],
) -> None:
    own = model.encode_images(NOISE[None])[0].flatten()
    seen = requests(model)
    made = model.vary(IMAGE, strength=strength, count=3, seed=1)
    [(asked, codes)] = seen
    assert (~asked.known).sum(1).tolist() == [anew] * 3
    for known, is_decoded in zip(asked.known, codes.flatten(1), strict=True):
        assert torch.equal(is_decoded[known], own[known])
    assert np.array_equal(pixels(made), decode(model, codes))
    if anew == 8:
        assert len(asked.known.unique(dim=0)) == 3
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
            text = model.encode_text([prompt])
            [found] = model.objective.compute_log_likelihood(
                model.transformer, text, codes, num_orders=3, seed=8
            )
            return found.item()

        for column, prompt in enumerate(prompts):
            assert scores.log_likelihood[row, column] == pytest.approx(alone(prompt), abs=1e-4)
            gained = alone(prompt) - alone("")
            assert scores.pmi[row, column] == pytest.approx(gained, abs=1e-4)
    again = model.score(pixels(images), prompts, num_orders=3, seed=8)
    assert np.array_equal(again.pmi, scores.pmi)
    monkeypatch.setattr(painting, "_BATCH", 5)
    chunked = model.score(images, prompts, num_orders=3, seed=8)
    assert np.allclose(chunked.log_likelihood, scores.log_likelihood, atol=1e-4)


def test_the_score_of_independent_places_by_hand() -> None:
    model = MODELS["parallel"]
    codes = model.encode_images(NOISE[None])
    sums = []
    for prompt in (PROMPT, ""):
        logits = ask_everywhere(model.transformer, model.encode_text([prompt]))
        sums.append(-functional.cross_entropy(logits[0], codes.flatten(), reduction="sum").item())
    scores = model.score([IMAGE], PROMPT)
    assert scores.log_likelihood[0, 0] == pytest.approx(sums[0], abs=1e-4)
    assert scores.pmi[0, 0] == pytest.approx(sums[0] - sums[1], abs=1e-4)


def test_rows_of_codes_are_scored_as_their_pictures() -> None:
    images = MODEL.generate([PROMPT, "a blue star"], seed=3)
    table = MODEL.score(images, [PROMPT, "a blue star"])
    codes = MODEL.encode_images(pixels(images))
    rows = MODEL.score_codes(codes, ["a blue star", PROMPT])
    assert np.allclose(rows.pmi, table.pmi[[0, 1], [1, 0]], atol=1e-4)
    assert np.allclose(rows.log_likelihood, table.log_likelihood[[0, 1], [1, 0]], atol=1e-4)


def test_a_larger_mosaic_is_scored_window_by_window() -> None:
    codes = torch.randint(16, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    whole = MODEL.score_codes(codes, [PROMPT, "a blue star"])
    parts = [MODEL.score_codes(codes[:, :, c : c + 4], [PROMPT, "a blue star"]) for c in (0, 2)]
    assert np.allclose(whole.pmi, parts[0].pmi + parts[1].pmi, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": []}, "There is no picture. Give at least one"),
        ({"images": ["a.png"]}, "This is no picture: `str`"),
        ({"prompts": []}, "There is no prompt. Give at least one"),
        ({"prompts": [PROMPT, " "]}, "A prompt must say something: ` `"),
        ({"prompts": "star " * 80}, "at most 64 can be read"),
        ({"num_orders": 0}, "number of orders must be between 1 and 1000: `0`"),
        ({"num_orders": 1_000_000}, "between 1 and 1000: `1000000`"),
        ({"seed": -1}, r"seed must be between 0 and \d+: `-1`"),
    ],
)
def test_what_cannot_be_scored(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(GenerationError, match=said):
        MODEL.score(**({"images": [IMAGE], "prompts": PROMPT} | changes))


# Chosen.


@HAS_LIKELIHOOD
@pytest.mark.parametrize("size", [(SIZE, SIZE), (24, SIZE)])
def test_the_best_of_several_gains_most(model: TextToImage, size: tuple[int, int]) -> None:
    prompts = [PROMPT, "a blue star"]
    chosen = pixels(model.generate(prompts, count=3, seed=10, best_of=3, size=size))
    assert chosen.shape == (6, size[1], size[0], 3)
    positions = []
    for number, prompt in enumerate(prompts):
        canvas = KnownCodes.nothing((size[1] // SIDE, size[0] // SIDE))
        for picture in range(3):
            # Each picture has candidates of its own: 10, 11, 12, then 13, 14, 15, …
            seeds = range(10 + 3 * picture, 13 + 3 * picture)
            candidates = model.paint([prompt] * 3, seeds=seeds, known=canvas)
            assert candidates.codes is not None
            best = int(model.score_codes(candidates.codes, [prompt] * 3).pmi.argmax())
            assert np.array_equal(chosen[3 * number + picture], candidates.pixels[best])
            positions.append(best)
    assert len(set(positions)) > 1


def test_more_candidates_than_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pixels(MODEL.generate(PROMPT, count=3, best_of=4))
    monkeypatch.setattr(painting, "_BATCH", 3)
    steps: list[GenerationStep] = []
    made = MODEL.generate(PROMPT, count=3, best_of=4, on_step=steps.append)
    assert np.array_equal(pixels(made), expected)
    # The candidates of a picture were once is_decoded all at once, 64 of them too.
    assert [len(step.codes) for step in steps] == [3, 3, 3, 1, 1, 1] * 3


def test_edits_are_chosen_too() -> None:
    made = pixels(MODEL.edit(IMAGE, PROMPT, CORNER, seed=4, best_of=5))
    candidates = pixels(MODEL.edit(IMAGE, PROMPT, CORNER, count=5, seed=4))
    assert any(np.array_equal(made[0], candidate) for candidate in candidates)
    varied = MODEL.vary(IMAGE, PROMPT, best_of=2)
    grown = MODEL.outpaint(IMAGE, PROMPT, right=8, best_of=2)
    assert (varied[0].size, grown[0].size) == ((16, 16), (24, 16))


@pytest.mark.parametrize("name", ["latent_mse", "shared_latent"])
def test_without_a_likelihood_nothing_is_scored_or_chosen(name: str) -> None:
    model = MODELS[name]
    steps: list[GenerationStep] = []
    with pytest.raises(GenerationError, match=f"no likelihood.*: `{name}`"):
        model.score([IMAGE], PROMPT)
    with pytest.raises(GenerationError, match=f"no likelihood.*: `{name}`"):
        model.generate(PROMPT, best_of=2, on_step=steps.append)
    assert not steps  # said before the work


# Refused.


def every_way(**changes: Any) -> list[Callable[[], Any]]:
    prompt = changes.pop("prompt", PROMPT)
    return [
        lambda: MODEL.generate(prompt, **changes),
        lambda: MODEL.edit(IMAGE, prompt, CORNER, **changes),
        lambda: MODEL.outpaint(IMAGE, prompt, left=4, **changes),
        lambda: MODEL.vary(IMAGE, prompt, **changes),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
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
def test_what_no_way_of_painting_takes(changes: dict[str, Any], said: str) -> None:
    for paint in every_way(**changes):
        with pytest.raises(GenerationError, match=said):
            paint()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": float("nan")}, "Setting `temperature`: got: `nan`"),
        ({"steps": 0}, "Setting `steps`: got: `0`"),
        ({"steps": 1_000_000}, "Setting `steps`: got: `1000000`"),
        ({"guidance": 1}, "Unknown setting `guidance`; did you mean"),
    ],
)
def test_settings_that_no_way_of_painting_takes(changes: dict[str, Any], said: str) -> None:
    for paint in every_way(**changes):
        with pytest.raises(ConfigError, match=said):
            paint()


@pytest.mark.parametrize("name", ["latent_mse", "shared_latent"])
def test_without_guidance_there_is_nothing_to_move_away_from(name: str) -> None:
    """A negative prompt once changed nothing there, and nobody was told."""
    said = f"guidance, which the model's objective does not have: `{name}`. Leave it out"
    for scale in (None, 3.0):
        with pytest.raises(GenerationError, match=said):
            MODELS[name].generate(PROMPT, negative_prompt="a blue star", guidance_scale=scale)
    assert len(MODELS[name].generate(PROMPT, negative_prompt=" ")) == 1


def test_one_text_is_no_list_of_prompts() -> None:
    """`encode_text("a cat")` once encoded its letters."""
    for use in (MODEL.encode_text, lambda text: MODEL.paint(text, seeds=range(len(text)))):
        with pytest.raises(GenerationError, match=f"a list of prompts, got one text: `{PROMPT}`"):
            use(PROMPT)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1]}, "`2`, `1` and `2` of them"),
        ({"seeds": [1, 2, 3]}, "`2`, `3` and `2` of them"),
        ({"negative_prompts": [""]}, "`2`, `2` and `1` of them. Give equally many"),
    ],
)
def test_every_picture_has_a_seed(changes: dict[str, Any], said: str) -> None:
    """Too few once ended in an IndexError, too many in pictures that were not painted."""
    with pytest.raises(GenerationError, match=said):
        MODEL.paint([PROMPT, "a blue star"], **({"seeds": [1, 2]} | changes))


def test_only_a_variation_needs_no_prompt() -> None:
    *others, _ = every_way(prompt=" ")
    for paint in others:
        with pytest.raises(GenerationError, match="A prompt must say something"):
            paint()
    with pytest.raises(GenerationError, match="chosen by the prompt, and there is none"):
        MODEL.vary(IMAGE, best_of=2)


@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan")])
def test_a_strength_that_is_no_share(strength: float) -> None:
    with pytest.raises(GenerationError, match=rf"above 0 and at most 1: `{strength}`\. Try 0\.5"):
        MODEL.vary(IMAGE, strength=strength)


def test_words_that_no_caption_had_are_read_all_the_same() -> None:
    """The text tokenizer reads any bytes: there is no unknown word to refuse."""
    assert len(MODEL.generate("Ωμέγα", seed=1)) == 1


# Canvases and how they are watched.


def test_a_larger_picture_is_watched_as_a_whole() -> None:
    """A step of a window once showed the window alone."""
    steps: list[GenerationStep] = []
    [painted] = pixels(MODEL.generate(PROMPT, size=(32, 16), seed=2, on_step=steps.append))
    # Three windows of three steps.
    assert [(step.step, step.steps) for step in steps] == [(n, 9) for n in range(1, 10)]
    is_decoded = [step.is_decoded for step in steps]
    for step, before in zip(steps[1:], is_decoded, strict=False):
        assert step.codes.shape == step.is_decoded.shape == (1, 4, 8)
        assert (
            step.is_decoded & before
        ).sum() == before.sum()  # what is is_decoded stays is_decoded
        assert not step.codes[~step.is_decoded].any()
    assert not is_decoded[0][:, :, 4:].any()
    assert bool(is_decoded[-1].all())
    assert np.array_equal(MODEL.decode_codes(steps[-1].codes)[0], painted)
    assert is_decoded[2][:, :, :4].all()
    # Each step is its own: nothing that was shown changes later.
    assert len({step.codes.data_ptr() for step in steps}) == 9


def test_what_is_known_is_watched_too() -> None:
    steps: list[GenerationStep] = []
    MODEL.outpaint(IMAGE, PROMPT, left=8, seed=2, on_step=steps.append)
    own = MODEL.encode_images(NOISE[None])
    for step in steps:
        assert torch.equal(step.codes[:, :, 2:], own)
        assert step.is_decoded[:, :, 2:].all()
    shares = [step.step / step.steps for step in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_canvases_may_be_planned_and_painted_apart() -> None:
    """What a server does with several requests is what each request gets."""
    seeds = [3, 4]
    canvases = [
        MODEL.plan_edit(IMAGE, CORNER),
        *MODEL.plan_variations(IMAGE, [9], strength=2 / 16),
    ]
    painted = MODEL.paint(
        [PROMPT, "a blue star"],
        seeds=seeds,
        known=KnownCodes.join([canvas.known for canvas in canvases]),
    )
    [edited] = MODEL.edit(IMAGE, PROMPT, CORNER, seed=3)
    assert np.array_equal(canvases[0].finish(painted.pixels[0]), np.asarray(edited))
    alone = MODEL.paint(["a blue star"], seeds=[4], known=canvases[1].known)
    assert np.array_equal(painted.pixels[1], alone.pixels[0])
    plain = MODEL.plan_picture()
    assert np.array_equal(plain.finish(painted.pixels[0]), painted.pixels[0])
    assert not plain.known.known.any()


def test_a_planned_outpainting_is_the_picture_in_its_place() -> None:
    canvas = MODEL.plan_outpaint(IMAGE, top=4, right=8)
    assert canvas.anew is not None
    assert canvas.anew.shape == (20, 24)
    black = np.zeros((20, 24, 3), dtype=np.uint8)
    finished = canvas.finish(black)
    assert np.array_equal(finished[4:, :16], NOISE)
    assert not finished[:4].any()
    assert not finished[:, 16:].any()
    assert torch.equal(canvas.known.codes[:, 1:, :4], MODEL.encode_images(NOISE[None]))
    assert int(canvas.known.known.sum()) == 16
