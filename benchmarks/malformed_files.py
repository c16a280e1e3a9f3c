"""Damaged and hostile inputs for every parser of the package: what `fuzz.py` sends.

Nothing is measured here; run by itself, this file does nothing. Input N of a parser depends on its
name and N alone, so that a crash that was found once stays a test.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from malformed_pictures import bombs, draw_broken, draw_odd, good_picture
from malformed_runs import (
    ABOUT,
    either_run,
    good_answer,
    read_answer,
    read_description,
    read_report,
)
from malformed_values import VALUES, Parser, Rng, change_json, damage, either, write
from tessella import config
from tessella.checksums import SUMS_FILE, read_sums, write_sums
from tessella.data import sources
from tessella.data.addresses import expand_braces
from tessella.data.records import CaptionError, captions_from_fields, captions_from_text
from tessella.data.records import fields_from_json as read_sidecar
from tessella.data.scenes.sets import SCENE_SETS
from tessella.images import read_png_texts, read_with_transparency
from tessella.model import folder as model_folder
from tessella.model.folder import ModelConfig
from tessella.model.folder_weights import load_network
from tessella.model.pipeline import TextToImage
from tessella.model.provenance import read_examples
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE, ExampleMemory, ExampleRow
from tessella.text import TEXT_FILE, TextSettings, TextTokenizer, load_text

TINY: dict[str, Any] = {
    "image_size": 16,
    "tokenizer": {
        "patch": 2, "widths": (16, 16), "quantizer": {"codebook_size": 16, "code_width": 4},
    },
    "transformer": {"width": 16, "depth": 2, "heads": 2},
    "neighbors": 2,
}  # fmt: skip
CAPTIONS = ("a red star", "a blue star; a large one", "drei grüne Äpfel")


# Good inputs, made once.


@cache
def tiny_model() -> TextToImage:
    text = TextTokenizer.train(CAPTIONS, TextSettings())
    model = TextToImage.create(ModelConfig.model_validate(TINY), text)
    codes = np.arange(3 * 16, dtype=np.uint16).reshape(3, 1, 4, 4) % 16
    rows = [ExampleRow(f"{n}.png", [caption]) for n, caption in enumerate(CAPTIONS)]
    memory = ExampleMemory.build(codes, rows, model.tokenizer.hash_encoder())
    return model.with_parts(memory=memory)


@cache
def tiny_files() -> Mapping[str, bytes]:
    """The files of a model folder, without sums."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        samples = np.zeros((8, 8, 3), np.uint8)
        tiny_model().save(folder, card="# A card\n", metrics={}, samples=samples)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def tiny_file(name: str) -> Callable[[Rng], bytes]:
    def draw(rng: Rng) -> bytes:
        whole = tiny_files()[name]
        if name.endswith(".json") and rng.random() < 0.6:
            return change_json(json.loads(whole), rng)
        if name.endswith(".safetensors") and rng.random() < 0.6:
            return damage_header(whole, rng)
        return damage(whole, rng)

    return draw


