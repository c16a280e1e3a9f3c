"""tessella trains a text-to-image model on your own captioned images, and paints from it.

    import tessella

    model = tessella.load()  # the bundled model; or tessella.load("runs/stickers/model")
    [image] = model.generate("a large red star on a navy background", seed=7)
    image.save("star.png")

Importing this package is cheap: torch is imported only when something needs it.
"""

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

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GenerationError",
    "ImageTokenizer",
    "ShapeError",
    "TessellaError",
    "TextToImage",
    "__version__",
    "load",
]


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


def __getattr__(name: str) -> Any:
    """Imports heavy names on first use."""
    if name == "ImageTokenizer":
        from tessella.model.image_tokenizer import ImageTokenizer

        return ImageTokenizer
    if name == "TextToImage":
        from tessella.model.pipeline import TextToImage

        return TextToImage
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted(__all__)
