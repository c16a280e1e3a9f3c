"""The recipe: what wins over what, and that every preset can be built."""

import logging
from pathlib import Path

import pytest
import torch

from tessella import config
from tessella.errors import ConfigError
from tessella.model.pipeline import TextToImage
from tessella.objectives import MaskedSettings, PlainObjectiveSettings, SharedLatentSettings
from tessella.text import TextSettings, TextTokenizer
from tessella.tokenizer import FiniteScalarSettings, count_latent_channels
from tessella.training.recipe import (
    DEFAULT_PRESET,
    PRESETS,
    Recipe,
    resolve_recipe,
)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_networks(name: str) -> None:
    recipe = resolve_recipe(name)
    text = TextTokenizer.train(["a red star"], TextSettings())
    with torch.device("meta"):
        model = TextToImage.create(recipe.describe_model(), text)
        size = recipe.data.image_size
        latent = model.tokenizer.encoder(torch.empty(2, 3, size, size))
        image = model.tokenizer.decoder(latent)
    height, width = model.config.grid
    assert latent.shape == (2, count_latent_channels(recipe.tokenizer.quantizer), height, width)
    assert image.shape == (2, 3, size, size)
    assert model.transformer.shape.num_positions == height * width
    assert model.transformer.shape.codebook_size == recipe.tokenizer.quantizer.codebook_size


def test_the_report_s_preset_is_the_report_s() -> None:
    recipe = resolve_recipe("report2021")
    assert recipe.data.image_size == 128
    assert recipe.describe_model().grid == (16, 16)
    assert recipe.tokenizer.network == "report2021"
    assert recipe.tokenizer.nhid == 256
    assert recipe.tokenizer.quantizer.codebook_size == 512
    assert recipe.tokenizer_training.loss.mse == 1.0
    assert recipe.tokenizer_training.loss.l1 == 0.0
    assert recipe.objective.name == "latent_mse"


def test_the_later_wins(tmp_path: Path) -> None:
    """Default, preset, file, word: each time one layer more."""
    default = Recipe().transformer.depth
    small = PRESETS["small"]["transformer"]["depth"]
    assert len({default, small, 6, 2}) == 4
    file = tmp_path / "mine.toml"
    file.write_text("[transformer]\ndepth = 6\n")

    assert resolve_recipe() == resolve_recipe(DEFAULT_PRESET)
    assert resolve_recipe().transformer.depth == default
    assert resolve_recipe("small").transformer.depth == small
    recipe = resolve_recipe("small", file)
    assert recipe.transformer.depth == 6
    assert recipe.transformer.width == PRESETS["small"]["transformer"]["width"]
    words = ["transformer.depth=4", "transformer.depth=2"]
    assert resolve_recipe("small", file, words).transformer.depth == 2


def test_a_file_may_name_a_preset_and_the_command_line_another(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "small"\n[transformer]\ndepth = 6\n')
    assert resolve_recipe(None, file) == resolve_recipe("small", None, ["transformer.depth=6"])
    assert resolve_recipe("base", file) == resolve_recipe("base", None, ["transformer.depth=6"])


def test_an_objective_is_named_by_a_word(tmp_path: Path) -> None:
    any_order = PlainObjectiveSettings(name="any_order")
    latent_mse = PlainObjectiveSettings(name="latent_mse")
    assert Recipe().objective == any_order
    for words in (["objective=latent_mse"], ["objective.name=latent_mse"]):
        assert resolve_recipe(None, None, words).objective == latent_mse
    # Over a preset that has one, and from a file.
    words = ["objective=any_order"]
    assert resolve_recipe("report2021", None, words).objective == any_order
    file = tmp_path / "mine.toml"
    file.write_text('preset = "report2021"\nobjective = "any_order"\n')
    assert resolve_recipe(None, file).objective == any_order


def test_naming_another_objective_drops_the_settings_of_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[objective]\nname = "shared_latent"\ntext_weight = 0.5\n')
    assert resolve_recipe(None, file).objective == SharedLatentSettings(text_weight=0.5)
    words = ["objective=shared_latent"]  # the same one: its settings stay
    assert resolve_recipe(None, file, words).objective == SharedLatentSettings(text_weight=0.5)
    for name in ("parallel", "masked"):
        for word in (f"objective={name}", f"objective.name={name}"):
            objective = resolve_recipe(None, file, [word]).objective
            expected = MaskedSettings() if name == "masked" else PlainObjectiveSettings(name=name)
            assert objective == expected
    with pytest.raises(ConfigError, match=r"`objective\.text_weight` belongs to another kind"):
        resolve_recipe(None, None, ["objective=masked", "objective.text_weight=0.5"])


def test_a_quantizer_is_named_by_a_word(tmp_path: Path) -> None:
    """Over a preset that has settings of another kind, in any order of the words."""
    for words in (
        ["tokenizer.quantizer=fsq", "tokenizer.quantizer.levels=[8,5,5,5]"],
        ["tokenizer.quantizer.levels=[8,5,5,5]", "tokenizer.quantizer.name=fsq"],
    ):
        quantizer = resolve_recipe("base", None, words).tokenizer.quantizer
        assert quantizer == FiniteScalarSettings(levels=(8, 5, 5, 5))
        assert quantizer.codebook_size == 1000
    with pytest.raises(
        ConfigError, match=r"`tokenizer\.quantizer\.levels` belongs to another kind"
    ):
        resolve_recipe("base", None, ["tokenizer.quantizer.levels=[8,8,8]"])
    # A file's settings of the old kind are dropped too, whatever the preset says.
    file = tmp_path / "mine.toml"
    file.write_text("[tokenizer.quantizer]\ncodebook_size = 64\n")
    for name in ("tiny", "small", "base", "large"):
        recipe = resolve_recipe(name, file, ["tokenizer.quantizer=fsq"])
        assert recipe.tokenizer.quantizer == FiniteScalarSettings()
    quantizer = resolve_recipe("base", None, ["tokenizer.quantizer=vq"]).tokenizer.quantizer
    assert quantizer.codebook_size == 1024


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "transformer.depht=8",
            "Unknown setting `transformer.depht`; did you mean `transformer.depth`?",
        ),
        ("tokeniser.patch=2", "Unknown setting `tokeniser`; did you mean `tokenizer`?"),
        ("depth=8", "Unknown setting `depth`; did you mean `transformer.depth`?"),
        (
            "tokenizer.quantizer.codebok_size=8",
            "Unknown setting `tokenizer.quantizer.codebok_size`; did you mean "
            "`tokenizer.quantizer.codebook_size`?",
        ),
        (
            "tokenizer_training.optimizer.momentun=0.9",
            "Unknown setting `tokenizer_training.optimizer.momentun`; did you mean "
            "`tokenizer_training.optimizer.momentum`?",
        ),
        (
            "transformer.depth=3",
            "Setting `transformer.depth`: got: `3`; input should be a multiple of 2.",
        ),
    ],
)
def test_what_is_unknown_or_out_of_range(word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_recipe(None, None, [word])
    assert str(caught.value).startswith(said.removesuffix("?"))


def test_an_unknown_objective_names_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"`objective`.*'any_order', 'autoregressive', 'parallel', .*'masked'"
    ):
        resolve_recipe(None, None, ["objective=gan"])


