"""Text tokens: any text goes in and comes back; nothing is cut or unknown unsaid."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tessella.config import build
from tessella.errors import CheckpointError, ConfigError, GenerationError
from tessella.text import TextSettings, TextTokenizer

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "star", "ring")
CAPTIONS = [
    f"a {size} {colour} {shape} on a {ground} background"
    for size in ("small", "large")
    for colour in COLOURS
    for shape in SHAPES
    for ground in ("white", "navy")
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, TextSettings(max_tokens=32))


# Training.


def test_common_words_become_single_tokens(tokenizer: TextTokenizer) -> None:
    assert tokenizer.tokens("Red circle on a navy background") == [
        "<begin>", " red", " circle", " on", " a", " navy", " background", "<end>",
    ]  # fmt: skip
    assert 259 < tokenizer.vocabulary_size < 400


def test_the_vocabulary_ends_at_its_bound() -> None:
    small = TextTokenizer.train(CAPTIONS, TextSettings(vocabulary_size=270))
    assert small.vocabulary_size == 270
    assert int(small.encode(CAPTIONS[:9]).max()) < 270
    assert TextTokenizer.train([], TextSettings()).vocabulary_size == 259


def test_rare_pairs_stay_apart() -> None:
    captions = ["octopus"] * 4
    often = TextTokenizer.train(captions, TextSettings(min_frequency=5))
    assert often.vocabulary_size == 259
    rare = TextTokenizer.train(captions, TextSettings(min_frequency=4))
    assert rare.tokens("octopus") == ["<begin>", " octopus", "<end>"]


def test_training_depends_on_the_captions_alone(tmp_path: Path) -> None:
    """Not on their order, nor on hash seeds; and it needs no code of frozen encoders."""
    script = (
        "import sys; from pathlib import Path; from tessella.text import *\n"
        "captions, path = sys.stdin.read().splitlines(), Path(sys.argv[1])\n"
        "create_text_encoder(TextSettings(max_tokens=32), captions).save(path)\n"
        "path.with_name(TEXT_FILE).write_bytes(path.read_bytes())\n"
        "load_text(path.parent)\n"
        "assert not {'tessella.text.frozen', 'transformers'} & set(sys.modules)"
    )
    shuffled = random.Random(7).sample(CAPTIONS, len(CAPTIONS))
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there.json")],
        input="\n".join(shuffled),
        text=True,
        check=True,
    )
    TextTokenizer.train(iter(CAPTIONS), TextSettings(max_tokens=32)).save(tmp_path / "here.json")
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


@pytest.mark.parametrize(
    ("name", "value"), [("vocabulary_size", 258), ("max_tokens", 3), ("min_frequency", 0)]
)
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"Setting `{name}`: got: `{value}`"):
        build(TextSettings, {name: value})


# Encoding.


def test_a_batch_is_begun_ended_and_padded(tokenizer: TextTokenizer) -> None:
    text_tokens = tokenizer.encode(["red star", "", "star"])
    [[red]] = [tokenizer.encode(["red"])[0, 1:-1].tolist()]
    [[star]] = [tokenizer.encode(["star"])[0, 1:-1].tolist()]
    assert text_tokens.dtype == torch.int64
    assert (tokenizer.pad_id, tokenizer.begin_id, tokenizer.end_id) == (0, 1, 2)
    assert text_tokens.tolist() == [[1, red, star, 2], [1, 2, 0, 0], [1, star, 2, 0]]


def test_the_dropped_caption_is_begin_and_end(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode([""]).tolist() == [[1, 2]]
    assert tokenizer.encode([" \n\u3000"]).tolist() == [[1, 2]]
    assert tokenizer.encode([]).shape == (0, 0)


def test_one_text_instead_of_a_list_is_refused(tokenizer: TextTokenizer) -> None:
    with pytest.raises(GenerationError, match="Expected a list of prompts, got one text: `red`"):
        tokenizer.encode("red")


def test_special_names_in_a_prompt_are_only_text(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """A prompt that says `<end>` must not end itself, nor say `<pad>` to be masked away."""
    tokenizer.save(tmp_path / "t.json")
    for it in (tokenizer, TextTokenizer.load(tmp_path / "t.json")):
        prompt = "a <end> b <pad> c <begin>"
        text_tokens = it.encode([prompt])
        assert (text_tokens < 3).sum() == 2
        assert it.decode(text_tokens) == [prompt]


@pytest.mark.parametrize(
    "text",
    [
        "🐙",
        "👩‍🚀 astronaut, 3d emoji",
        "тессера мозаика",
        "ψηφίδα",
        "马赛克瓷砖",
        "فسيفساء",
        "zzqx",
        "null \x00 byte",
        "'s don't",
        "12345.678",
    ],
)
def test_what_was_never_seen_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    text_tokens = TextTokenizer.train(CAPTIONS, TextSettings(max_tokens=128)).encode([text])
    assert tokenizer.decode(text_tokens) == [tokenizer.normalize(text)]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Red\t\nSTAR\u00a0 \u3000now ", "red star now"),
        ("\uff52\uff45\uff44 \ufb01sh", "red fish"),
        ("cafe\u0301", "café"),
        ("a\ud800b", "a?b"),
    ],
)
def test_equal_texts_are_made_equal(tokenizer: TextTokenizer, text: str, normal: str) -> None:
    assert tokenizer.normalize(text) == normal
    assert torch.equal(tokenizer.encode([text]), tokenizer.encode([normal]))
    assert tokenizer.decode(tokenizer.encode([text])) == [normal]


def test_capitals_are_kept_where_so_set() -> None:
    tokenizer = TextTokenizer.train(CAPTIONS, TextSettings(lowercase=False))
    assert tokenizer.decode(tokenizer.encode(["A Red STAR"])) == ["A Red STAR"]


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_any_text_goes_in_and_comes_back(tokenizer: TextTokenizer, texts: list[str]) -> None:
    longest = max(len(tokenizer.tokens(text)) for text in texts)
    if longest > tokenizer.max_tokens:
        with pytest.raises(GenerationError, match=r"at most 32 can be read"):
            tokenizer.encode(texts)
    else:
        text_tokens = tokenizer.encode(texts)
        assert text_tokens.shape == (len(texts), longest)
        assert tokenizer.decode(text_tokens) == [tokenizer.normalize(text) for text in texts]
    trained = tokenizer.encode_training(texts).text_tokens
    assert trained.shape == (len(texts), min(longest, 32))
    assert trained.min() >= 0
    assert trained.max() < tokenizer.vocabulary_size


@settings(max_examples=20, deadline=None)
@given(captions=st.lists(ANY_TEXT, max_size=20))
def test_any_captions_can_be_learned(captions: list[str]) -> None:
    tokenizer = TextTokenizer.train(captions, TextSettings(max_tokens=512))
    text_tokens = tokenizer.encode(captions)
    assert tokenizer.decode(text_tokens) == [tokenizer.normalize(c) for c in captions]


# Length.


def test_a_prompt_of_just_the_limit_passes_and_one_more_does_not(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode(["red " * 30]).shape == (1, 32)
    prompt = "red " * 31
    with pytest.raises(GenerationError) as caught:
        tokenizer.encode(["star", prompt])
    assert str(caught.value) == (
        "The prompt has 33 tokens (begin and end included), at most 32 can be read: "
        f"`{prompt[:60]}…`. Shorten it, or train a model with a larger text.max_tokens."
    )


def test_training_captions_are_cut_and_counted(tokenizer: TextTokenizer) -> None:
    long = "red " * 29 + "star circle ring"
    tokens = tokenizer.encode_training(["star", long, "red " * 30, long])
    assert tokens.num_truncated == 2
    assert tokens.text_tokens.shape == (4, 32)
    star = tokenizer.encode(["red " * 29 + "star"])[0]
    assert torch.equal(tokens.text_tokens[1], star)  # the last words lost, the end kept
    assert torch.equal(tokens.text_tokens[3], star)
    assert tokens.text_tokens[0, 3:].eq(tokenizer.pad_id).all()


def test_more_captions_than_fit_in_one_chunk_keep_their_order(tokenizer: TextTokenizer) -> None:
    captions = [f"{number}" for number in range(5000)] + ["7", "red"]
    tokens = tokenizer.encode_training(captions)
    assert tokens.num_truncated == 0
    assert tokenizer.decode(tokens.text_tokens) == captions


# The file.


def test_save_and_load_make_the_same_tokenizer(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    first, second = tmp_path / "text_tokenizer.json", tmp_path / "again.json"
    tokenizer.save(first)
    loaded = TextTokenizer.load(first)
    assert loaded.max_tokens == 32
    assert loaded.vocabulary_size == tokenizer.vocabulary_size
    assert torch.equal(loaded.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
    loaded.save(second)
    assert first.read_bytes() == second.read_bytes()


def test_the_file_means_the_same_to_the_tokenizers_library(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    tokenizer.save(tmp_path / "t.json")
    plain = Tokenizer.from_file(str(tmp_path / "t.json"))
    captions = ["red star", "", "ring " * 50]
    rows = [encoding.ids for encoding in plain.encode_batch(captions)]
    assert rows == tokenizer.encode_training(captions).text_tokens.tolist()


def test_a_file_cut_anywhere_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    tokenizer.save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"Cannot read the text tokenizer: `.*t\.json`"):
            TextTokenizer.load(path)


def test_damage_gives_a_tokenizer_or_a_clear_error(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    tokenizer.save(path)
    whole = path.read_bytes()
    generator = random.Random(3)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            TextTokenizer.load(path).encode_training(CAPTIONS[:2])
        except CheckpointError as error:
            assert str(path) in str(error)


def foreign_files() -> dict[str, str]:
    own = json.loads(TextTokenizer.train([], TextSettings())._file_text)
    return {
        "[1, 2]": "Not a text tokenizer of tessella",
        "{}": "parts of it are not there",
        Tokenizer(models.BPE()).to_str(): "parts of it are not there",
        json.dumps(own | {"model": own["model"] | {"vocab": {}, "merges": []}}): "some bytes",
        json.dumps(own | {"added_tokens": []}): r"its special tokens are `\(\)`",
        json.dumps(own | {"added_tokens": _renamed(own)}): "its special tokens are",
        json.dumps(own | {"normalizer": _doubling()}): "it changes text by `Replace, Replace",
        json.dumps(own | {"normalizer": _doubling()["normalizers"][0]}): "other than white space",
        json.dumps(own | {"pre_tokenizer": {"type": "Whitespace"}}): "its pre_tokenizer is",
        json.dumps(own | {"post_processor": _adding(own, 99)}): "other than begin and end",
        json.dumps(own | {"post_processor": _beginning(own)}): "more than one token",
        json.dumps(own | {"post_processor": _ending_otherwise(own)}): "other than begin and end",
        json.dumps(own | {"truncation": own["truncation"] | {"max_length": 10**30}}): "may have `1",
        "[" * 100_000: "nested too deeply",
        f'{{"model": {"9" * 5000}}}': "Cannot read the text tokenizer",
        json.dumps(own | {"truncation": None}): "does not say how long",
        json.dumps(own | {"model": own["model"] | {"continuing_subword_prefix": "##"}}): "parts of",
        json.dumps(own | {"model": Tokenizer(models.BPE()).to_str()}): "Not a text tokenizer",
    }


def _renamed(own: dict[str, Any]) -> list[dict[str, Any]]:
    return [token | {"content": f"<{token['id']}>"} for token in own["added_tokens"]]


def _doubling() -> dict[str, Any]:
    """Forty rules that double every `a`: a prompt of one letter would fill the memory."""
    rule = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [rule] * 40}


def _adding(own: dict[str, Any], count: int) -> dict[str, Any]:
    template: dict[str, Any] = own["post_processor"]
    return template | {"single": template["single"][:1] * count}


def _beginning(own: dict[str, Any]) -> dict[str, Any]:
    template: dict[str, Any] = own["post_processor"]
    begin = template["special_tokens"]["<begin>"] | {"ids": [1] * 9, "tokens": ["<begin>"] * 9}
    return template | {"special_tokens": template["special_tokens"] | {"<begin>": begin}}


def _ending_otherwise(own: dict[str, Any]) -> dict[str, Any]:
    """An end that is not described: a panic of the library, once it reads a text."""
    template: dict[str, Any] = own["post_processor"]
    end = {"SpecialToken": {"id": "<stop>", "type_id": 0}}
    return template | {"single": [*template["single"][:2], end]}


def test_padding_that_a_file_asks_for_is_not_done(tmp_path: Path) -> None:
    own = json.loads(TextTokenizer.train(["a red star"], TextSettings())._file_text)
    padding = own["padding"] | {"strategy": {"Fixed": 2**31}}
    (tmp_path / "t.json").write_text(json.dumps(own | {"padding": padding}), encoding="utf-8")
    assert TextTokenizer.load(tmp_path / "t.json").count_tokens("a red star") < 16


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    for text, message in foreign_files().items():
        (tmp_path / "t.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            TextTokenizer.load(tmp_path / "t.json")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        TextTokenizer.load(tmp_path / "nowhere.json")


# What is too long.


def test_tokens_are_counted(tokenizer: TextTokenizer) -> None:
    for prompt in ("", " ", "red", "Red circle on a navy background", "x" * 99, "\ud800", "🌈"):
        assert tokenizer.count_tokens(prompt) == len(tokenizer.tokens(prompt))
    assert tokenizer.count_tokens("") == 2  # begin and end


def test_what_can_be_read_is_not_shortened(tokenizer: TextTokenizer) -> None:
    for prompt in ("", "  a   Red\ncircle ", "a " * 29, "🌈"):
        assert tokenizer.shorten(prompt) == prompt


def test_as_many_words_as_can_be_read(tokenizer: TextTokenizer) -> None:
    assert tokenizer.shorten("red " * 99) == " ".join(["red"] * 30)
    assert tokenizer.shorten("\n red\t\tcircle " * 40) == " ".join(["red circle"] * 15)
    # A word that does not fit ends it, though shorter ones come after it.
    assert tokenizer.shorten("red " + "q" * 99 + " red") == "red"


def test_of_a_first_word_that_is_too_long_the_first_letters(tokenizer: TextTokenizer) -> None:
    assert tokenizer.shorten("q" * 99 + " red") == "q" * len(tokenizer.shorten("q" * 99))
    assert tokenizer.count_tokens(tokenizer.shorten("q" * 99)) == 32
    assert tokenizer.shorten("🌈" * 99) == "🌈" * len(tokenizer.shorten("🌈" * 99))


@settings(deadline=None)
@given(st.text(max_size=300))
def test_whatever_is_shortened_can_be_read(text: str) -> None:
    small = TextTokenizer.train(CAPTIONS, TextSettings(max_tokens=8))
    read = small.shorten(text)
    assert small.count_tokens(read) <= 8
    small.encode([read])
    assert small.shorten(read) == read
    if read != text:
        assert small.count_tokens(text) > 8
