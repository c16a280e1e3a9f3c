"""OpenAI's Python client: all that it can say about pictures, in the version that is installed."""

import asyncio
import functools
import io
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import openai
from checks import (
    OTHER,
    PROMPT,
    attempt,
    draw_disc,
    draw_mask,
    expect,
    expect_right_half,
    keep_known,
    open_picture,
    to_png,
)

SIZES = [
    "256x256",
    "512x512",
    "1024x1024",
    "1536x1024",
    "1024x1536",
    "1792x1024",
    "1024x1792",
    "auto",
]
MODELS = [
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-2",
    "gpt-image-2.5-flare",
    "chatgpt-image-latest",
]


def main(base_url: str) -> None:
    """Tries every call."""
    warnings.simplefilter("ignore", DeprecationWarning)  # OpenAI has retired its variations
    client = openai.OpenAI(base_url=base_url, api_key="unused", max_retries=0, timeout=300)
    try_models(client)
    try_generate(client)
    try_edit(client)
    try_variations(client)
    try_errors(client)
    attempt("async client", lambda: asyncio.run(try_async(base_url)))


def try_models(client: openai.OpenAI) -> None:
    """Lists and describes models."""
    names = [one.id for one in client.models.list()]
    attempt("models.list", lambda: expect(names == ["scenes"], names))
    attempt("models.retrieve", lambda: expect(client.models.retrieve("scenes").id == "scenes", 0))


def try_generate(client: openai.OpenAI) -> None:
    """Paints with each parameter, and each of its documented values."""
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {})]
    cases += [({"n": 2}, {})]
    for size in SIZES:
        width, _, height = size.partition("x")
        expected = {} if size == "auto" else {"size": (int(width), int(height))}
        cases.append(({"size": size}, expected))
    cases += [({"model": name}, {"by": "b64_json"}) for name in MODELS]
    cases += [({"model": name}, {"by": "url"}) for name in ("dall-e-2", "dall-e-3")]
    cases += [({"response_format": one}, {"by": one}) for one in ("b64_json", "url")]
    cases += [({"model": "dall-e-3", "response_format": "b64_json"}, {"by": "b64_json"})]
    cases += [({"output_format": one}, {"kind": one.upper()}) for one in ("png", "jpeg", "webp")]
    cases += [({"output_format": "jpeg", "output_compression": 50}, {"kind": "JPEG"})]
    levels = ("auto", "standard", "hd", "low", "medium", "high", "xhigh", "max")
    cases += [({"quality": one}, {}) for one in levels]
    cases += [({"style": one}, {}) for one in ("vivid", "natural")]
    cases += [({"background": one}, {}) for one in ("auto", "opaque")]
    cases += [({"moderation": one}, {}) for one in ("auto", "low")]
    cases += [({"complexity": one}, {}) for one in ("low", "medium", "high")]
    cases += [({"user": "someone"}, {}), ({"safety_identifier": "someone"}, {})]
    for said, expected in cases:
        if keep_known(client.images.generate, said) is not None:
            shown = ", ".join(f"{name}={value}" for name, value in said.items())
            attempt(f"generate({shown})", functools.partial(generate, client, said, expected))
    attempt("generate, raw response", lambda: try_raw(client))
    if keep_known(client.images.generate, {"stream": True, "partial_images": 2}):
        attempt("generate, stream", lambda: try_stream(client, "image_generation"))


def generate(client: openai.OpenAI, said: dict[str, Any], expected: dict[str, Any]) -> None:
    """Paints and looks at all pictures."""
    answer = client.images.generate(prompt=PROMPT, **said)
    expect(len(answer.data) == said.get("n", 1), len(answer.data))
    for one in answer.data:
        open_picture(one, **expected)


def try_raw(client: openai.OpenAI) -> None:
    """Reads headers beside the answer."""
    raw = client.images.with_raw_response.generate(prompt=PROMPT)
    expect(raw.headers["x-request-id"], dict(raw.headers))
    open_picture(raw.parse().data[0])


def try_stream(client: openai.OpenAI, kind: str) -> None:
    """Paints with partial pictures."""
    if kind == "image_generation":
        events = client.images.generate(prompt=PROMPT, stream=True, partial_images=2)
    else:
        events = client.images.edit(
            prompt=OTHER, image=("a.png", to_png(draw_disc())), stream=True, partial_images=2
        )
    seen = list(events)
    expected = [f"{kind}.partial_image"] * 2 + [f"{kind}.completed"]
    expect([event.type for event in seen] == expected, [event.type for event in seen])
    for event in seen:
        open_picture(event)
    expect(seen[-1].usage.total_tokens > 0, seen[-1].usage)


