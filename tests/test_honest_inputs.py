"""What guards against hostile inputs lets every honest one through: old, odd, and large."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tessella.checksums import SUMS_FILE
from tessella.data.records import Record, captions_from_text
from tessella.data.settings import DataSettings
from tessella.data.sources import recognise
from tessella.images import ImageError, read_image, read_png_texts
from tessella.model.find import find_model
from tessella.model.folder import read_captions
from tessella.model.memory import export_model
from tessella.model.pipeline import TextToImage
from tessella.text import load_text
from untrained import CAPTIONS, create_untrained, create_with_examples, save_untrained

MAX_PIXELS = DataSettings().max_image_pixels


def to_format(folder: Path, number: int) -> None:
    """Writes the number of an earlier format that had the same files; without sums, as then."""
    (folder / SUMS_FILE).unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": number}))


def paint(model: TextToImage) -> bytes:
    return model.generate("a red star", seed=3)[0].tobytes()


# `test_folder.py` has the formats whose weights had other names.
@pytest.mark.parametrize("with_examples", [False, True], ids=["plain", "examples"])
def test_a_model_folder_loads_in_every_honest_state(with_examples: bool, tmp_path: Path) -> None:
    model = create_with_examples(CAPTIONS) if with_examples else create_untrained()
    folder = save_untrained(model, tmp_path / "model")
    painted = paint(model)
    states = [folder]
    states.append(tmp_path / "exported")
    export_model(folder, states[-1])
    for number in (3, 5):
        states.append(Path(shutil.copytree(folder, tmp_path / f"format {number}")))
        to_format(states[-1], number)
    states.append(Path(shutil.copytree(folder, tmp_path / "an edited card, ünïcode")))
    (states[-1] / "README.md").write_text("# Mine\n" + "words " * 100_000)
    (states[-1] / "captions.json").unlink(missing_ok=True)
    states.append(tmp_path / "linked")
    states[-1].symlink_to(folder)
    for state in states:
        loaded = TextToImage.load(state, device="cpu")
        assert (loaded.memory is not None) is with_examples, state
        assert paint(loaded) == painted, state


@pytest.mark.parametrize("name", ["scenes", "stickers"])
def test_the_parts_of_a_bundled_model_are_read(name: str) -> None:
    folder = find_model(name)
    assert load_text(folder).count_tokens("a red star") > 2
    assert read_captions(folder) is not None


def test_captions_of_ten_thousand_letters(tmp_path: Path) -> None:
    caption = ("wörter " * 1_500)[:10_000].strip()
    assert captions_from_text(caption.encode()) == (caption,)
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": caption}))
    [record] = recognise(str(tmp_path)).records()
    assert isinstance(record, Record)
    assert record.captions == (caption,)
    assert caption.count(" ") > 1_000
    model = create_untrained()
    assert model.text_tokenizer.count_tokens(caption) > 1_000


def png(size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, "PNG")
    return file.getvalue()


def test_archives_of_thousands(tmp_path: Path) -> None:
    content, zipped = png(), zipfile.ZipFile(tmp_path / "a.zip", "w")
    with tarfile.open(tmp_path / "a.tar", "w") as archive, zipped:
        for number in range(2_500):
            for suffix, data in (("png", content), ("txt", b"a star")):
                info = tarfile.TarInfo(f"{number:05}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
                if number < 1_000:
                    zipped.writestr(f"in/{number:05}.{suffix}", data)
    for name, count in (("a.tar", 2_500), ("a.zip", 1_000)):
        records = list(recognise(str(tmp_path / name)).records())
        assert sum(isinstance(one, Record) for one in records) == len(records) == count


def test_a_table_of_a_hundred_thousand_rows(tmp_path: Path) -> None:
    pictures = [f"{number:03}.png" for number in range(100)]
    for name in pictures:
        (tmp_path / name).write_bytes(png())
    rows = [f"{pictures[number % 100]},caption {number}" for number in range(100_000)]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
    records = [one for one in recognise(str(tmp_path)).records() if isinstance(one, Record)]
    assert len(records) == 100
    assert sum(len(record.captions) for record in records) == 100_000


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "HEIF"])
def test_pictures_of_every_kind(form: str) -> None:
    pillow_heif.register_heif_opener()
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(file, form)
    pixels = np.asarray(read_image(file.getvalue(), max_pixels=MAX_PIXELS))
    assert pixels.shape == (64, 96, 3)
    assert abs(pixels.astype(int).mean((0, 1)) - (200, 30, 30)).max() < 6


def test_a_png_of_67_million_pixels() -> None:
    file = io.BytesIO()
    Image.new("1", (8192, 8192), 1).save(file, "PNG")
    image = read_image(file.getvalue(), max_pixels=MAX_PIXELS)
    assert image.size == (8192, 8192)
    assert image.getpixel((8191, 8191)) == (255, 255, 255)


def with_texts(texts: dict[str, str]) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text, zip=True)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_notes_in_a_png_are_read_and_text_bombs_are_not(tmp_path: Path) -> None:
    note = "a prompt, long " * 5_000
    path = tmp_path / "a.png"
    path.write_bytes(with_texts({"Description": note}))
    assert read_png_texts(path) == {"Description": note}
    bomb = with_texts({"Comment": "a" * 50_000_000})
    assert len(bomb) < 100_000
    path.write_bytes(bomb)
    assert read_png_texts(path) == {}
    with pytest.raises(ImageError):
        read_image(bomb, max_pixels=MAX_PIXELS)


def test_a_zip_bomb_beside_pictures_is_not_unpacked(tmp_path: Path) -> None:
    """Only texts are unpacked, and no more of one than a caption may have is kept."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.png", png())
        archive.writestr("0.txt", b"a star")
        archive.writestr("1.png", png())
        archive.writestr("1.txt", b"a" * 20_000_000)
        archive.writestr("bomb.bin", bytes(50_000_000))
    good, skipped = sorted(recognise(str(tmp_path / "a.zip")).records(), key=lambda one: one.name)
    assert isinstance(good, Record)
    assert good.captions == ("a star",)
    assert not isinstance(skipped, Record)
    assert "too many for captions" in skipped.reason
