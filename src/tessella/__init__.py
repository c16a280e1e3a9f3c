"""tessella trains a text-to-image model on your own captioned images, and paints from it.

    import tessella

    model = tessella.load()  # the bundled model; or tessella.load("runs/stickers/model")
    [image] = model.generate("a large red star on a navy background", seed=7)
    image.save("star.png")

    model = tessella.fit("pictures", out="runs/mine", minutes=20)  # your own

Importing this package is cheap: torch is imported only when something needs it.
"""

import importlib as _importlib
from collections.abc import Mapping as _Mapping
from collections.abc import Sequence as _Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessella.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GenerationError,
    ShapeError,
    TessellaError,
)
from tessella.model.find import DEFAULT_MODEL as _DEFAULT_MODEL

if TYPE_CHECKING:
    from tessella.model.image_tokenizer import ImageTokenizer
    from tessella.model.pipeline import TextToImage
    from tessella.precision import PaintingPrecision as _PaintingPrecision
    from tessella.training.callbacks import Callback, TrainingEvent
    from tessella.training.interrupt import TrainingStopped

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GenerationError",
    "ImageTokenizer",
    "ShapeError",
    "TessellaError",
    "TextToImage",
    "TrainingEvent",
    "TrainingStopped",
    "__version__",
    "fit",
    "load",
]

_LATE = {
    "Callback": "tessella.training.callbacks",
    "ImageTokenizer": "tessella.model.image_tokenizer",
    "TextToImage": "tessella.model.pipeline",
    "TrainingEvent": "tessella.training.callbacks",
    "TrainingStopped": "tessella.training.interrupt",
}
"""Names whose modules import what is heavy: name → module."""


def load(
    folder_or_name: str | Path = _DEFAULT_MODEL,
    device: str = "auto",
    precision: "_PaintingPrecision" = "auto",
) -> "TextToImage":
    """Loads a model, ready to paint.

    Args:
        folder_or_name: a model folder, a run's folder, the name of a bundled model, or
            `hf:USER/NAME` or `hf:USER/NAME@REVISION` on the Hugging Face hub.
        device: auto, cpu, cuda or mps.
        precision: what the transformer computes in: fp32, as it was trained; on a CPU also bf16 or
            int8. `auto` measures a large model once, and takes what is clearly faster here if its
            predictions are as good as the same, else fp32. `model.precision` says which.

    Raises:
        CheckpointError: the model does not exist, or its folder is damaged or foreign.
        ConfigError: the device is not available, or does not paint in this precision.
    """
    from tessella.model.find import find_model
    from tessella.model.pipeline import TextToImage

    return TextToImage.load(find_model(folder_or_name), device, precision)


def fit(
    data: str | Path | _Sequence[str | Path],
    out: str | Path,
    *,
    minutes: float | None = None,
    preset: str | None = None,
    settings: _Mapping[str, Any] | None = None,
    config_file: str | Path | None = None,
    start_from: str | Path | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    callbacks: _Sequence[object] = (),
    trackers: str | _Sequence[str] = (),
    quiet: bool = False,
) -> "TextToImage":
    """Trains a model as `tessella fit` does, and loads it.

    The same call resumes a run that was stopped or killed, and loads the model of a finished one.
    Ctrl-C, or a notebook's stop button, saves the state first.

    Args:
        data: captioned images, one source or several: whatever the command takes as DATA.
        out: the run's folder.
        minutes: finish within this time; None trains as long as the settings say.
        preset: sizes by name, such as `small`.
        settings: single settings, as `{"transformer.depth": 8}` or nested.
        config_file: settings in TOML or JSON.
        start_from: a run, a model folder, a bundled model or `hf:USER/NAME` to go on from.
        tokenizer: a finished image tokenizer, which stays as it is; only the transformer trains.
        seed: of all randomness.
        device: auto, cpu, cuda or mps.
        callbacks: objects with methods of `tessella.Callback`.
        trackers: where metrics go too: `tensorboard`, `wandb`, `trackio`, `mlflow`; one or several.
        quiet: shows no plan, progress or notes; a tracker that fails is a Python warning.

    Raises:
        ConfigError: a setting is wrong, a tracker is not installed, the run in `out` began with
            other settings, or a callback has nothing that would be called.
        DataError: the data cannot be used.
        CheckpointError: a saved file is damaged or cannot be written.
        TrainingStopped: a callback stopped the run.
        KeyboardInterrupt: Ctrl-C or a signal; the state is saved.
    """
    folder = _train(
        quiet,
        callbacks,
        sources=[str(one) for one in ([data] if isinstance(data, str | Path) else data)],
        out=Path(out).expanduser(),
        start_from=None if start_from is None else str(start_from),
        tokenizer=None if tokenizer is None else str(tokenizer),
        preset=preset,
        config_file=None if config_file is None else Path(config_file).expanduser(),
        assignments={} if settings is None else settings,
        minutes=minutes,
        seed=seed,
        device=device,
        trackers=(trackers,) if isinstance(trackers, str) else tuple(trackers),
    )
    return load(folder, device)


def _train(quiet: bool, callbacks: _Sequence[object], **request: Any) -> Path:
    """Trains as the command does; returns the model's folder."""
    import warnings

    with warnings.catch_warnings():  # tqdm, which accelerate imports, looks for its own bars
        warnings.filterwarnings("ignore", "IProgress not found")
        from tessella.cli.reporting import create_console
        from tessella.training.fit import FitRequest, fit
    console = create_console(stderr=True)
    console.quiet = console.quiet or quiet
    return fit(FitRequest(**request), console, callbacks)


def __getattr__(name: str) -> Any:
    """Imports heavy names on first use."""
    if name in _LATE:
        return getattr(_importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
