"""tessella.ImageTokenizer: pictures ⇄ codes, without a transformer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from tessella.errors import CheckpointError, ConfigError, GenerationError, ShapeError
from tessella.model.image_tokenizer import ImageTokenizer
from tessella.model.pipeline import TextToImage
from untrained import create_untrained, describe_tokenizer, save_untrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = describe_tokenizer(codes_per_position=2)
    return save_untrained(create_untrained(tokenizer=tokenizer), tmp_path / "model")


def draw(size: tuple[int, int], seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return Image.fromarray(pixels)


def test_pictures_to_codes_to_pictures(folder: Path) -> None:
    """The same as the model itself makes of them."""
    tokenizer, model = tessella.ImageTokenizer.load(folder), TextToImage.load(folder)
    pictures = [draw((16, 16)), draw((16, 16), 1)]
    codes = tokenizer.encode(pictures)
    pixels = np.stack([np.asarray(one) for one in pictures])
    assert torch.equal(codes, model.encode_images(pixels))
    assert torch.equal(codes, tokenizer.encode(pixels))
    assert (codes.shape, codes.dtype) == ((2, 2, 4, 4), torch.int64)
    decoded = tokenizer.decode(codes)
    assert np.array_equal(np.stack(decoded), model.decode_codes(codes))
    assert decoded == tokenizer.reconstruct(pictures)
    assert repr(tokenizer) == (
        "<ImageTokenizer: 4×4 pixels a position, 2 of 16 codes there, for 16×16 pixels>"
    )


def test_pictures_of_other_sizes(folder: Path) -> None:
    tokenizer = ImageTokenizer.load(folder)
    assert tokenizer.encode(draw((40, 30))).shape == (1, 2, 4, 4)
    assert tokenizer.encode(draw((40, 30)), size=32).shape == (1, 2, 8, 8)
    wide = tokenizer.encode(np.zeros((1, 8, 24, 3), np.uint8))
    assert wide.shape == (1, 2, 2, 6)
    assert [one.size for one in tokenizer.decode(wide)] == [(24, 8)]


def test_what_cannot_be_encoded_or_decoded(folder: Path) -> None:
    tokenizer = ImageTokenizer.load(folder)
    with pytest.raises(ShapeError, match=r"multiple of 4 .*: `18`\. Try 16 or 20"):
        tokenizer.encode(draw((20, 20)), size=18)
    with pytest.raises(ShapeError, match=r"\(B, H, W, 3\) uint8: `\(16, 16, 3\)` uint8"):
        tokenizer.encode(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(GenerationError, match=r"no picture\. Give at least one"):
        tokenizer.encode([])
    with pytest.raises(GenerationError, match=r"no picture\. Give at least one"):
        tokenizer.encode(np.zeros((0, 16, 16, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"have no pixels: `\(1, 0, 16, 3\)`"):
        tokenizer.encode(np.zeros((1, 0, 16, 3), np.uint8))
    with pytest.raises(ShapeError, match=r"taken as they are: size `32`\. Leave it out"):
        tokenizer.encode(np.zeros((1, 16, 16, 3), np.uint8), size=32)
    for size in (0, -4):
        with pytest.raises(ShapeError, match=rf"at least 1 pixel: size `{size}`"):
            tokenizer.encode(draw((20, 20)), size=size)
    codes = torch.zeros(1, 2, 4, 4, dtype=torch.int64)
    for wrong, said in (
        (codes[0], r"\(B, M, h, w\): `\(2, 4, 4\)`"),
        (codes.float(), r"float32"),
        (codes.bool(), r"whole numbers .*bool"),
        (codes.to(torch.complex64), r"whole numbers .*complex64"),
        (codes[:, :1], r"number of codebooks, 2: `\(1, 1, 4, 4\)`"),
        (codes - 1, r"from 0 to 15: `-1` to `-1`"),
        (codes + 16, r"from 0 to 15: `16` to `16`"),
        (codes[:, [0, 0, 0]], r"number of codebooks, 2"),
    ):
        with pytest.raises(ShapeError, match=said):
            tokenizer.decode(wrong)


def test_codes_as_a_memory_holds_them_and_the_first_of_residual_ones(tmp_path: Path) -> None:
    quantizer = {"codebook_size": 16, "codes_per_position": 2, "composition": "residual"}
    model = create_untrained(tokenizer=describe_tokenizer() | {"quantizer": quantizer})
    tokenizer = ImageTokenizer.load(save_untrained(model, tmp_path / "model"))
    codes = tokenizer.encode(draw((16, 16)))
    assert tokenizer.decode(codes.to(torch.uint16)) == tokenizer.decode(codes)
    assert [one.size for one in tokenizer.decode(codes[:, :1])] == [(16, 16)]
    with pytest.raises(ShapeError, match=r"number of codebooks, 2 or fewer"):
        tokenizer.decode(codes[:, [0, 0, 0]])


def test_an_export_of_our_own_network(folder: Path, tmp_path: Path) -> None:
    assert ImageTokenizer.export(folder, tmp_path / "out") == "ImageTokenizer"
    before, after = ImageTokenizer.load(folder), ImageTokenizer.load(tmp_path / "out")
    assert after.config.tokenizer == before.config.tokenizer
    assert after.config.image_size == 16
    for name, weights in before.tokenizer.state_dict().items():
        assert torch.equal(weights, after.tokenizer.state_dict()[name]), name
    files = {path.name for path in (tmp_path / "out").iterdir()}
    weights_file = "diffusion_pytorch_model.safetensors"
    assert files == {"config.json", weights_file, "README.md", "SHA256SUMS"}
    with pytest.raises(ConfigError, match="Something of that name is there already"):
        ImageTokenizer.export(folder, tmp_path / "out")
    ImageTokenizer.export(folder, tmp_path / "out", force=True)
    with pytest.raises(CheckpointError, match="This is not a model folder"):
        TextToImage.load(tmp_path / "out")


def test_a_configuration_larger_than_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    """Before any memory is asked for."""
    ImageTokenizer.export(folder, tmp_path / "out")
    (tmp_path / "out" / "SHA256SUMS").unlink()
    path = tmp_path / "out" / "config.json"
    values = json.loads(path.read_text())
    values["tokenizer"]["widths"] = [16, 16 * 10**6]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"do not fit the configuration beside them"):
        ImageTokenizer.load(tmp_path / "out")
    values["tokenizer"]["widths"] = "wide"
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"a size or form that is not read: .*`widths`"):
        ImageTokenizer.load(tmp_path / "out")


def test_a_bundled_one_by_its_name() -> None:
    tokenizer = tessella.ImageTokenizer.load("scenes")
    assert tokenizer.codebook.shape[:2] == (1, 512)
    assert tokenizer.downsampling == 8
    with pytest.raises(CheckpointError, match="There is no such model: `nowhere`"):
        tessella.ImageTokenizer.load("nowhere")
