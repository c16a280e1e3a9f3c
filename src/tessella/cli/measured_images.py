"""Which images `tessella evaluate` measures on, and which ones its model learned from."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessella.errors import DataError

if TYPE_CHECKING:
    from tessella.cli.evaluation import EvaluationRequest
    from tessella.data.cache import CaptionedImages
    from tessella.data.settings import DataSettings
    from tessella.evaluation.eval_images import EvalImages


def read_eval_images(request: "EvaluationRequest", settings: "DataSettings") -> "EvalImages":
    """Reads the images to measure on: those of DATA, or those that the run kept out.

    Raises:
        DataError: the images of DATA cannot be used; or DATA is missing, and the model is not a
            run's folder, or the run has lost its images or kept none out.
    """
    from tessella.evaluation.eval_images import draw_indices, read_images

    with contextlib.ExitStack() as stack:
        if request.data:
            name = ", ".join(Path(source).name for source in request.data)
            images = stack.enter_context(_prepare(request.data, settings, request.cache))
        else:
            name = "what the run kept out"
            images = _open_kept_out(Path(request.model).expanduser())
        total, count = len(images), min(len(images), request.max_images)
        description = f"all {total:,} images of {name}"
        if count < total:
            description = (
                f"{count:,} of the {total:,} images of {name}, drawn with seed {request.seed}"
            )
        return read_images(images, draw_indices(total, count, request.seed).tolist(), description)


_DRAWN = {"scenes": 60_000}
"""How many drawn scenes a bundled model learned from."""


@contextlib.contextmanager
def open_training(
    request: "EvaluationRequest", settings: "DataSettings", folder: Path
) -> Iterator[tuple["CaptionedImages | None", str]]:
    """Opens the images that a model learned from, and names them for a protocol.

    Those that are named, else those of its run, if any. What a bundled model learned from is drawn
    again, if it was drawn: no more than are searched.

    Args:
        request: names the model and the images.
        settings: how images are read.
        folder: of the model.
    """
    from tessella.model.find import is_bundled

    name, sources = "training pictures", request.train_data
    if not sources and is_bundled(folder) and (count := _DRAWN.get(folder.name)):
        sources = [f"scenes:{min(count, request.max_training)}"]
        name = f"training pictures, the first of scenes:{count}"
    if not sources:
        yield _open_run(folder.parent, "train"), name
        return
    beside = request.cache and Path(f"{request.cache.expanduser().resolve()}-train")
    with _prepare(sources, settings, beside) as images:
        yield images, name


@contextlib.contextmanager
def _prepare(
    sources: Sequence[str], settings: "DataSettings", cache: Path | None
) -> Iterator["CaptionedImages"]:
    """Checks images into a cache; without a folder for it, into one that is removed again."""
    from tessella.data.prepare import prepare

    with tempfile.TemporaryDirectory(prefix="tessella-") as temporary:
        folder = cache.expanduser().resolve() if cache else Path(temporary) / "data"
        yield prepare(sources, settings, folder).train


def _open_kept_out(run: Path) -> "CaptionedImages":
    """Opens the images that a run kept out of its training.

    Raises:
        DataError: this is not a run's folder, or the run has lost its images or kept none out.
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
    return images


def _open_run(run: Path, side: str) -> "CaptionedImages | None":
    """Opens one side of a run's images; None if the run has lost them."""
    from tessella.data.cache import CaptionedImages, read_manifest
    from tessella.runs.record import DATA_FOLDER

    folder = run / DATA_FOLDER
    manifest = read_manifest(folder)
    return None if manifest is None else CaptionedImages(folder, side, manifest)
