"""Where pictures go: free names, sheets, folders; what is there is never replaced unasked."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessella.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from tessella.images import Pixels

PROMPTS_FILE = "prompts.jsonl"

MAX_ON_SHEET = 1024
"""Pictures; beyond, a sheet is too large for many viewers."""

_MAX_ON_DEFAULT_SHEET = 100
# A picture is shown about this large on a sheet, so that its caption can be read.
_SHOWN_SIZE_PX = 192
_SHEET_COLUMNS = 8


@dataclass(frozen=True)
class AskedPicture:
    """One picture that is asked for."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Place:
    """Where the pictures of a command go."""

    path: Path  # a .png, or a folder

    def __str__(self) -> str:
        return f"{self.path}/" if self.is_folder else str(self.path)

    @property
    def is_folder(self) -> bool:
        """Whether each picture is a file of its own."""
        return not _is_png(self.path)

    def files(self, num_pictures: int) -> list[Path]:
        """Names the file of each picture; on a sheet they share one."""
        if not self.is_folder:
            return [self.path] * num_pictures
        digits = max(4, len(str(num_pictures - 1)))
        return [self.path / f"{number:0{digits}d}.png" for number in range(num_pictures)]

    def write(
        self, asked: Sequence[AskedPicture], pixels: Iterable["Pixels"], how: Mapping[str, Any]
    ) -> None:
        """Writes pictures as they come: all or nothing takes its name.

        Args:
            asked: what they show.
            pixels: (H, W, 3) uint8 each.
            how: they were painted, as plain values.

        Raises:
            CheckpointError: they cannot be written.
        """
        from tessella.files import new_folder, write_text
        from tessella.images import save_png

        if not self.is_folder:
            labels = [picture.prompt for picture in asked]
            save_png(self.path, _lay_out(list(pixels), labels))
            return
        names = [file.name for file in self.files(len(asked))]
        with new_folder(self.path.resolve(), what="the pictures") as building:
            for name, picture in zip(names, pixels, strict=True):
                save_png(building / name, picture)
            lines = [
                json.dumps(
                    {"file": name, "prompt": one.prompt, "seed": one.seed, **how},
                    ensure_ascii=False,
                )
                for name, one in zip(names, asked, strict=True)
            ]
            write_text(building / PROMPTS_FILE, "\n".join(lines) + "\n")


def choose_place(out: Path | None, name: str, num_pictures: int, *, force: bool) -> Place:
    """Decides where pictures go, and that nothing is lost by it.

    Args:
        out: as asked; None takes a free name in the current folder.
        name: that free name follows from it.
        num_pictures: a few share a sheet unless a folder is asked for.
        force: pictures may be replaced; other files still may not.

    Raises:
        ConfigError: the name is taken, or does not suit.
    """
    if out is None:
        return Place(_find_free(name, "" if num_pictures > _MAX_ON_DEFAULT_SHEET else ".png"))
    place = Place(out.expanduser())
    if place.is_folder:
        _check_folder(place.path, force)
    else:
        _check_file(place.path, num_pictures, force)
    return place


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _find_free(name: str, suffix: str) -> Path:
    """Finds a name in the current folder that is not taken: a-b, else a-b-2, and so on."""
    stem = re.sub(r"\W+", "-", name.lower())[:48].strip("-_") or "picture"
    for number in count(1):
        path = Path(f"{stem}-{number}{suffix}" if number > 1 else f"{stem}{suffix}")
        if not path.exists():
            break
    return path


def _check_file(path: Path, num_pictures: int, force: bool) -> None:
    if num_pictures > MAX_ON_SHEET:
        raise ConfigError(
            f"Too many pictures for one sheet: `{num_pictures}`, at most {MAX_ON_SHEET} fit. Give "
            "--out a folder."
        )
    if path.is_dir():
        raise ConfigError(f"A folder has the name of the sheet: `{path}`. Choose another --out.")
    if path.exists() and not force:
        raise ConfigError(
            f"There is a picture already: `{path}`. Choose another --out, or replace it with "
            "--force."
        )


def _check_folder(path: Path, force: bool) -> None:
    from tessella.images import IMAGE_SUFFIXES

    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ConfigError(
            f"Pictures are written as PNG: `{path}`. Name it {path.with_suffix('.png')}, or give "
            "a folder."
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
            f"The folder holds something else than pictures of tessella: `{path}` with "
            f"`{min(foreign)}`. Choose another --out."
        )
    if any(path.iterdir()) and not force:
        raise ConfigError(
            f"There are pictures already: `{path}`. Choose another --out, or replace them all "
            "with --force."
        )


def _lay_out(pictures: list["Pixels"], labels: list[str]) -> "Pixels":
    """Makes a sheet, a row a prompt if each has several; one picture alone stays as it is."""
    if len(pictures) == 1:
        return pictures[0]
    same = labels.count(labels[0])
    if not 1 < same < len(labels):
        same = len(labels) if len(labels) <= 4 else -(-len(labels) // 2)
    return make_labelled_sheet(pictures, labels, min(same, _SHEET_COLUMNS))


def read_picture(path: Path, verb: str, *, at_least: int | None = None) -> "Image.Image":
    """Reads a picture, upright and in RGB.

    Args:
        path: the file.
        verb: what was wanted of it, for the error.
        at_least: as for `read_image`.

    Raises:
        DataError: it cannot be read; says what was wanted of it.
    """
    from tessella.data.settings import DataSettings
    from tessella.images import read_image

    try:
        return read_image(path, max_pixels=DataSettings().max_image_pixels, at_least=at_least)
    except DataError as error:
        raise DataError(f"Cannot {verb}: `{path}`. {error}") from None


def read_square(path: Path, size: int, verb: str) -> "Pixels":
    """Reads a picture as a model would see it, (size, size, 3) uint8.

    One of that size stays as it is.

    Raises:
        DataError: it cannot be read; says what was wanted of it.
    """
    from tessella.images import fit_square

    return fit_square(read_picture(path, verb, at_least=2 * size), size)


def make_labelled_sheet(
    pictures: Sequence["Pixels"], labels: Sequence[str], columns: int
) -> "Pixels":
    """Makes a sheet with a caption under each picture, enlarged so that it can be read."""
    import numpy as np

    from tessella.sheets import make_sheet

    scale = max(1, _SHOWN_SIZE_PX // pictures[0].shape[0])
    return make_sheet(np.stack(pictures), columns, labels, scale)
