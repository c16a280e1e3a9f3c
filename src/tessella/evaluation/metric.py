"""A number with the protocol that makes it comparable."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number, and how it was measured."""

    value: float
    protocol: str  # on which pictures, how many, with which settings
