"""The recipe: every setting of a run in one tree, from defaults, a preset, a file and `--set`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator

from tessella.config import Settings, build, merge, parse_assignments, read_config
from tessella.data.settings import DataSettings
from tessella.errors import ConfigError
from tessella.generation import GenerationSettings
from tessella.model.folder import ModelConfig
from tessella.objectives import ObjectiveSettings, PlainObjectiveSettings
from tessella.retrieval import RetrievalSettings
from tessella.text import TextSettings
from tessella.tokenizer import TokenizerSettings
from tessella.training.precision import PrecisionSetting
from tessella.training.tokenizer_stage import TokenizerTrainingSettings
from tessella.training.transformer_stage import TransformerTrainingSettings
from tessella.transformer import TransformerSettings

_LATER_SETTINGS = {
    "tokenizer": {
        "attention": "coarsest",
        "latent_width": None,
        "pixel_range": "signed",
        "origin": None,
        "licence": None,
    }
}


class Recipe(Settings):
    """All settings of a run."""

    precision: PrecisionSetting = "auto"
    """What both stages train in: `fp32`, or `bf16`, which rounds matrix products and convolutions
    and keeps weights in fp32. `auto` is bf16 on CUDA; on a CPU whichever a new run measures to be
    faster, bf16 if it is at least 1.2 times as fast; fp32 elsewhere. A run keeps what it began
    with."""
    data: DataSettings = DataSettings()
    """How captioned images are read, cached and split."""
    text: TextSettings = TextSettings()
    """How captions become tokens."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    """The image tokenizer's network."""
    tokenizer_training: TokenizerTrainingSettings = TokenizerTrainingSettings()
    """How the image tokenizer trains."""
    transformer: TransformerSettings = TransformerSettings()
    """The transformer's size."""
    retrieval: RetrievalSettings = RetrievalSettings()
    """Pictures that are looked up beside the prompt."""
    objective: ObjectiveSettings = PlainObjectiveSettings()
    """What the transformer learns; `--set objective=latent_mse` names another."""
    transformer_training: TransformerTrainingSettings = TransformerTrainingSettings()
    """How the transformer trains."""
    generation: GenerationSettings = GenerationSettings()
    """How the model paints unless told otherwise."""

    @field_validator("objective", mode="before")
    @classmethod
    def _name_is_enough(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def select(self, sections: Iterable[str]) -> dict[str, Any]:
        """Lists the plain values of sections, for a fingerprint that older versions share.

        Settings that came later are left out at their defaults.
        """
        values = self.model_dump(mode="json", include=set(sections))
        for section in _LATER_SETTINGS.keys() & values.keys():
            for name, default in _LATER_SETTINGS[section].items():
                if values[section][name] == default:
                    del values[section][name]
        return values

    def describe_model(self) -> ModelConfig:
        """Returns the part of the recipe that the model needs to be loaded again.

        While `retrieval.neighbors` is not decided yet, it is of a model without examples.
        """
        return ModelConfig(
            image_size=self.data.image_size,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            objective=self.objective,
            neighbors=0 if self.retrieval.neighbors == "auto" else self.retrieval.neighbors,
            generation=self.generation,
        )


PRESETS: Mapping[str, dict[str, Any]] = read_config(Path(__file__).with_name("presets.toml"))
"""Sizes by name; what they leave out is as in `Recipe`."""

DEFAULT_PRESET = "tiny"


def resolve_recipe(
    preset: str | None = None,
    config_file: Path | None = None,
    assignments: Iterable[str] | Mapping[str, Any] = (),
    start: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
) -> Recipe:
    """Joins defaults, a preset, a file and single settings; later ones win.

    Args:
        preset: a name of `PRESETS`; a file may name one too, as `preset = "small"`.
        config_file: TOML, or the same as JSON.
        assignments: words such as `transformer.depth=8`, or a table of values.
        start: values instead of a preset's, from `read_start`.
        tokenizer: values of a finished image tokenizer, from `read_tokenizer`: they go before a
            file's, but for the size of the pictures.

    Raises:
        ConfigError: a setting or preset is unknown or out of range, or the file unreadable.
    """
    values = read_config(config_file) if config_file else {}
    named = values.pop("preset", None)
    if start is not None:
        if preset or named:
            raise ConfigError(
                "A run that goes on from a model has its sizes, not those of a preset: "
                f"`{preset or named}`. Leave the preset out, or --from."
            )
        return build(Recipe, merge(merge(start, values), parse_assignments(assignments)))
    preset = preset or named or DEFAULT_PRESET
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"Unknown preset: `{preset}`. Known are: {', '.join(PRESETS)}.")
    if tokenizer is None:
        values = merge(PRESETS[preset], values)
    else:
        values = merge(merge(PRESETS[preset], {"data": tokenizer["data"]}), values)
        values = merge(values, {**tokenizer, "data": {}})
    return build(Recipe, merge(values, parse_assignments(assignments)))
