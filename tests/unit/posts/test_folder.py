"""The folder of posts: what it holds, what it goes on with, and that its page is safe."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.errors import CheckpointError, ConfigError
from tessella.posts.errors import LanguageModelError
from tessella.posts.folder import PaintedPicture, PostsFolder, PostsJob
from tessella.posts.post import Post
from tessella.posts.request import PostRequest
from tessella.posts.writer import PostWriter

EVIL = "\"><script>alert(1)</script><img src=x onerror='x'> ../../etc/x {{ 7 * 7 }} &amp;"


class Writer(PostWriter):
    """Writes numbered posts; fails at one of them."""

    language_model = "tiny"

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.batches: list[list[int]] = []

    def write_batch(
        self, request: PostRequest, count: int, earlier: Sequence[Post]
    ) -> Sequence[Post]:
        numbers = range(len(earlier), len(earlier) + count)
        self.batches.append(list(numbers))
        if self.fails_at in numbers:
            raise LanguageModelError("It went away.")
        return [Post(f"Text {n}", ("a",), f"Alt {n}", f"label {n}", ("mended",)) for n in numbers]


EXAMPLES = [{"name": "a.png", "caption": "a star", "index": 3}]


def paint(label: str, seed: int) -> PaintedPicture:
    return PaintedPicture(np.full((8, 8, 3), seed, dtype=np.uint8))


def paint_beside_a_star(label: str, seed: int) -> PaintedPicture:
    comment = json.dumps({"prompt": label, "examples": EXAMPLES})
    return PaintedPicture(np.full((8, 8, 3), seed, dtype=np.uint8), {"Comment": comment})


@pytest.fixture
def job(ask: Callable[..., Any]) -> PostsJob:
    return PostsJob(ask(seed=5), 7, "stickers", 4, "tiny")


def file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_a_folder_holds_posts_pictures_and_a_page(tmp_path: Path, job: PostsJob) -> None:
    folder = PostsFolder(tmp_path / "out", job, ["A note."])
    folder.write(Writer())
    painted = list(folder.paint(paint))
    folder.write_page()
    assert [path.name for path in painted] == [f"{n}.png" for n in range(1, 8)]
    assert file_names(folder.path) == {"posts.json", "posts.html", *(p.name for p in painted)}
    with Image.open(painted[1]) as image:
        assert (image.size, image.getpixel((0, 0))) == ((8, 8), (9, 9, 9))  # seed 5 + 1 · 4

    written = json.loads((folder.path / "posts.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(folder.describe()))
    assert (written["format"], written["offline"], written["notes"]) == (1, False, ["A note."])
    assert written["asked"] == {
        "business": "Bluebird Bakery",
        "about": "We bake bread and croissants. Our coffee is strong.",
        "platform": "instagram",
        "tone": "warm",
        "count": 7,
        "seed": 5,
        "model": "stickers",
        "best_of": 4,
        "language_model": "tiny",
        "references": [],
    }
    assert written["posts"][6] == {
        "text": "Text 6",
        "hashtags": ["a"],
        "alt_text": "Alt 6",
        "label": "label 6",
        "repairs": ["mended"],
        "picture": "7.png",
        "seed": 29,
        "examples": [],
    }


def test_the_same_request_goes_on_where_it_stopped(tmp_path: Path, job: PostsJob) -> None:
    """The language model fails at the sixth post, then the machine at the third picture."""
    out = tmp_path / "out"
    with pytest.raises(LanguageModelError) as error:
        PostsFolder(out, job).write(Writer(fails_at=5))
    assert str(error.value) == (
        "It went away. 5 of 7 posts are saved: run the same command again to resume."
    )
    assert file_names(out) == {"posts.json"}

    folder, writer = PostsFolder(out, job), Writer()
    assert len(folder.posts) == 5
    folder.write(writer)
    assert writer.batches == [[5, 6]]
    painting = folder.paint(paint)
    next(painting), next(painting)
    painting.close()

    (out / ".tmp-tessella-1.png").write_bytes(b"half")  # as a killed process leaves it
    folder = PostsFolder(out, job)
    before = (out / "posts.json").read_bytes(), (out / "1.png").stat().st_mtime_ns
    folder.write(Writer(fails_at=0))
    assert [path.name for path in folder.paint(paint)] == [f"{n}.png" for n in range(3, 8)]
    folder.write_page()
    assert before == ((out / "posts.json").read_bytes(), (out / "1.png").stat().st_mtime_ns)
    assert not any(name.startswith(".tmp") for name in file_names(out))
    assert list(PostsFolder(out, job).paint(paint)) == []


def test_posts_say_what_their_pictures_looked_at(tmp_path: Path, job: PostsJob) -> None:
    """Also those that an earlier process painted: the pictures themselves say it."""
    folder = PostsFolder(tmp_path / "out", job)
    folder.write(Writer())
    painting = folder.paint(paint_beside_a_star)
    next(painting)
    painting.close()
    folder = PostsFolder(tmp_path / "out", job)
    assert [len(post["examples"]) for post in folder.describe()["posts"]] == [1, *[0] * 6]
    assert len(list(folder.paint(paint_beside_a_star))) == 6
    folder.write_page()
    written = json.loads((folder.path / "posts.json").read_text(encoding="utf-8"))
    assert [post["examples"] for post in written["posts"]] == [EXAMPLES] * 7
    assert len(PostsFolder(tmp_path / "out", job).posts) == 7


def test_references_belong_to_the_request(tmp_path: Path, job: PostsJob) -> None:
    out = tmp_path / "out"
    PostsFolder(out, job).write(Writer())
    with pytest.raises(ConfigError, match=r"has references = `\[\]`, now it is `\['photo\.png'\]`"):
        PostsFolder(out, replace(job, references=["photo.png"]))
    # An earlier version did not note them.
    written = json.loads((out / "posts.json").read_text(encoding="utf-8"))
    del written["asked"]["references"]
    (out / "posts.json").write_text(json.dumps(written), encoding="utf-8")
    assert len(PostsFolder(out, job).posts) == 7
    with pytest.raises(ConfigError, match="now it is"):
        PostsFolder(out, replace(job, references=["photo.png"]))


def test_nothing_written_says_nothing_of_going_on(tmp_path: Path, job: PostsJob) -> None:
    with pytest.raises(LanguageModelError, match=r"^It went away\.$"):
        PostsFolder(tmp_path / "out", job).write(Writer(fails_at=0))
    assert not (tmp_path / "out").exists()


def test_another_request_is_refused(tmp_path: Path, job: PostsJob) -> None:
    folder = PostsFolder(tmp_path, job)
    folder.write(Writer())
    with pytest.raises(ConfigError) as error:
        PostsFolder(tmp_path, replace(job, count=3, language_model=None))
    assert str(error.value) == (
        f"The folder holds posts of another request: `{tmp_path}` has count = `7`, now it is "
        "`3`. Repeat that request to resume, or choose a new --out."
    )


def test_a_folder_of_something_else_is_refused(tmp_path: Path, job: PostsJob) -> None:
    (tmp_path / "holiday.png").write_bytes(b"")
    for path in (tmp_path, tmp_path / "holiday.png"):
        with pytest.raises(ConfigError, match="something other than posts: `"):
            PostsFolder(path, job)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "The posts are damaged: `"),
        (b'{"format": 1}', "The posts are damaged: `"),
        (b'{"format": 1, "asked": {}, "posts": [{"text": 1}]}', "The posts are damaged: `"),
        (b'{"format": 2, "asked": {}, "posts": []}', "have format `2`; this tessella reads"),
    ],
)
def test_damaged_posts_are_refused(
    tmp_path: Path, job: PostsJob, content: bytes, message: str
) -> None:
    (tmp_path / "posts.json").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        PostsFolder(tmp_path, job)
    assert message in str(error.value)


def test_a_page_needs_its_pictures(tmp_path: Path, job: PostsJob) -> None:
    folder = PostsFolder(tmp_path, job)
    folder.write(Writer())
    with pytest.raises(CheckpointError, match=r"Cannot read a picture: `.*1\.png`; No such file"):
        folder.write_page()


class Page(HTMLParser):
    """Reads the tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.scripts.append(data)

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def page(tmp_path: Path, ask: Callable[..., Any]) -> str:
    class Evil(Writer):
        def write_batch(
            self, request: PostRequest, count: int, earlier: Sequence[Post]
        ) -> Sequence[Post]:
            return [Post(EVIL, ("a",), EVIL, EVIL, (EVIL,))] * count

    request = ask(business=EVIL, about=EVIL, tone=EVIL[:60])
    job = PostsJob(request, 2, EVIL, 1, EVIL)
    folder = PostsFolder(tmp_path / "out", job)
    folder.write(Evil())
    assert len(list(folder.paint(paint))) == 2
    assert folder.write_page() == tmp_path / "out" / "posts.html"
    # Nothing that anybody wrote became a name.
    assert file_names(tmp_path) == {"out", "posts.json", "posts.html", "1.png", "2.png"}
    return folder.write_page().read_text(encoding="utf-8")


