"""The model: what it generates, how it is saved, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tessella.errors import CheckpointError, ConfigError, GenerationError, TessellaError
from tessella.model import sampler
from tessella.model.folder import choose_device
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.objectives import GenerationStep
from untrained import create_untrained, save_untrained

FILES = (
    "config.json",
    "tokenizer.safetensors",
    "transformer.safetensors",
    "text_tokenizer.json",
)
SUMS = "SHA256SUMS"


MODEL = create_untrained()


def pixels(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


# Saved and loaded.


@pytest.mark.parametrize("objective", ["any_order", "latent_mse"])
def test_a_loaded_model_generates_the_same(objective: str, tmp_path: Path) -> None:
    model = create_untrained(objective)
    loaded = TextToImage.load(save_untrained(model, tmp_path / "model"), device="cpu")
    prompts = ["a red star", "a blue star"]
    expected = pixels(model.generate(prompts, count=2, seed=3))
    assert np.array_equal(pixels(loaded.generate(prompts, count=2, seed=3)), expected)
    assert loaded.config == model.config
    for network in (loaded.tokenizer, loaded.transformer):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


def test_the_folder_moves_and_holds_no_pickle(tmp_path: Path) -> None:
    folder = save_untrained(MODEL, tmp_path / "model").rename(tmp_path / "elsewhere")
    assert {path.name for path in folder.iterdir()} == {
        *FILES,
        "README.md",
        "metrics.json",
        "samples.png",
        SUMS,
    }
    assert TextToImage.load(str(folder), device="cpu").config == MODEL.config
    assert (folder / "README.md").read_text() == "# A card\n"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {"psnr": {"value": 1.5, "protocol": "by hand"}}


def test_saving_again_replaces_the_model(tmp_path: Path) -> None:
    save_untrained(MODEL, tmp_path / "model")
    (tmp_path / "model" / "transformer-00001-of-00002.safetensors").write_text("of before")
    other = create_untrained(seed=1)
    save_untrained(other, tmp_path / "model")
    assert len(list((tmp_path / "model").iterdir())) == 8
    loaded = TextToImage.load(tmp_path / "model", device="cpu")
    assert torch.equal(loaded.transformer.out.weight, other.transformer.out.weight)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign", "empty"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    folder = save_untrained(MODEL, tmp_path / "model")
    path = folder / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "empty":
        path.write_bytes(b"")
    elif name.endswith(".json"):
        path.write_text('{"layers": 3}')
    else:
        other = {FILES[1]: FILES[2], FILES[2]: FILES[1]}[name]
        path.write_bytes((folder / other).read_bytes())
    with pytest.raises(CheckpointError) as caught:
        TextToImage.load(folder, device="cpu")
    assert name in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"format": 1},
            r"has format `1`; this tessella reads 2, 3, 4, 5 and 6: `.*train again; the image tok",
        ),
        ({"format": 7}, r"has format `7`; this tessella reads 2, 3, 4, 5 and 6: `"),
        # An invalid setting was once reported as if the user had typed it.
        ({"image_sise": 3}, r"is damaged: `.*config\.json`\. Unknown setting `image_sise`; did"),
        ({"image_size": 18}, r"is damaged: `.*config\.json`\. Image size must be a multiple of 4"),
    ],
)
def test_a_configuration_that_is_not_ours(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = save_untrained(MODEL, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    (folder / SUMS).unlink()
    with pytest.raises(CheckpointError, match=said):
        TextToImage.load(folder, device="cpu")


def test_weights_of_another_size_do_not_fit(tmp_path: Path) -> None:
    folder = save_untrained(MODEL, tmp_path / "model")
    wider = save_untrained(
        create_untrained(transformer={"width": 32, "depth": 2, "heads": 2}), tmp_path / "wider"
    )
    (folder / "transformer.safetensors").write_bytes(
        (wider / "transformer.safetensors").read_bytes()
    )
    (folder / SUMS).unlink()
    said = r"do not fit the configuration beside them: `.*transformer\.safetensors`\. size mismatch"
    with pytest.raises(CheckpointError, match=said):
        TextToImage.load(folder, device="cpu")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=r"This is not a model folder: `.*RUN/model"):
            TextToImage.load(folder)


def test_a_size_that_the_tokenizer_does_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"multiple of 4 .*: `18`\. Try 16 or 20\."):
        create_untrained(image_size=18)


# Generated.


def test_pictures_come_prompt_after_prompt() -> None:
    made = MODEL.generate(["a red star", "a blue star"], count=3, seed=5)
    assert [picture.size for picture in made] == [(16, 16)] * 6
    assert {picture.mode for picture in made} == {"RGB"}
    for index, (prompt, seed) in enumerate(
        [(p, s) for p in ("a red star", "a blue star") for s in (5, 6, 7)]
    ):
        [alone] = MODEL.generate(prompt, seed=seed)
        assert np.array_equal(np.asarray(alone), np.asarray(made[index])), index
    assert len(np.unique(pixels(made), axis=0)) == 6


def test_more_pictures_than_a_batch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = pixels(MODEL.generate("a red star", count=7))
    monkeypatch.setitem(sampler._BATCH_SIZES, "cpu", 3)
    steps: list[GenerationStep] = []
    made = pixels(MODEL.generate("a red star", count=7, on_step=steps.append))
    assert np.array_equal(made, expected)
    assert [len(step.codes) for step in steps] == [3, 3, 3, 3, 3, 3, 1, 1, 1]


def test_pictures_are_their_codes() -> None:
    generated = MODEL.generate_images([ImageRequest("a red star", seed) for seed in (1, 2)])
    assert generated.codes is not None
    with torch.no_grad():
        image = MODEL.tokenizer.decode(generated.codes)
    expected = ((image.movedim(1, -1) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.abs(generated.pixels.astype(int) - expected).max() <= 1


def test_latents_without_codes_are_decoded_too() -> None:
    requests = [ImageRequest("a red star", seed) for seed in (1, 2)]
    generated = create_untrained("latent_mse").generate_images(requests)
    assert generated.codes is None
    assert generated.pixels.shape == (2, 16, 16, 3)


def test_settings_change_the_picture_and_none_leaves_them() -> None:
    def draw(**changes: Any) -> np.ndarray:
        return pixels(MODEL.generate("a red star", seed=2, **changes))

    base = draw()
    assert np.array_equal(draw(steps=None), base)
    assert np.array_equal(draw(steps=3), base)
    assert not np.array_equal(draw(temperature=0.0), base)
    assert MODEL.generation_settings(top_k=4, steps=None).steps == 3


def test_generating_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    MODEL.generate("a red star", count=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("prompts", "changes", "kind", "message"),
    [
        ([], {}, GenerationError, "There is no prompt. Give at least one"),
        ("", {}, GenerationError, "A prompt must say something: ``"),
        (["a star", " \n"], {}, GenerationError, "A prompt must say something"),
        ("star " * 80, {}, GenerationError, "at most 64 can be read"),
        ("a star", {"count": 0}, GenerationError, "between 1 and 10000: `0`"),
        ("a star", {"count": 10_001}, GenerationError, "between 1 and 10000: `10001`"),
        ("a star", {"steps": 0}, ConfigError, "Setting `steps`: got: `0`"),
        ("a star", {"temprature": 1}, ConfigError, "Unknown setting `temprature`; did you mean"),
        ("a star", {"seed": -1}, GenerationError, r"seed must be between 0 and \d+: `-1`"),
        ("a star", {"seed": 2**64}, GenerationError, r"seed must be between 0 and \d+: `1844"),
    ],
)
def test_what_generate_refuses(
    prompts: Any, changes: dict[str, Any], kind: type[TessellaError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        MODEL.generate(prompts, **changes)


@pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
def test_seeds_of_any_length(seed: int) -> None:
    assert len(MODEL.generate("a star", seed=seed)) == 1


# Reconstructed.


def test_reconstructions_are_what_the_tokenizer_keeps() -> None:
    rng = np.random.default_rng(0)
    square = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    wide = Image.new("RGB", (48, 16))
    wide.paste(square, (16, 0))
    [first, second] = MODEL.reconstruct([square, wide])
    assert np.array_equal(np.asarray(first), np.asarray(second))  # the middle is what is seen
    image = torch.from_numpy(np.asarray(square)[None].copy()).movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
        made = MODEL.tokenizer.decode(MODEL.tokenizer.encode(image))[0]
    expected = ((made.movedim(0, -1) + 1) * 127.5).round().numpy()
    assert np.abs(np.asarray(first) - expected).max() <= 1
    assert MODEL.reconstruct([]) == []


# Devices.


def test_devices_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("tpu", "cuda" if not torch.cuda.is_available() else "mps", ""):
        with pytest.raises(ConfigError, match=rf"no such device here: `{name}`\. Choose auto, cpu"):
            choose_device(name)


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "chosen"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_best_device(
    has_cuda: bool, has_mps: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert choose_device("auto") == torch.device(chosen)


def test_a_model_says_what_it_is() -> None:
    count = sum(
        p.numel() for part in (MODEL.tokenizer, MODEL.transformer) for p in part.parameters()
    )
    size, (rows, columns) = MODEL.config.image_size, MODEL.config.grid
    said = repr(MODEL)
    assert said.startswith(f"<TextToImage: {size}×{size} pixels, {rows}×{columns}×1 codes of ")
    assert said.endswith(f"{count / 1e6:.1f} M weights>")
