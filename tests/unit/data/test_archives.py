"""Zips of pictures: read as the folders that they were, without being unpacked."""

import zipfile
from pathlib import Path

import pytest

from tessella.data.archives import ZipLocation
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import DataError

SETTINGS = DataSettings(image_size=16, workers=1)


def pack(path: Path, members: dict[str, bytes | str], compression: int = zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_of_a_captioned_folder(draw, reading, tmp_path) -> None:
    folder = draw.captioned(12)
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"data/{file.name}")
    read = reading(path)
    assert read.source.kind == "zip" and not read.skipped
    assert read.pictures == {(f"picture {n}",): draw.content(n) for n in range(12)}
    assert read.records[0].name == f"{path}/data/0000.png"
    assert {type(record.location) for record in read.records} == {ZipLocation}
    ways = [prepare([str(way)], SETTINGS, tmp_path / f"cache-{way.stem}") for way in (folder, path)]
    assert ways[0].manifest["fingerprints"] == ways[1].manifest["fingerprints"]


def test_what_archivers_add_is_left_out(draw, reading) -> None:
    members = {"a.png": draw.content(1), "a.txt": "one", "__MACOSX/._a.png": b"x", "d/": b""}
    members |= {".DS_Store": b"x", "../b.png": draw.content(2), "../b.txt": "two"}
    read = reading(pack(draw.folder / "x.zip", members))
    assert read.captions == [("one",)] and not read.skipped


def test_names_from_windows(draw, reading) -> None:
    members = {"hare\\a.png": draw.content(1), "hare\\a.txt": "one"}
    assert reading(pack(draw.folder / "x.zip", members)).captions == [("one",)]


def test_a_zip_with_a_table_and_one_of_classes(draw, reading) -> None:
    table = {"metadata.jsonl": '{"file_name": "sub/a.png", "text": "one"}', "sub/a.png": "x"}
    assert reading(pack(draw.folder / "x.zip", table)).captions == [("one",)]
    classes = {"red_fox/1.png": draw.content(1), "hare/2.png": draw.content(2)}
    assert sorted(reading(pack(draw.folder / "y.zip", classes)).captions) == [
        ("hare",),
        ("red fox",),
    ]


def test_a_folder_of_zips(draw, reading) -> None:
    (draw.folder / "data").mkdir()
    for n in range(2):
        pack(draw.folder / f"data/{n}.zip", {"a.png": draw.content(n), "a.txt": f"picture {n}"})
    assert reading(draw.folder / "data").captions == [("picture 0",), ("picture 1",)]


def test_a_zip_beside_the_folder_that_was_unpacked_is_not_read(draw, reading) -> None:
    folder = draw.captioned(2)
    pack(folder / "x.zip", {"a.png": draw.content(9), "a.txt": "nine"})
    read = reading(folder)
    assert read.source.kind == "captions" and len(read.records) == 2


def test_a_broken_picture_in_a_zip_is_skipped(draw, tmp_path) -> None:
    members = {f"{n}.png": draw.content(n) for n in range(30)}
    members |= {f"{n}.txt": f"picture {n}" for n in range(30)}
    path = pack(tmp_path / "x.zip", members, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(draw.content(7)) + 20] ^= 255
    path.write_bytes(content)
    [skipped] = prepare([str(path)], SETTINGS, tmp_path / "cache").skipped
    assert skipped.name == f"{path}/7.png" and "Cannot read it out of the zip: Bad CRC" in (
        skipped.reason
    )


def test_errors_name_the_zip_and_not_where_it_was_laid_out(draw, reading) -> None:
    path = pack(draw.folder / "x.zip", {"a.png": draw.content(1)})
    with pytest.raises(DataError) as error:
        reading(path)
    assert f"`{path}`" in str(error.value) and "tessella-" not in str(error.value)


@pytest.mark.parametrize("content", [b"no zip", b"PK\x03\x04" + bytes(99)])
def test_what_is_no_zip_is_refused(draw, reading, content: bytes) -> None:
    with pytest.raises(DataError, match=r"Cannot read the zip: `.*x\.zip`\. File is not a zip"):
        reading(draw.file("x.zip", content))


def test_an_encrypted_zip_is_refused(draw, reading) -> None:
    path = pack(draw.folder / "x.zip", {"a.png": draw.content(1), "a.txt": "one"})
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of each header
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="The zip is encrypted"):
        reading(path)


def test_a_zip_with_a_file_that_has_no_name_is_refused(draw, reading) -> None:
    path = pack(draw.folder / "x.zip", {"a.png": draw.content(1), "name.txt": "one"})
    path.write_bytes(path.read_bytes().replace(b"name.txt", b"\0ame.txt"))  # ends before it begins
    with pytest.raises(
        DataError, match=r"The zip is damaged: `.*x\.zip`. A file in it has no name"
    ):
        reading(path)
