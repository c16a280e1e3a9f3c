"""Pictures that are read, and where results go: existing files are replaced only if asked to."""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tessella.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from tessella.images import Pixels
    from tessella.model.pipeline import TextToImage
    from tessella.retrieval import Example

PROMPTS_FILE = "prompts.jsonl"

MAX_ON_SHEET = 1024
"""Pictures; a larger sheet is too large for many viewers."""

FILE_KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".avif": "avif"}
"""Kinds of picture files that are written, by suffix."""

_QUALITY = 95  # of the kinds that lose something
_MAX_ON_DEFAULT_SHEET = 100
_SHEET_COLUMNS = 8
_MAX_CAPTION = 60  # letters of it, on a line that names several


@dataclass(frozen=True)
class OutputTarget:
    """Where the pictures of a command go: one sheet, or a folder."""

    path: Path  # a file of `FILE_KINDS`, - (the standard output), or a folder

    def __str__(self) -> str:
        return f"{self.path}/" if self.is_folder else str(self.path)

    @property
    def is_stdout(self) -> bool:
        """Whether the sheet goes to the standard output, as PNG."""
        return str(self.path) == "-"

    @property
    def is_folder(self) -> bool:
        """Whether each picture is a file of its own."""
        return not self.is_stdout and self.path.suffix.lower() not in FILE_KINDS

    def write(self, sheet: "Pixels", texts: Mapping[str, str] | None = None) -> None:
        """Writes one sheet (H, W, 3); a PNG says of itself what the texts say.

        Raises:
            CheckpointError: it cannot be written.
        """
        from tessella.files import write_bytes
        from tessella.images import encode_picture, save_png

        kind = FILE_KINDS.get(self.path.suffix.lower(), "png")
        if self.is_stdout:
            stdout = typer.get_binary_stream("stdout")
            stdout.write(encode_picture(sheet, texts=texts))
            stdout.flush()
        elif kind == "png":
            save_png(self.path, sheet, texts)
        else:
            write_bytes(self.path, encode_picture(sheet, kind, _QUALITY), what="the picture")

    def list_files(self, num_pictures: int) -> list[Path]:
        """Names the file of each picture; on a sheet they share one."""
        if not self.is_folder:
            return [self.path] * num_pictures
        digits = max(4, len(str(num_pictures - 1)))
        return [self.path / f"{number:0{digits}d}.png" for number in range(num_pictures)]

    @contextlib.contextmanager
    def open(
        self,
        pictures: Sequence[Mapping[str, Any]],
        made_with: Mapping[str, Any],
        details: Mapping[str, Any],
    ) -> Iterator[Callable[[Iterable["Pixels"]], None]]:
        """Yields a function that takes pictures (H, W, 3) uint8, in order, as they are painted.

        Nothing gets its final name before all of them are there.

        Args:
            pictures: what is each one's own, as plain values.
            made_with: what all have in common, as plain values; PNGs carry both.
            details: everything that the pictures follow from, for `prompts.jsonl`.

        Raises:
            CheckpointError: they cannot be written.
        """
        from tessella.files import new_folder, write_bytes
        from tessella.images import save_png
        from tessella.model.provenance import create_png_texts

        if not self.is_folder:
            painted: list[Pixels] = []
            yield painted.extend
            sheet = _lay_out(painted, [one["prompt"] for one in pictures])
            self.write(sheet, create_png_texts(pictures, made_with))
            return
        names = [file.name for file in self.list_files(len(pictures))]
        following = zip(names, pictures, strict=True)
        with new_folder(self.path.resolve(), what="the pictures") as building:

            def save(painted: Iterable["Pixels"]) -> None:
                for pixels in painted:
                    name, one = next(following)
                    save_png(building / name, pixels, create_png_texts([one], made_with))

            yield save
            lines = [
                json.dumps({"file": name, **one, **details}, ensure_ascii=False) + "\n"
                for name, one in zip(names, pictures, strict=True)
            ]
            # What the shell passes on may be no UTF-8: it becomes JSON's own escapes.
            content = "".join(lines).encode(errors="backslashreplace")
            write_bytes(building / PROMPTS_FILE, content)


def choose_output(out: Path | None, name: str, num_pictures: int, *, force: bool) -> OutputTarget:
    """Decides where pictures go, and refuses to overwrite anything else.

    Args:
        out: the option's value; None takes a free name in the current folder.
        name: the free name is derived from it.
        num_pictures: up to 100 share a sheet unless `out` is a folder.
        force: pictures may be replaced; other files still may not.

    Raises:
        ConfigError: the name is taken or unsuitable.
    """
    if out is None:
        suffix = ".png" if num_pictures <= _MAX_ON_DEFAULT_SHEET else ""
        return OutputTarget(_find_free(name, suffix))
    target = OutputTarget(out.expanduser())
    if target.is_folder:
        _check_folder(target.path, force)
    elif num_pictures > MAX_ON_SHEET:
        raise ConfigError(
            f"Too many pictures for one sheet: `{num_pictures}`, at most {MAX_ON_SHEET} fit. Give "
            "--out a folder."
        )
    elif not target.is_stdout:
        _check_kind(target.path)
        check_output_file(target.path, list(FILE_KINDS), force=force)
    return target


def _check_kind(path: Path) -> None:
    """Refuses what this Pillow cannot write, before anything is painted."""
    from PIL import features

    kind = FILE_KINDS[path.suffix.lower()]
    if kind in ("webp", "avif") and not features.check(kind):
        raise ConfigError(
            f"The Pillow that is installed cannot write {kind.upper()}: `{path}`. Name it "
            f"{path.with_suffix('.png')}, or upgrade Pillow: pip install --upgrade pillow"
        )


