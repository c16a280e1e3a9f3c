"""`retrieval.neighbors = auto`: on for pictures that their captions find, off for the rest."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data.prepare import PreparedData, prepare
from tessella.data.settings import DataSettings
from tessella.training import auto_neighbors
from tessella.training.auto_neighbors import choose_neighbors
from tessella.training.recipe import Recipe, resolve_recipe

LETTERS = "abcdefghijklmnopqrst"
NAMES = [f"x{a}{b}" for a in LETTERS for b in LETTERS[:10]]  # 200 words, each of a few captions
RECIPE = resolve_recipe(None, None, ["transformer_training.images=20000"])

Paint = Callable[[int, int], tuple[int, int, int]]


def write(folder: Path, caption: Callable[[int, int], str], color: Paint) -> PreparedData:
    """Two pictures each of 200 subjects, in a plain colour."""
    rng = np.random.default_rng(0)
    for number in range(len(NAMES)):
        for twin in (0, 1):
            pixels = np.full((8, 8, 3), color(number, twin), np.uint8)
            pixels[0, 0] = rng.integers(256, size=3)  # no two are the same
            stem = folder / "pictures" / f"{number}-{twin}"
            stem.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(stem.with_suffix(".png"))
            stem.with_suffix(".txt").write_text(caption(number, twin))
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    return prepare([str(folder / "pictures")], settings, folder / "data")


def by_name(number: int, twin: int) -> str:
    return f"a {NAMES[number]} from {('left', 'right')[twin]}"


def own_color(number: int, twin: int) -> tuple[int, int, int]:
    return number * 37 % 256, number * 91 % 256, number * 53 % 256


def any_color(number: int, twin: int) -> tuple[int, int, int]:
    return own_color(number * 2 + twin + 7, twin)


def test_rare_words_and_neighbours_that_look_alike(tmp_path: Path) -> None:
    choice = choose_neighbors(RECIPE, None, write(tmp_path, by_name, own_color))
    assert (choice.neighbors, choice.rare) == (3, 1.0)
    assert choice.distance is not None
    assert choice.distance < 0.7
    assert choice.why == (
        "the nearest picture that a held-out caption finds is "
        f"{choice.distance:.2f} times as far away as the nearest of as many random ones"
    )


def test_neighbours_that_are_as_far_away_as_any_picture(tmp_path: Path) -> None:
    choice = choose_neighbors(RECIPE, None, write(tmp_path, by_name, any_color))
    assert choice.neighbors == 0
    assert choice.distance is not None
    assert choice.distance > 0.8
    assert "times as far away" in choice.why


def test_words_that_every_caption_has_are_learned(tmp_path: Path) -> None:
    data = write(tmp_path, lambda number, twin: f"a {('red', 'blue')[twin]} thing", own_color)
    choice = choose_neighbors(RECIPE, None, data)
    assert choice == auto_neighbors.NeighborChoice(
        0, "the words of the captions are common enough to be learned (0% have a rare one)", 0.0
    )


def test_captions_without_words(tmp_path: Path) -> None:
    choice = choose_neighbors(RECIPE, None, write(tmp_path, lambda *_: "!", own_color))
    assert choice.neighbors == 0


@pytest.mark.parametrize(
    ("images", "minutes", "is_short"),
    [(19_999, None, True), (20_000, None, False), (20_000, 9.9, True), (1, 10.0, False)],
)
def test_a_short_training_does_not_learn_to_use_them(
    images: int, minutes: float | None, is_short: bool, tmp_path: Path
) -> None:
    data = write(tmp_path, by_name, own_color)
    recipe = resolve_recipe(None, None, [f"transformer_training.images={images}"])
    choice = choose_neighbors(recipe, minutes, data)
    assert (choice.why == "the training is too short to learn to use them") is is_short
    assert choice.neighbors == (0 if is_short else 3)


def test_without_held_out_pictures_nobody_can_tell(tmp_path: Path) -> None:
    write(tmp_path, by_name, own_color)
    settings = DataSettings(image_size=16, validation_fraction=0.0, workers=1)
    data = prepare([str(tmp_path / "pictures")], settings, tmp_path / "all")
    choice = choose_neighbors(RECIPE, None, data)
    assert choice.why == "there are too few pictures to find out whether they help"


def test_a_transformer_that_comes_from_a_model_has_its_neighbors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.model_validate({"transformer_training": {"init_from": "scenes"}})
    choice = choose_neighbors(recipe, 60, write(tmp_path, by_name, own_color))
    assert (choice.neighbors, choice.why) == (0, "as in `scenes`, where the transformer comes from")
