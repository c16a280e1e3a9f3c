"""Draws the small data sets that the tests of `tessella.data` read."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.data import decode
from tessella.data.records import Record, Skipped
from tessella.data.sources import recognise


class Draw:
    """Draws pictures, and data sets of them, into a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pixels(self, number: int, size: int = 16) -> np.ndarray:
        """A flat picture that differs from every other number's."""
        colour = (number % 256, number // 256 % 256, number * 37 % 256)
        return np.full((size, size, 3), colour, np.uint8)

    def content(self, number: int, size: int = 16) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(self.pixels(number, size)).save(stream, format="PNG")
        return stream.getvalue()

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def image(self, name: str, number: int, size: int = 16) -> Path:
        return self.file(name, self.content(number, size))

    def captioned(self, count: int, folder: str = "data", start: int = 0) -> Path:
        """A folder of pictures, each with a caption file."""
        for number in range(start, start + count):
            self.image(f"{folder}/{number:04}.png", number)
            self.file(f"{folder}/{number:04}.txt", f"picture {number}")
        return self.folder / folder

    def tar(self, name: str, members: dict[str, bytes | str]) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, content in members.items():
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    def shard(self, name: str, numbers: range) -> Path:
        members: dict[str, bytes | str] = {}
        for number in numbers:
            members[f"{number:04}.png"] = self.content(number)
            members[f"{number:04}.txt"] = f"picture {number}"
            members[f"{number:04}.json"] = json.dumps({"base": f"b{number // 2}"})
        return self.tar(name, members)


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    return Draw(tmp_path)


class Reading:
    """What a source gives: its records, what it skips, and each picture's file by its captions."""

    def __init__(self, argument: object, split_by: str | None = None) -> None:
        self.source = recognise(str(argument))
        self.records: list[Record] = []
        self.skipped: list[Skipped] = []
        self.pictures: dict[tuple[str, ...], bytes] = {}
        self.notes = Counter[str]()
        for item in self.source.records(split_by=split_by, notes=self.notes):
            if isinstance(item, Skipped):
                self.skipped.append(item)
                continue
            self.records.append(item)
            self.pictures[item.captions] = decode.read_bytes(item.location)

    @property
    def captions(self) -> list[tuple[str, ...]]:
        return [record.captions for record in self.records]


@pytest.fixture
def reading() -> type[Reading]:
    return Reading
