"""A number with the protocol that makes it comparable, or the reason why it is missing."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number, and how it was measured."""

    value: float
    protocol: str  # on which pictures, how many, with which settings


Results = dict[str, Metric | str]
"""By name a metric, or the reason why it was left out."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    results: Mapping[str, Metric | str]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The numbers by name."""
        return {name: each for name, each in self.results.items() if isinstance(each, Metric)}

    @property
    def left_out(self) -> dict[str, str]:
        """The reasons for those that are missing."""
        return {name: each for name, each in self.results.items() if isinstance(each, str)}
