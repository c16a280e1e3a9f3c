"""A vocabulary that grows: old tokens stay, new words become tokens of their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessella.errors import ConfigError
from tessella.text import TextSettings, TextTokenizer
from tessella.text.merges import learn_merges

SETTINGS = TextSettings(max_tokens=64)
OLD = TextTokenizer.train(["a red star", "a blue star", "the blue circle"] * 4, SETTINGS)
NEW = ["a dango", "two dango on a plate", "a red plate"] * 4


def test_the_most_frequent_pair_comes_first() -> None:
    words = {("l", "o", "w"): 5, ("l", "o", "w", "e", "r"): 2, ("n", "e", "w"): 6}
    # By hand: l-o 7, o-w 7, n-e 6, e-w 6, w-e 2, e-r 2; of equals the first by the alphabet.
    assert learn_merges(words, 4, 1) == [("l", "o"), ("lo", "w"), ("e", "w"), ("n", "ew")]
    assert learn_merges(words, 99, 6) == learn_merges(words, 4, 1)
    assert learn_merges(words, 1, 1) == [("l", "o")]
    assert learn_merges({("a", "a", "a"): 1}, 9, 1) == [("a", "a"), ("aa", "a")]
    assert learn_merges({}, 9, 1) == []


def test_from_bytes_it_learns_what_the_trainer_of_tokenizers_learns() -> None:
    captions = [f"a {size} {shape}" for size in ("small", "large") for shape in ("star", "ring")]
    grown = TextTokenizer.train([], SETTINGS).grow(captions, SETTINGS)
    trained = TextTokenizer.train(captions, SETTINGS)
    assert grown.vocabulary_size == trained.vocabulary_size
    for caption in captions:
        assert grown.tokens(caption) == trained.tokens(caption)


def test_old_tokens_keep_their_numbers() -> None:
    grown = OLD.grow(NEW, SETTINGS)
    known = ["a red star", "the blue circle"]
    assert torch.equal(grown.encode(known), OLD.encode(known))
    assert grown.tokens("two dango") == ["<begin>", " two", " dango", "<end>"]
    assert OLD.count_tokens("two dango") > 4


def test_a_new_token_is_made_of_old_ones() -> None:
    grown = OLD.grow(NEW, SETTINGS)
    made_of = grown.split_new_tokens(OLD)
    assert len(made_of) == grown.vocabulary_size - OLD.vocabulary_size > 0
    [dango] = grown.encode([" dango"])[0][1:-1].tolist()
    assert made_of[dango - OLD.vocabulary_size] == OLD.encode(["dango"])[0][1:-1].tolist()
    assert all(token < OLD.vocabulary_size for tokens in made_of for token in tokens)
    with pytest.raises(ConfigError, match=r"does not continue that of"):
        OLD.split_new_tokens(grown)


def test_it_ends_at_its_bound_and_with_rare_pairs() -> None:
    room = OLD.vocabulary_size + 3
    settings = SETTINGS.replace(vocabulary_size=room)
    assert OLD.grow(NEW, settings).vocabulary_size == room
    assert OLD.grow(NEW, SETTINGS.replace(vocabulary_size=259)).vocabulary_size == (
        OLD.vocabulary_size
    )
    assert OLD.grow(["octopus"], SETTINGS).vocabulary_size == OLD.vocabulary_size


@given(st.lists(st.text(max_size=12), max_size=8))
def test_any_text_survives_a_grown_vocabulary(captions: list[str]) -> None:
    grown = OLD.grow(captions * 2, SETTINGS)
    rows = [row for row in captions if grown.count_tokens(row) <= grown.max_tokens]
    if rows:
        assert grown.decode(grown.encode(rows)) == [OLD.normalize(row) for row in rows]
    assert grown.grow(captions * 2, SETTINGS).vocabulary_size == grown.vocabulary_size
