"""`tessella generate` and `tessella reconstruct`: prompts or pictures in, PNG files out."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessella.cli.options import (
    MODELS_OWN,
    Config,
    Debug,
    Device,
    DryRun,
    Force,
    Json,
    Model,
    Seed,
    Set,
)
from tessella.cli.pictures import (
    MAX_ON_SHEET,
    AskedPicture,
    choose_place,
    make_labelled_sheet,
    read_square,
)
from tessella.cli.reporting import create_console, print_json, told_errors
from tessella.errors import ConfigError, GenerationError

if TYPE_CHECKING:
    from rich.console import Console

    from tessella.images import Pixels
    from tessella.objectives import GenerationSettings
    from tessella.pipeline import TextToImage, TrainedTokenizer

_BATCH = 64
_PAIRS_IN_A_ROW = 4


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to paint.", show_default=False),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts from a UTF-8 file, one a line; blank lines are skipped.",
            show_default=False,
        ),
    ] = None,
    model: Model = "scenes",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="PATH",
            help="NAME.png: the picture, or one sheet of all. Anything else: a folder of "
            "0000.png, 0001.png, … and prompts.jsonl.",
            show_default="a free name, after the first prompt",
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option("--count", metavar="NUMBER", help="Pictures a prompt.", min=1, max=10_000),
    ] = 1,
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Rounds in which the places of a picture are filled.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="How far the prompt is followed beyond what was learned; 1 is off.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Below 1 the likely codes get likelier; 0 takes the likeliest.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            metavar="NUMBER",
            help="Choose among so many of the likeliest codes.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Choose among the likeliest codes that together have this probability.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The order in which places are filled: random or halton.",
            show_default=MODELS_OWN,
        ),
    ] = None,
    config: Config = None,
    set_: Set = None,
    device: Device = "auto",
    force: Force = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Paint pictures from prompts.

    Each prompt's first picture has the given seed, its next ones seed + 1, seed + 2, …
    """
    if not prompts and prompts_file is None:
        raise typer.BadParameter("Give at least one, or --prompts FILE.", param_hint="PROMPT")
    options = {
        "steps": steps,
        "guidance_scale": guidance_scale,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "order": order,
    }
    with told_errors(debug, if_interrupted="Nothing was written."):
        from tessella.bundled import find_model
        from tessella.pipeline import TextToImage

        wanted = [*(prompts or ()), *(_read_prompts(prompts_file) if prompts_file else ())]
        _check_prompts(wanted)
        asked = [AskedPicture(p, seed + number) for p in wanted for number in range(count)]
        place = choose_place(out, wanted[0], len(asked), force=force)

        loaded = TextToImage.load(find_model(model), device)
        given = {name: value for name, value in options.items() if value is not None}
        settings = loaded.generation_settings(**(_read_settings(config, set_ or ()) | given))
        loaded.text_tokenizer.encode(wanted)  # refuses what is too long, before the work

        console = create_console(as_json)
        began = time.monotonic()
        if not dry_run:
            pixels = _paint(loaded, asked, settings, console)
            place.write(asked, pixels, settings.model_dump(mode="json"))
        seconds = time.monotonic() - began
        if as_json:
            files = place.files(len(asked))
            result = {
                "dry_run": dry_run,
                "model": model,
                "out": str(place.path),
                "settings": settings.model_dump(mode="json"),
                "pictures": [
                    {"file": str(file), "prompt": picture.prompt, "seed": picture.seed}
                    for file, picture in zip(files, asked, strict=True)
                ],
                "seconds": None if dry_run else round(seconds, 3),
            }
            print_json(result)
            return
        what = "1 picture" if len(asked) == 1 else f"{len(asked):,} pictures"
        if not dry_run:
            console.print(f"Painted {what} in {seconds:.1f} s: {place.path}")
            return
        console.print(f"Would paint {what}: {place.path}")
        console.print(", ".join(f"{k} {v}" for k, v in settings.model_dump(mode="json").items()))
        for file, picture in zip(place.files(len(asked)), asked, strict=True):
            console.print(f"{file}  seed {picture.seed}  {picture.prompt}")


