"""What generated pictures are worth, by models and features whose values are known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remembering import draw_noise, remember
from tessella.errors import GenerationError
from tessella.evaluation.distributions import compute_fid, compute_fraction_among, compute_kid
from tessella.evaluation.eval_images import EvalImages, draw_indices
from tessella.evaluation.features import EvalNetworks
from tessella.evaluation.generation import (
    PLAIN,
    GenerationChecks,
    GenerationEvaluation,
    evaluate_generation,
)
from tessella.images import Pixels
from tessella.model.pipeline import Scores, TextToImage
from tessella.model.request import GeneratedImages, ImageRequest
from tessella.objectives import ObjectiveLoss

SIZE = 4


def draw(value: int) -> Pixels:
    return np.full((SIZE, SIZE, 3), (value, 255 - value, value // 2), dtype=np.uint8)


class Colours:
    """Features of a picture are its mean colour."""

    name = "colours-mean"
    num_features = 3

    def describe(self) -> str:
        return "colours-mean features (3, mean over places)"

    def __init__(self) -> None:
        self.seen: list[Pixels] = []

    def extract(self, pixels: Pixels) -> Tensor:
        self.seen.append(pixels)
        return torch.from_numpy(pixels.mean((1, 2)))


class Sampler:
    """Paints `gray N` as that shade, the first ones wrong; its loss is the mean of the codes."""

    device = torch.device("cpu")
    max_tokens = 3
    objective: Any
    sampler: Any
    text_tokenizer: Any
    name = "brightness"
    memory = None

    def __init__(self, wrong: int = 0) -> None:
        self.objective = self.sampler = self.text_tokenizer = self
        self.wrong = wrong
        self.asked: list[tuple[list[str], list[int]]] = []

    def generate_images(self, requests: Sequence[ImageRequest], **_: Any) -> GeneratedImages:
        self.asked.append(([one.prompt for one in requests], [one.seed for one in requests]))
        shades = [int(one.prompt.split()[1]) for one in requests]
        made = [255 - s if i < self.wrong else s + 1 for i, s in enumerate(shades)]
        return GeneratedImages(np.stack([draw(shade) for shade in made]), None, [()] * len(made))

    def count_tokens(self, prompt: str) -> int:
        return 9 if "long" in prompt else 3

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1)

    def encode_images(self, pixels: Pixels) -> Tensor:
        return torch.from_numpy(pixels[:, None, :1, :1, 0].astype(np.int64))

    def __call__(self, text: Tensor, codes: Tensor) -> ObjectiveLoss:
        return ObjectiveLoss(codes.double().mean(), torch.zeros(()))

    def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
        """Likes the prompt whose shade is nearest to the picture's own."""
        shades = np.array([float(prompt.split()[1]) for prompt in prompts])
        pmi = -abs(images[:, 0, 0, :1] - shades)
        return Scores(pmi, pmi)


class Training:
    """Training pictures in memory, as far as evaluation looks at them."""

    def __init__(self, shades: Sequence[int]) -> None:
        self._shades = shades

    def __len__(self) -> int:
        return len(self._shades)

    def pixels(self, indices: Any) -> Pixels:
        return np.stack([draw(self._shades[int(i)]) for i in indices])

    def captions(self, index: int) -> list[str]:
        return [f"gray {self._shades[index]}"]


SHADES = list(range(0, 240, 10))
IMAGES = EvalImages(
    np.stack([draw(shade) for shade in SHADES]), [f"gray {shade}" for shade in SHADES], "all mine"
)


def by_colours() -> EvalNetworks:
    colours: Any = Colours()
    return EvalNetworks(extractor=colours, features={colours.name: colours})


def evaluate(
    model: Any,
    images: EvalImages = IMAGES,
    networks: EvalNetworks | None = None,
    **changes: Any,
) -> GenerationEvaluation:
    checks = replace(GenerationChecks(pictures=10), **changes)
    return evaluate_generation(model, images, networks or by_colours(), checks)


def test_captions_are_painted_once_each_with_their_number_as_seed() -> None:
    model = Sampler()
    made = evaluate(model)
    chosen = draw_indices(len(SHADES), 10).tolist()
    assert model.asked == [([IMAGES.captions[i] for i in chosen], list(range(10)))]
    assert list(made.prompts) == model.asked[0][0]
    assert np.array_equal(made.pixels, np.stack([draw(SHADES[i] + 1) for i in chosen]))
    assert len(evaluate(Sampler(), pictures=100).prompts) == len(SHADES)


