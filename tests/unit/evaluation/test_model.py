"""What a finished model is worth, on models whose worth is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessella.data.prepare import PreparedData, prepare
from tessella.data.scenes import canonical_caption, parse_caption
from tessella.data.scenes.sets import SCENE_SETS
from tessella.data.settings import DataSettings
from tessella.evaluation import model as module
from tessella.evaluation import squeezenet as squeezenet_module
from tessella.evaluation.features import EvalNetworks, FeatureExtractor
from tessella.evaluation.metric import Metric
from tessella.evaluation.model import (
    count_pictures,
    evaluate_images,
    evaluate_model,
    measure_scenes,
    read_images,
)
from tessella.evaluation.reconstruction import ReconstructionReport, compute_psnr
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.images import Pixels
from tessella.model.request import GeneratedImages, ImageRequest
from tessella.objectives import ObjectiveLoss
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.tokenizer.codebook_health import measure_codebook_health

SIZE = 32


def create_tokenizer(codes_per_position: int = 1) -> VQAutoencoder:
    quantizer = {"codebook_size": 8, "code_width": 2, "codes_per_position": codes_per_position}
    settings = {"patch": 4, "widths": (16,), "quantizer": quantizer}
    return VQAutoencoder(TokenizerSettings.model_validate(settings)).eval()


def reconstruct_perfectly(tokenizer: VQAutoencoder, pixels: Pixels) -> ReconstructionReport:
    """Gives pictures back as they are, all with one code of each codebook."""
    codes = np.zeros((len(pixels), len(tokenizer.codebook), 1, 1), dtype=np.int64)
    health = measure_codebook_health(tokenizer.quantizer, codes)
    return ReconstructionReport(pixels, compute_psnr(pixels, pixels), health)


class Sampler:
    """A model that paints every scene as asked, or all but the first ones."""

    device = torch.device("cpu")
    name = "nothing"
    memory = None
    max_tokens = 99  # words of a prompt

    def __init__(self, wrong: int = 0, set_name: str = "scenes", size: int = SIZE) -> None:
        self.set_name, self.size = set_name, size
        self.tokenizer = create_tokenizer()
        self.objective = self.sampler = self.text_tokenizer = self
        self.wrong = wrong
        self.asked: list[tuple[list[str], list[int]]] = []

    def generate_images(self, requests: Sequence[ImageRequest], **_: Any) -> GeneratedImages:
        prompts = [one.prompt for one in requests]
        self.asked.append((prompts, [one.seed for one in requests]))
        pixels = np.zeros((len(prompts), self.size, self.size, 3), dtype=np.uint8)
        scenes = SCENE_SETS[self.set_name]
        for place, prompt in enumerate(prompts):
            if prompt and place >= self.wrong:
                pixels[place] = scenes.draw(scenes.parse(prompt), self.size)
        return GeneratedImages(pixels, None, [()] * len(pixels))

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.zeros(len(prompts), 1)

    def encode_images(self, pixels: Pixels) -> torch.Tensor:
        return torch.zeros(len(pixels), 1, 1, 1, dtype=torch.int64)

    def __call__(self, text: torch.Tensor, codes: torch.Tensor) -> ObjectiveLoss:
        return ObjectiveLoss(torch.tensor(2.5), torch.zeros(()))


@pytest.fixture(scope="module")
def scenes32(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    settings = DataSettings(image_size=SIZE, validation_fraction=0.2, workers=1)
    return prepare(["scenes:60"], settings, tmp_path_factory.mktemp("evaluation") / "data")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SCENE_PROMPTS", 12)
    monkeypatch.setattr(module, "evaluate_reconstructions", reconstruct_perfectly)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of SqueezeNet."""
    torch.manual_seed(0)
    state = {name: value.numpy() for name, value in SqueezeNet().state_dict().items()}
    np.savez(tmp_path / "squeezenet.npz", **state)
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(tmp_path / "squeezenet.npz"))


@pytest.fixture(autouse=True)
def _small_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """SqueezeNet on 63×63 pixels: a twelfth of the time."""
    monkeypatch.setattr(squeezenet_module, "INPUT_SIZE_PX", 63)


