"""`tessella reconstruct`: pictures in, what a model keeps of them out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessella.cli.options import DEFAULT_MODEL, Debug, Device, DryRun, Force, Json, Model
from tessella.cli.pictures import MAX_ON_SHEET, choose_output, make_labelled_sheet, read_square
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError

if TYPE_CHECKING:
    from tessella.images import Pixels
    from tessella.model.folder import TrainedTokenizer

_PAIRS_IN_A_ROW = 4


def reconstruct(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Pictures of any size.", show_default=False),
    ],
    model: Model = DEFAULT_MODEL,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="NAME.png",
            help="The sheet: each picture as the model sees it, beside what it keeps.",
            show_default="a free name: reconstruction.png",
        ),
    ] = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a model keeps of pictures.

    They become codes and pictures again, which is the best that the model can paint. Each
    picture is cropped to its middle square first. PSNR is in dB; more is closer.
    """
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.images import save_png
        from tessella.model.find import find_tokenizer
        from tessella.model.folder import TrainedTokenizer

        if 2 * len(images) > MAX_ON_SHEET:
            raise ConfigError(
                f"Too many pictures for one sheet: `{len(images)}`, at most {MAX_ON_SHEET // 2}."
            )
        place = choose_output(out, "reconstruction", 2, force=force)
        if place.is_folder:
            raise ConfigError(f"A sheet is written, as PNG: `{out}`. Give --out NAME.png.")
        loaded = TrainedTokenizer.load(find_tokenizer(model), device)
        squares = [read_square(path, loaded.config.image_size, "reconstruct") for path in images]
        console = create_console(as_json)
        psnr = None
        if not dry_run:
            sheet, psnr = _reconstruct(loaded, images, squares)
            save_png(place.path, sheet)
        if as_json:
            result = {
                "dry_run": dry_run,
                "model": model,
                "out": str(place.path),
                "images": [
                    {"file": str(path), "psnr": psnr and round(psnr[number], 3)}
                    for number, path in enumerate(images)
                ],
            }
            print_json(result)
            return
        for number, path in enumerate(images):
            console.print(f"{psnr[number]:.1f} dB  {path}" if psnr else str(path))
        console.print(f"{'Written' if psnr else 'Would be written'}: {place.path}")


def _reconstruct(
    model: "TrainedTokenizer", paths: Sequence[Path], squares: Sequence["Pixels"]
) -> tuple["Pixels", list[float]]:
    """Makes the sheet of originals and reconstructions, and measures each."""
    import numpy as np

    from tessella.evaluation.reconstruction import compute_psnr, evaluate_reconstructions

    report = evaluate_reconstructions(model.tokenizer, np.stack(squares))
    pictures, labels, psnr = [], [], []
    for path, square, reconstruction in zip(paths, squares, report.pixels, strict=True):
        psnr.append(compute_psnr(reconstruction[None], square[None]))
        pictures += [square, reconstruction]
        labels += [path.name, f"{psnr[-1]:.1f} dB"]
    columns = 2 * min(_PAIRS_IN_A_ROW, len(paths))
    return make_labelled_sheet(pictures, labels, columns), psnr