def check_output_file(path: Path | None, suffixes: Sequence[str], *, force: bool) -> None:
    """Refuses a file of another kind, or one that would be replaced without `--force`.

    Args:
        path: None is never refused.
        suffixes: the ones that suit, in lower case, the commonest first.
        force: whether a file may be replaced.

    Raises:
        ConfigError: says what is wrong with the name.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        names = " or ".join(f"NAME{suffix}" for suffix in suffixes)
        raise ConfigError(f"This is written to a file {names}: `{path}`. Name such a file.")
    if path.is_dir():
        raise ConfigError(f"A folder has the name of the file: `{path}`. Choose another name.")
    if path.exists() and not force:
        raise ConfigError(
            f"The file already exists: `{path}`. Choose another name, or replace it with --force."
        )


def _find_free(name: str, suffix: str) -> Path:
    """Finds a name in the current folder that is not taken: a-b, else a-b-2, and so on."""
    stem = re.sub(r"\W+", "-", name.lower())[:48].strip("-_") or "picture"
    path = Path(f"{stem}{suffix}")
    for number in count(2):
        if not path.exists():
            break
        path = Path(f"{stem}-{number}{suffix}")
    return path


def _check_folder(path: Path, force: bool) -> None:
    from tessella.images import IMAGE_SUFFIXES

    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ConfigError(
            f"Pictures are written as PNG, JPEG, WebP or AVIF: `{path}`. Name it "
            f"{path.with_suffix('.png')}, or give a folder."
        )
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"A file has the name of the folder: `{path}`. Choose another --out.")
    if path.resolve() == Path.cwd():
        raise ConfigError(f"The current folder cannot be replaced: `{path}`. Name one inside it.")
    foreign = [p.name for p in path.iterdir() if not re.fullmatch(r"\d{4,}\.png", p.name)]
    if foreign and foreign != [PROMPTS_FILE]:
        raise ConfigError(
            f"The folder holds files that tessella did not paint: `{path}` with "
            f"`{min(foreign)}`. Choose another --out."
        )
    if any(path.iterdir()) and not force:
        raise ConfigError(
            f"The folder already holds pictures: `{path}`. Choose another --out, or replace them "
            "all with --force."
        )


def _lay_out(pictures: Sequence["Pixels"], labels: Sequence[str]) -> "Pixels":
    """Makes a sheet, one row per prompt if each has several; a single picture stays as it is."""
    from tessella.sheets import make_labelled_sheet

    if len(pictures) == 1:
        return pictures[0]
    columns = labels.count(labels[0])
    if not 1 < columns < len(labels):
        columns = len(labels) if len(labels) <= 4 else -(-len(labels) // 2)
    return make_labelled_sheet(pictures, labels, min(columns, _SHEET_COLUMNS))


def read_picture(path: Path, verb: str, *, fit_size: int | None = None) -> "Image.Image":
    """Reads a picture, upright and in RGB.

    Args:
        path: the file.
        verb: what it is read for, for the error.
        fit_size: as for `read_image`.

    Raises:
        DataError: it cannot be read; names the verb.
    """
    from tessella.data.settings import DataSettings
    from tessella.images import read_image

    try:
        return read_image(path, max_pixels=DataSettings().max_image_pixels, fit_size=fit_size)
    except DataError as error:
        raise DataError(f"Cannot {verb}: `{path}`. {error}") from None


def read_transparent(path: Path, verb: str) -> "tuple[Image.Image, Image.Image | None]":
    """Reads a picture as `read_picture`, and how opaque it is; None is wholly.

    Raises:
        DataError: it cannot be read; names the verb.
    """
    from tessella.data.settings import DataSettings
    from tessella.images import read_with_transparency

    try:
        return read_with_transparency(path, max_pixels=DataSettings().max_image_pixels)
    except DataError as error:
        raise DataError(f"Cannot {verb}: `{path}`. {error}") from None


def read_references(
    paths: Sequence[Path] | None, model: "TextToImage", num_neighbors: int | None = None
) -> list["Example"]:
    """Reads the pictures of `--reference` as the model looks at them, named as they were given.

    Args:
        paths: the option's value.
        model: looks at them.
        num_neighbors: examples that are asked for.

    Raises:
        GenerationError: there are more references, or more examples are asked for, than the model
            learned to look at.
        DataError: a picture cannot be read.
    """
    paths = paths or []
    model.examples.check(len(paths), num_neighbors)
    images = [read_picture(path, "look at the reference") for path in paths]
    encoded = model.encode_references(images)
    return [replace(one, name=str(path)) for one, path in zip(encoded, paths, strict=True)]


def read_square(path: Path, size: int, verb: str) -> "Pixels":
    """Reads a picture as a model sees it, (size, size, 3) uint8.

    A picture that already has this size is not resampled.

    Raises:
        DataError: it cannot be read; names the verb.
    """
    from tessella.images import fit_square

    return fit_square(read_picture(path, verb, fit_size=size), size)


def name_examples(examples: Sequence[Mapping[str, Any]]) -> str:
    """Names on one line what was looked at: captions, or names where there are none."""
    texts = [one["caption"].strip() or one["name"] for one in examples]
    return "; ".join(
        text if len(text) <= _MAX_CAPTION else text[: _MAX_CAPTION - 1].rstrip() + "…"
        for text in texts
    )