@pytest.mark.parametrize("preset", ['"huge"', '["small"]'])
def test_an_unknown_preset_names_the_known_ones(tmp_path: Path, preset: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"preset = {preset}\n")
    with pytest.raises(ConfigError, match=r"Unknown preset: `.*`\. Known are: tiny, small, base"):
        resolve_recipe(None, file)


def test_what_a_model_needs_is_in_its_description() -> None:
    recipe = resolve_recipe("base", None, ["generation.steps=9", "objective=latent_mse"])
    described = recipe.describe_model()
    assert described.image_size == recipe.data.image_size
    assert described.tokenizer == recipe.tokenizer
    assert described.transformer == recipe.transformer
    assert described.objective == recipe.objective
    assert described.generation.steps == 9


def test_a_recipe_survives_its_own_file() -> None:
    """Saved as JSON and read back: what resuming stands on."""
    for name in PRESETS:
        recipe = resolve_recipe(name)
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


# Settings that were renamed.

OLD, NEW = "transformer_training.start_from", "transformer_training.init_from"
WARNING = "Setting `start_from` is now called `init_from`."


@pytest.fixture
def unwarned() -> None:
    config._warn_of_old_name.cache_clear()


@pytest.mark.usefixtures("unwarned")
def test_an_old_name_in_a_file_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[transformer_training]\nstart_from = "runs/old"\n')
    expected = resolve_recipe(None, None, [f"{NEW}=runs/old"])
    assert not caplog.messages
    for _ in range(2):  # a command may read its settings more than once, and says so once
        assert resolve_recipe(None, file) == expected
    assert caplog.messages == [WARNING]


@pytest.mark.usefixtures("unwarned")
def test_an_old_name_in_a_word_is_read(caplog: pytest.LogCaptureFixture) -> None:
    recipe = resolve_recipe(None, None, [f"{OLD}=word", "transformer_training.flips=true"])
    assert recipe.transformer_training.init_from == "word"
    assert recipe.transformer_training.flips
    assert caplog.messages == [WARNING]


def test_old_names_in_a_run_s_recipe_are_read() -> None:
    recipe = resolve_recipe(None, None, [f"{NEW}=runs/old"])
    values = recipe.model_dump(mode="json")
    for section in ("tokenizer_training", "transformer_training"):
        values[section]["start_from"] = values[section].pop("init_from")
    assert config.build(Recipe, values) == recipe


def test_old_and_new_name_together_are_refused(tmp_path: Path) -> None:
    """In one table nobody can say which one counts; otherwise the later wins, as always."""
    file = tmp_path / "mine.toml"
    file.write_text('[transformer_training]\nstart_from = "b"\n')
    for words, expected in (([f"{NEW}=a"], "a"), ([f"{NEW}=a", f"{OLD}=c"], "c"), ([], "b")):
        assert resolve_recipe(None, file, words).transformer_training.init_from == expected
    file.write_text('[transformer_training]\nstart_from = "b"\ninit_from = "b"\n')
    with pytest.raises(ConfigError, match=rf"Unknown setting `{OLD}`; did you mean `{NEW}`\?"):
        resolve_recipe(None, file, [])


@pytest.mark.usefixtures("unwarned")
def test_the_warning_goes_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the log: a program that uses tessella may send it elsewhere."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    resolve_recipe(None, None, [f"{OLD}=runs/old"])
    assert capsys.readouterr() == ("", f"{WARNING}\n")
