"""The folder of finished posts: `posts.json`, a picture each, `posts.html`.

Every file is written whole or not at all, posts as soon as they are written, pictures as soon as
they are painted, so that the same command goes on where an earlier one stopped. Names of files
are numbers: nothing that anybody wrote is in them.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from tessella.errors import CheckpointError, ConfigError
from tessella.files import remove_leftovers, write_json, write_text
from tessella.images import Pixels, save_png
from tessella.posts.errors import LanguageModelError
from tessella.posts.post import Post
from tessella.posts.request import PostRequest
from tessella.posts.writer import PostWriter
from tessella.text.base import to_utf8

if TYPE_CHECKING:
    from jinja2 import Environment

FORMAT = 1
"""Of posts.json; goes up when an older tessella could no longer read it."""

POSTS_FILE = "posts.json"
PAGE_FILE = "posts.html"
_TEMPLATE = "posts.html.jinja"

NO_LANGUAGE_MODEL = "No language model was asked (offline): templates write the posts."
NO_CHOICE = "The image model cannot choose the best of several pictures: one a post is painted."


@dataclass(frozen=True)
class Asked:
    """All that the posts of a folder follow from."""

    request: PostRequest
    count: int
    model: str  # the image model, as it was named
    best_of: int
    language_model: str | None  # None: offline

    def describe(self) -> dict[str, Any]:
        """Says it as plain values."""
        return {
            "business": self.request.business,
            "about": self.request.about,
            "platform": self.request.platform.name,
            "tone": self.request.tone,
            "count": self.count,
            "seed": self.request.seed,
            "model": self.model,
            "best_of": self.best_of,
            "language_model": self.language_model,
        }


class _Saved(BaseModel):
    """What is read again of posts.json."""

    model_config = ConfigDict(extra="ignore")

    format: int
    asked: dict[str, Any]
    posts: list[Post]


class PostsFolder:
    """Posts and pictures on the disk, some or all of them.

    Args:
        path: the folder; made with the first post.
        asked: what they follow from.
        notes: what else to say of all of them.

    Raises:
        ConfigError: the folder holds something else, or posts that were asked otherwise.
        CheckpointError: posts.json is damaged.
    """

    def __init__(self, path: Path, asked: Asked, notes: Sequence[str] = ()) -> None:
        self.path = path
        self._asked = asked
        self.notes = [*([] if asked.language_model else [NO_LANGUAGE_MODEL]), *notes]
        self.posts: tuple[Post, ...] = self._read()

    def write(self, writer: PostWriter) -> None:
        """Writes the posts that are missing.

        Raises:
            LanguageModelError: there is no usable answer; says what is kept.
            CheckpointError: they cannot be written to the disk.
        """
        remove_leftovers(self.path)
        try:
            for some in writer.write(self._asked.request, self._asked.count, self.posts):
                self.posts += tuple(some)
                self._save()
        except LanguageModelError as error:
            kept = f"{len(self.posts)} of {self._asked.count} posts are written"
            more = f" {kept}: the same command goes on from there." if self.posts else ""
            raise LanguageModelError(f"{error}{more}") from None

    def paint(self, paint: Callable[[str, int], Pixels]) -> Iterator[Path]:
        """Paints the pictures that are missing, one at a time as they are taken.

        Args:
            paint: label and seed to (H, W, 3) uint8.

        Yields:
            The file of each new picture.
        """
        for number, post in enumerate(self.posts):
            file = self._picture(number)
            if not file.exists():
                save_png(file, paint(post.label, self._seed(number)))
                yield file

    def write_page(self) -> Path:
        """Writes posts.html, to look at and to copy from.

        Raises:
            CheckpointError: it cannot be written, or a picture is not there.
        """
        template = _create_environment().get_template(_TEMPLATE)
        posts = [
            {"post": post, "picture": _to_data_url(self._picture(number))}
            for number, post in enumerate(self.posts)
        ]
        page = template.render(asked=self._asked, notes=self.notes, posts=posts)
        # A model's folder may have a name that is not UTF-8.
        write_text(self.path / PAGE_FILE, to_utf8(page), what="the page")
        return self.path / PAGE_FILE

    def describe(self) -> dict[str, Any]:
        """Says all of the posts as plain values, as posts.json has them."""
        return {
            "format": FORMAT,
            "version": metadata.version("tessella"),
            "offline": self._asked.language_model is None,
            "asked": self._asked.describe(),
            "notes": self.notes,
            "posts": [
                {
                    **asdict(post),
                    "picture": self._picture(number).name,
                    "seed": self._seed(number),
                }
                for number, post in enumerate(self.posts)
            ],
        }

    def _save(self) -> None:
        write_json(self.path / POSTS_FILE, self.describe(), what="the posts")

    def _picture(self, number: int) -> Path:
        return self.path / f"{number + 1}.png"

    def _seed(self, number: int) -> int:
        return self._asked.request.seed + number * self._asked.best_of

    def _read(self) -> tuple[Post, ...]:
        """Reads what an earlier call wrote."""
        file = self.path / POSTS_FILE
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ConfigError(
                    f"There is something else than posts: `{self.path}`. Choose a new or empty "
                    "--out."
                )
            return ()
        try:
            saved = _Saved.model_validate(json.loads(file.read_bytes()))
        except (OSError, ValueError, RecursionError):
            raise CheckpointError(
                f"The posts are damaged: `{file}`. What `tessella post` wrote was expected. "
                "Choose a new --out."
            ) from None
        if saved.format != FORMAT:
            raise CheckpointError(
                f"The posts have format `{saved.format}`; this tessella reads format {FORMAT}: "
                f"`{file}`. Choose a new --out."
            )
        _refuse_changes(saved.asked, self._asked.describe(), self.path)
        return tuple(saved.posts[: self._asked.count])


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raises if a folder has posts that were asked otherwise."""
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        name = changed[0]
        raise ConfigError(
            f"The folder holds posts that were asked otherwise: `{path}` has {name} = "
            f"`{before.get(name)}`, now it is `{now[name]}`. Ask the same to go on, or choose a "
            "new --out."
        )


def _create_environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # the business and the language model may have written anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["sha256"] = _hash
    return environment


def _hash(text: str) -> str:
    """Hashes a script or a style as a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _to_data_url(file: Path) -> str:
    """Turns a picture into a URL that holds all of it.

    Raises:
        CheckpointError: it is not there.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"Cannot read a picture: `{file}`; {error.strerror}. The same command paints what is "
            "missing."
        ) from None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
