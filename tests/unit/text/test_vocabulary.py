"""Which words a model knows, and the summary of captions that says so."""

import json
from pathlib import Path

import numpy as np
import pytest

from tessella.config import build
from tessella.errors import CheckpointError
from tessella.model.find import find_model, list_bundled
from tessella.model.folder import CAPTIONS_FILE, ModelConfig, read_captions
from tessella.model.pipeline import TextToImage
from tessella.text import TextSettings, TextTokenizer, load_text
from tessella.text.frozen import FrozenTextEncoder
from tessella.text.vocabulary import (
    CaptionSummary,
    Vocabulary,
    replace_words,
    split_words,
    summarize_captions,
)

CAPTIONS = ["a red star", "a red circle", "a Blue star, don\u2019t", "medium-light 3d star"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train([*CAPTIONS, *CAPTIONS], TextSettings())


def test_words_are_counted_once_a_caption(tokenizer: TextTokenizer) -> None:
    summary = summarize_captions(["a a red star", *CAPTIONS], tokenizer)
    assert summary.captions == 5
    assert summary.words == {
        "a": 4,
        "star": 4,
        "red": 3,
        "3d": 1,
        "blue": 1,
        "circle": 1,
        "don\u2019t": 1,
        "light": 1,
        "medium": 1,
    }
    assert list(summary.words)[:3] == ["a", "star", "red"]  # the commonest first


def test_examples_are_spread_and_begin_as_told(tokenizer: TextTokenizer) -> None:
    captions = [f"a star {number}" for number in range(3_000)]
    first = ["a star 7", "a star with an unknown word", "", "a star 2999", "a star 7"]
    examples = summarize_captions(captions, tokenizer, first).examples
    assert len(examples) == len(set(examples)) == 200
    assert examples[:2] == ["a star 7", "a star 2999"]
    numbers = [int(example.split()[-1]) for example in examples[2:]]
    assert numbers == sorted(numbers)
    assert max(np.diff([0, *numbers, 3_000])) < 50


def test_few_captions_are_all_examples(tokenizer: TextTokenizer) -> None:
    summary = summarize_captions(["b", "a", "b", "  "], tokenizer)
    assert summary == CaptionSummary(4, {"b": 2, "a": 1}, ["b", "a"])
    assert summarize_captions([], tokenizer) == CaptionSummary(0, {}, [])


def test_only_the_commonest_words_are_kept(tokenizer: TextTokenizer) -> None:
    captions = [f"w{number}x" for number in range(5_100)] + ["red"] * 2
    summary = summarize_captions(captions, tokenizer)
    assert len(summary.words) == 5_000
    assert summary.words["red"] == 2


def test_unknown_words_by_the_captions(tokenizer: TextTokenizer) -> None:
    known = Vocabulary(tokenizer, summarize_captions(CAPTIONS, tokenizer))
    assert known.find_unknown("A RED star: medium-light, 3d; don\u2019t!") == []
    assert known.find_unknown("a green star, 4d green don't") == ["green", "4d", "don't"]


def test_unknown_words_by_the_vocabulary(tokenizer: TextTokenizer) -> None:
    known = Vocabulary(tokenizer)
    assert known.find_unknown("a red Xyzzy, (plugh)! xyzzy") == ["xyzzy", "plugh"]
    # Only words of letters are one token for certain.
    assert known.find_unknown("4d don't") == []
    # A sign of the captions is a token, or some of its bytes are not one together.
    assert known.find_unknown("a red \N{OCTOPUS}") == ["\N{OCTOPUS}"]
    told = Vocabulary(TextTokenizer.train(["\N{OCTOPUS} red"] * 9, TextSettings()))
    assert told.find_unknown("\N{OCTOPUS} \N{WHITE MEDIUM STAR}") == ["\N{WHITE MEDIUM STAR}"]
    assert {"red", "star", "circle"} <= set(known.words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("🔴⭐", ["🔴", "⭐"]),
        ("a ❤️, a ❤", ["a", "❤", "a", "❤"]),
        ("👨‍👩‍👧 👍🏽🧑🏽‍🚀", ["👨‍👩‍👧", "👍🏽", "🧑🏽‍🚀"]),
        ("🇩🇪🇫🇷 1️⃣", ["🇩🇪", "🇫🇷", "1⃣"]),
        ("5 € ± 3 $ → ☆", ["5", "€", "±", "3", "$", "→", "☆"]),
        ("<b>a</b> | c = d ~ ^", ["b", "a", "b", "c", "d"]),
        ("“a” – b… (c)! #d & e_f; g/h", ["a", "b", "c", "d", "e", "f", "g", "h"]),
    ],
)
def test_signs_are_words(tokenizer: TextTokenizer, text: str, words: list[str]) -> None:
    """A prompt of emoji once painted anything, without a hint."""
    assert split_words(text, tokenizer) == words