def damage_header(whole: bytes, rng: Rng) -> bytes:
    """Changes what a safetensors file says of its tensors."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header = change_json(json.loads(whole[8:end]), rng)
    length = len(header) if rng.random() < 0.9 else rng.choice((0, 2**40, 2**64 - 1))
    return length.to_bytes(8, "little") + header + whole[end:]


# What reads them.


def read_config(content: bytes, folder: Path) -> object:
    write(folder, "config.json", content)
    settings = model_folder.read_model_config(folder)
    path = write(folder, "tokenizer.safetensors", tiny_files()["tokenizer.safetensors"])
    with model_folder.damaged_config(folder):
        load_network(settings.create_tokenizer, path)
    path = write(folder, "transformer.safetensors", tiny_files()["transformer.safetensors"])
    return model_folder.load_transformer(folder, settings, tiny_model().text_tokenizer)


def read_weights(content: bytes, folder: Path) -> object:
    path = write(folder, "tokenizer.safetensors", content)
    return load_network(tiny_model().config.create_tokenizer, path)


def read_text_tokenizer(content: bytes, folder: Path) -> object:
    write(folder, TEXT_FILE, content)
    encoder = load_text(folder)
    encoder.cut(CAPTIONS)
    return encoder.count_tokens("a" * 1_000)


def read_memory(content: bytes, folder: Path) -> object:
    write(folder, EXAMPLES_FILE, content)
    write(folder, ROWS_FILE, tiny_files()[ROWS_FILE])
    model = tiny_model()
    memory = model_folder.load_memory(folder, model.config, model.tokenizer)
    return None if memory is None else (list(memory.rows), memory.find("a red star, green", 3))


def read_rows(content: bytes, folder: Path) -> object:
    """Captions whose sum is right: those of whoever wrote both files."""
    import hashlib

    whole = tiny_files()[EXAMPLES_FILE]
    old = hashlib.sha256(tiny_files()[ROWS_FILE]).hexdigest().encode()
    new = hashlib.sha256(content).hexdigest().encode()
    write(folder, EXAMPLES_FILE, whole.replace(old, new))
    write(folder, ROWS_FILE, content)
    memory = ExampleMemory.open(folder)
    return None if memory is None else memory.find("a red star, green", 3)


def read_checksums(content: bytes, folder: Path) -> object:
    write(folder, SUMS_FILE, content)
    return read_sums(folder)


@cache
def good_sums() -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for file, content in tiny_files().items():
            write(Path(name), file, content)
        write_sums(Path(name))
        return (Path(name) / SUMS_FILE).read_bytes()


def read_captions(content: bytes, folder: Path) -> object:
    write(folder, "captions.json", content)
    return model_folder.read_captions(folder)


def read_picture(content: bytes, folder: Path) -> object:
    return read_with_transparency(content, max_pixels=1_000_000)


def read_notes(content: bytes, folder: Path) -> object:
    path = write(folder, "a.png", content)
    return read_png_texts(path), read_examples(path)


def read_text(content: bytes, folder: Path) -> object:
    try:
        return captions_from_text(content)
    except CaptionError:  # the reason why a file is skipped
        return None


def read_fields(content: bytes, folder: Path) -> object:
    try:
        return captions_from_fields(read_sidecar(content))
    except CaptionError:
        return None


def read_table(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        for number in range(3):
            write(folder, f"{number}.png", b"\x89PNG")
        write(folder, name, content)
        source = sources.recognise(str(folder))
        return list(source.records(split_by="group"))

    return read


def read_archive(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        path = write(folder, name, content)
        records = list(sources.recognise(str(path)).records())
        locations = [record.location for record in records if hasattr(record, "location")]
        return [_read_location(location) for location in locations[:5]]

    return read


def _read_location(location: Any) -> object:
    from tessella.images import ImageError

    try:
        return location.read() if hasattr(location, "read") else None
    except ImageError:
        return None


def read_rows_with_pictures(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> object:
        records = list(sources.recognise(str(write(folder, name, content))).records())
        locations = [record.location for record in records if hasattr(record, "location")]
        return [location.read() for location in locations if hasattr(location, "read")]

    return read


def read_address(content: bytes, folder: Path) -> object:
    return expand_braces(content.decode(errors="surrogateescape"))


def read_scene(name: str) -> Callable[[bytes, Path], object]:
    return lambda content, folder: SCENE_SETS[name].parse(content.decode(errors="surrogateescape"))


def read_toml(content: bytes, folder: Path) -> object:
    path = write(folder, "a.toml", content)
    values = config.read_config(path)
    return config.build(ModelConfig, values)


def read_assignment(content: bytes, folder: Path) -> object:
    values = config.parse_assignments([content.decode(errors="replace")])
    return config.build(ModelConfig, values)


# Inputs of data.


def draw_picture(rng: Rng) -> bytes:
    match rng.randrange(8):
        case 0:
            return draw_broken(rng)
        case 1:
            return rng.choice(bombs())
        case 2:
            return draw_odd(rng)
        case _:
            form = rng.choice(("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
            return damage(good_picture(form, (24, 24)), rng)


def draw_csv(rng: Rng) -> bytes:
    cells = [rng.choice((f"{n}.png", *map(str, VALUES))) for n in range(3)]
    texts = [rng.choice((*CAPTIONS, *map(str, VALUES))) for _ in range(3)]
    lines = ["file_name,caption,group", *(f"{c},{t},1" for c, t in zip(cells, texts, strict=True))]
    return damage("\n".join(lines).encode(errors="surrogatepass"), rng)


ROWS = [{"file_name": f"{n}.png", "text": c, "group": n} for n, c in enumerate(CAPTIONS)]


def draw_lines(rng: Rng) -> bytes:
    lines = [json.dumps(row).encode() for row in ROWS]
    lines[rng.randrange(3)] = either(ROWS[0], rng)
    return b"\n".join(lines)


COCO = {
    "images": [{"id": n, "file_name": f"{n}.png"} for n in range(3)],
    "annotations": [{"image_id": n, "id": n, "caption": c} for n, c in enumerate(CAPTIONS)],
}


@cache
def good_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, caption in enumerate(CAPTIONS):
            archive.writestr(f"in/{number}.png", good_picture("PNG", (8, 8)))
            archive.writestr(f"in/{number}.txt", caption)
        archive.writestr("../../out.txt", "a")
        archive.writestr("/abs.txt", "a")
    return file.getvalue()


@cache
def good_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, caption in enumerate(CAPTIONS):
            for suffix, content in (
                ("png", good_picture("PNG", (8, 8))),
                ("txt", caption.encode()),
            ):
                info = tarfile.TarInfo(f"{number:04}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("../../0009.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    return file.getvalue()


@cache
def good_rows(kind: str) -> bytes:
    import pyarrow as arrow
    import pyarrow.ipc as ipc
    import pyarrow.parquet as parquet

    images = [{"bytes": good_picture("PNG", (8, 8)), "path": f"{n}.png"} for n in range(3)]
    table = arrow.table({"image": images, "text": list(CAPTIONS)})
    file = io.BytesIO()
    if kind == "parquet":
        parquet.write_table(table, file)
        return file.getvalue()
    with (ipc.new_file if kind == "file" else ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


SCENE = b"a small blue star left of a large green ring on a white background"
SCENE2 = (
    b"a small red ring below two large dotted stars in a row that are not red on a navy background"
)

TOML = b"""image_size = 16
[tokenizer]
widths = [16, 16]
[tokenizer.quantizer]
name = "vq"
codebook_size = 16
[transformer]
width = 16
"""

PARSERS: dict[str, Parser] = {
    "checksums": Parser(lambda rng: damage(good_sums(), rng), read_checksums),
    "config": Parser(tiny_file("config.json"), read_config),
    "weights": Parser(tiny_file("tokenizer.safetensors"), read_weights),
    "text_tokenizer": Parser(tiny_file(TEXT_FILE), read_text_tokenizer),
    "examples": Parser(tiny_file(EXAMPLES_FILE), read_memory),
    "example_rows": Parser(tiny_file(ROWS_FILE), read_rows),
    "captions": Parser(
        lambda rng: either({"captions": 3, "words": {"a": 1}, "examples": ["a"]}, rng),
        read_captions,
    ),
    "picture": Parser(draw_picture, read_picture),
    "picture_notes": Parser(draw_picture, read_notes),
    "caption_text": Parser(
        lambda rng: damage("\n".join(CAPTIONS).encode(rng.choice(("utf-8", "utf-16"))), rng),
        read_text,
    ),
    "sidecar": Parser(lambda rng: either({"caption": "a", "tags": ["b", "c"]}, rng), read_fields),
    "table_csv": Parser(draw_csv, read_table("metadata.csv")),
    "table_tsv": Parser(lambda rng: draw_csv(rng).replace(b",", b"\t"), read_table("a.tsv")),
    "table_jsonl": Parser(draw_lines, read_table("metadata.jsonl")),
    "table_json": Parser(lambda rng: either(ROWS, rng), read_table("a.json")),
    "annotations": Parser(lambda rng: either(COCO, rng), read_table("captions.json")),
    "zip": Parser(lambda rng: damage(good_zip(), rng), read_archive("a.zip")),
    "tar": Parser(lambda rng: damage(good_tar(), rng), read_archive("a.tar")),
    "parquet": Parser(
        lambda rng: damage(good_rows("parquet"), rng), read_rows_with_pictures("a.parquet")
    ),
    "arrow": Parser(
        lambda rng: damage(good_rows(rng.choice(("file", "stream"))), rng),
        read_rows_with_pictures("a.arrow"),
    ),
    "braces": Parser(lambda rng: damage(b"a/{000..003}-{b,c}.tar", rng), read_address),
    "scene": Parser(lambda rng: damage(SCENE, rng), read_scene("scenes")),
    "scene2": Parser(lambda rng: damage(SCENE2, rng), read_scene("scenes2")),
    "run": Parser(either_run, read_report),
    "description": Parser(lambda rng: damage(ABOUT.encode(), rng), read_description),
    "answer": Parser(lambda rng: either(good_answer(), rng), read_answer),
    "toml": Parser(lambda rng: damage(TOML, rng), read_toml),
    "assignment": Parser(lambda rng: damage(b"transformer.width=32", rng), read_assignment),
}
