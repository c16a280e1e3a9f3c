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
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.training import codes as codes_module
from tessella.training.codes import prepare_codes

Data = Mapping[str, CaptionedImages]
CPU = torch.device("cpu")


@pytest.fixture
def tokenizer() -> VQAutoencoder:
    return create_tokenizer()


def create_tokenizer(num_codes: int = 1) -> VQAutoencoder:
    torch.manual_seed(0)
    # More codes than a byte holds.
    quantizer = {"codebook_size": 300, "code_width": 4, "codes_per_position": num_codes}
    settings = {"patch": 2, "widths": (16, 32), "quantizer": quantizer}
    return VQAutoencoder(TokenizerSettings.model_validate(settings)).eval()


def test_codes_are_the_tokenizer_s(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert np.array_equal(made, expected[None])
    assert done[-1] == (count, count)
    assert done[0] == (5, count)


def test_mirrored_pictures_and_crops_are_passes_of_their_own(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path
) -> None:
    """As they are, a crop, and both mirrored: each is what encoding that very picture gives."""
    images = scenes["train"]
    made = prepare_codes(images, tokenizer, tmp_path / "c.npy", device=CPU, flips=True, crops=1)
    assert made.shape[:2] == (4, len(images))
    pixels = to_float(torch.from_numpy(images.pixels(np.arange(len(images)))))
    with torch.no_grad():
        assert np.array_equal(made[0], tokenizer.encode(pixels))
        assert np.array_equal(made[2], tokenizer.encode(pixels.flip(-1)))
    for crop in (made[1], made[3]):
        assert not np.array_equal(crop, made[0])
    again = prepare_codes(images, tokenizer, tmp_path / "d.npy", device=CPU, flips=True, crops=1)
    assert np.array_equal(made, again)
    # The same file asked for without them is made anew.
    assert len(prepare_codes(images, tokenizer, tmp_path / "c.npy", device=CPU)) == 1


def test_several_codes_a_position_are_cached_as_they_are_encoded(
    scenes: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(passes, N, M, h, w): of each picture the grids of its codebooks, in portions of 7."""
    monkeypatch.setattr(codes_module, "_BATCH", 7)
    pairs, images = create_tokenizer(2), scenes["train"]
    made = prepare_codes(images, pairs, tmp_path / "c.npy", device=CPU, flips=True)
    assert made.shape == (2, len(images), 2, 4, 4)
    pixels = to_float(torch.from_numpy(images.pixels(np.arange(len(images)))))
    with torch.no_grad():
        for number, seen in enumerate((pixels, pixels.flip(-1))):
            for m, group in enumerate(pairs._encode(seen).chunk(2, 1)):
                assert np.array_equal(made[number, :, m], pairs.quantizer.parts[m].encode(group))
    assert not np.array_equal(made[:, :, 0], made[:, :, 1])
    # A file of one code a position is not taken for one of two.
    one = prepare_codes(images, create_tokenizer(), tmp_path / "c.npy", device=CPU)
    assert one.shape == (1, len(images), 1, 4, 4)


def test_a_crop_is_a_large_part_of_the_picture_enlarged() -> None:
    """A ramp from left to right stays a ramp, of at least four fifths of the way."""
    ramp = torch.linspace(-1, 1, 40).expand(8, 3, 40, 40)
    made = codes_module._crop(ramp, np.random.default_rng(0))
    assert made.shape == ramp.shape
    span = made[..., -2] - made[..., 1]
    assert (span >= 0.8 * 2 * 0.9).all()
    assert (span <= 2).all()
    assert len({round(value, 4) for value in span[:, 0, 0].tolist()}) > 1


def test_they_are_encoded_once(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare() -> Any:
        return prepare_codes(scenes["train"], tokenizer, tmp_path / "train.npy", device=CPU)

    first = prepare()
    monkeypatch.setattr(tokenizer, "encode", lambda _: pytest.fail("encoded again"))
    assert np.array_equal(prepare(), first)


@pytest.mark.parametrize("change", ["weights", "images", "no note", "no codes", "broken note"])
def test_what_they_were_made_from_is_minded(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "train.npy"
    first = np.array(prepare_codes(scenes["train"], tokenizer, path, device=CPU))
    images = scenes["train"]
    if change == "weights":
        with torch.no_grad():
            vectors = tokenizer.get_parameter("quantizer.parts.0.vectors")
            vectors.copy_(vectors.flip(0))
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
        assert second.shape[1] == len(images) != first.shape[1]
    else:
        assert np.array_equal(second, first)
    note = json.loads(path.with_suffix(".json").read_text())
    assert note["images"] == images.fingerprint


def test_a_crash_while_encoding_leaves_nothing_to_trust(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train.npy"

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tokenizer, "encode", crash)
        prepare_codes(scenes["train"], tokenizer, path, device=CPU)
    assert not list(tmp_path.iterdir())
    made = prepare_codes(scenes["train"], tokenizer, path, device=CPU)
    assert made.shape[1] == len(scenes["train"])


def test_no_images_have_no_codes(tokenizer: VQAutoencoder, tmp_path: Path) -> None:
    class Empty(SimpleNamespace):
        def __len__(self) -> int:
            return 0

    empty: Any = Empty(image_size=16, fingerprint="none")
    made = prepare_codes(empty, tokenizer, tmp_path / "validation.npy", device=CPU)
    assert made.shape == (1, 0, 1, 4, 4)


def test_what_another_run_has_encoded_is_copied(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind a decoder that has learned on; not of another codebook."""
    known = tmp_path / "other" / "train.npy"
    first = prepare_codes(scenes["train"], tokenizer, known, device=CPU)
    with torch.no_grad():
        for parameter in tokenizer.decoder.parameters():
            parameter.add_(1.0)
    with monkeypatch.context() as patched:
        patched.setattr(tokenizer, "encode", lambda _: pytest.fail("encoded again"))
        path = tmp_path / "train.npy"
        made = prepare_codes(scenes["train"], tokenizer, path, device=CPU, known=known)
        assert np.array_equal(made, first)
        known.unlink()
        assert np.array_equal(prepare_codes(scenes["train"], tokenizer, path, device=CPU), first)
    with torch.no_grad():
        vectors = tokenizer.get_parameter("quantizer.parts.0.vectors")
        vectors.copy_(vectors.flip(0))
    again = prepare_codes(
        scenes["train"], tokenizer, tmp_path / "again.npy", device=CPU, known=tmp_path / "train.npy"
    )
    assert np.array_equal(again, 299 - first)


def test_another_run_without_codes_is_no_obstacle(
    scenes: Data, tokenizer: VQAutoencoder, tmp_path: Path
) -> None:
    known = tmp_path / "gone" / "train.npy"
    made = prepare_codes(
        scenes["train"], tokenizer, tmp_path / "train.npy", device=CPU, known=known
    )
    assert made.shape[1] == len(scenes["train"])
    assert not known.parent.exists()
