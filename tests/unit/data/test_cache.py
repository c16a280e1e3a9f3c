"""Cache: what it keeps of each picture beside its pixels."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.data import assemble
from tessella.data.cache import (
    CACHE_FORMAT,
    MANIFEST,
    CaptionedImages,
    CaptionStore,
    read_manifest,
)
from tessella.data.decode import DIGEST_BYTES
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.data.units import Contents, Unit

PICTURES = [
    (["a cat", "Katze 🐈"], "pets/Mädchen & 🐈.jpg"),
    (["a dog"], "a.png"),
    (["nothing"], ""),
    (["a bird"], "odd \udcff.png"),  # as Python reads a name that is not UTF-8
]
NAMES = ["pets/Mädchen & 🐈.jpg", "a.png", "", "odd \\udcff.png"]


def write(folder: Path, names: list[str] | None = None) -> dict[str, str]:
    """Writes pictures of one pixel, the second held out; returns the fingerprints."""
    folder.mkdir()
    contents = Contents(
        names=names or [name for _, name in PICTURES],
        captions=[captions for captions, _ in PICTURES],
        digests="".join(f"{number:02x}" * DIGEST_BYTES for number in range(len(PICTURES))),
    )
    (folder / "pixels.bin").write_bytes(bytes([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]))
    with assemble._FlatFiles(folder, has_places=False) as files:
        files.add(contents)
    with assemble._SideFiles(folder) as sides:
        sides.add(Unit("x", 4, 4, 0), contents, np.array([False, True, False, False]))
    return {side: digest.hexdigest() for side, digest in sides.hashes.items()}


def open_side(folder: Path, side: str, fingerprints: dict[str, str]) -> CaptionedImages:
    manifest: dict[str, Any] = {
        "identity": {"settings": {"image_size": 1}},
        "fingerprints": fingerprints,
    }
    return CaptionedImages(folder, side, manifest)


def test_names_are_those_that_were_given(tmp_path: Path) -> None:
    """Of any letters, of none, and such that are not UTF-8; each beside its own captions."""
    folder = tmp_path / "cache"
    fingerprints = write(folder)
    store = CaptionStore(folder)
    assert [store.name(row) for row in range(4)] == NAMES
    assert [store.of(row) for row in range(4)] == [captions for captions, _ in PICTURES]
    train, held_out = (open_side(folder, side, fingerprints) for side in ("train", "validation"))
    assert [train.name(index) for index in range(3)] == [NAMES[0], NAMES[2], NAMES[3]]
    assert held_out.name(0) == "a.png"
    assert held_out.captions(0) == ["a dog"]
    with pytest.raises(IndexError):
        train.name(3)


# Checkpoints of runs that began with an earlier version are of these very pictures.
def test_fingerprints_stay_what_they_were(tmp_path: Path) -> None:
    expected = {}
    for side, rows in (("train", (0, 2, 3)), ("validation", (1,))):
        digest = hashlib.blake2b(digest_size=16)
        for row in rows:
            digest.update(bytes([row] * 16) + "\n".join(PICTURES[row][0]).encode() + b"\0")
        expected[side] = digest.hexdigest()
    assert write(tmp_path / "cache") == expected


def test_names_travel_to_another_process(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    images = open_side(folder, "train", write(folder))
    kind, arguments = images.__reduce__()
    assert kind(*arguments).name(0) == NAMES[0]


def test_a_fingerprint_is_of_pixels_and_captions_alone(tmp_path: Path) -> None:
    """The same pictures in another folder are the same data: codes need not be computed again."""
    others = [f"elsewhere/{number}.png" for number in range(4)]
    assert write(tmp_path / "here") == write(tmp_path / "there", others)


def test_the_name_is_that_of_the_file(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (40 * number, 0, 0)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"picture {number}")
    settings = DataSettings(image_size=16, validation_fraction=0.4, workers=1)
    data = prepare([str(pictures)], settings, tmp_path / "run" / "cache")
    seen = set()
    for side in data.sides.values():
        for index in range(len(side)):
            [caption] = side.captions(index)
            seen.add(caption)
            assert Path(side.name(index)) == pictures / f"{caption.split()[1]}.png"
    assert len(seen) == 6


def test_a_cache_without_names_is_made_again(tmp_path: Path) -> None:
    """Of the format before: a run that goes on reads its pictures once more."""
    folder = tmp_path / "cache"
    prepare(["scenes:8"], DataSettings(image_size=16, workers=1), folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["format"] == CACHE_FORMAT
    assert read_manifest(folder) is not None
    assert {"names.bin", "name_ends.bin"} <= manifest["file_bytes"].keys()
    (folder / MANIFEST).write_text(json.dumps(manifest | {"format": "tessella-cache/1"}))
    assert read_manifest(folder) is None
    again = prepare(["scenes:8"], DataSettings(image_size=16, workers=1), folder)
    assert again.train.name(0)
