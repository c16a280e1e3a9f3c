"""`tessella post`: what it writes, what it says, how it goes on."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from commands import invoke, succeeded
from tessella.cli import app
from tessella.model.pipeline import TextToImage
from tessella.posts.platforms import PLATFORMS
from tessella.text.vocabulary import summarize_captions
from untrained import create_untrained, create_with_examples, save_untrained

CAPTIONS = ["a red star", "a blue circle", "a green heart"]
WORDS = ["--business", "../Star <b>Shop</b>", "--about", "We sell stars. Follow your heart."]


def save_model(folder: Path, objective: str) -> str:
    """Writes a model folder; untrained, which makes no difference to the command line."""
    model = create_untrained(objective, captions=CAPTIONS)
    known = summarize_captions(CAPTIONS, model.text_tokenizer)
    return str(save_untrained(model, folder, captions=known))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model") / "model", "any_order")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object) -> Any:
    """Runs the command in this process; what is no exit is raised."""
    return invoke("post", *WORDS, *arguments)


def succeed(*arguments: object) -> str:
    return succeeded(run(*arguments))


def fail(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    return str(result.stderr)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def chat() -> Iterator[tuple[str, list[Any]]]:
    """A language model's address, and its answers to come: posts, or a status."""
    script: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = script.pop(0)
            is_status = isinstance(answer, int)
            message = {"content": json.dumps({"posts": answer})}
            body = json.dumps({} if is_status else {"choices": [{"message": message}]}).encode()
            self.send_response(answer if is_status else 200)
            for name, value in (("Retry-After", "0.001"), ("Content-Type", "application/json")):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", script
        server.shutdown()
        thread.join()


def draft(number: int, label: str = "a red star") -> dict[str, Any]:
    return {"text": f"Post {number}.", "hashtags": ["x"], "alt_text": "A star.", "label": label}


def test_offline_is_said_and_goes_on(model: str, tmp_path: Path) -> None:
    words = ["--offline", "--model", model, "--seed", 3]
    said = succeed(*words).splitlines()
    assert said[:3] == [f"Painted posts/{n}.png" for n in (1, 2, 3)]
    assert said[3:] == [
        "3 posts for instagram: posts/posts.html",
        "No language model was asked (offline): templates write the posts.",
        "Post 3: the image model knows no other word of the description: the picture shows one of "
        "its sample captions.",
    ]
    # Nothing of the business's name is a name of a file.
    expected = ["posts", *(f"posts/{n}" for n in ("1.png", "2.png", "3.png"))]
    assert names(tmp_path) == [*expected, "posts/posts.html", "posts/posts.json"]
    written = json.loads(Path("posts/posts.json").read_text(encoding="utf-8"))
    assert [post["seed"] for post in written["posts"]] == [3, 7, 11]
    assert all("../Star <b>Shop</b>" in post["text"] for post in written["posts"])
    assert "<b>" not in Path("posts/posts.html").read_text(encoding="utf-8")
    with Image.open("posts/2.png") as image:
        painted = TextToImage.load(Path(model), "cpu").generate(
            written["posts"][1]["label"], seed=7, best_of=4
        )
        assert np.array_equal(image, painted[0])

    Path("posts/2.png").unlink()
    assert succeed(*words).splitlines()[0] == "Painted posts/2.png"
    told = json.loads(succeed(*words, "--json"))
    assert told == {"dry_run": False, "out": "posts", **written}
    assert "posts of another request: `posts` has seed = `3`" in fail("--offline", "--model", model)


def test_a_language_model_that_fails_in_the_middle(
    model: str, tmp_path: Path, chat: tuple[str, list[Any]]
) -> None:
    url, script = chat
    words = ["--llm", "tiny", "--llm-base-url", url, "--model", model]
    words += ["--count", "6", "--out", "mine"]
    script += [429, [draft(n) for n in range(5)], *[500] * 4]
    message = fail(*words)
    assert message.startswith("Error: The language model's server failed with status 500: `http")
    assert message.endswith(
        "Tried 4 times. 5 of 6 posts are saved: run the same command again to resume.\n"
    )
    assert names(tmp_path) == ["mine", "mine/posts.json"]

    script[:] = [[draft(5, "a purple star")]] * 2
    said = succeed(*words)
    assert "Written by the language model tiny." in said
    assert "Post 6: the label has unknown words: purple; `a purple star` became `a star`." in said
    assert "No language model" not in said
    written = json.loads(Path("mine/posts.json").read_text(encoding="utf-8"))
    assert [post["text"] for post in written["posts"]] == [f"Post {n}." for n in range(6)]
    assert (written["offline"], written["asked"]["language_model"]) == (False, "tiny")
    assert len(list(Path("mine").glob("*.png"))) == 6