def test_the_sets_are_compared_with_the_real_pictures_of_the_same_captions() -> None:
    networks = by_colours()
    colours: Any = networks.extractor
    made = evaluate(Sampler(wrong=4), networks=networks)
    # Each side's features are computed once, for all that is measured.
    assert [len(pixels) for pixels in colours.seen] == [10, 10]
    assert np.array_equal(colours.seen[0], IMAGES.pixels[draw_indices(len(SHADES), 10).tolist()])
    real, painted = colours.extract(colours.seen[0]), colours.extract(made.pixels)
    expected = {
        "fid": compute_fid(real, painted),
        "kid": compute_kid(real, painted).value,
        "precision": compute_fraction_among(painted, real),
        "recall": compute_fraction_among(real, painted),
    }
    for kind, value in expected.items():
        metric = made.metrics[f"painted_{kind}_colours-mean"]
        assert metric.value == value
        assert metric.protocol.startswith(
            "colours-mean features (3, mean over places), 10 painted pictures against the 10 real "
            "ones of the same captions, all mine"
        )
    assert made.metrics["painted_recall_colours-mean"].protocol.endswith("; 3 neighbours")


def test_pictures_find_their_prompts_unless_they_are_wrong() -> None:
    right, wrong = evaluate(Sampler(), pmi_pictures=5), evaluate(Sampler(wrong=2), pmi_pictures=5)
    for name in ("retrieval_by_features", "retrieval_by_pmi"):
        assert right.metrics[name].value == 1.0
    assert wrong.metrics["retrieval_by_features"].value == pytest.approx(0.8)
    assert wrong.metrics["retrieval_by_pmi"].value == pytest.approx(0.6)
    assert right.metrics["retrieval_by_features"].protocol == (
        "share of 10 pictures whose own prompt is first of 10, chance 0.1; the prompt whose real "
        "picture is nearest, colours-mean features"
    )
    assert right.metrics["retrieval_by_pmi"].protocol == (
        "share of 5 pictures whose own prompt is first of 10, chance 0.1; pointwise mutual "
        "information by the model itself"
    )


def test_clip_ranks_if_it_is_given() -> None:
    class FakeClip:
        name = "mine"

        def score(self, pixels: Pixels, prompts: Sequence[str]) -> Tensor:
            return torch.eye(len(pixels))[:, : len(prompts)]

    metric = evaluate(Sampler(), clip=FakeClip()).metrics["retrieval_by_clip"]
    assert metric.value == 1.0
    assert metric.protocol.endswith("; cosine of picture and prompt, CLIP mine")
    assert "retrieval_by_clip" not in evaluate(Sampler()).metrics


def test_an_objective_without_likelihood_says_so() -> None:
    class Silent(Sampler):
        def score(self, images: Pixels, prompts: Sequence[str]) -> Scores:
            raise GenerationError("The objective has no likelihood.")

    made = evaluate(Silent(), pmi_pictures=5)
    assert made.left_out["retrieval_by_pmi"] == "The objective has no likelihood."
    assert made.metrics["retrieval_by_features"].value == 1.0


def test_equal_captions_leave_retrieval_out() -> None:
    same = EvalImages(IMAGES.pixels, ["gray 50"] * len(SHADES), "mine")
    made = evaluate(Sampler(), same, pmi_pictures=5)
    for name in ("retrieval_by_features", "retrieval_by_pmi"):
        assert made.left_out[name] == "It takes at least two different captions."
        assert name not in made.metrics
    assert "retrieval_by_clip" not in made.left_out


