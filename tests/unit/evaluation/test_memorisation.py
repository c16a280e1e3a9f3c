"""Nearest training pictures, copies and the loss gap, on pictures whose distances are known."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from remembering import draw_noise, remember
from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.evaluation import memorisation
from tessella.evaluation.eval_images import EvalImages, draw_indices
from tessella.evaluation.lookup import ExampleLookup
from tessella.evaluation.memorisation import (
    Pair,
    make_pairs_sheet,
    measure_copies,
    measure_loss_gap,
)
from tessella.images import Pixels
from tessella.objectives import ObjectiveLoss

SIZE = 8


class Brightness:
    """A picture's only feature is the value of its first pixel."""

    name = "brightness"
    num_features = 1

    def __init__(self) -> None:
        self.batches: list[int] = []

    def extract(self, pixels: Pixels) -> Tensor:
        self.batches.append(len(pixels))
        return torch.from_numpy(pixels[:, 0, 0, :1].astype(np.float64))


def gray(*values: int) -> Pixels:
    return np.stack([np.full((SIZE, SIZE, 3), value, dtype=np.uint8) for value in values])


def store(pixels: Pixels, folder: Path) -> CaptionedImages:
    """Puts pictures into a cache; their captions are their numbers."""
    (folder / "pictures").mkdir(parents=True)
    for index, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"pictures/{index:03d}.png")
        (folder / f"pictures/{index:03d}.txt").write_text(f"number {index}", encoding="utf-8")
    settings = DataSettings(image_size=SIZE, validation_fraction=0.0, workers=1)
    return prepare([str(folder / "pictures")], settings, folder / "data").train


def measure(
    painted: Pixels, real: Pixels, training: CaptionedImages, max_training: int = 1000
) -> memorisation.Copies:
    extractor: Any = Brightness()
    features = [extractor.extract(pixels) for pixels in (painted, real)]
    return measure_copies(*features, real, training, extractor, max_training=max_training)


def test_copies_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training 0 20 50 90 200. Real 20 52 210: its twin left out 20 is 20 from 0; then 2; 10.

    The first percentile of 2 10 20 lies at 2 + 0.02 · 8 = 2.16. Painted 21 and 198 are closer,
    at 1 and 2, 55 is not, at 5; 91 is a copy of the last of a batch.
    """
    monkeypatch.setattr(memorisation, "_BATCH", 2)
    training = store(gray(0, 20, 50, 90, 200), tmp_path)
    made = measure(gray(21, 198, 55, 91), gray(20, 52, 210), training)
    assert made.threshold == pytest.approx(2.16)
    assert made.rate == 3 / 4
    assert made.num_training == 5
    assert made.distances.tolist() == [1, 2, 5, 1]
    assert np.array_equal(made.nearest.pixels, gray(20, 200, 50, 90))
    assert list(made.nearest.captions) == [f"number {i}" for i in (1, 4, 2, 3)]
    first = made.list_pairs(gray(21, 198, 55, 91), ["a", "b", "c", "d"])[0]
    assert first.describe() == {
        "prompt": "a",
        "caption": "number 1",
        "distance": 1.0,
        "limit": made.threshold,
        "is_copy": True,
        "example": None,
    }


def test_a_picture_with_the_same_features_is_no_twin(tmp_path: Path) -> None:
    """Only the same pixels make a twin: a picture as near as can be counts as another one."""
    lookalike = gray(20)
    lookalike[0, -1, -1] = 255
    made = measure(gray(90), gray(20), store(np.concatenate([gray(20, 30), lookalike]), tmp_path))
    assert made.threshold == 0
    without = store(gray(20, 30), tmp_path / "without")
    assert measure(gray(90), gray(20), without).threshold == 10


def test_real_pictures_that_are_all_there_is_have_no_others(tmp_path: Path) -> None:
    made = measure(gray(20, 90), gray(20), store(gray(20, 20), tmp_path))
    assert (made.threshold, made.rate) == (0, 0)


def test_one_real_picture_in_a_hundred_counts_as_a_copy(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (700, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = 0
    extractor: Any = Brightness()
    extractor.extract = lambda p: torch.from_numpy(p[:, 1:3].reshape(len(p), -1).astype(float))
    training = store(pixels[:500], tmp_path)
    real = pixels[500:]
    features = extractor.extract(real)
    made = measure_copies(features, features, real, training, extractor, max_training=1000)
    assert made.rate == 2 / 200


def test_of_too_many_training_pictures_some_are_drawn(tmp_path: Path) -> None:
    training = store(gray(*range(0, 200, 10)), tmp_path)
    made = measure(gray(77), gray(5, 6), training, max_training=7)
    drawn = 10 * draw_indices(20, 7)
    assert made.num_training == 7
    assert made.distances[0] == min(abs(drawn - 77))


def test_the_sheet_has_each_picture_beside_its_nearest() -> None:
    [first, second, third, fourth] = gray(10, 20, 30, 40)
    pairs = [
        Pair(first, "one", second, "a", 1.5),
        Pair(third, "two", fourth, "b", 2.0, example="b.png"),
    ]
    sheet = make_pairs_sheet(pairs)
    side, gap = 128, 4
    shown = [sheet[gap + 5, gap + place * (side + gap) + 5, 0] for place in range(4)]
    assert shown == [10, 20, 30, 40]


class Learner:
    """A model whose loss is the mean brightness of an image, plus noise; it reads short texts."""

    name = "bright"
    device = torch.device("cpu")
    max_tokens = 3
    objective: Any
    sampler: Any
    text_tokenizer: Any

    def __init__(self) -> None:
        self.objective = self.sampler = self.text_tokenizer = self

    def count_tokens(self, prompt: str) -> int:
        return 9 if "long" in prompt else 3

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        assert not any("long" in prompt for prompt in prompts)
        return torch.zeros(len(prompts), 1)

    def encode_images(self, pixels: Pixels) -> Tensor:
        return torch.from_numpy(pixels[:, None, :1, :1, 0].astype(np.int64))

    def __call__(self, text: Tensor, codes: Tensor) -> ObjectiveLoss:
        assert len(text) == len(codes)
        assert not torch.is_grad_enabled()
        return ObjectiveLoss(codes.double().mean() + torch.rand(()), torch.zeros(()))


def test_the_loss_gap_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training 10 20 30, others 41 43 45 47 of which 43 cannot be read: 20 and 133/3."""
    monkeypatch.setattr(memorisation, "_BATCH", 2)
    training = store(gray(10, 20, 30), tmp_path)
    captions = ["a", "a long one", "b", "c"]
    held_out = EvalImages(gray(41, 43, 45, 47), captions, "mine")
    model: Any = Learner()
    before = torch.get_rng_state()
    gap = measure_loss_gap(model, held_out, training, max_images=9)
    assert torch.equal(torch.get_rng_state(), before)
    assert gap is not None
    assert gap["loss_held_out"].protocol == "loss of bright, first captions, mean over 3 of mine"
    # Both sides have the same noise.
    difference = gap["loss_held_out"].value - gap["loss_train"].value
    assert difference == gap["loss_gap"].value == pytest.approx(133 / 3 - 20)
    assert gap == measure_loss_gap(model, held_out, training, max_images=9)
    few = measure_loss_gap(model, held_out, training, max_images=2)
    assert few is not None
    assert re.search("mean over [12] training images", few["loss_train"].protocol)


