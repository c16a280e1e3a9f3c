"""Which images `tessella evaluate` measures on, and which ones its model learned from."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessella.errors import DataError

if TYPE_CHECKING:
    from tessella.data.cache import CaptionedImages
    from tessella.data.settings import DataSettings
    from tessella.evaluation.eval_images import ChosenImages


def read_data(
    sources: Sequence[str],
    settings: "DataSettings",
    cache: Path | None,
    max_images: int,
    seed: int,
) -> "ChosenImages":
    """Reads images of DATA, through a cache that is kept if it has a place."""
    from tessella.data.prepare import prepare

    with _folder(cache) as folder:
        images = prepare(sources, settings, folder).train
        return _choose(images, ", ".join(Path(s).name for s in sources), max_images, seed)


@contextlib.contextmanager
def _folder(cache: Path | None) -> Iterator[Path]:
    """Gives the cache's folder, or a temporary one that is removed again."""
    if cache is not None:
        yield cache.expanduser().resolve()  # `.` has no name
        return
    with tempfile.TemporaryDirectory(prefix="tessella-") as temporary:
        yield Path(temporary) / "data"


def read_kept_out(run: Path, max_images: int, seed: int) -> "ChosenImages":
    """Reads the images that a run kept out of its training.

    Raises:
        DataError: it is no run, has lost its images, or kept none out.
    """
    from tessella.runs.record import RUN_FILE

    if not (run / RUN_FILE).is_file():
        raise DataError(
            f"Only the folder of a run brings its own images: `{run}`. Name DATA after MODEL."
        )
    images = _open_run(run, "validation")
    if not images:
        what = "has no images any more" if images is None else "kept no images out of training"
        raise DataError(f"The run {what}: `{run}`. Name DATA after MODEL.")
    return _choose(images, "what the run kept out", max_images, seed)


def _open_run(run: Path, side: str) -> "CaptionedImages | None":
    """Opens one side of a run's images, if it has them."""
    from tessella.data.cache import CaptionedImages, read_manifest
    from tessella.runs.record import DATA_FOLDER

    folder = run / DATA_FOLDER
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    size = manifest["identity"]["settings"]["image_size"]
    return CaptionedImages(folder, side, size, manifest["fingerprints"][side])


@contextlib.contextmanager
def open_training(
    sources: Sequence[str] | None, settings: "DataSettings", cache: Path | None, run: Path
) -> Iterator["CaptionedImages | None"]:
    """Opens the images that a model learned from: those that are named, else its run's, if any."""
    from tessella.data.prepare import prepare

    if not sources:
        yield _open_run(run, "train")
        return
    beside = cache and Path(f"{cache.expanduser().resolve()}-train")
    with _folder(beside) as folder:
        yield prepare(sources, settings, folder).train


def _choose(images: "CaptionedImages", name: str, max_images: int, seed: int) -> "ChosenImages":
    """Reads all images, or as many as may be, drawn by the seed."""
    from tessella.evaluation.eval_images import draw_indices, read_images

    total, count = len(images), min(len(images), max_images)
    drawn = draw_indices(total, count, seed)
    which = f"all {total:,} images of {name}"
    if count < total:
        which = f"{count:,} of the {total:,} images of {name}, drawn with seed {seed}"
    return read_images(images, drawn.tolist(), which)
