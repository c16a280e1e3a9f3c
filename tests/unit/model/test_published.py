"""Image tokenizers alone: other people's, ours, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file

from tessella.checksums import write_sums
from tessella.errors import CheckpointError
from tessella.files import sha256_file, write_tensors
from tessella.model.folder import ModelConfig, TrainedTokenizer
from tessella.model.image_tokenizer import ImageTokenizer
from tessella.model.published import read_licence
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.tokenizer.layouts import LLAMAGEN, TAMING, to_layout
from vq_models import create_vq_model, decode_by, encode_by, save_vq_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
IMAGE = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_vq_model(tmp_path / "vq")
    return tmp_path / "vq"


@pytest.mark.parametrize("attention", ["coarsest", "middle", "none"])
def test_a_folder_that_diffusers_wrote(attention: str, tmp_path: Path) -> None:
    theirs = save_vq_model(tmp_path / "vq", attention, sample_size=64)
    loaded = TrainedTokenizer.load(tmp_path / "vq", "cpu")
    codes = encode_by(theirs, IMAGE)
    assert torch.equal(loaded.tokenizer.encode(IMAGE), codes)
    expected = decode_by(theirs, codes).clamp(-1, 1)
    torch.testing.assert_close(loaded.tokenizer.decode(codes), expected, rtol=0, atol=1e-4)
    assert loaded.config.image_size == 64
    sha256 = sha256_file(tmp_path / "vq" / WEIGHTS)
    assert loaded.config.tokenizer.origin == f"vq, {WEIGHTS}, SHA-256 {sha256}"


def test_amused_reads_and_paints_pixels_from_0_to_1(tmp_path: Path) -> None:
    """Its pipeline does not normalise; only the pipeline's own file says which one it is."""
    theirs = save_vq_model(tmp_path / "amused" / "vqvae", "none")
    (tmp_path / "amused" / "model_index.json").write_text('{"_class_name": "AmusedPipeline"}')
    (tmp_path / "amused" / "README.md").write_text(
        "---\nlicense: openrail++\ntags: [a]\n---\n# A\n"
    )
    codes = encode_by(theirs, (IMAGE + 1) / 2)
    assert not torch.equal(codes, encode_by(theirs, IMAGE))
    for named in ("amused", "amused/vqvae"):
        loaded = TrainedTokenizer.load(tmp_path / named, "cpu")
        assert torch.equal(loaded.tokenizer.encode(IMAGE), codes)
        expected = 2 * decode_by(theirs, codes).clamp(0, 1) - 1
        torch.testing.assert_close(loaded.tokenizer.decode(codes), expected, rtol=0, atol=2e-4)
        assert loaded.config.tokenizer.licence == "openrail++"
        assert str(loaded.config.tokenizer.origin).startswith(f"amused, vqvae/{WEIGHTS}, SHA-256 ")
    (tmp_path / "amused" / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
    signed = TrainedTokenizer.load(tmp_path / "amused", "cpu")
    assert torch.equal(signed.tokenizer.encode(IMAGE), encode_by(theirs, IMAGE))
    change(tmp_path / "amused" / "vqvae", _pixel_range="unit")
    unit = TrainedTokenizer.load(tmp_path / "amused", "cpu")
    assert torch.equal(unit.tokenizer.encode(IMAGE), codes)


@pytest.mark.parametrize("layout", [TAMING, LLAMAGEN], ids=["taming", "llamagen"])
def test_files_of_taming_and_llamagen(layout: Any, folder: Path, tmp_path: Path) -> None:
    """They have no configuration, or one of another form: the weights tell the sizes."""
    ours = TrainedTokenizer.load(folder, "cpu").tokenizer
    other = tmp_path / "other"
    other.mkdir()
    save_file(
        {name: one.contiguous() for name, one in to_layout(ours, layout).items()},
        other / "model.safetensors",
    )
    if layout is LLAMAGEN:
        values = {"codebook_embed_dim": 5, "codebook_l2_norm": False}
        (other / "config.json").write_text(json.dumps({"config": values}))
    loaded = TrainedTokenizer.load(other, "cpu")
    assert torch.equal(loaded.tokenizer.encode(IMAGE), ours.encode(IMAGE))
    assert loaded.config.image_size == 256
    if layout is LLAMAGEN:  # its codes lie on the unit sphere unless it says otherwise
        (other / "config.json").unlink()
        quantizer = TrainedTokenizer.load(other, "cpu").config.tokenizer.quantizer
        assert quantizer.model_dump()["normalize"] is True


def test_diffusers_reads_what_is_exported(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    before = TrainedTokenizer.load(folder, "cpu")
    assert ImageTokenizer.export(folder, tmp_path / "out") == "VQModel"
    theirs = VQModel.from_pretrained(tmp_path / "out")
    weights = load_file(folder / WEIGHTS)
    assert theirs.state_dict().keys() == weights.keys()
    for name, one in theirs.state_dict().items():
        assert torch.equal(one, weights[name]), name
    again = TrainedTokenizer.load(tmp_path / "out", "cpu")
    assert again.config == before.config  # where they come from, and the licence, too
    assert again.config.tokenizer.licence == "mit"
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"come from: `{before.config.tokenizer.origin}; licence: mit`." in card


def test_what_was_trained_here_stays_ones_own(tmp_path: Path) -> None:
    """Its size is meant, and nobody else is named, however often it is exported."""
    settings = TokenizerSettings.model_validate(
        {"network": "taming", "widths": [32, 32], "quantizer": {"codebook_size": 8}}
    )
    config = ModelConfig(image_size=32, tokenizer=settings)
    trained = TrainedTokenizer(config, config.create_tokenizer().eval())
    trained.save(tmp_path / "trained")
    for before, after in (("trained", "out"), ("out", "again")):
        assert ImageTokenizer.export(tmp_path / before, tmp_path / after) == "VQModel"
        loaded = TrainedTokenizer.load(tmp_path / after, "cpu").config
        assert loaded.image_size == 32
        assert (loaded.tokenizer.origin, loaded.tokenizer.licence) == (None, None)
        assert "others" not in (tmp_path / after / "README.md").read_text()


@pytest.mark.parametrize(
    ("header", "licence"),
    [
        ("license: mit", "mit"),
        ("license: 'mit'  # as ours", "mit"),
        ("license: mit # as ours", "mit"),
        ("license:\n- mit", "mit"),
        ("license:\n  - mit\n  - apache-2.0\ntags:\n- a", "mit, apache-2.0"),
        ("license: [mit, 'apache-2.0']", "mit, apache-2.0"),
        ("tags:\n- license: gpl\nlicense: other\nlicense_name: c#-terms", "c#-terms"),
        ("license: other", None),
        ("license: unknown", None),
        ("license:", None),
        ("tags: [a]", None),
        ("license: a\x1b[31mb\u2028c", "a\\x1b[31mb"),
    ],
)
def test_the_licence_of_a_card(header: str, licence: str | None, tmp_path: Path) -> None:
    for start in ("", "\ufeff"):
        (tmp_path / "README.md").write_text(f"{start}---\n{header}\n---\nlicense: no\n")
        assert read_licence(tmp_path) == licence


def test_an_edited_card_still_has_a_licence(folder: Path, tmp_path: Path) -> None:
    ImageTokenizer.export(folder, tmp_path / "out")
    card = tmp_path / "out" / "README.md"
    card.write_text(card.read_text().replace('"unknown"', "mit"))
    assert TrainedTokenizer.load(tmp_path / "out", "cpu").config.tokenizer.licence == "mit"


def test_text_of_others_is_one_line_of_code_in_a_card(folder: Path, tmp_path: Path) -> None:
    change(folder, _origin="a\n# Heading\x1b[31m `<b>`")
    ImageTokenizer.export(folder, tmp_path / "out")
    assert TrainedTokenizer.load(folder, "cpu").config.tokenizer.origin == (
        "a # Heading\\x1b[31m `<b>`"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "come from: `a # Heading\\x1b[31m '<b>'; licence: " in card


def test_sums_of_a_pipeline_prove_its_tokenizer(tmp_path: Path) -> None:
    part = tmp_path / "pipeline" / "vqvae"
    save_vq_model(part)
    (part.parent / "model_index.json").write_text("{}")
    write_sums(part.parent)
    for named in (part.parent, part):
        TrainedTokenizer.load(named, "cpu")
    change(part, sample_size=64)
    for named in (part.parent, part):
        with pytest.raises(CheckpointError, match=r"damaged or of another one: `.*config\.json`"):
            TrainedTokenizer.load(named, "cpu")


def test_a_part_that_leads_out_of_a_pipeline_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vqvae").symlink_to(folder)
    with pytest.raises(CheckpointError, match=r"a link that leads out of it: `.*vqvae`"):
        TrainedTokenizer.load(tmp_path / "pipeline", "cpu")


def test_a_changed_file_of_an_export_is_refused(folder: Path, tmp_path: Path) -> None:
    ImageTokenizer.export(folder, tmp_path / "out")
    weights = tmp_path / "out" / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"damaged or of another one: `.*{WEIGHTS}`"):
        TrainedTokenizer.load(tmp_path / "out")


def write_foreign(folder: Path) -> None:
    save_file({"model.embed.weight": torch.ones(2)}, folder / WEIGHTS)


def rename_to_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: change(f, _class_name="AutoencoderKL"), r"has the class `AutoencoderKL`\. Exp"),
        (lambda f: (f / WEIGHTS).unlink(), r"has no weights: .*model\.safetensors was expected"),
        (rename_to_pickle, r"pickles, .*never loaded: .* has diffusion_pytorch_model\.bin\. Conv"),
        (cut, r"Cannot read the tensors: .*missing or damaged"),
        (write_foreign, r"those of no VQGAN: .*diffusers, Taming Transformers, LlamaGen"),
        (lambda f: change(f, num_vq_embeddings=41), r"num_vq_embeddings = `41`, expected 40"),
        (
            lambda f: change(f, block_out_channels=[32, 10**9]),
            r"block_out_channels = `\[32, 1000000000\]`, expected \[32, 64\]",
        ),
        (lambda f: change(f, norm_type="spatial"), r"norm_type = `spatial`, expected group"),
        (lambda f: change(f, act_fn="gelu"), r"an activation that is not read: `gelu`"),
        (
            lambda f: change(f, mid_block_add_attention=False),
            r"mid_block_add_attention = `False`, expected True",
        ),
        (lambda f: change(f, _pixel_range="both"), r"a size or form that is not read: .*pixel_ra"),
    ],
)
def test_what_is_refused(spoil: Callable[[Path], Any], said: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=said):
        TrainedTokenizer.load(folder)