def test_a_perfect_model_of_scenes_has_every_point(scenes32: PreparedData) -> None:
    model: Any = Sampler()
    made = evaluate_model(model, scenes32)
    count = len(scenes32.validation)
    assert made.metrics["all_correct_seen_pairs"].value == 1.0
    assert made.metrics["all_correct_held_out_pairs"].value == 1.0
    for kind in ("background", "size", "color", "shape"):
        assert made.metrics[f"right_{kind}_seen_pairs"].value == 1.0
    assert made.metrics["reconstruction_all_correct"].value == 1.0
    assert made.metrics["reconstruction_psnr"].value > 60
    assert (
        f"mean over the first {count} validation images"
        in made.metrics["reconstruction_psnr"].protocol
    )
    assert made.metrics["codes_used"].value == 1
    assert made.metrics["codes_used"].protocol == f"of 8, the first {count} validation images"
    # The sheet shows captions that were kept out of training.
    assert list(made.prompts) == [scenes32.validation.captions(i)[0] for i in range(count)][:16]
    assert model.asked[-1] == (list(made.prompts), list(range(len(made.prompts))))
    assert sum(len(prompts) for prompts, _ in model.asked[:-1]) == 24


def test_a_model_of_scenes2_is_measured_by_its_own_demands(tmp_path: Path) -> None:
    settings = DataSettings(image_size=64, validation_fraction=0.2, workers=1)
    data = prepare(["scenes2:40"], settings, tmp_path / "data")
    model: Any = Sampler(wrong=3, set_name="scenes2", size=64)
    made = evaluate_model(model, data).metrics
    assert made["reconstruction_all_correct"].value == 1.0
    kinds = ("background", "count", "size", "texture", "shape", "color", "negation", "relation")
    for name in ("seen", "held_out"):
        prompts = model.asked.pop(0)[0]
        assert len(prompts) == 12
        assert made[f"all_correct_{name}_pairs"].value == pytest.approx(9 / 12)
        words = name.replace("_", "-")
        for kind in kinds:
            assert made[f"right_{kind}_{name}_pairs"].protocol.endswith(
                f"in 12 unseen scenes of {words} pairs, first picture, seed 0"
            )
        of_count = made[f"right_count_{name}_pairs"]
        assert of_count.protocol.startswith("of 12 in ")
        assert 9 / 12 <= of_count.value < 1


def test_the_plan_knows_how_many_pictures_it_paints(scenes32: PreparedData) -> None:
    model: Any = Sampler()
    evaluate_model(model, scenes32)
    painted = sum(len(prompts) for prompts, _ in model.asked)
    assert count_pictures(scenes32) == painted == len(scenes32.validation) + 24


