"""Which examples training pictures look at: drawn without repeats, never the picture itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessella.errors import CheckpointError
from tessella.retrieval import ExampleMemory, RetrievalSettings
from tessella.retrieval.copies import NearCopies
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE, ExampleRow
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.training.neighbors import (
    ExampleReader,
    Neighbors,
    find_neighbors,
    prepare_memory,
)


class Pictures:
    """Pictures of which nothing but names and captions is read."""

    def __init__(self, captions: Sequence[Sequence[str]], fingerprint: str = "first") -> None:
        self._captions, self.fingerprint = captions, fingerprint

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self, index: int) -> list[str]:
        return list(self._captions[index])

    def name(self, index: int) -> str:
        return f"/home/anna/things/{index}.png"


CAPTIONS = [
    ["a red dress", "clothes"],
    ["a blue dress"],
    ["a red shirt", "clothes"],
    ["a blue shirt"],
    ["a red dress", "a dress again"],  # the same drawing as the first
    ["green shoes"],
]
TRAIN: Any = Pictures(CAPTIONS)
HELD_OUT: Any = Pictures([["a red dress"], ["a green dress"], ["nothing known"]], "held out")
CODEBOOK = np.random.default_rng(0).normal(size=(1, 32, 4)).astype(np.float32)


def draw_codes(passes: int = 1) -> Any:
    """Codes of the training pictures, the fifth picture's as the first's."""
    codes = np.random.default_rng(1).integers(32, size=(passes, 6, 1, 2, 2)).astype(np.uint16)
    codes[:, 4] = codes[:, 0]
    return codes


def remember(captions: Sequence[Sequence[str]] = CAPTIONS, tokenizer: str = "t") -> ExampleMemory:
    rows = [ExampleRow(f"{number}.png", row) for number, row in enumerate(captions)]
    return ExampleMemory.build(draw_codes()[0], rows, tokenizer)


def find(
    path: Path, images: Any = TRAIN, memory: ExampleMemory | None = None, **changes: Any
) -> Neighbors:
    memory = memory or remember()
    copies = NearCopies(memory, CODEBOOK) if images is TRAIN else None
    return find_neighbors(
        images, memory, path, **{"count": 2, "candidates": 3, "copies": copies} | changes
    )


# Drawing.

EXAMPLE_OF = np.array([0, 0, 1, 2, 2, 3], np.int32)
# Three captions of two pictures, two places, three candidates each.
FOUND = Neighbors(
    np.array(
        [
            [[0, 2, 3], [2, 1, 5]],
            [[5, -1, -1], [4, 5, 3]],
            [[2, -1, -1], [-1, -1, -1]],
        ],
        np.int32,
    ),
    np.array([0, 2]),
)
PICTURES, CHOICES = np.array([0, 0, 1]), [0, 1, 0]


def test_without_chance_the_best_are_taken() -> None:
    found = FOUND.draw(PICTURES, CHOICES, EXAMPLE_OF)
    assert found.tolist() == [[0, 2], [5, 4], [2, -1]]
    found[:] = -1  # theirs to change
    assert FOUND.draw(PICTURES, CHOICES, EXAMPLE_OF).tolist() == [[0, 2], [5, 4], [2, -1]]


def test_no_example_is_drawn_twice() -> None:
    """Not by another of its captions either; all others have their turn."""
    drawn: list[set[tuple[int, ...]]] = [set(), set(), set()]
    for seed in range(300):
        rng = np.random.default_rng(seed)
        found = FOUND.draw(PICTURES, CHOICES, EXAMPLE_OF, [rng] * len(PICTURES))
        assert found.dtype == np.int32
        for seen, row in zip(drawn, found.tolist(), strict=True):
            seen.add(tuple(row))
    # Captions 0 and 1 are one picture's, as are 3 and 4.
    assert drawn[0] == {(0, 2), (0, 5), (2, 1), (2, 5), (3, 2), (3, 1), (3, 5)}
    assert drawn[1] == {(5, 4), (5, 3)}
    assert drawn[2] == {(2, -1)}


def test_where_all_candidates_are_taken_there_is_none() -> None:
    same = Neighbors(np.array([[[3, 4, -1], [4, 3, -1]]], np.int32), np.array([0]))
    found = same.draw(np.array([0]), [0], EXAMPLE_OF, [np.random.default_rng(0)])
    assert found[0, 0] in (3, 4)
    assert found[0, 1] == -1


def test_a_draw_follows_from_its_random_numbers() -> None:
    many = np.zeros(50, np.int64)
    first, again, other = (
        FOUND.draw(many, [0] * 50, EXAMPLE_OF, [np.random.default_rng(seed)] * 50)
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# Reading.


class Reader:
    """Notes the captions that it reads."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode_training(self, captions: Sequence[str]) -> Any:
        self.read = list(captions)
        tokens = [[len(caption), number] for number, caption in enumerate(captions)]
        return SimpleNamespace(text_tokens=torch.tensor(tokens))


