"""What a call of `fit` asks for, and the recipe and precision that its run therefore follows."""

import functools
import math
import numbers
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tessella.config import read_config
from tessella.errors import ConfigError
from tessella.model.find import find_model, find_tokenizer, pin
from tessella.model.request import MAX_SEED
from tessella.precision import PrecisionChoice
from tessella.runs import record
from tessella.training.budget import choose_preset
from tessella.training.precision import choose_precision, settle_precision
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.run_folder import open_run
from tessella.training.start import find_run, read_start, read_tokenizer


@dataclass(frozen=True)
class FitRequest:
    """What a call of `fit` asks for."""

    sources: Sequence[str]  # DATA
    out: Path  # the run's folder
    start_from: str | None = None  # a run or model whose weights and settings it begins with
    tokenizer: str | None = None  # a finished image tokenizer, which stays as it is
    preset: str | None = None  # None: the default, or with `minutes` the largest that is worth it
    config_file: Path | None = None
    assignments: Sequence[str] | Mapping[str, Any] = ()  # section.key=value, or values by name
    minutes: float | None = None  # how long the run may take; None keeps the recipe's lengths
    seed: int = 0
    device: str = "auto"
    stage: Literal["all", "tokenizer", "transformer"] = "all"
    trackers: Sequence[str] = ()  # where metrics go too: see `training/trackers.py`

    def __post_init__(self) -> None:
        """Refuses what is wrong by itself, before anything is begun.

        Raises:
            ConfigError: minutes, seed or settings are not what they should be; or a model to go on
                from has an image tokenizer of its own.
        """
        if self.tokenizer is not None and self.start_from is not None:
            raise ConfigError(
                f"The model to go on from has its own image tokenizer: `{self.start_from}` beside "
                f"`{self.tokenizer}`. Leave out --tokenizer or --from."
            )
        if isinstance(self.assignments, str):
            raise ConfigError(
                f"Settings are values by name, not one text: `{self.assignments}`. Write "
                '{"transformer.depth": 8}.'
            )
        if self.minutes is not None:
            object.__setattr__(self, "minutes", _read_minutes(self.minutes))
        object.__setattr__(self, "seed", _read_seed(self.seed))

    def describe(self) -> dict[str, Any]:
        """Returns, as plain values, what has to stay the same for a run to be resumed."""
        start, finished = self.start, self.finished_tokenizer
        words = (self.config_file, self.assignments)
        recipe = resolve_recipe(self.preset, *words, start, finished)
        return {
            "minutes": self.minutes,
            "seed": self.seed,
            "recipe": recipe.model_dump(mode="json"),
            **({} if start is None else {"from": self.start_from, "start": start}),
            **({} if finished is None else {"tokenizer": self.tokenizer, "finished": finished}),
        }

    @functools.cached_property
    def start(self) -> dict[str, Any] | None:
        """The settings that the run goes on from; None if it begins anew.

        Raises:
            CheckpointError: the model cannot be read.
        """
        return self._find_noted("from", self.start_from, "start", read_start)

    @property
    def run_before(self) -> Path | None:
        """The run that this one goes on from, whose pictures and codes it may copy, if any."""
        return None if self.start_from is None else find_run(self.start_from)

    @functools.cached_property
    def finished_tokenizer(self) -> dict[str, Any] | None:
        """The settings of the image tokenizer that stays as it is; None if the run trains one.

        Raises:
            CheckpointError: it cannot be read.
        """
        return self._find_noted("tokenizer", self.tokenizer, "finished", read_tokenizer)

    def _find_noted(
        self, name: str, model: str | None, values: str, read: Callable[[str], dict[str, Any]]
    ) -> dict[str, Any] | None:
        """Finds what a model's settings are, unless none is named.

        A run that has begun has noted them: the model may be gone, or another by now.
        """
        if model is None:
            return None
        run_file = self.out / record.RUN_FILE
        asked = read_config(run_file).get("asked", {}) if run_file.is_file() else {}
        return dict(asked[values]) if asked.get(name) == model else read(model)


def _read_minutes(minutes: Any) -> float:
    """Returns minutes in which something can be done; a program may pass anything."""
    is_number = isinstance(minutes, numbers.Real)  # NumPy's, too
    if not is_number or not 0 < float(minutes) < math.inf:
        told = f"{float(minutes):g}" if is_number else minutes
        raise ConfigError(
            f"Minutes must be a number above 0: `{told}`. Leave them out to train as long as "
            "the settings say."
        )
    return minutes if type(minutes) in (int, float) else float(minutes)  # told as it was given


def _read_seed(seed: Any) -> int:
    """Returns a seed of the range that the command takes."""
    try:
        number = operator.index(seed)  # NumPy's integers, too
    except TypeError:
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise ConfigError(f"A seed must be a whole number from 0 to {MAX_SEED}: `{seed}`.")
    return number


@dataclass(frozen=True)
class ResolvedRun:
    """What a run follows."""

    recipe: Recipe  # of a new run as it was asked for: not all is decided yet
    is_new: bool
    precision: PrecisionChoice

    @property
    def reasons(self) -> dict[str, str]:
        """Setting → why it was chosen, for run.json."""
        return {"precision": self.precision.why}


def resolve_run(request: FitRequest, accelerator: Accelerator) -> ResolvedRun:
    """Finds the recipe and the precision that a run follows, and whether the run is new.

    Only a new run is measured: a resumed one has to end as if it had never stopped.

    Raises:
        CheckpointError: the run has another format, or the hub lacks a model to start from.
        ConfigError: the run began with other settings, or the folder holds something else.
    """
    recipe = open_run(request.out, request.describe())
    if recipe is not None:
        name = settle_precision(recipe.precision, accelerator.device)
        choice = PrecisionChoice(name, "as the run began")
        return ResolvedRun(recipe.replace(precision=name), False, choice)
    preset = request.preset
    words, start = (request.config_file, request.assignments), request.start
    finished = request.finished_tokenizer
    recipe = resolve_recipe(preset, *words, start, finished)
    # Each process has measured; one decides.
    choice = broadcast_object_list([choose_precision(recipe.precision, accelerator.device)])[0]
    is_free = preset is None and request.config_file is None and not (start or finished)
    if request.minutes is not None and is_free:
        preset = choose_preset(request.minutes, accelerator, choice.name)
        preset = broadcast_object_list([preset])[0]
        recipe = resolve_recipe(preset, *words)
    recipe = broadcast_object_list([_pin_models(recipe)])[0]
    return ResolvedRun(recipe, True, choice)


def _pin_models(recipe: Recipe) -> Recipe:
    """Names the versions of the models on the hub that the stages start from.

    A run that is resumed starts from the same ones, whatever was pushed meanwhile.
    """
    stages = {"tokenizer_training": find_tokenizer, "transformer_training": find_model}
    for name, find in stages.items():
        settings = getattr(recipe, name)
        if settings.init_from is not None:
            settings = settings.replace(init_from=pin(settings.init_from, find))
            recipe = recipe.replace(**{name: settings})
    return recipe
