"""Every image's codes, encoded once."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessella.data.cache import CaptionedImages
from tessella.images import to_float
from tessella.tokenizer import ImageTokenizer, TokenizerSettings
from tessella.training import codes as codes_module
from tessella.training.codes import prepare_codes

Data = Mapping[str, CaptionedImages]
CPU = torch.device("cpu")


@pytest.fixture
def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    quantizer = {"codebook_size": 300, "code_width": 4}  # more than a byte holds
    settings = {"patch": 2, "widths": (16, 32), "quantizer": quantizer}
    return ImageTokenizer(TokenizerSettings.model_validate(settings)).eval()


def test_codes_are_the_tokenizer_s(
    scenes: Data, tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "_BATCH", 5)
    done: list[tuple[int, int]] = []
    made = prepare_codes(
        scenes["train"],
        tokenizer,
        tmp_path / "codes" / "train.npy",
        device=CPU,
        progress=lambda images, total: done.append((images, total)),
    )
    count = len(scenes["train"])
    pixels = torch.from_numpy(scenes["train"].pixels(np.arange(count)))
    with torch.no_grad():
        expected = tokenizer.encode(to_float(pixels)).numpy()
    assert made.dtype == np.uint16
    assert not made.flags.writeable
    assert np.array_equal(made, expected)
    assert done[-1] == (count, count)
    assert done[0] == (5, count)


def test_they_are_encoded_once(
    scenes: Data, tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> Any:
        return prepare_codes(scenes["train"], tokenizer, tmp_path / "train.npy", device=CPU)

    first = prepare()
    monkeypatch.setattr(tokenizer, "encode", lambda _: pytest.fail("encoded again"))
    assert np.array_equal(prepare(), first)


@pytest.mark.parametrize("change", ["weights", "images", "no note", "no codes", "broken note"])
def test_what_they_were_made_from_is_minded(
    scenes: Data, tokenizer: ImageTokenizer, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "train.npy"
    first = np.array(prepare_codes(scenes["train"], tokenizer, path, device=CPU))
    images = scenes["train"]
    if change == "weights":
        with torch.no_grad():
            tokenizer.quantizer.vectors.copy_(tokenizer.quantizer.vectors.flip(0))
    elif change == "images":
        images = scenes["validation"]
    elif change == "no codes":
        path.unlink()
    elif change == "no note":
        path.with_suffix(".json").unlink()
        path.write_bytes(b"half of it")
    else:
        path.with_suffix(".json").write_text("{")
    second = prepare_codes(images, tokenizer, path, device=CPU)
    if change == "weights":
        assert np.array_equal(second, 299 - first)
    elif change == "images":
        assert len(second) == len(images) != len(first)
    else:
        assert np.array_equal(second, first)
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["images"] == images.fingerprint


def test_a_crash_while_encoding_leaves_nothing_to_trust(
    scenes: Data, tokenizer: ImageTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.npy"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tokenizer, "encode", crash)
        prepare_codes(scenes["train"], tokenizer, path, device=CPU)
    assert not list(tmp_path.iterdir())
    assert len(prepare_codes(scenes["train"], tokenizer, path, device=CPU)) == len(scenes["train"])


def test_no_images_have_no_codes(tokenizer: ImageTokenizer, tmp_path: Path) -> None:
    class Empty(SimpleNamespace):
        def __len__(self) -> int:
            return 0

    empty: Any = Empty(image_size=16, fingerprint="none")
    made = prepare_codes(empty, tokenizer, tmp_path / "validation.npy", device=CPU)
    assert made.shape == (0, 4, 4)
