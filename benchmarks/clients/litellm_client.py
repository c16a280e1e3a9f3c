"""litellm: its functions for pictures, sync and async, by the names that it documents."""

import asyncio
import sys
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
    for said, expected in (
        ({"n": 2}, {}),
        ({"size": "512x512"}, {"size": (512, 512)}),
        ({"response_format": "url"}, {"by": "url"}),
        ({"response_format": "b64_json"}, {"by": "b64_json"}),
        ({"quality": "standard", "style": "vivid", "user": "someone"}, {}),
    ):
        attempt(f"image_generation({said})", lambda s=said, e=expected: generate(server, s, e))
    attempt("aimage_generation", lambda: asyncio.run(paint(server)))
    file, mask = ("a.png", to_png(draw_disc())), ("m.png", to_png(draw_mask()))
    edit = {"prompt": OTHER, "model": "openai/gpt-image-1", **server}
    attempt("image_edit", lambda: open_picture(litellm.image_edit(image=[file], **edit).data[0]))
    attempt(
        "image_edit(mask)",
        lambda: expect_right_half(
            open_picture(litellm.image_edit(image=[file], mask=mask, **edit).data[0])
        ),
    )
    attempt(
        "image_edit(several)",
        lambda: open_picture(litellm.image_edit(image=[file, mask], **edit).data[0]),
    )
    attempt("aimage_edit", lambda: asyncio.run(repaint(edit, file)))
    attempt(
        "image_variation",
        lambda: open_picture(
            litellm.image_variation(image=file[1], model="openai/dall-e-2", **server).data[0]
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


async def repaint(edit: dict[str, Any], file: tuple[str, bytes]) -> None:
    """Edits with the asynchronous function."""
    open_picture((await litellm.aimage_edit(image=[file], **edit)).data[0])


if __name__ == "__main__":
    main(sys.argv[1])
