"""litellm: its functions for pictures, sync and async, by the names that it documents."""

import asyncio
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import litellm
from checks import (
    OTHER,
    PROMPT,
    attempt,
    draw_disc,
    draw_mask,
    expect_right_half,
    open_picture,
    to_png,
)


def main(base_url: str) -> None:
    """Tries every call."""
    litellm.suppress_debug_info = True
    server = {"api_base": base_url, "api_key": "unused"}
    for name in ("openai/dall-e-2", "openai/dall-e-3", "openai/gpt-image-1", "openai/scenes"):
        attempt(
            f"image_generation({name})",
            lambda model=name: open_picture(
                litellm.image_generation(prompt=PROMPT, model=model, **server).data[0]
            ),
        )
    # Other parameters it refuses by itself, for OpenAI's models of today.
    for said, expected in (({"n": 2}, {}), ({"size": "512x512"}, {"size": (512, 512)})):
        attempt(f"image_generation({said})", lambda s=said, e=expected: generate(server, s, e))
    attempt("aimage_generation", lambda: asyncio.run(paint(server)))
    folder = Path(tempfile.mkdtemp())
    (folder / "disc.png").write_bytes(to_png(draw_disc()))
    (folder / "mask.png").write_bytes(to_png(draw_mask()))
    edit = {"prompt": OTHER, "model": "openai/gpt-image-1", **server}
    attempt("image_edit", lambda: open_picture(repaint(edit, folder, "disc")))
    attempt("image_edit(list)", lambda: open_picture(repaint(edit, folder, "disc", is_list=True)))
    masked = {**edit, "mask": (folder / "mask.png").read_bytes()}
    attempt(
        "image_edit(mask)", lambda: expect_right_half(open_picture(repaint(masked, folder, "disc")))
    )
    attempt("image_edit(several)", lambda: open_picture(repaint(edit, folder, "disc", "mask")))
    attempt("aimage_edit", lambda: asyncio.run(repaint_later(edit, folder)))
    attempt(
        "image_variation",
        lambda: open_picture(
            litellm.image_variation(
                image=(folder / "disc.png").read_bytes(), model="openai/dall-e-2", **server
            ).data[0]
        ),
    )


def generate(server: dict[str, Any], said: dict[str, Any], expected: dict[str, Any]) -> None:
    """Paints and looks at all pictures."""
    answer = litellm.image_generation(prompt=PROMPT, model="openai/dall-e-3", **said, **server)
    for one in answer.data:
        open_picture(one, **expected)


async def paint(server: dict[str, Any]) -> None:
    """Paints with the asynchronous function."""
    answer = await litellm.aimage_generation(prompt=PROMPT, model="openai/gpt-image-1", **server)
    open_picture(answer.data[0])


def repaint(edit: dict[str, Any], folder: Path, *names: str, is_list: bool = False) -> Any:
    """Edits one picture or several, as open files; returns the first answer."""
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}.png").open("rb")) for name in names]
        image = files if is_list or len(files) > 1 else files[0]
        return litellm.image_edit(image=image, **edit).data[0]


async def repaint_later(edit: dict[str, Any], folder: Path) -> None:
    """Edits with the asynchronous function."""
    content = io.BytesIO((folder / "disc.png").read_bytes())
    open_picture((await litellm.aimage_edit(image=content, **edit)).data[0])


if __name__ == "__main__":
    main(sys.argv[1])