def test_no_caption_that_can_be_read_gives_no_gap(
    scenes: Mapping[str, CaptionedImages],
) -> None:
    model: Any = Learner()
    held_out = EvalImages(gray(1), ["a long one"], "mine")
    assert measure_loss_gap(model, held_out, scenes["train"], max_images=5) is None


def test_losses_are_measured_beside_examples_that_are_not_the_picture_itself() -> None:
    pixels = draw_noise(6)
    captions = [f"red thing {number}" for number in range(6)]
    model = remember(pixels, captions)
    lookup = ExampleLookup.create(model)
    assert lookup is not None

    class Training:
        def __len__(self) -> int:
            return 6

        def pixels(self, indices: Any) -> Pixels:
            return pixels[indices]

        def captions(self, index: int) -> list[str]:
            return [captions[index]]

    training: Any = Training()
    others = EvalImages(draw_noise(6, seed=1), captions, "mine")
    asked: list[Any] = []
    encode = model.sampler.encode_examples

    def note(looked_at: Any) -> Any:
        asked.append([[one.index for one in examples] for examples in looked_at])
        return encode(looked_at)

    model.sampler.encode_examples = note  # type: ignore[method-assign]
    gap = measure_loss_gap(model, others, training, max_images=6, lookup=lookup)
    assert gap is not None
    of_train, of_others = asked
    assert all(own not in indices and len(indices) == 2 for own, indices in enumerate(of_train))
    # What is not in the memory finds what its caption finds: the picture that has that caption.
    assert all(indices[0] == own for own, indices in enumerate(of_others))
    plain = measure_loss_gap(model, others, training, max_images=6)
    assert plain is not None
    assert gap["without_examples_loss_held_out"].value == plain["loss_held_out"].value
    assert gap["loss_held_out"].value != plain["loss_held_out"].value
    assert gap["loss_train"].value != plain["loss_train"].value
    assert gap["loss_gap"].value == gap["loss_held_out"].value - gap["loss_train"].value
    assert gap["loss_train"].protocol.endswith(
        "6 training images; beside at most 2 examples, none of them the picture itself or a near "
        "copy"
    )
    assert gap["loss_held_out"].protocol.endswith("none of them the picture itself")
    assert gap["without_examples_loss_held_out"].protocol.endswith("of mine; without examples")
    assert "examples" not in plain["loss_held_out"].protocol
