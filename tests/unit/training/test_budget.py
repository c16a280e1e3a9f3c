"""`--minutes`: what fits, with a clock that the tests turn."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tessella.data.prepare import PreparedData, prepare
from tessella.data.settings import DataSettings
from tessella.errors import ConfigError
from tessella.model.pipeline import TextToImage
from tessella.text import TextSettings, TextTokenizer
from tessella.training import budget as budget_module
from tessella.training.budget import TrainingBudget, choose_preset, compute_budget
from tessella.training.loop import Pace, create_accelerator
from tessella.training.recipe import PRESETS, Recipe, resolve_recipe

TINY = [
    "data.image_size=16",
    "tokenizer.patch=2",
    "tokenizer.widths=[16,16]",
    "tokenizer.quantizer.codebook_size=16",
    "transformer.width=16",
    "transformer.depth=2",
    "transformer.heads=2",
]


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(budget_module, "time", made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    settings = DataSettings(image_size=16, validation_fraction=0.2, workers=1)
    return prepare(["scenes:40"], settings, tmp_path_factory.mktemp("plan") / "data")


# How large.


class Tokenizers:
    """Stand-ins for image tokenizers, each step of which takes the seconds of its size."""

    def __init__(self, clock: Clock, seconds: Mapping[str, float]) -> None:
        self.clock = clock
        self.seconds = {
            Recipe.model_validate(PRESETS[name]).tokenizer: taken for name, taken in seconds.items()
        }

    def __call__(self, settings: Any) -> Any:
        def step(image: torch.Tensor) -> Any:
            self.clock.now += self.seconds[settings]
            return SimpleNamespace(image=image.new_zeros(1, requires_grad=True))

        step.quantizer = torch.nn.Identity()  # type: ignore[attr-defined]
        return SimpleNamespace(to=lambda _: step)


@pytest.mark.parametrize(
    ("minutes", "expected"),
    # Worth it from 400,000 images in the tokenizer's 0.4 of the time. At batches of 32 in 0.1 s
    # `small` sees 400,000 in 1250 s of 3125 s; `base`, ten times slower, and `large`, a hundred
    # times, in 31,250 s and 312,500 s.
    [(1, "tiny"), (51, "tiny"), (53, "small"), (500, "small"), (530, "base"), (5300, "large")],
)
def test_the_largest_size_that_is_worth_it(
    minutes: float, expected: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Recipe().tokenizer_training.batch_size == 32
    monkeypatch.setattr(budget_module, "_FRACTIONS", {"tokenizer": 0.4, "transformer": 0.6})
    monkeypatch.setattr(
        budget_module,
        "VQAutoencoder",
        Tokenizers(clock, {"small": 0.1, "base": 1.0, "large": 10.0}),
    )
    assert choose_preset(minutes, create_accelerator("cpu"), "fp32") == expected


# The `large` preset was tried on any machine with enough time, and ended it where it does not fit.
def test_a_size_that_does_not_fit_into_memory_is_not_chosen(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Tokenizers(clock, {"small": 0.001})

    def create(settings: Any) -> Any:
        if settings in small.seconds:
            return small(settings)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(budget_module, "VQAutoencoder", create)
    assert choose_preset(1e6, create_accelerator("cpu"), "fp32") == "small"


def test_sizes_are_tried_in_the_run_s_precision(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizers, tried = Tokenizers(clock, {"small": 1e9}), []

    def create(settings: Any) -> Any:
        def step(image: torch.Tensor) -> Any:
            tried.append(torch.is_autocast_enabled("cpu"))
            return network(image)

        network = tokenizers(settings).to(None)
        step.quantizer = network.quantizer  # type: ignore[attr-defined]
        return SimpleNamespace(to=lambda _: step)

    monkeypatch.setattr(budget_module, "VQAutoencoder", create)
    for precision in ("fp32", "bf16"):
        choose_preset(1, create_accelerator("cpu"), precision)
    assert tried == [False, False, True, True]


# How long.


def plan(
    data: PreparedData,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    seconds_left: float,
    *words: str,
) -> Any:
    """A machine whose tokenizer's step takes 0.5 s, and transformer's 0.25 s."""

    def pace(stage: Any, *_: object) -> Pace:
        clock.now += 5
        step = {"tokenizer": 0.5, "transformer": 0.25}[stage.name]
        return Pace(step_seconds=step, evaluation_seconds=2.0)

    monkeypatch.setattr(budget_module, "_FRACTIONS", {"tokenizer": 0.4, "transformer": 0.6})
    monkeypatch.setattr(budget_module, "measure_pace", pace)
    monkeypatch.setattr(budget_module, "_measure_encoding", lambda *_: 0.25)
    monkeypatch.setattr(budget_module, "_measure_painting", lambda *_: 0.5)
    monkeypatch.setattr(budget_module, "count_pictures", lambda *_, **__: 20)
    text = TextTokenizer.train(data.train.all_captions(), TextSettings())
    recipe = resolve_recipe(None, None, [*TINY, *words])
    return compute_budget(recipe, seconds_left, data, text, text, create_accelerator("cpu"))


def test_all_that_is_left_to_do_fits(
    data: PreparedData, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1054 s: 10 to measure, 24 for twelve evaluations, 10 to encode 40, 10 to paint 20.

    1000 are left: 400 for 800 steps of the tokenizer, 600 for 2400 of the transformer.
    """
    made = plan(data, clock, monkeypatch, 1054.0)
    assert made.recipe.tokenizer_training.images == 800 * 32
    assert made.recipe.transformer_training.images == 2400 * 32
    assert made.recipe.tokenizer_training.evaluate_every_images == -(-800 * 32 // 6)
    assert made.seconds["tokenizer"] == pytest.approx(400 + 12)
    assert made.seconds["transformer"] == pytest.approx(600 + 12)
    assert made.other_seconds == pytest.approx(20)
    assert made.describe() == (
        "tokenizer 25,600 images (6.9 min), transformer 76,800 images (10.2 min), "
        "codes and evaluation 0.3 min. Of emoji so many images gave the right subject "
        "in two pictures of three; simpler pictures take fewer, photographs more."
    )


@pytest.mark.parametrize(
    ("images", "neighbors", "given"),
    [
        (15_999, 3, "colours and outlines"),
        (16_000, 1, "half of the pictures"),
        (47_999, 3, "half of the pictures"),
        (48_000, 3, "two pictures of three"),
        (79_999, 0, "colours and outlines"),
        (80_000, 0, "one picture of six"),
        (10_000_000, 0, "one picture of three"),
    ],
)
def test_a_plan_says_what_as_many_images_gave(images: int, neighbors: int, given: str) -> None:
    lengths = [f"transformer_training.images={images}", f"retrieval.neighbors={neighbors}"]
    made = TrainingBudget(resolve_recipe(None, None, lengths), {"transformer": 600.0}, 0.0)
    assert made.describe().endswith(f"{given}; simpler pictures take fewer, photographs more.")


def test_a_plan_for_the_tokenizer_alone_promises_no_pictures() -> None:
    words = ["transformer_training.images=0", "transformer_training.init_from=scenes"]
    made = TrainingBudget(resolve_recipe(None, None, words), {"tokenizer": 600.0}, 60.0)
    assert made.describe().endswith("codes and evaluation 1.0 min.")


def test_what_does_not_train_takes_no_time(
    data: PreparedData, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A palette is chosen, and a part with 0 images stays as it is: the other has all the time."""
    palette = (
        "tokenizer.network=palette",
        "tokenizer.quantizer.code_width=3",
        "tokenizer.quantizer.normalize=false",
    )
    # 5 to measure, 12 for six evaluations, 10 to encode 40, 10 to paint 20; 1000 are left.
    made = plan(data, clock, monkeypatch, 1037.0, *palette)
    assert made.recipe.transformer_training.images == 4000 * 32
    assert made.recipe.tokenizer_training == resolve_recipe(None, None, TINY).tokenizer_training
    assert made.describe().startswith("transformer 128,000 images (16.9 min), codes")
    kept = ("transformer_training.images=0", "transformer_training.init_from=elsewhere")
    made = plan(data, clock, monkeypatch, 1037.0, *kept)
    assert made.recipe.tokenizer_training.images == 2000 * 32
    assert made.recipe.transformer_training.images == 0


def test_all_but_the_lengths_is_kept(
    data: PreparedData, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve_recipe(None, None, TINY)
    made = plan(data, clock, monkeypatch, 1054.0).recipe
    lengths = {"images", "evaluate_every_images"}
    for name in Recipe.model_fields:
        before, after = getattr(asked, name), getattr(made, name)
        if name.endswith("_training"):
            same = dict.fromkeys(lengths)
            before, after = (settings.model_dump() | same for settings in (before, after))
        assert after == before, name


def test_looking_up_takes_time(
    data: PreparedData, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice 0.5 s for each of 40 images' captions: 40 s less to train than without examples."""
    monkeypatch.setattr(budget_module, "_measure_lookup", lambda *_: 0.5)
    made = plan(data, clock, monkeypatch, 1094.0, "retrieval.neighbors=2")
    captions = sum(len(data.train.captions(n)) for n in range(len(data.train)))
    assert made.other_seconds == pytest.approx(20 + 40 * captions / len(data.train))
    assert made.recipe.retrieval.neighbors == 2


def test_too_short_a_time_is_refused(
    data: PreparedData, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"too short to train anything: 40 seconds are left .* at least 1 more --minutes",
    ):
        plan(data, clock, monkeypatch, 50.0)


def test_a_time_for_blurs_says_how_long_pictures_take(
    data: PreparedData, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three minutes once ended in noise, and in the words of a success.

    100 seconds train: 40 for 2,560 images of the tokenizer, 60 for 7,680 of the transformer. For
    10,000 of each they take (40 + 12) · 3.90625 and (60 + 12) · 1.302, and 20 for the rest: 317.
    """
    made = plan(data, clock, monkeypatch, 154.0)
    assert made.recipe.tokenizer_training.images == 2560
    assert made.describe().endswith(" Pictures will be blurry at best; allow about 6 minutes.")


# What was painted to measure it was too long for a model that reads very short prompts.
def test_a_model_of_short_prompts_is_measured(data: PreparedData) -> None:
    text = TextTokenizer.train([], TextSettings(max_tokens=4))
    model = TextToImage.create(resolve_recipe(None, None, TINY).describe_model(), text)
    assert budget_module._measure_painting(model) > 0


@pytest.mark.parametrize("neighbors", [0, 2])
def test_a_real_machine_is_measured(
    neighbors: int, data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget_module, "_MEASURE_SECONDS", 0.01)
    text = TextTokenizer.train(data.train.all_captions(), TextSettings())
    words = [*TINY, "tokenizer_training.batch_size=4", "transformer_training.batch_size=4"]
    words += [f"retrieval.neighbors={neighbors}"]
    recipe = resolve_recipe(None, None, words)
    made = compute_budget(recipe, 10_000.0, data, text, text, create_accelerator("cpu"))
    for training in (made.recipe.tokenizer_training, made.recipe.transformer_training):
        assert training.images > 100
        assert training.images % 4 == 0
    total = sum(made.seconds.values()) + made.other_seconds
    assert 9_000 < total <= 10_000
