"""`tessella score`: what it ranks, what it prints, what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from commands import invoke, succeeded
from tessella.model.pipeline import TextToImage
from tessella.model.sampler import Scores
from untrained import create_untrained, save_untrained


def save_model(folder: Path, objective: str) -> str:
    """Writes a model folder; untrained, which makes no difference to the command line."""
    model = create_untrained(objective, captions=["a red square", "a blue circle"])
    return str(save_untrained(model, folder))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model") / "model", "any_order")


@pytest.fixture(autouse=True)
def _picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save("photo.png")


def run(*arguments: object) -> Any:
    """Runs the command in this process; what is no exit is raised."""
    return invoke("score", *arguments)


def succeed(*arguments: object) -> str:
    return succeeded(run(*arguments))


def test_prompts_are_ranked_by_what_they_add_to_the_picture(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: object, images: object, prompts: list[str], **how: object) -> Scores:
        assert prompts == ["one", "two", "three"]
        assert how == {"num_orders": 2, "seed": 3}
        log_likelihood = np.array([[-104.0, -102.0, -101.0]])
        return Scores(log_likelihood, log_likelihood + 102)

    monkeypatch.setattr(TextToImage, "score", score)
    words = ["photo.png", "one", "two", "three", "one", "--model", model]
    words += ["--num-orders", "2", "--seed", "3"]
    first, _, *table = succeed(*words).splitlines()
    assert first == "The best match, 71% among these prompts: three"
    lines = [line.split() for line in table]
    # e^1, e^0 and e^-2 in units of their sum, 2.718 + 1 + 0.135 = 3.854.
    assert lines[1:] == [
        ["1", "+1.00", "-101.00", "70.5%", "three"],
        ["2", "+0.00", "-102.00", "25.9%", "two"],
        ["3", "-2.00", "-104.00", "3.5%", "one"],
    ]
    result = json.loads(succeed(*words, "--json"))
    assert result["image"] == "photo.png"
    assert [one["prompt"] for one in result["prompts"]] == ["three", "two", "one"]
    assert sum(one["share"] for one in result["prompts"]) == pytest.approx(1)
    assert result["prompts"][0]["share"] == pytest.approx(math.e / (math.e + 1 + math.exp(-2)))


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5], "To the model the prompt fits: it makes the picture likelier."),
        ([-0.5], "The prompt makes the picture less likely than no prompt does"),
        ([-0.1, -0.5], "Each prompt makes the picture less likely than no prompt does"),
    ],
)
def test_what_fits_is_said_first(
    scores: list[float], expected: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Scores(np.array([scores]), np.array([scores]))
    monkeypatch.setattr(TextToImage, "score", lambda *_, **__: found)
    prompts = ["one", "two"][: len(scores)]
    assert succeed("photo.png", *prompts, "--model", model).startswith(expected)


def test_scores_are_those_of_python(model: str) -> None:
    Path("prompts.txt").write_text("a blue circle\n\nred\n")
    words = ["photo.png", "a red square", "--prompts", "prompts.txt", "--model", model, "--json"]
    prompts = ["a red square", "a blue circle", "red"]
    with Image.open("photo.png") as photo:
        scores = TextToImage.load(model, "cpu").score([photo], prompts)
    found = {one["prompt"]: one for one in json.loads(succeed(*words))["prompts"]}
    assert list(found) == [prompts[index] for index in np.argsort(-scores.pmi[0])]
    assert [found[prompt]["pmi"] for prompt in prompts] == pytest.approx(scores.pmi[0])
    likelihoods = [found[prompt]["log_likelihood"] for prompt in prompts]
    assert likelihoods == pytest.approx(scores.log_likelihood[0])
    assert sorted(path.name for path in Path().iterdir()) == ["photo.png", "prompts.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png", "x"], "Cannot score: `nowhere.png`. There is no such picture"),
        (["words.txt", "x"], "Cannot score: `words.txt`. Not a picture of a known format"),
        (["photo.png", " "], "A prompt must say something: ` `"),
        (["photo.png", "word " * 100], "at most 64 can be read"),
        (["photo.png", "--prompts", "nowhere.txt"], "Cannot read the prompts: `nowhere.txt`"),
        (["photo.png", "x", "--model", "nowhere"], "There is no such model: `nowhere`"),
    ],
)
def test_what_cannot_be_scored_is_refused(model: str, words: list[str], message: str) -> None:
    Path("words.txt").write_text("no picture")
    result = run(*words, *([] if "--model" in words else ["--model", model]))
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr


def test_a_model_without_a_likelihood_cannot_score(tmp_path: Path) -> None:
    result = run("photo.png", "x", "--model", save_model(tmp_path / "model", "latent_mse"))
    assert result.exit_code == 1
    assert "The objective has no likelihood" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["photo.png"],
        ["photo.png", "x", "--num-orders", "0"],
        ["photo.png", "x", "--num-orders", "1000000"],
        ["photo.png", "x", "--seed", "-1"],
    ],
)
def test_wrong_usage_is_status_2(words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
