"""Objectives: one file is one rule to learn and the rule to generate that belongs to it."""

from typing import Annotated

from pydantic import Field

from tessella.objectives.any_order import AnyOrder, AnyOrderSettings
from tessella.objectives.autoregressive import Autoregressive, AutoregressiveSettings
from tessella.objectives.base import (
    GenerationRequest,
    GenerationSettings,
    GenerationStep,
    Objective,
    ObjectiveLoss,
    Painted,
    StepCallback,
)
from tessella.objectives.latent_mse import LatentMSE, LatentMSESettings
from tessella.objectives.masked import Masked, MaskedSettings
from tessella.objectives.parallel import Parallel, ParallelSettings
from tessella.objectives.shared_latent import (
    SharedLatent,
    SharedLatentSettings,
    SharedLatentTransformer,
)
from tessella.transformer import Transformer, TransformerSettings, TransformerShape

AnyObjectiveSettings = (
    AnyOrderSettings
    | AutoregressiveSettings
    | LatentMSESettings
    | MaskedSettings
    | ParallelSettings
    | SharedLatentSettings
)
ObjectiveSettings = Annotated[AnyObjectiveSettings, Field(discriminator="name")]


def create_objective(settings: AnyObjectiveSettings) -> Objective:
    """Creates the objective that its settings name."""
    match settings:
        case MaskedSettings():
            return Masked(settings)
        case SharedLatentSettings():
            return SharedLatent(settings)
        case AutoregressiveSettings():
            return Autoregressive()
        case ParallelSettings():
            return Parallel()
        case LatentMSESettings():
            return LatentMSE()
        case AnyOrderSettings():
            return AnyOrder()


def create_transformer(
    objective: AnyObjectiveSettings, settings: TransformerSettings, shape: TransformerShape
) -> Transformer:
    """Creates the untrained network that an objective learns with.

    Raises:
        ConfigError: the objective cannot learn from such texts.
    """
    if isinstance(objective, SharedLatentSettings):
        return SharedLatentTransformer(settings, shape)
    return Transformer(settings, shape)


__all__ = [
    "AnyObjectiveSettings",
    "AnyOrder",
    "AnyOrderSettings",
    "Autoregressive",
    "AutoregressiveSettings",
    "GenerationRequest",
    "GenerationSettings",
    "GenerationStep",
    "LatentMSE",
    "LatentMSESettings",
    "Masked",
    "MaskedSettings",
    "Objective",
    "ObjectiveLoss",
    "ObjectiveSettings",
    "Painted",
    "Parallel",
    "ParallelSettings",
    "SharedLatent",
    "SharedLatentSettings",
    "StepCallback",
    "create_objective",
    "create_transformer",
]
