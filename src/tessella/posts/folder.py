"""The folder of finished posts: `posts.json`, one picture per post, `posts.html`.

Posts are saved as soon as they are written, pictures as soon as they are painted, and every file
as a whole, so that the same command resumes where an earlier one stopped. File names are numbers:
no user's or language model's words get into them.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tessella.errors import CheckpointError, ConfigError
from tessella.files import remove_leftovers, write_json, write_text
from tessella.images import Pixels, save_png
from tessella.model.provenance import read_examples
from tessella.posts.errors import LanguageModelError
from tessella.posts.post import Post
from tessella.posts.request import PostRequest
from tessella.posts.writer import PostWriter
from tessella.text.base import to_utf8

POSTS_FORMAT = 1
"""Of posts.json; raised when older versions of tessella can no longer read it."""

POSTS_FILE = "posts.json"
PAGE_FILE = "posts.html"

NO_LANGUAGE_MODEL = "No language model was asked (offline): templates write the posts."
NO_CHOICE = "The image model cannot rank candidates, so only one picture is painted per post."


@dataclass(frozen=True)
class PostsJob:
    """Everything that determines the posts of a folder."""

    request: PostRequest
    count: int
    model: str  # the image model as the user named it
    best_of: int
    language_model: str | None  # None: offline
    references: Sequence[str] = ()  # files of your own pictures to look at

    def describe(self) -> dict[str, Any]:
        """Lists it as plain values."""
        values = asdict(self) | {"references": list(self.references)}
        request = values.pop("request")
        return {**request, "platform": self.request.platform.name, **values}


_ADDED = {"references": list[str]()}
"""What earlier versions did not note: they had none."""


@dataclass(frozen=True)
class PaintedPicture:
    """The picture of a post."""

    pixels: Pixels  # (H, W, 3) uint8
    texts: Mapping[str, str] = field(default_factory=dict)  # what its PNG says of it


class _SavedPosts(BaseModel):
    """The parts of posts.json that are read again."""

    format: int
    asked: dict[str, Any]
    posts: list[Post]


class PostsFolder:
    """Posts and pictures on the disk, some or all of them.

    Args:
        path: the folder; created with the first post.
        job: determines the posts.
        notes: remarks about all posts.

    Raises:
        ConfigError: the folder holds something else, or the posts of another job.
        CheckpointError: posts.json is damaged.
    """

    def __init__(self, path: Path, job: PostsJob, notes: Sequence[str] = ()) -> None:
        self.path = path
        self._job = job
        self.notes = [*([] if job.language_model else [NO_LANGUAGE_MODEL]), *notes]
        self.posts: tuple[Post, ...] = self._read()

    def write(self, writer: PostWriter) -> None:
        """Writes the posts that are missing.

        Raises:
            LanguageModelError: no usable answer; the message says how many posts are saved.
            CheckpointError: the disk is full, or writing there is not allowed.
        """
        remove_leftovers(self.path)
        try:
            for batch in writer.write(self._job.request, self._job.count, self.posts):
                self.posts += tuple(batch)
                write_json(self.path / POSTS_FILE, self.describe(), what="the posts")
        except LanguageModelError as error:
            if not self.posts:
                raise
            raise LanguageModelError(
                f"{error} {len(self.posts)} of {self._job.count} posts are saved: run the same "
                "command again to resume."
            ) from None

    def paint(self, paint: Callable[[str, int], PaintedPicture]) -> Iterator[Path]:
        """Paints the pictures that are missing, one whenever the next is asked for.

        Args:
            paint: label and seed to a picture.

        Yields:
            The file of each new picture.
        """
        for index, post in enumerate(self.posts):
            file = self._picture(index)
            if not file.exists():
                picture = paint(post.label, self._seed(index))
                save_png(file, picture.pixels, picture.texts)
                yield file

    def write_page(self) -> Path:
        """Writes posts.html, a page to look at and to copy from; posts.json names the examples.

        Raises:
            CheckpointError: the page cannot be written, or a picture is missing.
        """
        from jinja2 import Environment, StrictUndefined

        # Escaped: users and language models may have written anything.
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        environment.filters["sha256"] = _hash_source
        pictures = [_to_data_url(self._picture(index)) for index in range(len(self.posts))]
        template = Path(__file__).with_name("posts.html.jinja").read_text(encoding="utf-8")
        page = environment.from_string(template).render(
            job=self._job, notes=self.notes, posts=zip(self.posts, pictures, strict=True)
        )
        # A model's folder may have a name that is not UTF-8.
        write_text(self.path / PAGE_FILE, to_utf8(page), what="the page")
        write_json(self.path / POSTS_FILE, self.describe(), what="the posts")
        return self.path / PAGE_FILE

    def describe(self) -> dict[str, Any]:
        """Lists all posts as plain values, as posts.json has them."""
        return {
            "format": POSTS_FORMAT,
            "version": metadata.version("tessella"),
            "offline": self._job.language_model is None,
            "asked": self._job.describe(),
            "notes": self.notes,
            "posts": [
                {
                    **asdict(post),
                    "picture": self._picture(index).name,
                    "seed": self._seed(index),
                    "examples": read_examples(self._picture(index)),
                }
                for index, post in enumerate(self.posts)
            ],
        }

    def _picture(self, index: int) -> Path:
        return self.path / f"{index + 1}.png"

    def _seed(self, index: int) -> int:
        return self._job.request.seed + index * self._job.best_of

    def _read(self) -> tuple[Post, ...]:
        """Reads the posts that an earlier call wrote."""
        file = self.path / POSTS_FILE
        if not file.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ConfigError(
                    f"The folder holds something other than posts: `{self.path}`. Choose a new or "
                    "empty --out."
                )
            return ()
        try:
            saved = _SavedPosts.model_validate(json.loads(file.read_bytes()))
        except (OSError, ValueError, RecursionError):
            raise CheckpointError(
                f"The posts are damaged: `{file}`. Expected a file that `tessella post` wrote. "
                "Choose a new --out."
            ) from None
        if saved.format != POSTS_FORMAT:
            raise CheckpointError(
                f"The posts have format `{saved.format}`; this tessella reads format "
                f"{POSTS_FORMAT}: `{file}`. Choose a new --out."
            )
        for name, value in self._job.describe().items():
            before = saved.asked.get(name, _ADDED.get(name))
            if before != value:
                raise ConfigError(
                    f"The folder holds posts of another request: `{self.path}` has {name} = "
                    f"`{before}`, now it is `{value}`. Repeat that request to "
                    "resume, or choose a new --out."
                )
        return tuple(saved.posts)


def _hash_source(text: str) -> str:
    """Hashes a script or a style sheet the way a Content-Security-Policy names it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _to_data_url(file: Path) -> str:
    """Turns a picture into a URL that contains it.

    Raises:
        CheckpointError: the picture is missing.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"Cannot read a picture: `{file}`; {error.strerror}. Run the same command again to "
            "paint what is missing."
        ) from None
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
