"""`tessella reconstruct`: pictures in, what a model keeps of them out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tessella.cli.command import get_group
from tessella.cli.options import DEFAULT_MODEL, Device, DryRun, Force, Model
from tessella.cli.pictures import MAX_ON_SHEET, choose_output, read_square
from tessella.cli.reporting import Result
from tessella.errors import ConfigError

_PAIRS_IN_A_ROW = 4


@dataclass(frozen=True)
class ReconstructOptions:
    """Which pictures, and where the result goes."""

    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", show_default=False)]
    """Pictures of any size."""
    model: Model = DEFAULT_MODEL
    out: Annotated[
        Path | None,
        typer.Option(metavar="NAME.png", show_default="a free name: reconstruction.png"),
    ] = None
    """The sheet: each picture as the model sees it, beside what it keeps."""
    device: Device = "auto"
    force: Force = False
    dry_run: DryRun = False


def reconstruct(context: typer.Context) -> Result:
    """Show what a model keeps of pictures.

    Encodes and decodes each picture: the best quality that the model can reach. Each
    picture is cropped to its middle square first. PSNR is in dB; more is closer.
    """
    import numpy as np

    from tessella.evaluation.reconstruction import compute_psnr, evaluate_reconstructions
    from tessella.model.find import find_tokenizer
    from tessella.model.folder import TrainedTokenizer
    from tessella.sheets import make_labelled_sheet

    options = get_group(context, ReconstructOptions)
    images, dry_run = options.images, options.dry_run
    if 2 * len(images) > MAX_ON_SHEET:
        raise ConfigError(
            f"Too many pictures for one sheet: `{len(images)}`, at most {MAX_ON_SHEET // 2}."
        )
    target = choose_output(options.out, "reconstruction", 2, force=options.force)
    if target.is_folder or target.is_stdout:
        raise ConfigError(f"A sheet is written to a file: `{options.out}`. Give --out NAME.png.")
    loaded = TrainedTokenizer.load(find_tokenizer(options.model), options.device)
    squares = [read_square(path, loaded.config.image_size, "reconstruct") for path in images]
    psnr: list[float] = []
    if not dry_run:
        report = evaluate_reconstructions(loaded.tokenizer, np.stack(squares))
        pictures, labels = [], []
        for path, square, reconstruction in zip(images, squares, report.pixels, strict=True):
            psnr.append(compute_psnr(reconstruction[None], square[None]))
            pictures += [square, reconstruction]
            labels += [path.name, f"{psnr[-1]:.1f} dB"]
        columns = 2 * min(_PAIRS_IN_A_ROW, len(images))
        target.write(make_labelled_sheet(pictures, labels, columns))
    values = {
        "dry_run": dry_run,
        "model": options.model,
        "out": str(target),
        "images": [
            {"file": str(path), "psnr": None if dry_run else round(psnr[number], 3)}
            for number, path in enumerate(images)
        ],
    }
    return Result(values, _describe(values))


def _describe(values: Mapping[str, Any]) -> Iterator[str]:
    for image in values["images"]:
        yield image["file"] if values["dry_run"] else f"{image['psnr']:.1f} dB  {image['file']}"
    yield f"{'Would be written' if values['dry_run'] else 'Written'}: {values['out']}"
