"""webuiapi, the client of AUTOMATIC1111's API: what its page shows about painting."""

import asyncio
import sys
from typing import Any
from urllib.parse import urlsplit

import webuiapi
from checks import OTHER, PROMPT, SIDE, attempt, draw_disc, expect, expect_right_half
from PIL import Image


def main(base_url: str) -> None:
    """Tries every call."""
    address = urlsplit(base_url)
    api = webuiapi.WebUIApi(host=address.hostname, port=address.port)
    other = webuiapi.WebUIApi(
        baseurl=f"http://{address.netloc}/sdapi/v1", sampler="DPM++ 2M", steps=30
    )
    attempt("txt2img", lambda: check(api.txt2img(prompt=PROMPT)))
    attempt("txt2img, another default sampler", lambda: check(other.txt2img(prompt=PROMPT)))
    full = {"negative_prompt": "ugly", "seed": 1003, "styles": ["anime"], "cfg_scale": 7}
    attempt("txt2img, as on its page", lambda: same_again(api, full))
    batch = {"batch_size": 2, "n_iter": 2, "width": 256, "height": 128}
    attempt("txt2img, batches", lambda: check(api.txt2img(prompt=PROMPT, **batch), 4, (256, 128)))
    high = {"enable_hr": True, "hr_scale": 2, "hr_second_pass_steps": 20}
    attempt("txt2img, enable_hr", lambda: check(api.txt2img(prompt=PROMPT, **high)))
    attempt("txt2img, asynchronous", lambda: asyncio.run(paint(api)))
    small = {"width": SIDE, "height": SIDE}
    image, mask = draw_disc(), Image.new("L", (SIDE, SIDE), 0)
    mask.paste(255, (0, 0, SIDE // 2, SIDE))
    change = {"images": [image], "prompt": OTHER, **small}
    attempt("img2img", lambda: check(api.img2img(**change), size=(SIDE, SIDE)))
    attempt("img2img, inpainting", lambda: repaint(api, {**change, "mask_image": mask}))
    turned = Image.eval(mask, lambda value: 255 - value)
    inverted = {**change, "mask_image": turned, "inpainting_mask_invert": 1}
    attempt("img2img, inverted mask", lambda: repaint(api, inverted))
    attempt("get_options, set_options", lambda: set_options(api))
    attempt("util_get_model_names", lambda: expect(api.util_get_model_names() == ["scenes"], 0))
    attempt("util_set_model", lambda: api.util_set_model("scenes"))
    attempt("util_get_current_model", lambda: expect(api.util_get_current_model() == "scenes", 0))
    attempt("util_get_sampler_names", lambda: expect(api.util_get_sampler_names(), 0))
    attempt("util_get_scheduler_names", api.util_get_scheduler_names)
    attempt("util_wait_for_ready", api.util_wait_for_ready)
    attempt("get_scripts", lambda: expect("txt2img" in api.get_scripts(), 0))


def check(result: Any, count: int = 1, size: tuple[int, int] = (512, 512)) -> None:
    """Looks at a result's pictures."""
    expect(len(result.images) == count, len(result.images))
    expect(all(one.size == size for one in result.images), [one.size for one in result.images])
    expect(result.info["all_prompts"] and result.parameters, result.info)


def same_again(api: Any, said: dict[str, Any]) -> None:
    """A seed gives the same picture again."""
    first, second = (api.txt2img(prompt=PROMPT, **said) for _ in range(2))
    check(first)
    expect(first.info["seed"] == 1003, first.info["seed"])
    expect(first.image.tobytes() == second.image.tobytes(), "another picture")


async def paint(api: Any) -> None:
    """Paints asynchronously."""
    check(await api.txt2img(prompt=PROMPT, use_async=True))


def repaint(api: Any, said: dict[str, Any]) -> None:
    """Repaints a part; the rest stays."""
    result = api.img2img(**said)
    check(result, size=(SIDE, SIDE))
    expect_right_half(result.image.convert("RGB"))


def set_options(api: Any) -> None:
    """Sends the options back as they came."""
    options = api.get_options()
    api.set_options(options | {"CLIP_stop_at_last_layers": 2})
    expect(api.get_options() == options, options)


if __name__ == "__main__":
    main(sys.argv[1])