def test_a_folder_that_holds_no_tokenizer(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="This is not a model folder"):
        TrainedTokenizer.load(folder)
    (folder / "last.ckpt").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"pickles, .* has last\.ckpt"):
        TrainedTokenizer.load(folder)
    for missing in (folder / "missing", folder / "last.ckpt"):
        with pytest.raises(CheckpointError, match="This is not a model folder"):
            TrainedTokenizer.load(missing)


def test_more_levels_than_any_picture_has(tmp_path: Path) -> None:
    """2 to the power of 12 pixels a position."""
    values = {
        "_class_name": "ImageTokenizer",
        "tokenizer": {"widths": [16] * 13, "patch": 1, "quantizer": {"codebook_size": 2}},
    }
    settings = TokenizerSettings.model_validate(values["tokenizer"])
    write_tensors(tmp_path / WEIGHTS, VQAutoencoder(settings).state_dict())
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"too many levels: `13`"):
        TrainedTokenizer.load(tmp_path)


def test_widths_that_the_network_cannot_have(tmp_path: Path) -> None:
    model = create_vq_model(block_out_channels=(16, 32), norm_num_groups=16)
    model.register_to_config(norm_num_groups=32)
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"that is not read: .*widths are multiples of 32"):
        TrainedTokenizer.load(tmp_path)