def create(
    captions: Reader, *, flips: bool = False, codes: Any = None, **changes: Any
) -> ExampleReader:
    """A reader of four passes; the first picture looks at 1 and 2, the second at 5."""
    settings = RetrievalSettings().replace(**{"dropout": 0.0, "caption_dropout": 0.0} | changes)
    # Captions by number: 2 is "a blue dress", 3 "a red shirt", 8 "green shoes".
    train = Neighbors(np.array([[[2], [3]], [[8], [-1]]], np.int32), np.array([0, 1]))
    held_out = Neighbors(np.array([[[0], [2]]], np.int32), np.array([0]))
    sides = {"train": train, "validation": held_out}
    reader: Any = captions
    codes = draw_codes(4) if codes is None else codes
    rows = [ExampleRow(f"{number}.png", row) for number, row in enumerate(CAPTIONS)]
    memory = ExampleMemory.build(codes[0], rows, "t")
    return ExampleReader(memory, sides, codes, settings, reader, flips=flips)


def draw(reader: ExampleReader, passes: Sequence[int], keeps: bool = True) -> Any:
    count = len(passes)
    indices = np.arange(count) % 2
    keeps_prompt = np.full(count, keeps)
    rng = np.random.default_rng(0)
    return reader.draw(indices, [0] * count, np.array(passes), keeps_prompt, [rng] * count)


def test_codes_and_captions_are_those_of_the_examples() -> None:
    captions = Reader()
    examples, codes = draw(create(captions), [0, 1]), draw_codes(4)
    assert examples.codes.dtype == torch.int64
    assert examples.codes.shape == (2, 2, 4, 1)
    assert np.array_equal(examples.codes[0, 0, :, 0], codes[0, 1].ravel())
    assert np.array_equal(examples.codes[0, 1, :, 0], codes[0, 2].ravel())
    assert np.array_equal(examples.codes[1, 0, :, 0], codes[0, 5].ravel())
    assert (examples.codes[1, 1] == -1).all()
    assert examples.visible.tolist() == [[True, True], [True, False]]
    assert captions.read == ["a blue dress", "a red shirt", "green shoes", ""]
    assert examples.text.tolist() == [[[12, 0], [11, 1]], [[11, 2], [0, 3]]]


def test_every_code_is_read_at_its_position() -> None:
    """No two codes of this memory are equal: 4 passes, 6 pictures, 2 codebooks, 2 × 3 positions."""
    codes = np.arange(4 * 6 * 2 * 2 * 3, dtype=np.uint16).reshape(4, 6, 2, 2, 3)
    reader = create(Reader(), flips=True, codes=codes)
    drawn = draw(reader, [0, 3])  # the second mirrored, where half of the passes begin
    best = reader.read_best("validation", np.array([0]), [0])
    assert drawn.codes.shape == (2, 2, 6, 2)
    assert best.codes.shape == (1, 2, 6, 2)
    assert (drawn.codes[1, 1] == -1).all()
    read = (
        (drawn.codes[0, 0], 0, 1),
        (drawn.codes[0, 1], 0, 2),
        (drawn.codes[1, 0], 2, 5),
        (best.codes[0, 0], 0, 0),
        (best.codes[0, 1], 0, 1),
    )
    for row, number, picture in read:
        for position in range(6):
            h, w = divmod(position, 3)
            pair = [int(codes[number, picture, m, h, w]) for m in (0, 1)]
            assert row[position].tolist() == pair


