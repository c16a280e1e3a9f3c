"""Objectives: one file each, with a rule to learn and the rule to generate that belongs to it."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tessella.config import Settings
from tessella.objectives.any_order import AnyOrder
from tessella.objectives.autoregressive import Autoregressive
from tessella.objectives.base import (
    Generated,
    GenerationBatch,
    GenerationStep,
    Objective,
    ObjectiveLoss,
    OnStep,
)
from tessella.objectives.latent_mse import LatentMSE
from tessella.objectives.masked import Masked, MaskedSettings
from tessella.objectives.parallel import Parallel
from tessella.objectives.shared_latent import (
    SharedLatent,
    SharedLatentSettings,
    SharedLatentTransformer,
)
from tessella.transformer import Transformer, TransformerSettings, TransformerShape


class PlainObjectiveSettings(Settings):
    """An objective without settings of its own."""

    name: Literal["any_order", "autoregressive", "parallel", "latent_mse"] = "any_order"
    """The objective's name."""


AnyObjectiveSettings = PlainObjectiveSettings | MaskedSettings | SharedLatentSettings
ObjectiveSettings = Annotated[AnyObjectiveSettings, Field(discriminator="name")]

_OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (AnyOrder, Autoregressive, Masked, Parallel, LatentMSE, SharedLatent)
}


def create_objective(
    settings: AnyObjectiveSettings, transformer: Transformer, codebook: Tensor
) -> Objective:
    """Binds the objective that its settings name to a transformer and a codebook (M, K, C).

    Raises:
        ConfigError: the objective needs another kind of transformer.
    """
    return _OBJECTIVES[settings.name](transformer, codebook, settings)


def create_transformer(
    objective: AnyObjectiveSettings,
    settings: TransformerSettings,
    shape: TransformerShape,
    codebook: Tensor | None = None,
) -> Transformer:
    """Creates the untrained network that an objective learns with.

    Args:
        objective: what it learns.
        settings: its size.
        shape: what it must fit.
        codebook: (M, K, C) of the codes: similar codes begin with similar embeddings. None is
            enough for a network whose weights are loaded.

    Raises:
        ConfigError: the objective cannot learn from such texts.
    """
    is_shared = isinstance(objective, SharedLatentSettings)
    transformer = (SharedLatentTransformer if is_shared else Transformer)(settings, shape)
    if codebook is not None:
        transformer.embed_codebook(codebook)
    return transformer


__all__ = [
    "Generated",
    "GenerationBatch",
    "GenerationStep",
    "MaskedSettings",
    "Objective",
    "ObjectiveLoss",
    "ObjectiveSettings",
    "OnStep",
    "PlainObjectiveSettings",
    "SharedLatentSettings",
    "create_objective",
    "create_transformer",
]
