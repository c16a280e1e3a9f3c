"""What a model looks at: what is found, what is refused, and that painting depends on it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.errors import GenerationError
from tessella.images import Pixels
from tessella.model.examples import ExampleFinder
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.retrieval import Example, ExampleMemory
from tessella.retrieval.examples import ExampleRow, remove_memory
from untrained import (
    create_untrained,
    create_with_examples,
    describe_tokenizer,
    save_untrained,
)

CAPTIONS = (
    "octopus, flat emoji",
    "octopus, noto emoji",
    "squid, 3d emoji",
    "a red star",
)
PROMPT = "octopus, 3d emoji"
MODEL = create_with_examples(CAPTIONS)
FINDER = MODEL.examples
NOISE = np.random.default_rng(1).integers(256, size=(16, 16, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE)
CORNER = np.zeros((16, 16), dtype=bool)
CORNER[:8, :8] = True


def names(examples: Sequence[Example]) -> list[str]:
    return [one.name for one in examples]


def indices(examples: Sequence[Example]) -> list[int | None]:
    return [one.index for one in examples]


def create_reference(name: str = "photo.png", index: int | None = None) -> Example:
    return Example(np.full((1, 4, 4), 7, np.uint16), "", name, index)


def paint(model: TextToImage, prompt: str = PROMPT, seed: int = 3, **settings: Any) -> Pixels:
    """One picture, beside what its prompt finds."""
    [image] = model.generate(prompt, seed=seed, **settings)
    return np.asarray(image)


# --- what is found ----------------------------------------------------------------------------


def test_the_examples_of_a_prompt_cover_its_words() -> None:
    first, second = FINDER.find(PROMPT)
    assert (first.caption, second.caption) == (CAPTIONS[2], CAPTIONS[0])
    assert (first.index, first.name) == (2, "2.png")
    assert MODEL.memory is not None
    assert np.array_equal(second.codes, MODEL.memory.codes[0])


def test_at_most_as_many_as_asked_for_are_found() -> None:
    assert indices(FINDER.find(PROMPT, 1)) == [2]
    assert FINDER.find(PROMPT, 0) == ()
    assert indices(FINDER.find("star", 2)) == [3]  # no other caption has the word


@pytest.mark.parametrize("prompt", ["", "  ", "?!", "xyzzy"])
def test_a_prompt_without_known_words_finds_nothing(prompt: str) -> None:
    assert FINDER.find(prompt) == ()
    assert names(FINDER.find(prompt, references=[create_reference()])) == ["photo.png"]


def test_references_come_first_and_the_best_examples_fill_up() -> None:
    photo, drawing = create_reference(), create_reference("drawing.png")
    assert indices(FINDER.find(PROMPT, references=[photo])) == [None, 2]
    for count in (None, 0, 1, 2):  # they are looked at in any case
        assert names(FINDER.find(PROMPT, count, references=[photo, drawing])) == [
            "photo.png",
            "drawing.png",
        ]
    assert indices(FINDER.find(PROMPT, 1, references=[photo])) == [None]


def test_an_example_that_stays_is_not_found_again() -> None:
    assert indices(FINDER.find(PROMPT, references=[create_reference("0.png", 0)])) == [0, 2]


def test_what_is_excluded_is_not_looked_at() -> None:
    assert indices(FINDER.find(PROMPT, excluded=[0, 2])) == [1]
    assert FINDER.find(PROMPT, excluded=[0, 1, 2]) == ()


def test_without_a_memory_references_alone_are_looked_at() -> None:
    finder = ExampleFinder(None, 2)
    assert finder.find(PROMPT) == ()
    assert names(finder.find(PROMPT, 2, references=[create_reference()])) == ["photo.png"]


def test_an_empty_memory_replaces_one_that_is_not() -> None:
    """It counts as false."""
    empty = ExampleMemory.build(np.zeros((0, 1, 4, 4), np.uint16), list[ExampleRow](), "any")
    model = MODEL.with_parts(memory=empty)
    assert model.examples.find(PROMPT) == ()


@pytest.mark.parametrize(
    ("most", "num_references", "count", "message"),
    [
        (0, 1, None, r"does not look at examples: .* \(retrieval.neighbors is 0\)\. Leave"),
        (0, 0, 1, "does not look at examples"),
        (2, 3, None, "looks at 2 pictures at most: `3` references. Give fewer."),
        (2, 3, 0, "looks at 2 pictures at most: `3` references"),
        (2, 0, 3, "learned to look at 2 examples at most: neighbors `3`. Give fewer."),
    ],
)
def test_more_than_was_learned_is_refused(
    most: int, num_references: int, count: int | None, message: str
) -> None:
    finder = ExampleFinder(MODEL.memory, most)
    references = [create_reference()] * num_references
    with pytest.raises(GenerationError, match=message):
        finder.check(num_references, count)
    with pytest.raises(GenerationError, match=message):
        finder.find(PROMPT, count, references=references)


def test_what_was_learned_is_not_refused() -> None:
    FINDER.check(2, 2)
    FINDER.check(0, 0)
    ExampleFinder(None, 0).check(0, 0)
    ExampleFinder(None, 0).check(0)


def test_only_requests_that_name_no_examples_are_completed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts: list[str] = []
    find = FINDER.find

    def record(prompt: str, count: int | None = None) -> tuple[Example, ...]:
        prompts.append(prompt)
        return find(prompt, count)

    monkeypatch.setattr(FINDER, "find", record)
    own = (create_reference(),)
    requests = [
        ImageRequest(PROMPT, 0),
        ImageRequest("a star", 1, examples=own),
        ImageRequest(PROMPT, 2),
        ImageRequest(PROMPT, 3, examples=()),
    ]
    completed = FINDER.complete(requests, 1)
    assert [indices(one.examples or ()) for one in completed] == [[2], [None], [2], []]
    assert [one.seed for one in completed] == [0, 1, 2, 3]
    assert prompts == [PROMPT]  # once for all pictures of a prompt


# --- painting ---------------------------------------------------------------------------------


def test_a_picture_depends_on_its_examples() -> None:
    request = ImageRequest(PROMPT, 3)
    found = MODEL.generate_images([request])
    assert [indices(examples) for examples in found.examples] == [[2, 0]]
    first, second = found.examples[0]
    renamed = Example(first.codes, "a red star", first.name)
    others = [(first,), (second,), (renamed, second), (create_reference(), second), ()]
    requests = [ImageRequest(PROMPT, 3, examples=examples) for examples in others]
    painted = MODEL.generate_images(requests)
    assert list(painted.examples) == others
    pictures = [found.pixels[0], *painted.pixels]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_your_own_pictures_are_looked_at_as_codes() -> None:
    [reference] = MODEL.encode_references([PHOTO])
    assert np.array_equal(reference.codes, MODEL.encode_images(NOISE[None])[0].numpy())
    assert (reference.caption, reference.name, reference.index) == ("", "reference 1", None)
    assert MODEL.encode_references([]) == []
    request = ImageRequest(PROMPT, 3, examples=FINDER.find(PROMPT, references=[reference]))
    expected = MODEL.generate_images([request]).pixels[0]
    assert np.array_equal(paint(MODEL, references=[PHOTO]), expected)
    assert not np.array_equal(paint(MODEL), expected)


def test_a_reference_of_another_size_is_cropped_and_resized() -> None:
    wide = Image.new("RGB", (48, 16))
    wide.paste(PHOTO, (16, 0))
    [cropped], [whole] = MODEL.encode_references([wide]), MODEL.encode_references([PHOTO])
    assert np.array_equal(cropped.codes, whole.codes)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_zero_neighbors_are_a_model_whose_memory_is_removed(scale: float, tmp_path: Path) -> None:
    folder = save_untrained(MODEL, tmp_path / "model")
    whole = TextToImage.load(folder, "cpu")
    assert np.array_equal(paint(whole, guidance_scale=scale), paint(MODEL, guidance_scale=scale))
    remove_memory(folder)
    removed = TextToImage.load(folder, "cpu")
    assert removed.memory is None
    without = paint(removed, guidance_scale=scale)
    assert np.array_equal(paint(MODEL, guidance_scale=scale, neighbors=0), without)
    assert not np.array_equal(paint(MODEL, guidance_scale=scale), without)
    # From references alone it paints as before.
    expected = paint(MODEL, guidance_scale=scale, neighbors=1, references=[PHOTO])
    assert np.array_equal(paint(removed, guidance_scale=scale, references=[PHOTO]), expected)


OBJECTIVES = "any_order", "autoregressive", "masked", "parallel", "latent_mse", "shared_latent"
MODELS = {name: create_with_examples(CAPTIONS, name) for name in OBJECTIVES}


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("objective", MODELS)
def test_no_picture_depends_on_the_examples_of_others(objective: str, scale: float) -> None:
    """Two examples, one, none, a reference: each gets what it gets alone."""
    model = MODELS[objective]
    settings = model.generation_settings(guidance_scale=scale)
    requests = [
        ImageRequest(PROMPT, 3),
        ImageRequest("a red star", 4),
        ImageRequest("xyzzy", 5),
        ImageRequest("a blue star", 6, examples=(create_reference(),)),
        ImageRequest(PROMPT, 3, examples=()),
    ]
    together = model.generate_images(requests, settings)
    assert [len(examples) for examples in together.examples] == [2, 1, 0, 1, 0]
    for request, picture in zip(requests, together.pixels, strict=True):
        [alone] = model.generate_images([request], settings).pixels
        difference = np.abs(alone.astype(int) - picture.astype(int)).max()
        # Nothing is sampled: the latent is not rounded to codes, and sums have another order.
        assert difference <= (1 if objective in ("latent_mse", "shared_latent") else 0)
    # What the first looks at changes it.
    assert not np.array_equal(together.pixels[0], together.pixels[4])


def test_the_best_of_several_is_one_of_those_that_look_at_the_same() -> None:
    [best] = MODEL.generate_images([ImageRequest(PROMPT, 3)], best_of=4).pixels
    candidates = MODEL.generate_images([ImageRequest(PROMPT, seed) for seed in range(3, 7)]).pixels
    assert any(np.array_equal(best, candidate) for candidate in candidates)
    without = paint(MODEL, best_of=4, neighbors=0)
    assert not np.array_equal(best, without)


@pytest.mark.parametrize(
    "objective", [name for name, model in MODELS.items() if model.objective.can_edit]
)
def test_a_larger_picture_looks_at_its_examples_in_every_window(objective: str) -> None:
    model = MODELS[objective]
    size = {"size": (32, 16)}
    wide = paint(model, **size)
    assert wide.shape == (16, 32, 3)
    without = paint(model, neighbors=0, **size)
    for half in (slice(0, 16), slice(16, 32)):
        assert not np.array_equal(wide[:, half], without[:, half])


@pytest.mark.parametrize("method", ["edit", "outpaint", "vary"])
def test_a_change_of_a_picture_looks_up_its_prompt(method: str) -> None:
    canvases = MODEL.canvases
    options: dict[str, Any]
    if method == "edit":
        options, canvas = {"mask": CORNER}, canvases.edit(PHOTO, canvases.mark(PHOTO, CORNER))
    elif method == "outpaint":
        options, canvas = {"right": 8}, canvases.outpaint(PHOTO, right=8)
    else:
        options, [canvas] = {}, canvases.variations(PHOTO, [4], strength=0.5)
    change = getattr(MODEL, method)
    [changed] = change(PHOTO, prompt=PROMPT, seed=4, **options)
    request = ImageRequest(PROMPT, 4, canvas=canvas, examples=FINDER.find(PROMPT))
    assert np.array_equal(changed, MODEL.generate_images([request]).pixels[0])
    [without] = change(PHOTO, prompt=PROMPT, seed=4, neighbors=0, **options)
    assert not np.array_equal(changed, without)
    [beside_photo] = change(PHOTO, prompt=PROMPT, seed=4, references=[PHOTO], **options)
    assert not np.array_equal(changed, beside_photo)


def test_a_variation_without_a_prompt_looks_nothing_up() -> None:
    [plain], [without] = MODEL.vary(PHOTO, seed=3), MODEL.vary(PHOTO, seed=3, neighbors=0)
    assert np.array_equal(plain, without)
    [canvas] = MODEL.canvases.variations(PHOTO, [3], strength=0.5)
    assert list(MODEL.generate_images([ImageRequest("", 3, canvas=canvas)]).examples) == [()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbors": 3}, "at most: neighbors `3`"),
        ({"references": [PHOTO] * 3}, "at most: `3` references"),
    ],
)
def test_every_method_refuses_more_than_was_learned(changes: dict[str, Any], message: str) -> None:
    steps: list[object] = []
    changes = {"prompt": PROMPT, "on_step": steps.append, **changes}
    for paint_anew in (
        lambda: MODEL.edit(PHOTO, mask=CORNER, **changes),
        lambda: MODEL.outpaint(PHOTO, right=8, **changes),
        lambda: MODEL.vary(PHOTO, **changes),
        lambda: MODEL.generate(changes.pop("prompt"), **changes),
    ):
        with pytest.raises(GenerationError, match=message):
            paint_anew()
    assert not steps


def test_a_model_without_examples_says_so() -> None:
    model = create_untrained()
    for changes in ({"neighbors": 1}, {"references": [PHOTO]}):
        with pytest.raises(GenerationError, match="The model does not look at examples"):
            model.generate(PROMPT, **changes)
    [plain], [zero] = model.generate(PROMPT), model.generate(PROMPT, neighbors=0)
    assert np.array_equal(plain, zero)
    assert list(model.generate_images([ImageRequest(PROMPT, 0)]).examples) == [()]


def test_a_step_shows_codes_of_a_picture_that_looks_at_examples() -> None:
    codes: list[torch.Tensor] = []
    painted = paint(MODEL, on_step=lambda step: codes.append(step.codes))
    assert np.array_equal(MODEL.decode_codes(codes[-1])[0], painted)


# --- several codes at a position --------------------------------------------------------------


def test_examples_are_read_position_by_position() -> None:
    """Every code has a number of its own: none may stand at another's position or codebook."""
    model = create_untrained(neighbors=2, tokenizer=describe_tokenizer(2))
    codes = np.arange(32, dtype=np.uint16).reshape(2, 4, 4)
    example = Example(codes, "a red star", "a.png")
    read = model.sampler.encode_examples([(), (example,), (example, Example(codes + 100, "", "b"))])
    assert read is not None
    assert read.codes.shape == (3, 2, 16, 2)
    assert read.visible.tolist() == [[False, False], [True, False], [True, True]]
    for position in range(16):
        row, column = divmod(position, 4)
        pair = [int(codes[m, row, column]) for m in (0, 1)]
        assert read.codes[1, 0, position].tolist() == pair
        assert read.codes[2, 1, position].tolist() == [code + 100 for code in pair]
    assert (read.codes[0] == -1).all()


