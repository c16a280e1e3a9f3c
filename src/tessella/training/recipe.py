"""The recipe: every setting of a run in one tree, from defaults, a preset, a file and `--set`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import field_validator

from tessella.config import Settings, build, merge, parse_assignments, read_config
from tessella.data.settings import DataSettings
from tessella.errors import ConfigError
from tessella.model.folder import ModelConfig
from tessella.objectives import GenerationSettings, ObjectiveSettings, PlainObjectiveSettings
from tessella.text import TextSettings
from tessella.tokenizer import TokenizerSettings
from tessella.training.tokenizer_stage import TokenizerTrainingSettings
from tessella.training.transformer_stage import TransformerTrainingSettings
from tessella.transformer import TransformerSettings


class Recipe(Settings):
    """All settings of a run."""

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

    def describe_model(self) -> ModelConfig:
        """Returns the part of the recipe that the model needs to be loaded again."""
        return ModelConfig(
            image_size=self.data.image_size,
            tokenizer=self.tokenizer,
            transformer=self.transformer,
            objective=self.objective,
            generation=self.generation,
        )


_VQ = {"name": "vq"}  # in every preset, so that naming another kind drops this one's settings
_WIDE_CODES = _VQ | {"code_width": 256, "normalize": False}

PRESETS: Mapping[str, dict[str, Any]] = {
    # 64×64 pixels, 8×8 codes: a laptop.
    "tiny": {"tokenizer": {"quantizer": _VQ}},
    # 128×128 pixels, 16×16 codes: a laptop overnight, any GPU.
    "small": {
        "data": {"image_size": 128},
        "tokenizer": {"widths": [96, 192], "blocks": 2, "quantizer": _VQ},
        "transformer": {"width": 256, "depth": 8, "heads": 8},
    },
    # 128×128 pixels, 16×16 codes of 1024: one GPU.
    "base": {
        "data": {"image_size": 128},
        "tokenizer": {
            "widths": [128, 448],
            "blocks": 2,
            "quantizer": _VQ | {"codebook_size": 1024},
        },
        "transformer": {"width": 512, "depth": 12, "heads": 8},
    },
    # 256×256 pixels, 16×16 codes of 4096: a large GPU.
    "large": {
        "data": {"image_size": 256},
        "tokenizer": {
            "widths": [128, 256, 512],
            "blocks": 2,
            "quantizer": _VQ | {"codebook_size": 4096},
        },
        "transformer": {"width": 1024, "depth": 24, "heads": 16, "dropout": 0.1},
    },
    # The founding report's pair: its tokenizer, its objective.
    "report2021": {
        "data": {"image_size": 128},
        "tokenizer": {"network": "report2021", "quantizer": _WIDE_CODES | {"codebook_size": 512}},
        "objective": {"name": "latent_mse"},
        "transformer": {"width": 256, "depth": 8, "heads": 8},
    },
    # VQGAN's network for 8 pixels a code (Taming Transformers), to compare with: one large GPU.
    "taming": {
        "data": {"image_size": 128},
        "tokenizer": {
            "network": "taming",
            "widths": [128, 128, 256, 512],
            "blocks": 2,
            "quantizer": _WIDE_CODES | {"codebook_size": 1024},
        },
        "transformer": {"width": 512, "depth": 12, "heads": 8},
    },
    # Image GPT's way: 32×32 pixels, each one of 512 colours.
    "palette": {
        "data": {"image_size": 32},
        "tokenizer": {
            "network": "palette",
            "quantizer": _VQ | {"code_width": 3, "normalize": False, "learning": "ema"},
        },
    },
}
"""Sizes by name; what they leave out is as in `Recipe`."""

DEFAULT_PRESET = "tiny"


def resolve_recipe(
    preset: str | None = None,
    config_file: Path | None = None,
    assignments: Iterable[str] = (),
) -> Recipe:
    """Joins defaults, a preset, a file and single settings; later ones win.

    Args:
        preset: a name of `PRESETS`; a file may name one too, as `preset = "small"`.
        config_file: TOML, or the same as JSON.
        assignments: words such as `transformer.depth=8`.

    Raises:
        ConfigError: a setting or preset is unknown or out of range, or the file unreadable.
    """
    values = read_config(config_file) if config_file else {}
    named = values.pop("preset", None)
    preset = preset or named or DEFAULT_PRESET
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError(f"Unknown preset: `{preset}`. Known are: {', '.join(PRESETS)}.")
    values = merge(merge(PRESETS[preset], values), parse_assignments(assignments))
    return build(Recipe, values)
