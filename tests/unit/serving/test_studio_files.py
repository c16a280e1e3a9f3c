"""The page's files: served as they are, asked again each time, and allowed to load nothing else."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tessella.serving.settings import ServeSettings
from tessella.serving.studio import STUDIO_FOLDER

FILES = sorted(
    path.relative_to(STUDIO_FOLDER).as_posix()
    for path in STUDIO_FOLDER.rglob("*")
    if path.is_file() and not path.name.startswith(".") and path.name != "index.html"
)
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
POLICY = {
    "default-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "style-src": "'self'",
    "script-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_served_as_it_is(name: str, server: Any) -> None:
    answer = server.get(f"/studio/{name}")
    file = STUDIO_FOLDER / name
    assert answer.status_code == 200
    assert answer.content == file.read_bytes()
    if file.suffix in TYPES:
        assert answer.headers["content-type"] == TYPES[file.suffix]
    policy = dict(part.strip().split(" ", 1) for part in
                  answer.headers["content-security-policy"].split(";"))  # fmt: skip
    assert policy == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_a_page_that_is_named_may_show_it_in_a_frame(serve: Any) -> None:
    hub = "https://huggingface.co"
    answer = serve(allow_frames=(hub, "https://example.org")).get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.endswith(f"; frame-ancestors {hub} https://example.org")
    with pytest.raises(ValidationError, match=r"an origin is like .*: `\*`"):
        ServeSettings(allow_frames=("*",))


def test_the_page(server: Any) -> None:
    page = server.get("/")
    assert page.content == (STUDIO_FOLDER / "index.html").read_bytes()
    # Its addresses are relative to its own.
    assert server.get("/studio/index.html").status_code == 404


def test_a_file_that_is_known_is_not_sent_again(server: Any) -> None:
    for path in ("/", "/studio/main.js"):
        answer = server.get(path)
        tag = answer.headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{24}"', tag)
        assert answer.headers["cache-control"] == "no-cache"
        # A proxy that packs files makes a weak tag of it.
        for known in (tag, f"W/{tag}", f'"other", {tag}', f'{tag},"other"'):
            same = server.get(path, headers={"If-None-Match": known})
            assert same.status_code == 304
            assert same.content == b""
            assert same.headers["etag"] == tag
            assert same.headers["content-security-policy"]
        for other in ('"other"', "", tag.strip('"')[:-1]):
            assert server.get(path, headers={"If-None-Match": other}).status_code == 200


def test_heads(server: Any) -> None:
    answer = server.client.head("/")
    assert answer.status_code == 200
    assert answer.content == b""
    assert int(answer.headers["content-length"]) == len(server.get("/").content)


def test_nothing_else_is_served(server: Any) -> None:
    for path in (
        "../studio.py", "..%2fstudio.py", "%2e%2e/app.py", "/etc/passwd", "", "index.html/",
        "INDEX.HTML", "vendor", "main.js%00",
    ):  # fmt: skip
        assert server.get(f"/studio/{path}").status_code == 404
    assert server.get("/studio/main.js?v=1").status_code == 200


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for name in FILES:
        file = STUDIO_FOLDER / name
        if file.suffix == ".html":
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"""(src|href)\s*=\s*["'](https?:)?//""", text)
            assert not re.search(r"<script(?![^>]*\bsrc=)", text)
            assert not re.search(r"\sstyle\s*=|\son[a-z]+\s*=|<style", text)


def test_brought_along_files_are_the_published_ones() -> None:
    folder = STUDIO_FOLDER / "vendor"
    listed = dict(re.findall(r"^\| `(\S+)` \| `(\w{64})` \|$", read(folder / "README.md"), re.M))
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
        if path.suffix in (".js", ".woff2")
    }
    assert listed == found


def test_the_page_is_small_and_asks_nobody_else() -> None:
    files = [path for path in STUDIO_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in files:
        if path.suffix in (".js", ".css", ".html") and "vendor" not in path.parts:
            # The names of XML's own languages are never fetched.
            text = read(path).replace("http://www.w3.org/", "")
            assert not re.search(r"https?://\w", text), path.name
            assert not re.search(r"innerHTML|\beval\(|new Function|\sstyle=", text), path.name


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_the_page_names_all_scripts_that_it_starts_with() -> None:
    """Else the browser finds each only when it has read the one that imports it."""
    page = (STUDIO_FOLDER / "index.html").read_text(encoding="utf-8")
    needed: set[str] = set()
    waiting = [STUDIO_FOLDER / "main.js", STUDIO_FOLDER / "paint.js"]
    while waiting:
        script = waiting.pop()
        name = script.relative_to(STUDIO_FOLDER).as_posix()
        if name not in needed:
            needed.add(name)
            imported = re.findall(r'\bfrom *"(\.[^"]+)"', script.read_text(encoding="utf-8"))
            waiting += [(script.parent / path).resolve() for path in imported]
    preloaded = re.findall(r'<link rel="modulepreload" href="studio/([^"]+)" />', page)
    assert preloaded == sorted(needed - {"main.js"})