def test_a_mirrored_picture_looks_at_mirrored_examples() -> None:
    """Of the passes as they are, a crop, and both mirrored; at no crops."""
    codes = draw_codes(4)
    for flips, expected in ((True, [0, 0, 2, 2]), (False, [0, 0, 0, 0])):
        examples = draw(create(Reader(), flips=flips), [0, 1, 2, 3])
        for row, number in enumerate(expected):
            theirs = codes[number, 5 if row % 2 else 1].ravel()
            assert np.array_equal(examples.codes[row, 0, :, 0], theirs)


def count_without(reader: ExampleReader, keeps: bool = True) -> float:
    """Fraction of pictures that look at nothing; a part of the examples never falls out."""
    visible = draw(reader, [0] * 4000, keeps).visible
    assert torch.equal(visible[1::2, 1], torch.zeros(2000).bool())
    assert torch.equal(visible[::2, 0], visible[::2, 1])
    return float((~visible[:, 0]).float().mean())


def test_examples_are_dropped() -> None:
    assert count_without(create(Reader())) == 0
    assert count_without(create(Reader(), dropout=0.25)) == pytest.approx(0.25, abs=0.03)
    assert count_without(create(Reader(), dropout=1.0)) == 1
    # Without the prompt half of them go, too.
    assert count_without(create(Reader()), keeps=False) == pytest.approx(0.5, abs=0.03)
    dropped = count_without(create(Reader(), dropout=0.5), keeps=False)
    assert dropped == pytest.approx(0.75, abs=0.03)


def test_captions_are_hidden() -> None:
    """Some of those of a picture, and not its others."""
    for fraction in (0.0, 0.3, 1.0):
        captions = Reader()
        draw(create(captions, caption_dropout=fraction), [0] * 4000)
        first, second = captions.read[::4], captions.read[1::4]
        hidden = [not caption for caption in first]
        assert np.mean(hidden) == pytest.approx(fraction, abs=0.03)
        both = [not (one or other) for one, other in zip(first, second, strict=True)]
        assert np.mean(both) == pytest.approx(fraction**2, abs=0.03)
        assert set(first) <= {"a blue dress", ""}


def test_the_best_are_read_whole() -> None:
    """As painting has them: nothing is dropped, hidden or mirrored."""
    captions = Reader()
    reader = create(captions, flips=True, dropout=1.0, caption_dropout=1.0)
    examples, codes = reader.read_best("validation", np.array([0, 0]), [0, 0]), draw_codes(4)
    for row in examples.codes:
        assert np.array_equal(row, codes[0, [0, 1]].reshape(2, 4, 1))
    assert captions.read == ["a red dress", "a blue dress"] * 2
    assert not reader.read_best("train", np.array([1]), [0]).visible[0, 1]


# Finding.


def test_a_picture_finds_neither_itself_nor_what_is_as_good(tmp_path: Path) -> None:
    memory = remember()
    found = find(tmp_path / "n.npy")
    assert found.captions.shape == (9, 2, 3)
    assert found.captions.dtype == np.int32
    assert found.starts.tolist() == [0, 2, 3, 5, 6, 8]
    same = {0: {0, 4}, 4: {0, 4}}  # the same drawing under two names
    for index, start in enumerate(found.starts):
        own = same.get(index, {index})
        for row in found.captions[start : start + len(CAPTIONS[index])]:
            others = {int(memory.example_of[caption]) for caption in row.ravel() if caption >= 0}
            assert not others & own
    # The red dress looks at the other dress and the other red thing.
    best = {memory.by_caption(int(caption)).name for caption in found.captions[0, :, 0]}
    assert best == {"1.png", "2.png"}
    # "clothes" has one other that says so, and "green shoes" none.
    assert [memory.by_caption(int(c)).name for c in found.captions[1].ravel() if c >= 0] == [
        "2.png"
    ]
    assert (found.captions[8] == -1).all()


def test_training_looks_up_as_painting_does(tmp_path: Path) -> None:
    memory = remember()
    found = find(tmp_path / "n.npy", HELD_OUT)
    for index in range(2):
        [caption] = HELD_OUT.captions(index)
        best = [int(c) for c in found.captions[index, :, 0] if c >= 0]
        assert [memory.by_caption(c).index for c in best] == [
            example.index for example in memory.find(caption, 2)
        ]


