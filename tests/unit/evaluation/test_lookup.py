"""What a model looks at while it is measured: as it paints, but no picture looks at itself."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from remembering import draw_noise, remember
from tessella.data.cache import CaptionedImages
from tessella.evaluation import lookup as module
from tessella.evaluation.lookup import ExampleLookup
from tessella.generation import GenerationSettings
from tessella.images import Pixels
from tessella.model.codec import encode_stored
from tessella.model.pipeline import TextToImage
from tessella.retrieval import Example, ExampleMemory
from tessella.retrieval.copies import NearCopies, are_same, count_tolerated
from tessella.retrieval.examples import Codes, ExampleRow
from tessella.training.neighbors import find_neighbors, prepare_memory
from untrained import create_untrained

CAPTIONS = ["red cat", "red dog", "blue cat", "green fish"]


def create(model: TextToImage) -> ExampleLookup:
    lookup = ExampleLookup.create(model)
    assert lookup is not None
    return lookup


def find(model: TextToImage, caption: str, picture: Pixels, *, learned: bool = False) -> list[str]:
    lookup = create(model)
    [found] = lookup.find([caption], lookup.encode(picture[None]), learned=learned)
    return [one.name for one in found]


def test_a_picture_of_the_memory_finds_others_and_not_itself() -> None:
    pixels = draw_noise(4)
    model = remember(pixels, CAPTIONS)
    assert find(model, "red cat", pixels[0]) == ["1.png", "2.png"]
    # Whatever it is called, and whichever caption it is looked up by.
    assert find(model, "blue cat", pixels[0]) == ["2.png"]
    # Another picture finds what painting its caption finds.
    assert find(model, "red cat", draw_noise(1, seed=1)[0]) == ["0.png", "1.png"]
    assert [one.name for one in model.examples.find("red cat")] == ["0.png", "1.png"]


def test_its_duplicates_are_not_found_either() -> None:
    pixels = draw_noise(4)
    pixels[1] = pixels[0]
    assert find(remember(pixels, CAPTIONS), "red cat", pixels[0]) == ["2.png"]


def test_of_learned_pictures_near_copies_are_left_out_though_they_are_not_in_the_memory() -> None:
    model = remember(draw_noise(4), CAPTIONS)
    assert model.memory is not None
    near = np.array(model.memory.codes[:1])
    near[0, 0, 0, 0] = (near[0, 0, 0, 0] + 1) % 16
    lookup = create(model)
    assert lookup.find_own(near) == [None]
    assert [e.index for e in lookup.find(["red cat"], near)[0]] == [0, 1]
    copies = NearCopies(model.memory, model.tokenizer.codebook.numpy())
    everyone = np.arange(4)
    assert copies.find_like(near[0], ["red cat"], everyone).tolist() == [True, False, False, False]
    assert np.array_equal(
        copies.find_like(model.memory.codes[2], ["blue cat"], everyone), copies.find(2, everyone)
    )
    assert 0 not in [e.index for e in lookup.find(["red cat"], near, learned=True)[0]]


def of_codes(codes: Codes) -> ExampleLookup:
    rows = [ExampleRow(f"{number}.png", ["a thing"]) for number in range(len(codes))]
    return ExampleLookup(ExampleMemory.build(codes, rows, ""), create_untrained().tokenizer, 2)


@pytest.mark.parametrize(("num_codes", "most"), [(1, 2), (2, 3)])
@pytest.mark.parametrize("num_changed", range(5))
def test_codes_are_the_same_but_for_rounding(num_changed: int, num_codes: int, most: int) -> None:
    """Of 64 codes two may differ, of 128 three, wherever they are."""
    rng = np.random.default_rng(num_changed)
    stored = rng.integers(0, 16, (5, num_codes, 8, 8)).astype(np.uint16)
    codes = stored[[3] * 20].copy()
    for picture in codes:
        picture.reshape(-1)[rng.permutation(picture.size)[:num_changed]] += 1
    is_same = num_changed <= most
    assert of_codes(stored).find_own(codes) == [3 if is_same else None] * 20
    assert are_same(stored[3], codes[0]) is is_same


def test_how_many_codes_rounding_may_change() -> None:
    assert [count_tolerated(size) for size in (1, 16, 32, 64, 96, 1024)] == [0, 0, 1, 2, 3, 3]


def test_a_memory_of_several_chunks_is_searched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    codes = np.arange(5 * 64).reshape(5, 1, 8, 8).astype(np.uint16)
    assert of_codes(codes).find_own(codes[[4, 0, 3]]) == [4, 0, 3]
    assert of_codes(codes).find_own(codes[:0]) == []


def test_a_model_that_looks_nothing_up_has_no_lookup() -> None:
    pixels = draw_noise(4)
    assert ExampleLookup.create(create_untrained()) is None
    assert ExampleLookup.create(create_untrained(neighbors=2)) is None  # without its memory
    empty = ExampleMemory.build(np.zeros((0, 1, 4, 4), np.uint16), [], "")
    assert ExampleLookup.create(create_untrained(neighbors=2).with_parts(memory=empty)) is None
    model = remember(pixels, CAPTIONS)
    for neighbors, count in ((None, 2), (1, 1)):
        model.config = model.config.replace(generation=GenerationSettings(neighbors=neighbors))
        assert create(model).count == count
        assert f"at most {count} examples, none of them" in create(model).describe()
    model.config = model.config.replace(generation=GenerationSettings(neighbors=0))
    assert ExampleLookup.create(model) is None


# An evaluation that looked up otherwise than training and painting do would measure another model.
def test_each_side_finds_what_it_finds_in_training_and_held_out_pictures_are_nobody_s_example(
    scenes: Mapping[str, CaptionedImages], tmp_path: Path
) -> None:
    model = create_untrained(neighbors=3)
    train, held_out = scenes["train"], scenes["validation"]
    codes = {
        side: encode_stored(model.tokenizer, images.pixels(range(len(images))))
        for side, images in scenes.items()
    }
    memory = prepare_memory(train, codes["train"][None], model.tokenizer, tmp_path / "memory", [])
    held_out_names = {held_out.name(index) for index in range(len(held_out))}
    assert [row.name for row in memory.rows] == [train.name(i) for i in range(len(train))]
    assert held_out_names.isdisjoint(row.name for row in memory.rows)

    lookup = create(model.with_parts(memory=memory))
    assert lookup.find_own(codes["validation"]) == [None] * len(held_out)
    copies = NearCopies(memory, model.tokenizer.codebook.numpy())
    for side, images in scenes.items():
        captions = [images.captions(index)[0] for index in range(len(images))]
        found = lookup.find(captions, codes[side], learned=side == "train")
        learned = find_neighbors(
            images,
            memory,
            tmp_path / f"{side}.npy",
            count=3,
            candidates=2,
            copies=copies if side == "train" else None,
        )
        rows = learned.draw(np.arange(len(images)), [0] * len(images), memory.example_of)
        expected = [[memory.by_caption(int(c)).index for c in row if c >= 0] for row in rows]
        assert [[one.index for one in examples] for examples in found] == expected
        assert sum(map(len, found)) > 2 * len(images)
        for index, examples in enumerate(found):
            looked_at: set[str] = {one.name for one in examples}
            assert images.name(index) not in looked_at
            assert looked_at.isdisjoint(held_out_names)
            assert all(isinstance(one, Example) for one in examples)
