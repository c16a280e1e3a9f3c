"""What a picture says of itself: for programs, for people, and without what is private."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tessella
from tessella.images import save_png
from tessella.model.provenance import (
    create_png_texts,
    describe_examples,
    describe_request,
    read_examples,
)
from tessella.model.request import ImageRequest
from tessella.retrieval import Example

CODES = np.zeros((2, 2), np.uint16)
EXAMPLES = (
    Example(CODES, "", "/home/me/photo.png"),
    Example(CODES, "a star", "set/star.png", 7),
)
MADE_WITH: dict[str, Any] = {"command": "generate", "model": "runs/mine", "best_of": 1}


def test_examples_are_listed_in_their_order() -> None:
    assert describe_examples(EXAMPLES) == [
        {"name": "/home/me/photo.png", "caption": "", "index": None},
        {"name": "set/star.png", "caption": "a star", "index": 7},
    ]
    assert describe_examples(()) == []


def test_a_request_is_described_with_what_it_looks_at() -> None:
    described = describe_request(ImageRequest("a star", 3, examples=EXAMPLES))
    assert described == {"prompt": "a star", "seed": 3, "examples": describe_examples(EXAMPLES)}
    assert describe_request(ImageRequest("a star", 3))["examples"] == []
    json.dumps(described)


def test_a_png_tells_people_the_prompt_and_programs_everything() -> None:
    picture = describe_request(ImageRequest("a \N{OCTOPUS}", 3, examples=EXAMPLES))
    texts = create_png_texts([picture], MADE_WITH)
    assert texts["Software"] == f"tessella {tessella.__version__}"
    assert texts["Description"] == "a \N{OCTOPUS}"
    assert texts["Comment"].isascii()  # any reader shows it
    assert json.loads(texts["Comment"]) == {
        "prompt": "a \N{OCTOPUS}",
        "seed": 3,
        "examples": [
            {"name": "photo.png", "caption": "", "index": None},  # without its folder
            {"name": "set/star.png", "caption": "a star", "index": 7},
        ],
        "command": "generate",
        "model": "mine",
        "best_of": 1,
    }
    assert create_png_texts([picture], MADE_WITH) == texts


def test_a_sheet_tells_every_picture_and_each_prompt_once() -> None:
    requests = [ImageRequest(prompt, seed) for prompt in ("a", " ", "b") for seed in (1, 2)]
    texts = create_png_texts([describe_request(one) for one in requests], MADE_WITH)
    assert texts["Description"] == "a\nb"
    comment = json.loads(texts["Comment"])
    assert [(one["prompt"], one["seed"]) for one in comment["pictures"]] == [
        (one.prompt, one.seed) for one in requests
    ]
    assert comment["best_of"] == 1


def test_a_prompt_that_is_not_utf_8_is_told_as_well_as_it_can(tmp_path: Path) -> None:
    picture = describe_request(ImageRequest("a \udcff", 3))
    texts = create_png_texts([picture], {**MADE_WITH, "model": "m\udcff"})
    assert texts["Description"] == "a ?"
    save_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8), texts)
    assert read_examples(tmp_path / "a.png") == []


def test_the_examples_of_a_saved_picture_are_read_back(tmp_path: Path) -> None:
    picture = describe_request(ImageRequest("a star", 3, examples=EXAMPLES))
    texts = create_png_texts([picture], MADE_WITH)
    save_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8), texts)
    assert [one["name"] for one in read_examples(tmp_path / "a.png")] == [
        "photo.png",
        "set/star.png",
    ]


@pytest.mark.parametrize("comment", [None, "made by hand", "[]", '{"examples": 3}', "{}", "3"])
def test_a_foreign_picture_says_nothing_of_examples(tmp_path: Path, comment: str | None) -> None:
    texts = {} if comment is None else {"Comment": comment}
    save_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8), texts)
    assert read_examples(tmp_path / "a.png") == []
    assert read_examples(tmp_path / "nowhere.png") == []