def test_copies_and_the_loss_gap_by_hand() -> None:
    """Painted is every shade + 1; training has every shade + 5, and two shades + 1.

    Two pictures are at 0, all others at 4 and more. The real pictures of those two are at 1, in
    two colours, so the limit is the root of 2.
    """
    chosen = draw_indices(len(SHADES), 10).tolist()
    copied = [SHADES[chosen[3]] + 1, SHADES[chosen[7]] + 1]
    training: Any = Training([*(shade + 5 for shade in SHADES), *copied])
    made = evaluate(Sampler(), training=training, pictures=10)
    assert "training picture than 1.414, percentile 1" in made.metrics["copy_rate"].protocol
    assert made.metrics["copy_rate"].value == pytest.approx(0.2)
    protocol = made.metrics["copy_rate"].protocol
    assert protocol.startswith("share of 10 painted pictures closer to a training picture than ")
    assert protocol.endswith(
        "percentile 1 of the distances of 10 real pictures, colours-mean features, 26 of the 26 "
        "training pictures"
    )
    assert len(made.pairs) == 10
    first, second, third = made.pairs[:3]
    captions = {first.prompt: first.caption, second.prompt: second.caption}
    assert captions == {made.prompts[i]: f"gray {s}" for i, s in zip((3, 7), copied, strict=True)}
    assert (first.distance, second.distance) == (0, 0)
    assert third.distance > 0
    assert np.array_equal(third.nearest, draw(int(third.caption.split()[1])))

    shades = np.array([*(shade + 5 for shade in SHADES), *copied])[draw_indices(26, 24)]
    assert made.metrics["loss_train"].value == pytest.approx(shades.mean())
    assert made.metrics["loss_held_out"].value == pytest.approx(np.mean(SHADES))
    assert made.metrics["loss_gap"].value == pytest.approx(np.mean(SHADES) - shades.mean())
    assert made.metrics["loss_train"].protocol == (
        "loss of brightness, first captions, mean over 24 training images"
    )


def test_what_is_missing_is_left_out_with_the_reason() -> None:
    none = EvalNetworks(missing="No weights.")
    made = evaluate(Sampler(), networks=none, missing_training="No pictures.")
    assert made.metrics == {}
    losses = dict.fromkeys(("loss_train", "loss_held_out", "loss_gap"), "No pictures.")
    reasons = {"retrieval_by_features": "No weights.", "copy_rate": "No pictures."}
    assert made.left_out == reasons | losses
    assert not made.pairs
    with_colours = evaluate(Sampler(), missing_training="No pictures.")
    assert with_colours.left_out == losses | {"copy_rate": "No pictures."}


def test_without_a_network_pixels_look_for_copies() -> None:
    """Of the shades 0, 10 and 20 the last is in training, ten levels from the second."""
    three = IMAGES.select([0, 1, 2])
    made = evaluate(Sampler(), three, EvalNetworks(), training=Training([20, 200]))
    protocol = made.metrics["copy_rate"].protocol
    assert "3 real pictures, pixels-32x32 features, 2 of the 2 training" in protocol
    first, second, third = (pair.distance for pair in made.pairs)
    assert first < 0.5 < second < third
    assert [pair.prompt for pair in made.pairs] == ["gray 20", "gray 10", "gray 0"]


def test_features_that_are_missing_are_left_out_with_the_reason() -> None:
    networks = EvalNetworks(features={"squeezenet-fire9": None}, missing="No weights.")
    made = evaluate(Sampler(), networks=networks)
    for kind in ("fid", "kid", "precision", "recall"):
        assert made.left_out[f"painted_{kind}_squeezenet-fire9"] == "No weights."


# The reason was once that training pictures are missing, though they were there.
def test_training_captions_that_are_too_long_are_the_reason_for_no_loss_gap() -> None:
    training: Any = Training(SHADES)
    training.captions = lambda index: ["a long one"]
    made = evaluate(Sampler(), training=training, missing_training="No pictures.")
    assert made.left_out["loss_gap"] == "No training caption is short enough for the model."


def test_few_pictures_make_no_set() -> None:
    made = evaluate(Sampler(), pictures=3)
    kinds = ("fid", "kid", "precision", "recall")
    for name in (f"painted_{kind}_colours-mean" for kind in kinds):
        assert made.left_out[name] == "It takes at least 4 pictures."


def test_captions_that_are_too_long_are_not_painted() -> None:
    captions = [c if i % 2 else f"long {c}" for i, c in enumerate(IMAGES.captions)]
    made = evaluate(Sampler(), replace(IMAGES, captions=captions), pictures=24)
    assert list(made.prompts) == captions[1::2]
    none = evaluate(Sampler(), replace(IMAGES, captions=["long"] * len(SHADES)))
    assert none.left_out == {"painted": "No caption is short enough for the model."}
    assert len(none.pixels) == 0


# A model that looks things up.

CAPTIONS = [f"red thing {number}" for number in range(6)]