def test_held_out_pictures_find_training_pictures(tmp_path: Path) -> None:
    """The one of the same caption too: it is not they."""
    found = find(tmp_path / "n.npy", HELD_OUT)
    example_of = remember().example_of
    assert found.captions.shape == (3, 2, 3)
    assert example_of[found.captions[0, 0, 0]] == 0
    assert (found.captions[2] == -1).all()
    assert found.captions.max() < len(example_of)


def test_they_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int]] = []
    path = tmp_path / "n.npy"
    first = find(path, progress=lambda *now: done.append(now))
    assert done[-1] == (6, 6)
    with monkeypatch.context() as patched:
        patched.setattr(ExampleMemory, "look_up", lambda *_, **__: pytest.fail("looked up again"))
        again = find(path)
    assert np.array_equal(first.captions, again.captions)
    assert not again.captions.flags.writeable


@pytest.mark.parametrize("changed", ["images", "tokenizer", "count", "candidates", "memory"])
def test_they_are_found_again_when_something_changed(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory's captions count even where the number of pictures stays."""
    path, looked_up = tmp_path / "n.npy", []
    find(path, HELD_OUT)
    look_up = ExampleMemory.look_up

    def watch(self: ExampleMemory, *arguments: Any, **options: Any) -> Any:
        looked_up.append(arguments)
        return look_up(self, *arguments, **options)

    monkeypatch.setattr(ExampleMemory, "look_up", watch)
    images: Any = HELD_OUT
    memory, changes = remember(), {}
    if changed == "images":
        images = Pictures([["a red dress"], ["shoes"], ["nothing"]], "other")
    elif changed == "tokenizer":
        memory = remember(tokenizer="another")
    elif changed == "memory":
        memory = remember([["green shoes"], *CAPTIONS[1:]])
    else:
        changes = {changed: 1}
    found = find(path, images, memory, **changes)
    assert len(looked_up) == 3
    fresh = find(tmp_path / "fresh.npy", images, memory, **changes)
    assert np.array_equal(found.captions, fresh.captions)


# The memory.


def prepare(folder: Path, images: Any = TRAIN, seed: int = 0) -> ExampleMemory:
    codes, sources = draw_codes(3), ["/home/anna/things"]
    return prepare_memory(images, codes, create_tokenizer(seed), folder, sources)


def create_tokenizer(seed: int = 0) -> VQAutoencoder:
    torch.manual_seed(seed)
    quantizer = {"codebook_size": 32, "code_width": 4}
    settings = {"patch": 2, "widths": (16,), "quantizer": quantizer}
    return VQAutoencoder(TokenizerSettings.model_validate(settings))


def test_the_memory_has_the_training_pictures_as_they_are(tmp_path: Path) -> None:
    memory = prepare(tmp_path / "memory")
    assert np.array_equal(memory.codes, draw_codes(3)[0])
    rows = [(row.name, list(row.captions)) for row in memory.rows]
    assert rows == [(f"things/{index}.png", captions) for index, captions in enumerate(CAPTIONS)]
    assert memory.tokenizer == create_tokenizer().hash_encoder()
    assert memory.example_of.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5]


def test_the_memory_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "memory"
    prepare(folder)
    with monkeypatch.context() as patched:
        patched.setattr(ExampleMemory, "build", lambda *_: pytest.fail("built again"))
        assert len(prepare(folder)) == 6
    other: Any = Pictures([["a hat"]] * 6, "other")
    assert prepare(folder, other).rows[0].captions == ["a hat"]
    assert prepare(folder, other, seed=1).tokenizer != prepare(folder, other, seed=2).tokenizer


@pytest.mark.parametrize("name", [EXAMPLES_FILE, ROWS_FILE, "made_from.json"])
def test_a_damaged_memory_is_made_again(name: str, tmp_path: Path) -> None:
    """A run has all that it takes; only a model's own memory cannot be made again."""
    folder = tmp_path / "memory"
    prepare(folder)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-9])
    if name != "made_from.json":
        with pytest.raises(CheckpointError):
            ExampleMemory.open(folder)
    assert prepare(folder).find("green shoes", 1)[0].name == "things/5.png"
    json.loads((folder / "made_from.json").read_bytes())
