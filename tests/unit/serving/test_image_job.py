"""An image job: what a request leaves open is decided, and who paints it."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tessella.errors import ConfigError
from tessella.model.canvas import Canvas
from tessella.serving.api_errors import ApiError
from tessella.serving.image_job import create_job, plan_canvas, plan_size
from tessella.serving.models_served import ServedModel
from tessella.serving.schemas import GenerationBody, ImageBody, create_body
from tessella.serving.settings import ServeSettings

Models = Mapping[str, ServedModel]
Body = create_body(ImageBody, ServeSettings())
Generation = functools.partial(create_body(GenerationBody, ServeSettings()), prompt="a")


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
        n=3, seed=0, best_of=4, negative_prompt="blue", partial_images=5, stream=True, **fields,
    )  # fmt: skip
    job = create_job(models["twin"], body, "a red star", None)
    assert job.settings.model_dump() == fields
    assert (job.count, job.best_of, job.num_partials) == (3, 4, 5)
    requests = job.list_requests()
    assert [request.seed for request in requests] == [0, 4, 8]
    assert {request.negative_prompt for request in requests} == {"blue"}
    assert create_job(models["twin"], Body(partial_images=5), "a", None).num_partials == 0


def test_canvases_are_made_when_the_worker_lists_the_requests(tiny: ServedModel) -> None:
    calls: list[Sequence[int]] = []

    def plan(seeds: Sequence[int]) -> list[Canvas]:
        calls.append(seeds)
        return [tiny.model.canvases.new()] * len(seeds)

    job = create_job(tiny, Body(n=2, seed=5), "a", plan)
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


def test_larger_canvases_are_planned(tiny: ServedModel) -> None:
    for size, canvas in ((None, None), ("64x64", None), ("64x32", None), ("64x64", "wide")):
        assert plan_canvas(tiny, plan_size(tiny, Generation(size=size, canvas=canvas))) is None
    planned = plan_size(tiny, Generation(size="64x32", canvas="wide"))
    assert (planned.painted, planned.asked) == ((32, 16), (64, 32))
    plan = plan_canvas(tiny, planned)
    assert plan is not None
    assert [canvas.known.shape for canvas in plan([1, 2])] == [(4, 8)] * 2
    # Edits are of the model's own size, whatever is sent.
    assert plan_size(tiny, Body(size="64x32")).painted == (16, 16)


def test_a_canvas_larger_than_pictures_that_are_sent(
    tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tessella.serving.image_job.MAX_SIDE_PX", 30)
    with pytest.raises(ApiError, match=r"at most 30 pixels a side: `32x16`, the size of the canv"):
        plan_size(tiny, Generation(canvas="2x1"))