def test_a_dry_run_writes_nothing(model: str, tmp_path: Path) -> None:
    words = ["--model", model, "--dry-run"]
    asks = [*words, "--llm", "tiny", "--llm-base-url", "http://127.0.0.1:9"]
    said = succeed(*asks)
    assert said.startswith("Would write 3 of 3 posts: posts\n--- system\n")
    assert "a blue circle" in said
    told = json.loads(succeed(*asks, "--json"))
    assert (told["dry_run"], len(told["messages"]), told["posts"]) == (True, 2, [])
    assert "No language model was asked" in succeed(*words, "--offline")
    assert names(tmp_path) == []


def test_a_model_that_cannot_choose_says_so(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "latent_mse")
    said = succeed("--offline", "--model", model, "--count", 2)
    assert (
        "The image model cannot rank candidates, so only one picture is painted per post." in said
    )
    written = json.loads(Path("posts/posts.json").read_text(encoding="utf-8"))
    assert [post["seed"] for post in written["posts"]] == [0, 1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No language model is named"),
        (["--llm", "tiny"], "The language model's key is missing: `OPENAI_API_KEY` is empty."),
        (["--llm", "tiny", "--llm-key-env", "MINE"], "`MINE` is empty."),
        (["--llm", "tiny", "--llm-base-url", "x"], "Not the address of a language model's server"),
        (["--offline", "--platform", "myspace"], "Unknown platform: `myspace`."),
        (["--offline", "--model", "nowhere"], "There is no such model: `nowhere`."),
        (["--offline", "--business", " "], "The name of the business must have"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_written(
    tmp_path: Path, words: list[str], message: str
) -> None:
    assert message in fail(*words)
    assert names(tmp_path) == []


def test_the_help_names_every_platform() -> None:
    said = CliRunner().invoke(app, ["post", "--help"], env={"COLUMNS": "200"}).stdout
    assert [name for name in PLATFORMS if name not in said] == []


# --- examples -------------------------------------------------------------------------------


@pytest.fixture
def looking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that looks at two examples, and a picture beside it."""
    folder = tmp_path_factory.mktemp("looking")
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    model = create_with_examples(CAPTIONS)
    known = summarize_captions(CAPTIONS, model.text_tokenizer)
    return str(save_untrained(model, folder / "model", captions=known))


def test_pictures_look_at_what_their_labels_find(looking: str) -> None:
    said = succeed("--offline", "--model", looking, "--count", 2)
    assert "Looked at: see `examples` in posts/posts.json" in said
    written = json.loads(Path("posts/posts.json").read_text(encoding="utf-8"))
    painter = TextToImage.load(looking, "cpu")
    for post in written["posts"]:
        found = painter.examples.find(post["label"])
        assert [one["index"] for one in post["examples"]] == [one.index for one in found]
        [image] = painter.generate(post["label"], seed=post["seed"], best_of=4)
        with Image.open(Path("posts") / post["picture"]) as saved:
            assert np.array_equal(saved, image)
            assert saved.info["Description"] == post["label"]
    assert any(post["examples"] for post in written["posts"])


def test_every_picture_looks_at_the_references(looking: str) -> None:
    photo = str(Path(looking).with_name("photo.png"))
    words = ["--offline", "--model", looking, "--reference", photo]
    assert f"Every picture would look at: {photo}" in succeed(*words, "--dry-run")
    told = json.loads(succeed(*words, "--json"))
    assert told["asked"]["references"] == [photo]
    for post in told["posts"]:
        assert post["examples"][0] == {"name": "photo.png", "caption": "", "index": None}
    assert "posts of another request" in fail("--offline", "--model", looking)
    assert "Painted" not in succeed(*words)  # resumed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nowhere.png"], "Cannot look at the reference: `nowhere.png`. There is no such picture"),
        (["a.png"] * 3, "looks at 2 pictures at most: `3` references"),
    ],
)
def test_references_that_cannot_be_looked_at(
    looking: str, tmp_path: Path, names: list[str], message: str
) -> None:
    words = [word for name in names for word in ("--reference", name)]
    assert message in fail("--offline", "--model", looking, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_examples_takes_no_references(model: str) -> None:
    message = fail("--offline", "--model", model, "--reference", "photo.png")
    assert "The model does not look at examples" in message
