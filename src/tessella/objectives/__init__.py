"""Objectives: one file is one rule to learn and the rule to generate that belongs to it."""

from typing import Annotated

from pydantic import Field

from tessella.objectives.any_order import AnyOrder, AnyOrderSettings
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

ObjectiveSettings = Annotated[AnyOrderSettings | LatentMSESettings, Field(discriminator="name")]


def create_objective(settings: AnyOrderSettings | LatentMSESettings) -> Objective:
    """Creates the objective that its settings name."""
    if isinstance(settings, LatentMSESettings):
        return LatentMSE()
    return AnyOrder()


__all__ = [
    "AnyOrder",
    "AnyOrderSettings",
    "GenerationRequest",
    "GenerationSettings",
    "GenerationStep",
    "LatentMSE",
    "LatentMSESettings",
    "Objective",
    "ObjectiveLoss",
    "ObjectiveSettings",
    "Painted",
    "StepCallback",
    "create_objective",
]