def test_with_weights_the_plan_counts_what_squeezenet_looks_at(
    scenes32: PreparedData, weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GENERATED", 5)
    monkeypatch.setattr(module, "_MAX_TRAINING", 7)
    looked_at = 0
    extract = FeatureExtractor.extract

    def count(self: FeatureExtractor, pixels: Pixels) -> torch.Tensor:
        nonlocal looked_at
        looked_at += len(pixels)
        return extract(self, pixels)

    monkeypatch.setattr(FeatureExtractor, "extract", count)
    model: Any = Sampler()
    made = evaluate_model(model, scenes32)
    assert looked_at == 5 + 5 + 7
    painted = sum(len(prompts) for prompts, _ in model.asked)
    assert painted == 5 + 24
    assert count_pictures(scenes32) == painted + looked_at
    # Five pictures more are painted and looked at.
    assert count_pictures(scenes32, looks_up=True) == painted + looked_at + 10
    assert made.generation.left_out == {}
    assert made.metrics["copy_rate"].protocol.endswith(
        f"7 of the {len(scenes32.train)} training pictures"
    )
    assert made.metrics["loss_train"].value == 2.5
    assert "painted_recall_squeezenet-fire9" in made.metrics
    assert list(made.prompts) == list(made.generation.prompts)


def test_weights_that_are_damaged_do_not_cost_a_finished_model(
    scenes32: PreparedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(tmp_path / "broken.npz"))
    made = evaluate_model(Sampler(), scenes32)  # type: ignore[arg-type]
    assert made.generation.left_out["retrieval_by_features"].startswith("Cannot read the weights: ")
    assert "pixels-32x32" in made.metrics["copy_rate"].protocol


@pytest.mark.parametrize("held_out", [False, True])
def test_wrong_pictures_are_counted(held_out: bool) -> None:
    model: Any = Sampler(wrong=3)
    made = measure_scenes(model, 12, held_out=held_out, seed=4)["all_correct"]
    assert made.value == pytest.approx(9 / 12)
    kind = "held-out" if held_out else "seen"
    assert made.protocol == f"12 unseen scenes of {kind} pairs, first picture, seed 4"
    [(prompts, seeds)] = model.asked
    assert seeds == list(range(12))
    assert prompts == [canonical_caption(parse_caption(prompt)) for prompt in prompts]


def test_other_pictures_have_no_scene_metrics(
    scenes32: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_parse_scenes", lambda _: None)
    made = evaluate_model(Sampler(), scenes32)  # type: ignore[arg-type]
    assert set(made.metrics) == {
        "reconstruction_psnr",
        "reconstruction_ssim",
        "codes_used",
        "code_perplexity",
        "copy_rate",
        "loss_train",
        "loss_held_out",
        "loss_gap",
    }
    assert count_pictures(scenes32) == len(scenes32.validation)


def test_without_validation_it_says_training_images(tmp_path: Path) -> None:
    settings = DataSettings(image_size=SIZE, validation_fraction=0.0, workers=1)
    data = prepare(["scenes:5"], settings, tmp_path / "data")
    made = evaluate_model(Sampler(), data)  # type: ignore[arg-type]
    protocol = made.metrics["reconstruction_psnr"].protocol
    assert protocol == "dB, mean over the first 5 train images"
    # What it learned from says nothing about what it did not.
    assert made.generation.left_out["loss_gap"] == "No images were kept out of training."


# A model that can read none of its data's captions was trained to the end, and lost there: there
# were no pictures for its sheet, and the scenes' prompts were refused.
def test_captions_that_are_too_long_do_not_cost_a_finished_model(scenes32: PreparedData) -> None:
    model: Any = Sampler()
    model.max_tokens = 3
    made = evaluate_model(model, scenes32)
    assert made.prompts == [""]
    assert model.asked == [([""], [0])]
    assert made.sheet.ndim == 3
    assert made.generation.left_out == {"painted": "No caption is short enough for the model."}
    assert "reconstruction_all_correct" in made.metrics
    assert "all_correct_seen_pairs" not in made.metrics


def test_networks_add_their_numbers(scenes32: PreparedData) -> None:
    torch.manual_seed(0)
    squeezenet = SqueezeNet().eval().requires_grad_(False)
    extractor = FeatureExtractor("squeezenet-conv1", squeezenet, "conv1")
    networks = EvalNetworks(squeezenet, features={extractor.name: extractor})
    model: Any = Sampler()
    images = read_images(scenes32.train, [5, 0, 7, 2], "four of mine")
    assert images.captions[1] == scenes32.train.captions(0)[0]
    assert np.array_equal(images.pixels[0], scenes32.train.pixels(5)[0])
    made = evaluate_images(model, images, networks)
    assert made.metrics["reconstruction_perceptual_distance"].value == 0
    assert abs(made.metrics["reconstruction_fid_squeezenet-conv1"].value) < 0.1
    assert "reconstruction_kid_squeezenet-conv1" in made.metrics
    assert made.metrics["all_correct_seen_pairs"].value == 1.0
    for name, metric in made.metrics.items():
        assert metric.protocol.endswith("pairs, first picture, seed 0") or (
            "four of mine" in metric.protocol
        ), name
    assert np.array_equal(made.reconstructions, images.pixels)
    assert made.generation is None  # nothing was asked for


def test_codes_of_several_codebooks_are_counted_apart(scenes32: PreparedData) -> None:
    """The first code of each of two codebooks, equally often: two codes, as even as two can be."""
    model: Any = Sampler()
    model.tokenizer = create_tokenizer(codes_per_position=2)
    made = evaluate_images(model, read_images(scenes32.train, [1, 3], "two of mine"))
    assert made.metrics["codes_used"] == Metric(2, "of 2×8, two of mine")
    assert made.metrics["code_perplexity"].value == pytest.approx(2.0)
    assert made.metrics["code_perplexity"].protocol == "of 2×8, two of mine"