def try_edit(client: openai.OpenAI) -> None:
    """Edits: pictures in each form that the client takes, several of them, a mask."""
    file, mask = to_png(draw_disc()), to_png(draw_mask())
    folder = Path(tempfile.mkdtemp())
    (folder / "disc.png").write_bytes(file)
    edit = functools.partial(client.images.edit, prompt=OTHER)
    attempt("edit(bytes)", lambda: open_picture(edit(image=file).data[0]))
    attempt("edit(tuple)", lambda: open_picture(edit(image=("a.png", file)).data[0]))
    typed = ("a.png", file, "image/png")
    attempt("edit(tuple with type)", lambda: open_picture(edit(image=typed).data[0]))
    attempt("edit(file)", lambda: open_picture(edit(image=io.BytesIO(file)).data[0]))
    attempt("edit(path)", lambda: open_picture(edit(image=folder / "disc.png").data[0]))
    masked = {"image": typed, "mask": ("m.png", mask, "image/png")}
    attempt("edit(mask)", lambda: expect_right_half(open_picture(edit(**masked).data[0])))
    for said, expected in (
        ({"n": 2}, {}),
        ({"size": "512x512"}, {"size": (512, 512)}),
        ({"model": "dall-e-2"}, {"by": "url"}),
        ({"model": "gpt-image-1"}, {"by": "b64_json"}),
        ({"response_format": "url"}, {"by": "url"}),
        ({"output_format": "webp", "output_compression": 80}, {"kind": "WEBP"}),
        ({"background": "opaque", "quality": "high"}, {}),
        ({"input_fidelity": "low"}, {}),
        ({"complexity": "low"}, {}),
        ({"user": "someone"}, {}),
    ):
        if keep_known(client.images.edit, said) is not None:
            shown = ", ".join(f"{name}={value}" for name, value in said.items())
            attempt(
                f"edit({shown})",
                lambda s=said, e=expected: [
                    open_picture(one, **e) for one in edit(image=typed, **s).data
                ],
            )
    if keep_known(client.images.edit, {"stream": True}):
        several = [("a.png", file), ("b.png", mask), ("c.png", file)]
        attempt("edit(several)", lambda: open_picture(edit(image=several).data[0]))
        attempt("edit, stream", lambda: try_stream(client, "image_edit"))


def try_variations(client: openai.OpenAI) -> None:
    """Varies a picture."""
    file = ("a.png", to_png(draw_disc()))
    for said, expected in (
        ({}, {}),
        ({"n": 2}, {}),
        ({"size": "256x256"}, {"size": (256, 256)}),
        ({"model": "dall-e-2"}, {"by": "url"}),
        ({"response_format": "b64_json", "user": "someone"}, {"by": "b64_json"}),
    ):
        shown = ", ".join(f"{name}={value}" for name, value in said.items())
        attempt(
            f"create_variation({shown})",
            lambda s=said, e=expected: [
                open_picture(one, **e)
                for one in client.images.create_variation(image=file, **s).data
            ],
        )


def try_errors(client: openai.OpenAI) -> None:
    """Asks for what is refused: the client's own errors, with words, code and field."""

    def refuse(**said: Any) -> None:
        try:
            client.images.generate(prompt=PROMPT, **said)
        except openai.BadRequestError as error:
            expect(error.message and error.param == next(iter(said)), vars(error))
        else:
            raise AssertionError("it was not refused")

    attempt("error: size", lambda: refuse(size="1x1"))
    attempt("error: n", lambda: refuse(n=1000))
    if keep_known(client.images.generate, {"background": ""}):
        attempt("error: background", lambda: refuse(background="transparent"))


async def try_async(base_url: str) -> None:
    """Paints and edits with the asynchronous client."""
    async with openai.AsyncOpenAI(base_url=base_url, api_key="unused", timeout=300) as client:
        answers = await asyncio.gather(
            *(client.images.generate(prompt=PROMPT) for _ in range(4)),
            client.images.edit(prompt=OTHER, image=("a.png", to_png(draw_disc()))),
        )
    for answer in answers:
        open_picture(answer.data[0])


if __name__ == "__main__":
    main(sys.argv[1])