def test_nothing_written_becomes_a_part_of_the_page(page: str) -> None:
    read = Page(page)
    assert len(read.find("script")) == len(read.find("style")) == 1
    assert [image["alt"] for image in read.find("img")] == [EVIL, EVIL]
    assert not any(name.startswith("on") for _, attrs in read.tags for name in attrs)
    assert "{{ 7 * 7 }}" in page  # what looks like a template is none
    assert page.count("&lt;script&gt;") >= 8


def test_a_page_asks_nobody_and_runs_its_own_script_alone(page: str) -> None:
    read = Page(page)
    [policy] = [m["content"] or "" for m in read.find("meta") if "http-equiv" in m]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    style, script = (
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in read.scripts
    )
    assert (rules["style-src"], rules["script-src"]) == (style, script)
    addresses = [v for _, attrs in read.tags for k, v in attrs.items() if k in ("src", "href")]
    assert len(addresses) == 4
    assert all(address and address.startswith("data:image/png;base64,") for address in addresses)


def test_a_model_whose_name_is_not_utf_8(tmp_path: Path, job: PostsJob) -> None:
    folder = PostsFolder(tmp_path, replace(job, model="m\udcff"))
    folder.write(Writer())
    assert list(folder.paint(paint))
    assert "painted by m?." in folder.write_page().read_text(encoding="utf-8")
    assert len(PostsFolder(tmp_path, replace(job, model="m\udcff")).posts) == 7


def test_a_page_says_who_wrote_it(tmp_path: Path, job: PostsJob) -> None:
    for name, says in (("tiny", "by the language model tiny"), (None, "Written offline")):
        folder = PostsFolder(tmp_path / says, replace(job, count=1, language_model=name))
        folder.write(Writer())
        assert list(folder.paint(paint))
        text = folder.write_page().read_text(encoding="utf-8")
        assert says in text
        assert ("No language model was asked" in text) is (name is None)
        assert folder.describe()["offline"] is (name is None)
