"""Settings of the data: how pictures are made square, checked and split."""

import os
from typing import Annotated, Literal

from pydantic import Field

from tessella.config import Settings


class DataSettings(Settings):
    """How captioned images are read, checked, cached and split."""

    image_size: int = Field(default=64, ge=8, le=2048)
    """Side of the square that every picture is cropped and resized to, in pixels."""

    validation_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Fraction of the images that is held out for validation; 0 holds none out."""

    named_splits: bool = True
    """Whether pictures that the data itself holds out, in folders, tables or columns called test,
    val or validation, are held out; of such data no others are. Off, they are split as all others
    are."""

    split_by: str | None = Field(default=None, min_length=1)
    """Name of a JSON field or metadata column; images with the same value stay on one side of the
    split. Left out, only identical images stay together."""

    caption_column: str | None = Field(default=None, min_length=1)
    """Name of the table's column, or of the field of JSON, that has the captions; then nothing
    else is a caption. `file_name` takes the pictures' own names. Left out, it is found by its name
    and by what is in it; `tessella doctor` says which it is."""

    cache: Literal["pixels", "codes"] = "pixels"
    """What a run keeps of each picture: its square pixels, or its codes alone, 1 to 5 % of them.
    With `codes`, stage 1 decodes pictures when it needs them, in an order that reads shards one
    after another and mixes what it reads. For many pictures in folders or `.tar` shards; they have
    to stay where they are until the run is finished."""

    max_skipped_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    """Highest fraction of bad files (broken, empty, without caption, …) to train with."""

    max_image_pixels: int = Field(default=100_000_000, ge=1)
    """Most pixels (width times height) of a picture that are decoded. A larger JPEG is decoded
    smaller; other pictures are skipped without being decoded."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Threads that decode pictures; `auto` means one per core, at most 16. The result does not
    depend on it."""

    seed: int = Field(default=0, ge=0)
    """Determines the scenes of `scenes:N` and `scenes2:N`; scene i depends only on the seed and
    i."""

    licence: str | None = Field(default=None, min_length=1)
    """Licence of the pictures, for the model card, e.g. `CC0-1.0`. Left out, the card says so."""

    @property
    def num_workers(self) -> int:
        """The number of decoding threads on this machine."""
        if self.workers == "auto":
            return min(16, os.cpu_count() or 1)
        return self.workers