@pytest.mark.parametrize("objective", ["any_order", "masked"])
def test_every_code_of_an_example_is_looked_at(objective: str) -> None:
    """Another second code at one position is another picture."""
    model = create_with_examples(CAPTIONS, objective, tokenizer=describe_tokenizer(2))
    [found] = model.examples.find("star", 1)
    assert found.codes.shape == (2, 4, 4)
    changed = found.codes.copy()
    changed[1, 2, 3] = (changed[1, 2, 3] + 1) % 16
    other = Example(changed, found.caption, found.name)
    [reference] = model.encode_references([PHOTO])
    assert np.array_equal(reference.codes, model.encode_images(NOISE[None])[0].numpy())
    # The logits, for the same codes may be sampled from both.
    hidden = []
    for examples in ((found,), (other,), (reference,)):
        read = model.sampler.encode_examples([examples])
        text = model.sampler.encode_text(["a red star"])
        cache = model.transformer.encode_context(text, read)
        hidden.append(
            model.transformer.predict(cache, torch.zeros(1, 1).long(), torch.zeros(1).long())
        )
    assert not torch.equal(hidden[0], hidden[1])
    assert not torch.equal(hidden[0], hidden[2])
    requests = [ImageRequest("a red star", 3, examples=(one,)) for one in (found, reference)]
    first, second = model.generate_images(requests).pixels
    assert not np.array_equal(first, second)
    assert np.array_equal(first, paint(model, "a red star", neighbors=1))
