"""`fit --tokenizer`: the transformer learns the codes of a tokenizer that others have trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from commands import invoke
from hub_server import Hub
from tessella.errors import CheckpointError, ConfigError
from tessella.files import sha256_file
from tessella.model.folder import TrainedTokenizer
from tessella.model.image_tokenizer import ImageTokenizer
from tessella.model.memory import export_model
from tessella.model.pipeline import TextToImage
from tessella.tokenizer import VQAutoencoder
from tessella.training.fit import FitRequest
from tessella.training.initialize import initialize_tokenizer
from tessella.training.loop import create_accelerator
from tessella.training.recipe import Recipe
from tessella.training.request import resolve_run
from tessella.training.start import read_tokenizer
from tiny_runs import TINY_TRANSFORMER, draw_pictures, train
from untrained import create_untrained, describe_tokenizer, save_untrained
from vq_models import decode_by, encode_by, save_vq_model

SMALL = (*TINY_TRANSFORMER, "retrieval.neighbors=1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 20)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    save_vq_model(tmp_path / "theirs")
    (tmp_path / "theirs" / "README.md").write_text("---\nlicense: mit\n---\n# Theirs\n")
    return tmp_path / "theirs"


def test_from_diffusers_folder_to_a_model(pictures: Path, theirs: Path, tmp_path: Path) -> None:
    """Trained, resumed without their folder, painted with, exported and loaded again."""
    sha256 = sha256_file(theirs / "diffusion_pytorch_model.safetensors")
    vq_model = save_vq_model(tmp_path / "same")
    run = tmp_path / "run"
    folder, said = train(run, pictures, *SMALL, tokenizer=str(theirs))
    assert f"SHA-256 {sha256}; licence: mit." in " ".join(said.split())
    # No step of stage 1 was taken: the codes and pixels are theirs.
    model = TextToImage.load(folder, "cpu")
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    codes = encode_by(vq_model, image)
    assert torch.equal(model.tokenizer.encode(image), codes)
    expected = decode_by(vq_model, codes).clamp(-1, 1)
    torch.testing.assert_close(model.tokenizer.decode(codes), expected, rtol=0, atol=1e-4)

    card = (folder / "README.md").read_text()
    assert f"theirs, diffusion_pytorch_model.safetensors, SHA-256 {sha256}; licence: mit" in card
    assert "Image tokenizer: `taming`" in card
    assert "taken as it is from `theirs`" in card
    assert "psnr" in (folder / "metrics.json").read_text()
    [painted] = model.generate("picture 3", seed=1)
    assert painted.size == (16, 16)
    assert export_model(folder, tmp_path / "copy") == 18  # two are held out
    shutil.rmtree(theirs)
    [again] = TextToImage.load(tmp_path / "copy", "cpu").generate("picture 3", seed=1)
    assert again == painted
    shutil.rmtree(run / "model")
    assert train(run, pictures, *SMALL, tokenizer=str(theirs))[0] == folder
    with pytest.raises(ConfigError, match="The run began with other settings"):
        train(run, pictures, *SMALL)


def test_the_decoder_alone_may_learn_on(pictures: Path, theirs: Path, tmp_path: Path) -> None:
    words = ("tokenizer_training.images=16", "tokenizer_training.batch_size=8")
    folder, _ = train(
        tmp_path / "run",
        pictures,
        *SMALL,
        *words,
        "tokenizer_training.learn=decoder",
        "transformer_training.images=8",
        tokenizer=str(theirs),
    )
    before, after = (TrainedTokenizer.load(one, "cpu").tokenizer for one in (theirs, folder))
    assert before.hash_encoder() == after.hash_encoder()
    assert not torch.equal(before.last_layer, after.last_layer)


def test_settings(theirs: Path, tmp_path: Path) -> None:
    """Sizes of a preset, the pictures' size of a file or `--set`, the tokenizer's own settings."""
    config = tmp_path / "mine.toml"
    config.write_text("[data]\nimage_size = 32\n[tokenizer]\npatch = 8\nwidths = [16]\n")

    def resolve(**changes: Any) -> Recipe:
        asked = {"sources": ["scenes:10"], "out": tmp_path / "run", "tokenizer": str(theirs)}
        request = FitRequest(**asked | changes)
        return resolve_run(request, create_accelerator("cpu")).recipe

    recipe = resolve(preset="small")
    assert recipe.transformer.width == 256
    assert recipe.tokenizer == TrainedTokenizer.load(theirs).config.tokenizer
    assert recipe.tokenizer_training.images == 0
    assert recipe.data.image_size == 256  # nothing is known of theirs
    recipe = resolve(config_file=config)
    assert (recipe.data.image_size, recipe.tokenizer.widths) == (32, (32, 64))
    assert resolve(minutes=1000.0, assignments=["transformer.width=32"]).transformer.width == 32
    with pytest.raises(ConfigError, match=r"its own image tokenizer: `scenes` beside `.*theirs`"):
        resolve(start_from="scenes")
    with pytest.raises(CheckpointError, match="There is no such model: `nowhere`"):
        resolve(tokenizer="nowhere")


def test_a_size_that_does_not_suit_is_refused(pictures: Path, theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 2 .*: `17`\. Try 16 or 18"):
        train(tmp_path / "run", pictures, "data.image_size=17", tokenizer=str(theirs))
    assert not (tmp_path / "run").exists()


def test_runs_of_before_keep_their_fingerprint() -> None:
    """What came later is no part of it unless it is used."""
    recipe = Recipe()
    before = {"network", "patch", "widths", "blocks", "nhid", "upsampling", "quantizer"}
    assert recipe.select(["tokenizer"])["tokenizer"].keys() == before
    changed = recipe.tokenizer.replace(origin="theirs", **describe_tokenizer())
    assert recipe.replace(tokenizer=changed).select(["tokenizer", "text"])["tokenizer"].keys() == {
        *before,
        "origin",
    }


def test_a_tokenizer_of_the_hub(hub: Hub, pictures: Path, theirs: Path, tmp_path: Path) -> None:
    """Of a pipeline only the tokenizer comes; the run notes the commit."""
    files = {f"vqvae/{path.name}": path.read_bytes() for path in theirs.iterdir()}
    others = {
        "README.md": (theirs / "README.md").read_bytes(),
        "model_index.json": b'{"_class_name": "AmusedPipeline"}',
        "vqvae/diffusion_pytorch_model.bin": b"pickle",
        "transformer/diffusion_pytorch_model.safetensors": b"large",
    }
    [commit] = hub.put("ann/amused", files | others).commits
    run = tmp_path / "run"
    words = ("transformer_training.images=8",)
    folder, _ = train(run, pictures, *SMALL, *words, tokenizer="hf:ann/amused")
    assert sorted(hub.fetched) == [
        "README.md",
        "model_index.json",
        "vqvae/config.json",
        "vqvae/diffusion_pytorch_model.safetensors",
    ]
    tokenizer = TrainedTokenizer.load(folder, "cpu").config.tokenizer
    assert (tokenizer.pixel_range, tokenizer.licence) == ("unit", "mit")
    assert str(tokenizer.origin).startswith(f"hf:ann/amused@{commit}, vqvae/diffusion_pyt")
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    assert recipe["tokenizer_training"]["init_from"] == f"hf:ann/amused@{commit}"

    unet = json.dumps({"_class_name": "UNet2DModel"}).encode()
    hub.put("ann/unet", {"config.json": unet, "diffusion_pytorch_model.safetensors": b"large"})
    hub.fetched.clear()
    with pytest.raises(CheckpointError, match=r"is a network of diffusers .*Missing: tokenizer"):
        train(tmp_path / "next", pictures, *SMALL, tokenizer="hf:ann/unet")
    assert hub.fetched == ["config.json"]


@pytest.mark.parametrize("is_alone", [False, True])
def test_one_of_tessella_from_the_hub_keeps_its_licence(
    hub: Hub, tmp_path: Path, is_alone: bool
) -> None:
    """Whoever pushed it: as a whole model, or as a tokenizer alone; its weights fit afterwards."""
    folder = save_untrained(create_untrained(), tmp_path / "model")
    if is_alone:
        ImageTokenizer.export(folder, tmp_path / "alone")
        folder = tmp_path / "alone"
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    [commit] = hub.put(
        "ann/stars", files | {"README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"}
    ).commits
    settings = Recipe.model_validate(read_tokenizer("hf:ann/stars")).tokenizer
    file = "diffusion_pytorch_model.safetensors" if is_alone else "tokenizer.safetensors"
    assert settings.origin == (
        f"hf:ann/stars@{commit}, {file}, SHA-256 {sha256_file(folder / file)}"
    )
    assert settings.licence == "cc-by-nc-4.0"
    assert initialize_tokenizer(VQAutoencoder(settings), "hf:ann/stars")


# It counted as one's own: nothing told whose it was, or which.
@pytest.mark.parametrize("part", ["model", "tokenizer/model"])
def test_a_folder_of_tessella_s_is_told_by_its_run_its_weights_and_its_card(
    part: str, pictures: Path, tmp_path: Path
) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "before" / part)
    (tmp_path / "before" / "run.json").write_text("{}")
    settings = Recipe.model_validate(read_tokenizer(str(tmp_path / "before"))).tokenizer
    sha256 = sha256_file(folder / "tokenizer.safetensors")
    assert settings.origin == f"before, tokenizer.safetensors, SHA-256 {sha256}"
    assert settings.licence is None
    assert "licence: unknown: ask whose they are" in settings.source

    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    words = (*SMALL, "transformer_training.images=8")
    trained, said = train(tmp_path / "run", pictures, *words, tokenizer=str(folder))
    source = f"before, tokenizer.safetensors, SHA-256 {sha256}; licence: cc-by-4.0"
    assert f"Image tokenizer: {source}." in " ".join(said.split())
    assert f"trained before. `{source}`" in (trained / "README.md").read_text()
    # And stays with whatever is trained on that.
    assert read_tokenizer(str(trained))["tokenizer"]["origin"] == settings.origin


def test_commands_take_and_give_it(theirs: Path, tmp_path: Path) -> None:
    """Reconstructed, exported, and refused beside what it does not go with."""
    picture = tmp_path / "one.png"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(picture)
    out = tmp_path / "pair.png"
    told = invoke("reconstruct", picture, "--model", theirs, "--out", out)
    assert (told.exit_code, out.exists()) == (0, True), told.output
    told = invoke("export", theirs, "--tokenizer-only", "--out", tmp_path / "out", "--json")
    assert json.loads(told.stdout)["class"] == "VQModel"
    told = invoke("export", "scenes", "--tokenizer-only", "--out", tmp_path / "scenes")
    assert "as ImageTokenizer, which tessella reads" in " ".join(told.stdout.split())
    told = invoke("export", "scenes", "--tokenizer-only", "--onnx", "--out", tmp_path / "x")
    assert (told.exit_code, "goes with --out FOLDER" in told.stderr) == (2, True)
    words = ("--out", tmp_path / "run", "--tokenizer", theirs, "--dry-run", "--json")
    told = invoke("fit", "scenes:20", *words, "--set", "data.image_size=64")
    assert json.loads(told.stdout)["recipe"]["tokenizer"]["network"] == "taming"
