"""Models on the hub: only ours are loaded, only their files come, and each is proved."""

from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hub_server import Files, Hub
from tessella.errors import CheckpointError, ConfigError
from tessella.model import from_hub
from tessella.model.find import find_model, find_tokenizer, pin
from tessella.model.from_hub import MODEL_FILES, find_on_hub
from tessella.model.memory import ALL_EXAMPLES, export_model, remove_examples
from tessella.model.pipeline import TextToImage
from untrained import CAPTIONS, create_untrained, create_with_examples, save_untrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_untrained(create_with_examples(CAPTIONS), tmp_path / "model")


@pytest.fixture
def files(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_on_the_hub_is_loaded_by_its_address(hub: Hub, files: Files, folder: Path) -> None:
    hub.put(
        "ann/stars", {"evil.bin": b"pickle", "code.py": b"1/0", "sub/config.json": b"", **files}
    )
    found = find_model("hf:ann/stars")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == files
    assert sorted(hub.fetched) == sorted(files)
    assert files.keys() <= MODEL_FILES
    loaded, own = TextToImage.load(found), TextToImage.load(folder)
    assert loaded.config == own.config
    assert loaded.memory is not None
    for name, weights in own.transformer.state_dict().items():
        assert torch.equal(weights, loaded.transformer.state_dict()[name])
    [one], [other] = (each.generate("a red star", seed=3) for each in (loaded, own))
    assert one == other


def test_a_process_sees_one_version(hub: Hub, files: Files) -> None:
    repository = hub.put("ann/stars", files)
    old = find_model("hf:ann/stars")
    new = repository.commit({**files, "README.md": b"# New\n"})
    assert find_model("hf:ann/stars") == find_tokenizer("hf:ann/stars") == old
    assert pin("hf:ann/stars") == f"hf:ann/stars@{old.name}"
    assert pin("runs/stars") == "runs/stars"
    assert find_model(f"hf:ann/stars@{new}") != old
    from_hub.forget()
    assert find_model("hf:ann/stars").name == new


def test_it_is_loaded_without_a_network(
    hub: Hub, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("ann/stars", files | {"other.bin": b"not fetched"})
    find_model("hf:ann/stars")
    from_hub.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    TextToImage.load(find_model("hf:ann/stars"))
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE is set\. Name it once"):
        find_model("hf:ann/moons")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model_index.json": b"", "vae/model.safetensors": b""}, "is a pipeline of diffusers"),
        (
            {"adapter_config.json": b"", "adapter_model.safetensors": b""},
            "is an adapter of another",
        ),
        ({"config.json": b"{}", "model.safetensors": b""}, "is a model of transformers"),
        ({"config.json": b"{}", "pytorch_model.bin": b""}, r"pickles, .*never loaded \(pytorch_mo"),
        ({"model.ckpt": b""}, r"weights as pickles, .* \(model.ckpt\)"),
        ({"model-q4.gguf": b""}, "is a model in another format"),
        ({"notes.txt": b""}, r"holds other files \(notes.txt\)"),
        ({".gitattributes": b""}, r"is empty\."),
    ],
)
def test_what_is_no_model_of_ours_is_refused_before_it_comes(
    hub: Hub, files: Files, said: str
) -> None:
    hub.put("ann/other", files)
    with pytest.raises(CheckpointError, match=rf"not a tessella model: `hf:ann/other` .*{said}"):
        find_model("hf:ann/other")
    assert hub.fetched == []


@pytest.mark.parametrize(
    "missing", ["config.json", "tokenizer.safetensors", "transformer.safetensors"]
)
def test_a_model_that_lacks_a_file_is_refused_before_it_comes(
    hub: Hub, files: Files, missing: str
) -> None:
    hub.put("ann/stars", {name: content for name, content in files.items() if name != missing})
    with pytest.raises(CheckpointError, match=rf"Missing: {missing}\. Name a model that"):
        find_model("hf:ann/stars")
    assert hub.fetched == []


def test_a_model_beside_other_weights_is_a_model(hub: Hub, files: Files) -> None:
    """Its tokenizer is not taken for one of others, and the whole model is found afterwards."""
    hub.put("ann/stars", files | {"model.safetensors": b"of another library"})
    folder = find_tokenizer("hf:ann/stars")
    assert "model.safetensors" not in hub.fetched
    assert find_model("hf:ann/stars") == folder
    TextToImage.load(folder)


def test_an_image_tokenizer_alone_is_found(hub: Hub, files: Files) -> None:
    names = ("config.json", "tokenizer.safetensors")
    hub.put("ann/tokenizer", {name: files[name] for name in names})
    assert sorted(path.name for path in find_tokenizer("hf:ann/tokenizer").iterdir()) == [*names]
    with pytest.raises(CheckpointError, match=r"Missing: transformer\.safetensors, text_tokenizer"):
        find_model("hf:ann/tokenizer")


def test_a_damaged_file_is_refused_and_fetched_again(hub: Hub, files: Files) -> None:
    hub.put("ann/stars", files)
    weights = find_model("hf:ann/stars") / "tokenizer.safetensors"
    blob = weights.resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"damaged .* Remove `{blob}`, and it is fetched"):
        TextToImage.load(find_model("hf:ann/stars"))
    blob.unlink()
    from_hub.forget()
    TextToImage.load(find_model("hf:ann/stars"))


def test_a_file_of_another_model_is_refused(hub: Hub, files: Files, tmp_path: Path) -> None:
    other = save_untrained(create_untrained(seed=1), tmp_path / "other") / "tokenizer.safetensors"
    hub.put("ann/stars", files | {other.name: other.read_bytes()})
    with pytest.raises(CheckpointError, match=r"If it is the same then, tell whoever has pushed"):
        TextToImage.load(find_model("hf:ann/stars"))


def test_the_cache_stays_as_it_is_and_a_copy_is_whole(
    hub: Hub, files: Files, tmp_path: Path
) -> None:
    hub.put("ann/stars", files)
    found = find_model("hf:ann/stars")
    with pytest.raises(ConfigError, match=r"lies in the hub's cache: .* Write a copy: --out"):
        remove_examples(found, ALL_EXAMPLES)
    assert export_model(found, tmp_path / "copy") == len(CAPTIONS)
    for name in files.keys() - {"SHA256SUMS"}:
        assert (tmp_path / "copy" / name).read_bytes() == files[name]
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())


def test_a_bad_name_says_what_a_name_is() -> None:
    for name in ("hf:stars", "hf:ann/stars:train"):
        with pytest.raises(CheckpointError, match=r"Expected hf:USER/NAME or hf:USER/NAME@REV"):
            find_on_hub(name)
    with pytest.raises(CheckpointError, match="hf:USER/NAME for one on the Hugging Face hub"):
        find_model("nowhere")
