"""Damaged runs, and answers of language models that are none: what `fuzz.py` sends.

Nothing is measured here; run by itself, this file does nothing.
"""

import json
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np

from malformed_pictures import good_picture
from malformed_values import Rng, damage, either, write
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.posts.chat_client import ChatClient
from tessella.posts.image_language import ImageLanguage
from tessella.posts.language_model import LanguageModel
from tessella.posts.model_writer import ModelWriter
from tessella.posts.offline import OfflineWriter
from tessella.posts.request import PostRequest
from tessella.runs.report import write_report
from tessella.text import TextSettings, TextTokenizer
from tessella.text.vocabulary import summarize_captions

CAPTIONS = ("red bread, flat emoji", "blue coffee, 3d emoji", "birthday cake, flat emoji")
ABOUT = """We bake bread e.g. rye, every morning since 1.5.1987. Open 7-18 h, Sundays too!
- coffee and cake at 12 High Street, https://bakery.example/menu
- call +44 20 1234, or write to us@bakery.example #bread"""
RUN = {
    "format": 2,
    "version": "0.1.0",
    "sources": ["pictures"],
    "asked": {"minutes": 5, "seed": 3},
    "recipe": {
        "data": {"image_size": 16},
        "tokenizer": {"quantizer": {"name": "vq", "codebook_size": 512}},
        "tokenizer_training": {"images": 100, "loss": {"mse": 1.0}},
        "transformer": {"width": 32, "depth": 2},
        "objective": {"name": "any_order"},
        "transformer_training": {"images": 50, "init_from": "scenes"},
    },
}
LOG = [
    {"images_seen": 40, "kind": "train", "loss": 0.4, "psnr": 12.0, "images_per_second": 20},
    {"images_seen": 40, "kind": "validation", "psnr": 13.0, "codes_used": 30.0},
    {"images_seen": 40, "kind": "note", "note": "Only few codes"},
    {"images_seen": 100, "kind": "train", "loss": 0.2, "psnr": 14.0, "images_per_second": 30},
]
METRICS = {
    "reconstruction_psnr": {"value": 15.51, "protocol": "dB"},
    "all_correct_seen_pairs": {"value": 0.986, "protocol": "500 scenes"},
}
NEAREST = {"pairs": [{"prompt": "a", "caption": "b", "distance": 0.5, "limit": 0.1}]}


@cache
def run_files() -> Mapping[str, bytes]:
    """The files of a small run by name; those that are JSON or lines of it first."""
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in LOG)
    files = {
        "run.json": json.dumps(RUN).encode(),
        "tokenizer/metrics.jsonl": lines,
        "transformer/metrics.jsonl": lines,
        "model/metrics.json": json.dumps(METRICS).encode(),
        "nearest.json": json.dumps(NEAREST).encode(),
        "examples/choice.json": json.dumps({"neighbors": 3, "reason": "enough"}).encode(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, caption in enumerate(CAPTIONS):
            write(folder / "pictures", f"{number}.png", good_picture("PNG", (16 + number, 16)))
            write(folder / "pictures", f"{number}.txt", caption.encode())
        settings = DataSettings(image_size=16, validation_fraction=0.4, workers=1)
        prepare([str(folder / "pictures")], settings, folder / "data")
        np.save(folder / "train.npy", np.zeros((1, 9, 1, 4, 2), np.uint16))
        files["codes/train.npy"] = (folder / "train.npy").read_bytes()
        for path in sorted(file for file in (folder / "data").rglob("*") if file.is_file()):
            content = path.read_bytes().replace(str(folder).encode(), b"/of/somebody")
            files[path.relative_to(folder).as_posix()] = content
    return files


def either_run(rng: Rng) -> bytes:
    """Damages one file of a run: its number, then its content."""
    number = rng.randrange(len(run_files()))
    name, content = list(run_files().items())[number]
    if name.endswith(".json"):
        content = either(json.loads(content), rng)
    elif name.endswith(".jsonl") and content:
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = either(json.loads(lines[at]), rng)
        content = b"\n".join(lines)
    else:
        content = damage(content, rng)
    return bytes([number]) + content


def read_report(content: bytes, folder: Path) -> object:
    for number, (name, good) in enumerate(run_files().items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content[1:] if number == content[0] else good)
    return write_report(folder).path.stat()


# What writes posts.


@cache
def image_language() -> ImageLanguage:
    text = TextTokenizer.train(CAPTIONS, TextSettings())
    return ImageLanguage(text, summarize_captions(CAPTIONS, text))


def good_answer() -> Any:
    draft = {
        "text": "Fresh bread every morning.",
        "hashtags": ["bread", "bakery"],
        "alt_text": "A loaf of bread.",
        "label": "red bread, flat emoji",
    }
    message = {"role": "assistant", "content": "Here: " + json.dumps({"posts": [draft]})}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


class _Said:
    """A server that says the same to whatever it is asked."""

    server = "http://llm.example"

    def __init__(self, body: str) -> None:
        self.complete = lambda request, deadline: body


def read_answer(content: bytes, folder: Path) -> object:
    client = cast(ChatClient, _Said(content.decode(errors="replace")))
    writer = ModelWriter(LanguageModel("any", client), image_language())
    request = PostRequest.create("A bakery", ABOUT, platform="instagram", tone="warm")
    return writer.write_batch(request, 1, [])


def read_description(content: bytes, folder: Path) -> object:
    text = content.decode(errors="surrogateescape")
    request = PostRequest.create("A bakery", text, platform="instagram", tone="warm")
    return OfflineWriter(image_language()).write_batch(request, 2, [])
