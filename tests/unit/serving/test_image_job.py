"""An image job: what a request leaves open is decided, and who paints it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tessella.errors import ConfigError
from tessella.model.canvas import Canvas
from tessella.serving.image_job import create_job, find_canvas_size
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import ImageBody, create_body
from tessella.serving.settings import ServeSettings

Models = Mapping[str, ServedModel]
Body = create_body(ImageBody, ServeSettings())


def test_what_is_left_open_is_decided(tiny: ServedModel) -> None:
    job = create_job(tiny, Body(), "a red star", None)
    assert job.served is tiny
    assert job.settings == tiny.model.config.generation
    assert (job.count, job.best_of, job.num_partials) == (1, 1, 0)
    [request] = job.list_requests()
    assert (request.prompt, request.negative_prompt, request.canvas) == ("a red star", "", None)
    assert 0 <= request.seed < 2**31
    seeds = {create_job(tiny, Body(), "a", None).list_requests()[0].seed for _ in range(20)}
    assert len(seeds) == 20


def test_what_is_given_is_taken(models: Models) -> None:
    fields: dict[str, Any] = {
        "steps": 2, "temperature": 0.0, "top_k": 1, "top_p": 0.5, "guidance_scale": 0.0,
        "guidance_schedule": "linear", "order": "halton", "confidence_temperature": 0.0,
        "neighbors": 0, "step_schedule": "arccos",
    }  # fmt: skip
    body = Body(
        n=3, seed=0, best_of=4, negative_prompt="blue", size="32x16", partial_images=5, stream=True,
        **fields,
    )  # fmt: skip
    job = create_job(models["twin"], body, "a red star", None)
    assert job.settings.model_dump() == fields
    assert (job.count, job.best_of, job.num_partials) == (3, 4, 5)
    requests = job.list_requests()
    assert [request.seed for request in requests] == [0, 4, 8]
    assert {request.negative_prompt for request in requests} == {"blue"}
    for request in requests:
        assert request.canvas is not None
        assert request.canvas.known.shape == (4, 8)
    assert create_job(models["twin"], Body(partial_images=5), "a", None).num_partials == 0


def test_canvases_are_made_when_the_worker_lists_the_requests(tiny: ServedModel) -> None:
    calls: list[Sequence[int]] = []

    def plan(seeds: Sequence[int]) -> list[Canvas]:
        calls.append(seeds)
        return [tiny.model.canvases.new()] * len(seeds)

    job = create_job(tiny, Body(n=2, seed=5, size="32x16"), "a", plan)
    assert calls == []
    assert len(job.list_requests()) == 2
    assert calls == [[5, 6]]


def test_what_has_no_effect_is_left_out(models: Models) -> None:
    tiny, mean = models["tiny"], models["mean"]
    assert create_job(tiny, Body(best_of=4), " ", None).best_of == 1
    negative = functools.partial(Body, negative_prompt="blue")
    for served, body in ((tiny, negative()), (mean, negative(guidance_scale=2.0))):
        [request] = create_job(served, body, "a", None).list_requests()
        assert request.negative_prompt == ""


def test_settings_out_of_the_models_range(tiny: ServedModel) -> None:
    with pytest.raises(ConfigError, match="steps"):
        create_job(tiny, Body.model_construct(steps=5000), "a", None)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((16, 16), (16, 16)),
        ((2048, 2048), (16, 16)),
        ((17, 16), (16, 16)),
        ((18, 16), (16, 16)),
        ((19, 16), (20, 16)),
        ((16, 19), (16, 20)),
        ((300, 200), (24, 16)),
        ((160, 90), (28, 16)),
        ((90, 160), (16, 28)),
        ((64, 16), (64, 16)),
        ((2048, 16), (64, 16)),
        ((16, 2048), (16, 64)),
    ],
)
def test_the_smallest_canvas_of_a_shape(
    size: tuple[int, int], expected: tuple[int, int], tiny: ServedModel
) -> None:
    assert find_canvas_size(tiny.model, size) == expected
    tiny.model.canvases.new(expected)  # can be laid


def test_every_shape_has_a_canvas_that_can_be_laid(tiny: ServedModel) -> None:
    for width in range(16, 130):
        canvas = find_canvas_size(tiny.model, (width, 32))
        tiny.model.canvases.new(canvas)
        assert min(canvas) == 16
        ratio = min(4, max(width, 32) / min(width, 32))
        assert abs(max(canvas) / 16 - ratio) <= 1 / 8 + 1e-9
