"""Weights against settings: nothing is built that is larger than its file."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tessella.checksums import SUMS_FILE
from tessella.errors import CheckpointError
from tessella.model.pipeline import TextToImage
from untrained import create_untrained, describe_tokenizer, save_untrained

MODEL = create_untrained()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = save_untrained(MODEL, tmp_path / "model")
    (folder / SUMS_FILE).unlink()
    return folder


def change(folder: Path, section: str, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    values = config if not section else config[section]
    values |= settings
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("transformer", {"width": 10**6, "heads": 2}),
        ("transformer", {"width": 4 * 10**30, "heads": 1}),
        ("transformer", {"depth": 10**9}),
        ("tokenizer", {"widths": [16 * 10**6] * 2}),
        ("tokenizer", {"widths": [16] * 9_000}),
        ("tokenizer", {"blocks": 10**12}),
        ("tokenizer", {"quantizer": {"codebook_size": 65536, "code_width": 10**9}}),
        (
            "tokenizer",
            {"network": "report2021", "nhid": 8 * 10**7, "quantizer": {"code_width": 8 * 10**7}},
        ),
        ("tokenizer", {"network": "taming", "widths": [32 * 10**6]}),
        ("", {"image_size": 2048}),
        ("", {"image_size": 10**9}),
    ],
)
def test_a_network_larger_than_its_weights_is_refused_unbuilt(
    folder: Path, section: str, settings: dict[str, Any]
) -> None:
    change(folder, section, **settings)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"do not fit the configuration|config.* is damaged"):
        TextToImage.load(folder, device="cpu")
    assert tracemalloc.get_traced_memory()[1] < 100_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("quantizer", [None, {"name": "fsq", "levels": (4, 4)}])
def test_every_number_is_loaded_or_computed(
    quantizer: dict[str, Any] | None, tmp_path: Path
) -> None:
    """A network that is loaded has no start of its own: nothing may be left as it was in memory."""
    changes = (
        {} if quantizer is None else {"tokenizer": describe_tokenizer() | {"quantizer": quantizer}}
    )
    model = create_untrained("shared_latent", neighbors=2, **changes)
    loaded = TextToImage.load(save_untrained(model, tmp_path / "model"), device="cpu")
    for part in ("tokenizer", "transformer"):
        mine, other = getattr(loaded, part), getattr(model, part)
        for kind in ("named_parameters", "named_buffers"):
            expected = dict(getattr(other, kind)())
            found = dict(getattr(mine, kind)())
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


Tensors = dict[str, torch.Tensor]


def with_nan(tensors: Tensors) -> Tensors:
    tensors["out.weight"][0, 0] = torch.nan
    return tensors


def with_infinity(tensors: Tensors) -> Tensors:
    tensors["out.weight"][0, 0] = torch.inf
    return tensors


def as_integers(tensors: Tensors) -> Tensors:
    return tensors | {"out.weight": tensors["out.weight"].long()}


def as_complex(tensors: Tensors) -> Tensors:
    return tensors | {"out.weight": tensors["out.weight"].to(torch.complex64)}


def transposed(tensors: Tensors) -> Tensors:
    return tensors | {"position_embedding.weight": torch.zeros(4, 4, 16)}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (with_nan, r"no numbers \(NaN or infinite\): `out\.weight` in `.*transformer"),
        (with_infinity, r"no numbers \(NaN or infinite\): `out\.weight`"),
        (as_integers, r"do not fit .*`out\.weight` has numbers of another kind: torch\.int64"),
        (as_complex, r"`out\.weight` has numbers of another kind: torch\.complex64"),
        (transposed, r"do not fit .*size mismatch for position_embedding"),
    ],
)
def test_weights_that_are_wrong_are_refused(
    folder: Path, damage: Callable[[Tensors], Tensors], said: str
) -> None:
    path = folder / "transformer.safetensors"
    save_file(damage(load_file(path)), path)
    with pytest.raises(CheckpointError, match=said):
        TextToImage.load(folder, device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.safetensors", "transformer.safetensors"])
def test_an_empty_tensor_asks_for_no_memory(folder: Path, name: str) -> None:
    """What older formats lack is added by the width of one that the file has."""
    path = folder / name
    wide = {"example_encoder.caption.weight": torch.zeros(200_000, 0)}
    save_file(load_file(path) | wide, path)
    zeros = torch.zeros

    def refuse_square(*size: Any, **more: Any) -> torch.Tensor:
        assert size != (200_000, 200_000)  # 160 GB
        return zeros(*size, **more)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(CheckpointError, match="do not fit"):
        patch.setattr("tessella.model.folder_weights.torch.zeros", refuse_square)
        TextToImage.load(folder, device="cpu")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[" * 50_000,
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,999]}}',
        b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
    ],
)
@pytest.mark.parametrize("length", [None, 0, 2**63, 2**64 - 1])
def test_a_header_that_lies_is_refused(folder: Path, header: bytes, length: int | None) -> None:
    size = len(header) if length is None else length
    content = size.to_bytes(8, "little") + header + bytes(4)
    (folder / "tokenizer.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"Cannot read the tensors: `.*tokenizer\.safetens"):
        TextToImage.load(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.safetensors", "text_tokenizer.json"])
def test_every_flipped_byte_is_named(tmp_path: Path, name: str) -> None:
    folder = save_untrained(MODEL, tmp_path / "model")
    path = folder / name
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 10):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"{name}` has the SHA-256 `"):
            TextToImage.load(folder, device="cpu")
    path.write_bytes(whole)
    TextToImage.load(folder, device="cpu")
