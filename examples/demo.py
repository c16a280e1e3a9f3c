"""Paints sixteen prompts with the bundled model: `make demo`.

Some prompts name pairs of colour and shape that no training picture contained; whether such a
picture is right shows whether the model composes. Written are demo/sheet.png and
demo/index.html, a page that needs no network. Another model: `make demo ARGS='--model RUN/model'`.
"""

import argparse
import base64
import html
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import tessella
from tessella.data.scenes import Scene, parse_caption
from tessella.evaluation.scenes import classify_scenes
from tessella.files import write_text
from tessella.images import save_png
from tessella.model.request import enumerate_requests
from tessella.sheets import make_sheet

PROMPTS = (
    "a large red star on a navy background",
    "a small green ring on a white background",
    "a large blue triangle on a pink background",
    "a large yellow cross on a gray background",
    "a small purple square left of a large cyan circle on a white background",
    "a large orange circle above a small black star on a pink background",
    "a large yellow star right of a small red circle on a navy background",
    "a small cyan cross below a large purple ring on a gray background",
    "a large green triangle left of a large orange square on a white background",
    "a small red ring above a large blue square on a pink background",
    "a large black cross on a white background",
    "a small orange star left of a small cyan triangle on a navy background",
    "a large purple circle right of a large yellow ring on a gray background",
    "a small blue circle above a small green square on a white background",
    "a large cyan star below a large red triangle on a navy background",
    "a large red star left of a large green ring on a white background",
)
"""Seven have a pair of colour and shape that was held out of training."""

COLUMNS = 4
SHEET_SCALE = 3


@dataclass(frozen=True)
class DemoPicture:
    """One prompt and what became of it."""

    prompt: str
    seed: int
    image: Image.Image
    scene: Scene | None  # what was asked for; None if it is no scene
    is_right: bool | None  # as the classifier reads it; None if it is not a scene


def paint(model: tessella.TextToImage, prompts: Sequence[str]) -> tuple[list[DemoPicture], float]:
    """Paints all prompts as one batch, with seeds 0, 1, 2, …, and reads the pictures.

    Args:
        model: any; pictures larger or smaller than scenes are read too.
        prompts: canonical captions of scenes are classified, others are not.

    Returns:
        The pictures, and the seconds that one of them took.
    """
    requests = enumerate_requests(prompts)
    model.generate_images(requests)  # warms up
    began = time.perf_counter()
    pixels = model.generate_images(requests).pixels
    seconds = (time.perf_counter() - began) / len(prompts)
    pictures = []
    for seed, (prompt, square) in enumerate(zip(prompts, pixels, strict=True)):
        scene = read_scene(prompt)
        is_right = None if scene is None else classify_scenes(square[None], [scene])[0].all_correct
        pictures.append(DemoPicture(prompt, seed, Image.fromarray(square), scene, is_right))
    return pictures, seconds


def read_scene(prompt: str) -> Scene | None:
    """Returns the scene that a prompt describes, or None if it describes none."""
    try:
        return parse_caption(prompt)
    except tessella.DataError:
        return None


def remark(picture: DemoPicture) -> str:
    """Says whether a picture is right, and whether its pair is new to the model."""
    if picture.scene is None:
        return ""
    new = ", a pair never seen in training" if picture.scene.is_held_out else ""
    return f"{'as asked' if picture.is_right else 'not as asked'}{new}"


def write_page(path: Path, pictures: Sequence[DemoPicture], note: str) -> None:
    """Writes a page with the pictures inside of it."""
    figures = "\n".join(
        f'<figure><img src="{data_uri(p.image)}" alt="{html.escape(p.prompt)}">'
        f"<figcaption>{html.escape(p.prompt)}"
        f"<small>seed {p.seed}{' · ' if remark(p) else ''}{html.escape(remark(p))}</small>"
        "</figcaption></figure>"
        for p in pictures
    )
    write_text(path, PAGE.format(note=html.escape(note), figures=figures))


def data_uri(image: Image.Image) -> str:
    """Writes a picture as text that a page can hold."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tessella demo</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 66rem; padding: 0 1rem;
  background: light-dark(#fff, #16181d); color: light-dark(#1b1e24, #e8eaee); }}
main {{ display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }}
figure {{ margin: 0; }}
img {{ width: 100%; border-radius: .5rem; image-rendering: pixelated; display: block;
  outline: 1px solid light-dark(#0002, #fff2); outline-offset: -1px; }}
figcaption {{ margin-top: .5rem; }}
small {{ display: block; color: light-dark(#5a6270, #9aa3b2); }}
</style>
</head>
<body>
<h1>tessella</h1>
<p>{note}</p>
<main>
{figures}
</main>
</body>
</html>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Paints, writes and says where.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="Paints sixteen prompts.")
    parser.add_argument("--model", default="scenes", help="a model folder, a run or a bundled name")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    options = parser.parse_args(arguments)
    try:
        model = tessella.load(options.model, options.device)
        pictures, seconds = paint(model, PROMPTS)
        pixels = np.stack([np.asarray(picture.image) for picture in pictures])
        labels = [picture.prompt for picture in pictures]
        sheet, page = options.out / "sheet.png", options.out / "index.html"
        pace = (
            f"{1000 * seconds:.0f} ms a picture on {model.device.type}, in a batch of "
            f"{len(pictures)}."
        )
        save_png(sheet, make_sheet(pixels, COLUMNS, labels, SHEET_SCALE))
        write_page(page, pictures, f"{len(pictures)} prompts, {pace}")
    except tessella.TessellaError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for picture in pictures:
        print(f"{remark(picture):<50} {picture.prompt}")
    right = sum(bool(picture.is_right) for picture in pictures)
    print(f"{right} of {len(pictures)} pictures are entirely as asked, by the scene classifier.")
    print(pace)
    print(f"Sheet: {sheet}\nPage:  {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