class Memorised:
    """What a model with a memory learned from."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def pixels(self, indices: Any) -> Pixels:
        return self._pixels[np.asarray(indices)]

    def captions(self, index: int) -> list[str]:
        return [CAPTIONS[index]]

    def name(self, index: int) -> str:
        return f"{index}.png"


def watch(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> list[list[ImageRequest]]:
    """Lists what a model is asked to paint."""
    asked: list[list[ImageRequest]] = []
    paint = model.generate_images

    def note(requests: Sequence[ImageRequest], **words: Any) -> GeneratedImages:
        asked.append(list(requests))
        return paint(requests, **words)

    monkeypatch.setattr(model, "generate_images", note)
    return asked


def test_pictures_of_the_memory_are_painted_beside_others_and_without_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = draw_noise(6)
    model = remember(pixels, CAPTIONS)
    asked = watch(model, monkeypatch)
    # The last two are not in the memory.
    images = EvalImages(np.concatenate([pixels[:4], draw_noise(2, seed=1)]), CAPTIONS, "mine")
    made = evaluate(model, images)
    beside, plain = asked
    for number, request in enumerate(beside):
        looked_at = [one.index for one in request.examples or ()]
        assert len(looked_at) == 2
        assert (number in looked_at) is (number >= 4)
    assert [one.examples for one in plain] == [()] * 6
    assert [(one.prompt, one.seed) for one in plain] == [(o.prompt, o.seed) for o in beside]
    assert made.metrics["images_in_memory"].value == 4
    assert made.metrics["images_in_memory"].protocol == (
        "images whose codes are those of one of the 6 examples, mine; they find neither themselves "
        "nor near copies"
    )


def test_what_is_measured_without_the_memory_says_so() -> None:
    pixels = draw_noise(6)
    model = remember(pixels, CAPTIONS)
    training: Any = Memorised(pixels)
    images = EvalImages(draw_noise(6, seed=1), CAPTIONS, "mine")
    made = evaluate(model, images, training=training, pmi_pictures=2)
    names = (
        "painted_fid_colours-mean",
        "painted_kid_colours-mean",
        "retrieval_by_features",
        "loss_held_out",
    )
    for name in names:
        assert "; without examples" in made.metrics[f"{PLAIN}{name}"].protocol
        assert "beside at most 2 examples" in made.metrics[name].protocol
        assert "without examples" not in made.metrics[name].protocol
    kid = made.metrics["painted_kid_colours-mean"].value
    assert made.metrics[f"{PLAIN}painted_kid_colours-mean"].value != kid
    assert made.metrics["retrieval_by_pmi"].protocol.endswith("itself, without examples")
    assert {name for name in made.metrics if name.startswith(PLAIN)} == {PLAIN + n for n in names}
    # The same model without its memory has the same numbers, by their plain names.
    forgetful = model.with_parts()
    forgetful.examples.memory = None
    without = evaluate(forgetful, images, training=training)
    for name in names:
        assert without.metrics[name].value == made.metrics[f"{PLAIN}{name}"].value
    assert not [name for name in without.results if name.startswith((PLAIN, "neighbor"))]
    assert "images_in_memory" not in without.results


def test_copies_of_examples_stand_beside_those_of_training_pictures() -> None:
    pixels = draw_noise(6)
    model = remember(pixels, CAPTIONS)
    training: Any = Memorised(pixels)
    images = EvalImages(draw_noise(6, seed=1), CAPTIONS, "mine")
    made = evaluate(model, images, training=training)
    copies = [pair.example for pair in made.pairs]
    assert copies[:6] == [None] * 6
    assert set(copies[6:]) <= {f"{number}.png" for number in range(6)}
    assert len(copies) == 12
    told = made.describe_pairs()
    assert told["protocol"].startswith("copy_rate: share of 6 painted pictures closer to a ")
    assert "; neighbor_copy_rate: share of 6 painted pictures nearer to one of" in told["protocol"]
    assert [row["example"] for row in told["pairs"]] == copies
    assert all(row["is_copy"] == (row["distance"] < row["limit"]) for row in told["pairs"])

    # Without features and training pictures the examples are still there to compare with.
    alone = evaluate(model, images, EvalNetworks(missing="No weights."))
    assert alone.left_out["neighbor_copy_rate"] == alone.left_out["loss_gap"]
    assert [pair.limit for pair in alone.pairs] == [None] * 6
    assert alone.describe_pairs()["protocol"].startswith("neighbor_distance: median over 6 ")