def reconstruct(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE", help="Pictures of any size.", show_default=False),
    ],
    model: Model = "scenes",
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
        from tessella.bundled import find_tokenizer
        from tessella.images import save_png
        from tessella.pipeline import TrainedTokenizer

        if 2 * len(images) > MAX_ON_SHEET:
            most = MAX_ON_SHEET // 2
            raise ConfigError(f"Too many pictures for one sheet: `{len(images)}`, at most {most}.")
        place = choose_place(out, "reconstruction", 2, force=force)
        if place.is_folder:
            raise ConfigError(f"A sheet is written, as PNG: `{out}`. Give --out NAME.png.")
        loaded = TrainedTokenizer.load(find_tokenizer(model), device)
        squares = [read_square(path, loaded.config.image_size, "reconstruct") for path in images]
        console = create_console(as_json)
        if dry_run:
            psnr = None
        else:
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


def _read_prompts(path: Path) -> list[str]:
    """Reads prompts, one a line, without the blank lines.

    Raises:
        GenerationError: the file cannot be read, is not UTF-8, or holds no prompt.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GenerationError(f"Cannot read the prompts: `{path}`. {error.strerror}.") from None
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise GenerationError(
            f"The prompts are not UTF-8: `{path}`, line {line}. Save the file as UTF-8."
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise GenerationError(f"The file holds no prompt: `{path}`. Write one a line.")
    return prompts


def _check_prompts(prompts: Sequence[str]) -> None:
    """Refuses a blank prompt before anything is loaded."""
    for prompt in prompts:
        if not prompt.strip():
            raise GenerationError(
                f"A prompt must say something: `{prompt}`. Describe the picture as the captions do."
            )


def _read_settings(config_file: Path | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Reads the section `generation` of a file, and single settings of it.

    Raises:
        ConfigError: the file is unreadable, or a word sets something else.
    """
    from tessella.config import merge, parse_assignments, read_config

    from_file = read_config(config_file).get("generation", {}) if config_file else {}
    from_words = parse_assignments(assignments)
    foreign = [name for name in from_words if name != "generation"]
    own = from_words.get("generation", {})
    if foreign or not isinstance(own, Mapping) or not isinstance(from_file, Mapping):
        got = foreign[0] if foreign else "generation"
        raise ConfigError(
            f"Painting takes settings of the section `generation` alone: `{got}`. For example "
            "--set generation.temperature=0.8"
        )
    return merge(from_file, own)


def _paint(
    model: "TextToImage",
    asked: Sequence[AskedPicture],
    settings: "GenerationSettings",
    console: "Console",
) -> Iterator["Pixels"]:
    """Paints pictures as they are taken, and shows how far it is."""
    from rich.progress import track

    starts = track(
        range(0, len(asked), _BATCH),
        "painting",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for start in starts:
        batch = asked[start : start + _BATCH]
        painted = model.paint(
            [picture.prompt for picture in batch],
            seeds=[picture.seed for picture in batch],
            settings=settings,
        )
        yield from painted.pixels


def _reconstruct(
    model: "TrainedTokenizer", paths: Sequence[Path], squares: Sequence["Pixels"]
) -> tuple["Pixels", list[float]]:
    """Makes the sheet of originals and reconstructions, and measures each."""
    import numpy as np
    from PIL import Image

    from tessella.evaluation.reconstruction import compute_psnr

    made = model.reconstruct([Image.fromarray(square) for square in squares])
    pictures, labels, psnr = [], [], []
    for path, square, image in zip(paths, squares, made, strict=True):
        reconstruction = np.asarray(image)
        psnr.append(compute_psnr(reconstruction[None], square[None]))
        pictures += [square, reconstruction]
        labels += [path.name, f"{psnr[-1]:.1f} dB"]
    columns = 2 * min(_PAIRS_IN_A_ROW, len(paths))
    return make_labelled_sheet(pictures, labels, columns), psnr