def test_signs_of_the_captions_are_known(tokenizer: TextTokenizer) -> None:
    known = Vocabulary(tokenizer, summarize_captions(["a ⭐️ star"], tokenizer))
    assert known.find_unknown("🔴⭐ star") == ["🔴"]
    # An older summary counts none, but shows some captions.
    older = CaptionSummary(2, {"star": 2}, ["⭐ star"])
    assert Vocabulary(tokenizer, older).find_unknown("🔴⭐ star") == ["🔴"]
    assert replace_words("a 🔴 red ⭐️ star", {"🔴": ""}) == "a red ⭐ star"


def test_a_frozen_encoder_knows_any_word(bert_folder: Path) -> None:
    encoder = FrozenTextEncoder.create(TextSettings(encoder=str(bert_folder)))
    known = Vocabulary(encoder)
    assert (known.find_unknown("a Xyzzy"), known.words) == ([], [])
    assert known.find_nearest("xyzzy") == "xyzzy"
    summary = summarize_captions(["A  RED cat"], encoder)
    assert list(summary.words) == ["a", "cat", "red"]
    assert Vocabulary(encoder, summary).find_unknown("a Xyzzy") == ["xyzzy"]


WORDS = ("croissant", "car", "cat", "bake", "heart", "sunflower", "buses")


@pytest.mark.parametrize(
    ("word", "form", "nearest"),
    [
        ("croissant", "croissant", "croissant"),
        ("croissants", "croissant", "croissant"),
        ("cats", "cat", "cat"),
        ("card", None, "car"),  # another word, but written much like it
        ("baked", "bake", "bake"),
        ("baker", "bake", "bake"),
        ("bakeries", None, None),
        ("hearts", "heart", "heart"),
        ("heartily", None, None),
        ("sunflour", None, "sunflower"),
        ("bus", None, None),
        ("latte", None, None),
    ],
)
def test_the_nearest_word(
    tokenizer: TextTokenizer, word: str, form: str | None, nearest: str | None
) -> None:
    known = Vocabulary(tokenizer, CaptionSummary(1, dict.fromkeys(WORDS, 1), []))
    assert known.find_form(word) == form
    assert known.find_nearest(word) == nearest


@pytest.mark.parametrize(
    ("text", "new_words", "replaced"),
    [
        ("a red star", {"red": "blue"}, "a blue star"),
        ("a red star, 3d", {"star": ""}, "a red, 3d"),
        ("zzz, a star", {"zzz": ""}, "a star"),
        ("medium-light: star", {}, "medium-light: star"),
        ("<b>red</b> (star)!", {"b": ""}, "red star"),
        ("zzz", {"zzz": ""}, ""),
    ],
)
def test_words_are_replaced(text: str, new_words: dict[str, str], replaced: str) -> None:
    assert replace_words(text, new_words) == replaced


def save_model(folder: Path, tokenizer: TextTokenizer, captions: CaptionSummary | None) -> None:
    values = {
        "image_size": 16,
        "tokenizer": {"widths": [16, 16], "quantizer": {"codebook_size": 16}},
        "transformer": {"width": 32, "depth": 2},
    }
    TextToImage.create(build(ModelConfig, values), tokenizer).save(
        folder,
        card="",
        metrics={},
        samples=np.zeros((4, 4, 3), dtype=np.uint8),
        captions=captions,
    )


def test_a_model_folder_keeps_the_summary(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    summary = summarize_captions(CAPTIONS, tokenizer)
    save_model(tmp_path / "new", tokenizer, summary)
    assert read_captions(tmp_path / "new") == summary
    save_model(tmp_path / "old", tokenizer, None)
    assert read_captions(tmp_path / "old") is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b'{"captions": 1, "words": {"a": "x"}, "examples": []}', b"\xff", b"[1]"],
)
def test_a_damaged_summary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CAPTIONS_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="The summary of the captions is damaged: `"):
        read_captions(tmp_path)


def test_every_bundled_model_says_what_it_was_trained_to_hear() -> None:
    for name in list_bundled():
        folder = find_model(name)
        summary = read_captions(folder)
        assert summary is not None
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert summary.examples[0] in card
        assert len(summary.examples) == 200
        text = load_text(folder)
        known = Vocabulary(text, summary)
        assert not any(map(known.find_unknown, summary.examples))
        assert all(split_words(word, text) == [word] for word in summary.words)
        written = json.loads((folder / CAPTIONS_FILE).read_text(encoding="utf-8"))
        assert list(written) == ["captions", "words", "examples"]
