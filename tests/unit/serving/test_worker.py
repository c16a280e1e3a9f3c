"""The worker: what shares a batch, that nobody notices, and that nobody is forgotten."""

import itertools
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessella.errors import GenerationError
from tessella.model.canvas import Canvas
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.objectives import GenerationStep
from tessella.serving import worker as worker_module
from tessella.serving.api_errors import (
    ClosingError,
    MemoryFullError,
    QueueFullError,
    UnforeseenError,
)
from tessella.serving.image_job import ImageJob, JobEvent, PaintedPicture
from tessella.serving.models_served import ServedModel
from tessella.serving.settings import ServeSettings
from tessella.serving.worker import PaintingWorker, QueuedJob

pytestmark = pytest.mark.usefixtures("one_thread")

Models = Mapping[str, ServedModel]
Make = Callable[..., PaintingWorker]
Plan = Callable[[TextToImage], Sequence[Canvas]]
Until = Callable[[Callable[[], Any]], None]

NOISE = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
IMAGE = Image.fromarray(NOISE)
CORNER = np.zeros((16, 16), dtype=bool)
CORNER[:3, :6] = True  # touches the first two tiles of the first row
EDGE = np.zeros((16, 16), dtype=bool)
EDGE[15, 8:] = True  # touches the last two tiles of the last row
ROW = np.zeros((16, 16), dtype=bool)
ROW[5] = True  # touches the four tiles of the second row


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes workers, and ends them."""
    made: list[PaintingWorker] = []

    def begin(batch_size: int = 16, max_queue: int = 256) -> PaintingWorker:
        limits = {"batch_size": batch_size, "max_queue": max_queue, "max_pictures": 1}
        made.append(PaintingWorker(ServeSettings(**limits)))
        return made[-1]

    yield begin
    for worker in made:
        worker.close()
        if worker._thread.ident is not None:
            worker.join(60)
            assert not worker._thread.is_alive()


@dataclass
class Submitted:
    """A job and its events."""

    count: int
    coming: "queue.SimpleQueue[JobEvent]" = field(default_factory=queue.SimpleQueue)
    seen: list[PaintedPicture] = field(default_factory=list)
    job: QueuedJob = field(init=False)

    def wait(self) -> list[np.ndarray]:
        """Waits for all pictures."""
        while sum(event.partial_index is None for event in self.seen) < self.count:
            event = self.coming.get(timeout=60)
            if isinstance(event, Exception):
                raise event
            self.seen.append(event)
        finished = {e.index: e.pixels for e in self.seen if e.partial_index is None}
        assert self.coming.empty()
        return [finished[index] for index in range(self.count)]

    def partials(self, index: int = 0) -> list[PaintedPicture]:
        return [e for e in self.seen if e.partial_index is not None and e.index == index]


def submit(
    worker: PaintingWorker,
    served: ServedModel,
    prompt: str = "a red star",
    seeds: Sequence[int] = (0,),
    *,
    negative_prompt: str = "",
    best_of: int = 1,
    size: tuple[int, int] | None = None,
    plan: Plan | None = None,
    num_partials: int = 0,
    **settings: Any,
) -> Submitted:
    def list_requests() -> list[ImageRequest]:
        model = served.model
        canvases = plan(model) if plan else [model.canvases.new(size)] * len(seeds)
        return [
            ImageRequest(prompt, seed, negative_prompt, canvas)
            for seed, canvas in zip(seeds, canvases, strict=True)
        ]

    job = ImageJob(
        served=served,
        count=len(seeds),
        list_requests=list_requests,
        settings=served.model.generation_settings(**settings),
        best_of=best_of,
        num_partials=num_partials,
    )
    submitted = Submitted(len(seeds))
    submitted.job = worker.submit(job, submitted.coming.put)
    return submitted


def edit(mask: np.ndarray) -> Plan:
    return lambda model: [model.canvases.edit(IMAGE, model.canvases.mark(IMAGE, mask))]


def vary(strength: float, seeds: Sequence[int] = (0,)) -> Plan:
    return lambda model: model.canvases.variations(IMAGE, seeds, strength=strength)


def pixels(pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in pictures]


def gauge(worker: PaintingWorker) -> float | None:
    return worker.metrics.registry.get_sample_value("tessella_queue_pictures")


def count(worker: PaintingWorker, name: str, **labels: str) -> float:
    return worker.metrics.registry.get_sample_value(name, labels) or 0.0


def end(worker: PaintingWorker) -> None:
    """Waits until all is counted, which comes after all is told."""
    worker.close()
    worker.join(60)


# Together as alone.

PROMPTS = ("a red star", "a blue star", "star", "a red, a blue star")


def list_everything() -> list[tuple[dict[str, Any], str, tuple[Any, ...], dict[str, Any]]]:
    """What differs in all that can differ: for the worker, and as a call of the pipeline."""
    asked: list[tuple[dict[str, Any], str, tuple[Any, ...], dict[str, Any]]] = []
    for n, prompt in enumerate(PROMPTS):
        seeds = range(10 * n, 10 * n + 1 + n % 3)
        said: dict[str, Any] = {"count": len(seeds), "seed": 10 * n}
        asked.append(({"prompt": prompt, "seeds": seeds}, "generate", (prompt,), said))
    for prompt, negative in (("a red star", "a blue star"), ("star", ""), ("a star", "red")):
        said = {"negative_prompt": negative, "guidance_scale": 2.0}
        asked.append(({"prompt": prompt, **said}, "generate", (prompt,), said))
    for n, mask in enumerate((CORNER, EDGE, ROW)):
        job = {"prompt": "star", "seeds": [n], "plan": edit(mask)}
        asked.append((job, "edit", (IMAGE, "star", mask), {"seed": n}))
    for seeds in (range(5, 7), range(7, 8)):
        job = {"prompt": "", "seeds": seeds, "plan": vary(0.5, seeds)}
        asked.append((job, "vary", (IMAGE,), {"count": len(seeds), "seed": seeds[0]}))
    for n, prompt in enumerate(PROMPTS[:2]):
        said = {"best_of": 2, "seed": 4 * n, "count": 2}
        job = {"prompt": prompt, "seeds": [4 * n, 4 * n + 2], "best_of": 2}
        asked.append((job, "generate", (prompt,), said))
        job = {"prompt": prompt, "seeds": [n], "size": (28, 16)}
        asked.append((job, "generate", (prompt,), {"seed": n, "canvas": (1.75, 1)}))
    return asked


@pytest.fixture(scope="module")
def expected(models: Models) -> dict[str, list[list[np.ndarray]]]:
    """What the pipeline paints of everything, one after the other."""
    return {
        name: [
            pixels(getattr(models[name].model, method)(*positional, **said))
            for _, method, positional, said in list_everything()
        ]
        for name in ("tiny", "twin", "raster")
    }


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_pictures_are_those_that_are_painted_alone(
    batch_size: int, make: Make, models: Models, expected: dict[str, list[list[np.ndarray]]]
) -> None:
    worker = make(batch_size)
    names = ("tiny",) if batch_size == 1 else tuple(expected)
    asked = [
        (submit(worker, models[name], **job), alone)
        for (job, *_), *alones in zip(
            list_everything(), *(expected[name] for name in names), strict=True
        )
        for name, alone in zip(names, alones, strict=True)
    ]
    worker.start()
    for found, alone in asked:
        assert np.array_equal(found.wait(), alone)
    assert worker._num_waiting == 0
    assert gauge(worker) == 0


def test_the_other_objectives_paint_too(make: Make, models: Models) -> None:
    worker = make()
    worker.start()
    for name in ("atonce", "mean"):
        asked = [submit(worker, models[name], prompt, [7]) for prompt in PROMPTS]
        for prompt, found in zip(PROMPTS, asked, strict=True):
            alone = models[name].model.generate(prompt, seed=7)
            [expected], [made] = pixels(alone), found.wait()
            if name == "mean":  # of a latent, not of codes: rounding may show
                assert np.abs(made.astype(int) - expected).max() <= 1
            else:
                assert np.array_equal(made, expected)


def test_a_picture_is_told_once_though_its_batch_fails_late(
    make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, finish, calls = make(), Canvas.finish, itertools.count(1)

    def fail_once(canvas: Canvas, painted: np.ndarray) -> np.ndarray:
        if next(calls) == 2:
            raise MemoryError
        return finish(canvas, painted)

    monkeypatch.setattr(Canvas, "finish", fail_once)
    asked = submit(worker, tiny, seeds=[1, 2, 3])
    worker.start()
    made = asked.wait()
    end(worker)
    assert [event.index for event in asked.seen] == [0, 1, 2]
    assert asked.coming.empty()
    for seed, picture in zip((1, 2, 3), made, strict=True):
        assert np.array_equal([picture], pixels(tiny.model.generate("a red star", seed=seed)))


def test_candidates_need_a_likelihood(make: Make, models: Models) -> None:
    worker = make()
    refused = submit(worker, models["mean"], best_of=2)
    worker.start()
    with pytest.raises(GenerationError, match="has no likelihood"):
        refused.wait()


# What shares a batch.

HALF = {"plan": vary(0.5)}
TOGETHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "a red star"}, {"prompt": "a red, a blue star"}),
    ({"seeds": [1]}, {"seeds": [2**48]}),
    ({"num_partials": 3}, {"num_partials": 0}),
    (
        {"guidance_scale": 2.0, "negative_prompt": "a blue star"},
        {"guidance_scale": 2.0, "negative_prompt": ""},
    ),
    ({"plan": edit(CORNER)}, {"plan": edit(EDGE)}),
    ({"plan": edit(ROW)}, {"plan": vary(0.25)}),
    ({"prompt": "", **HALF}, {"prompt": "star", "plan": vary(0.5, [9])}),
    ({}, {"plan": vary(1.0)}),
    ({"size": (28, 16)}, {"size": (28, 16)}),
    ({"size": (16, 16)}, {}),
    ({"best_of": 2}, {"best_of": 2, "prompt": "star"}),
    ({"steps": 2}, {"steps": 2}),
]
APART: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"steps": 2}, {"steps": 3}),
    ({"temperature": 0.5}, {"temperature": 0.6}),
    ({"top_k": 3}, {}),
    ({"top_p": 0.5}, {}),
    ({"guidance_scale": 2.0}, {}),
    ({"best_of": 2}, {"best_of": 1}),
    ({"size": (28, 16)}, {}),
    ({"size": (28, 16)}, {"size": (16, 28)}),
    ({"plan": edit(CORNER)}, {"plan": edit(ROW)}),
    ({"plan": edit(CORNER)}, {}),
    (
        {"plan": lambda model: [model.canvases.outpaint(IMAGE, left=8)]},
        {"plan": lambda model: [model.canvases.outpaint(IMAGE, right=8)]},
    ),
]


@pytest.mark.parametrize(("first", "second"), TOGETHER)
def test_these_share_a_batch(
    first: dict[str, Any], second: dict[str, Any], make: Make, tiny: ServedModel, watch: Any
) -> None:
    worker, seen = make(), watch(tiny.model)
    asked = [submit(worker, tiny, **first), submit(worker, tiny, **second)]
    worker.start()
    for found in asked:
        found.wait()
    assert [len(prompts) for prompts in seen.prompts] == [2]
    end(worker)
    assert count(worker, "tessella_batch_size_count") == 1
    assert count(worker, "tessella_pictures_total", model="tiny") == 2


@pytest.mark.parametrize(("first", "second"), APART)
def test_these_do_not(
    first: dict[str, Any], second: dict[str, Any], make: Make, tiny: ServedModel, watch: Any
) -> None:
    worker, seen = make(), watch(tiny.model)
    asked = [submit(worker, tiny, **first), submit(worker, tiny, **second)]
    worker.start()
    for found in asked:
        found.wait()
    assert [len(prompts) for prompts in seen.prompts] == [1, 1]


def test_models_do_not_share_a_batch(make: Make, models: Models, watch: Any) -> None:
    worker = make()
    seen = [watch(models[name].model) for name in ("tiny", "twin")]
    asked = [submit(worker, models[name]) for name in ("tiny", "twin", "tiny")]
    worker.start()
    for found in asked:
        found.wait()
    assert [len(prompts) for prompts in seen[0].prompts] == [2]
    assert [len(prompts) for prompts in seen[1].prompts] == [1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [8, 1]),
        ({"best_of": 2}, [4, 4, 1]),
        ({"best_of": 3}, [2, 2, 2, 2, 1]),
        ({"best_of": 5}, [1] * 9),
        ({"best_of": 16}, [1] * 9),
        ({"size": (32, 16)}, [4, 4, 1]),
        # 28 x 16 are 1.75 pictures: eight of them would be fourteen.
        ({"size": (28, 16)}, [4, 4, 1]),
        ({"size": (32, 32)}, [2, 2, 2, 2, 1]),
        ({"size": (32, 16), "best_of": 5}, [1] * 9),
        ({"size": (48, 48)}, [1] * 9),
    ],
)
def test_a_batch_is_never_larger_than_it_may_be(
    changes: dict[str, Any], expected: list[int], make: Make, tiny: ServedModel, watch: Any
) -> None:
    worker, seen = make(batch_size=8), watch(tiny.model)
    asked = submit(worker, tiny, seeds=range(9), steps=1, **changes)
    worker.start()
    asked.wait()
    assert [len(prompts) for prompts in seen.prompts] == expected


def test_the_oldest_is_next(make: Make, tiny: ServedModel, watch: Any) -> None:
    """What fits into the running batches comes along; nobody overtakes within a group."""
    worker, seen = make(batch_size=2), watch(tiny.model)
    a = submit(worker, tiny, "a", [1, 2, 3])
    b = submit(worker, tiny, "b", [4, 5], steps=2)
    c = submit(worker, tiny, "c", [6])
    d = submit(worker, tiny, "d", [7], steps=2)
    worker.start()
    for asked in (a, b, c, d):
        asked.wait()
    assert seen.prompts == [["a", "a"], ["a", "c"], ["b", "b"], ["d"]]
    assert seen.seeds == [[1, 2], [3, 6], [4, 5], [7]]


def test_a_crowd_does_not_starve_one_who_asks_otherwise(
    make: Make, tiny: ServedModel, watch: Any, until: Until
) -> None:
    worker, seen = make(batch_size=2), watch(tiny.model)
    seen.gate.clear()
    crowd = [submit(worker, tiny, "first", [0])]
    worker.start()
    until(lambda: len(seen.batches) == 1)
    other = submit(worker, tiny, "other", steps=2)
    crowd += [submit(worker, tiny, "crowd", [n]) for n in range(9)]
    seen.gate.set()
    for asked in (other, *crowd):
        asked.wait()
    assert seen.prompts[1] == ["other"]


def test_nobody_waits_for_others_to_come(make: Make, tiny: ServedModel, watch: Any) -> None:
    """One alone is painted at once; those who come meanwhile share the next batch."""
    worker, seen = make(), watch(tiny.model)
    worker.start()
    submit(worker, tiny).wait()
    seen.gate.clear()
    first = submit(worker, tiny, "first")
    while len(seen.batches) < 2:
        pass
    late = [submit(worker, tiny, prompt) for prompt in ("second", "third", "fourth")]
    seen.gate.set()
    for asked in (first, *late):
        asked.wait()
    assert seen.prompts == [["a red star"], ["first"], ["second", "third", "fourth"]]


# Partial pictures.


def snapshots(model: TextToImage, **asked: Any) -> list[np.ndarray]:
    """What each step of a picture shows."""
    shown: list[np.ndarray] = []

    def keep(step: GenerationStep) -> None:
        shown.append(model.decode_codes(step.codes[:1], step.is_decoded[:1])[0])

    model.generate(on_step=keep, **asked)
    return shown


def test_as_many_partial_pictures_as_are_asked_for(make: Make, tiny: ServedModel) -> None:
    """All, unless there are no more steps: each comes with a step of its own before the last.

    With five steps four became three: 3/5 was found below 0.2 + 2 · 0.8 / 4.
    """
    worker = make()
    asked = {
        (steps, partials): submit(worker, tiny, steps=steps, num_partials=partials)
        for steps in range(1, 17)
        for partials in range(16)
    }
    worker.start()
    for (steps, partials), found in asked.items():
        found.wait()
        told = [partial.partial_index for partial in found.partials()]
        assert told == list(range(min(partials, steps - 1))), (steps, partials)


@pytest.mark.parametrize(
    ("partials", "steps"), [(1, [2]), (2, [2, 4]), (3, [2, 4, 6]), (7, [1, 2, 3, 4, 5, 6, 7])]
)
def test_they_come_evenly_the_first_within_a_quarter(
    partials: int, steps: list[int], make: Make, tiny: ServedModel
) -> None:
    worker = make()
    asked = submit(worker, tiny, seeds=[4], steps=8, num_partials=partials)
    worker.start()
    [finished] = asked.wait()
    shown = snapshots(tiny.model, prompts="a red star", seed=4, steps=8)
    expected = [shown[step - 1] for step in steps]
    assert np.array_equal([partial.pixels for partial in asked.partials()], expected)
    assert np.array_equal(finished, shown[-1])
    assert asked.seen[-1].partial_index is None


@pytest.mark.parametrize("best_of", [1, 2])
def test_each_gets_its_own_partial_pictures(
    best_of: int, make: Make, tiny: ServedModel, watch: Any
) -> None:
    """In a mixed batch; of candidates the first is shown."""
    worker, seen = make(), watch(tiny.model)
    wanted = [("a red star", 2), ("a blue star", 0), ("star", 1), ("a star", 3)]
    asked = [
        submit(worker, tiny, prompt, [10 * n], steps=6, num_partials=partials, best_of=best_of)
        for n, (prompt, partials) in enumerate(wanted)
    ]
    pair = submit(
        worker, tiny, "pair", [90, 90 + best_of], steps=6, num_partials=2, best_of=best_of
    )
    worker.start()
    for found in (*asked, pair):
        found.wait()
    assert len(seen.batches) == 1
    for n, ((prompt, partials), found) in enumerate(zip(wanted, asked, strict=True)):
        shown = snapshots(tiny.model, prompts=prompt, seed=10 * n, steps=6)
        steps = {0: [], 1: [2], 2: [2, 3], 3: [2, 3, 5]}[partials]
        told = found.partials()
        assert len(told) == partials
        for partial, step in zip(told, steps, strict=True):
            assert np.array_equal(partial.pixels, shown[step - 1])
    for index, seed in enumerate((90, 90 + best_of)):
        shown = snapshots(tiny.model, prompts="pair", seed=seed, steps=6)
        told = pair.partials(index)
        assert [partial.partial_index for partial in told] == [0, 1]
        assert np.array_equal([partial.pixels for partial in told], shown[1:3])


def test_larger_canvases_are_shown_whole(make: Make, tiny: ServedModel) -> None:
    worker = make()
    asked = submit(worker, tiny, seeds=[3], size=(32, 16), num_partials=3)
    worker.start()
    asked.wait()
    shown = snapshots(tiny.model, prompts="a red star", seed=3, canvas=(2, 1))
    assert len(shown) == 9  # three windows of three steps
    expected = [shown[step - 1] for step in (3, 5, 7)]
    assert np.array_equal([partial.pixels for partial in asked.partials()], expected)
    assert expected[0].shape == (16, 32, 3)


def test_partial_edits_keep_what_stays(make: Make, tiny: ServedModel) -> None:
    worker = make()
    asked = submit(worker, tiny, plan=edit(ROW), steps=4, num_partials=3)
    worker.start()
    asked.wait()
    assert len(asked.partials()) == 3
    for partial in asked.partials():
        assert np.array_equal(partial.pixels[~ROW], NOISE[~ROW])
        assert not np.array_equal(partial.pixels[ROW], NOISE[ROW])


@pytest.mark.parametrize(("name", "expected"), [("raster", 5), ("atonce", 0), ("mean", 0)])
def test_partial_pictures_of_the_other_objectives(
    name: str, expected: int, make: Make, models: Models
) -> None:
    """One place a step takes as many steps as there are places; one step has nothing between."""
    worker = make()
    asked = submit(worker, models[name], num_partials=5)
    worker.start()
    asked.wait()
    assert len(asked.partials()) == expected


# Those who leave.


def test_who_leaves_while_waiting_is_not_painted(
    make: Make, tiny: ServedModel, watch: Any, until: Until
) -> None:
    worker, seen = make(), watch(tiny.model)
    seen.gate.clear()
    begun = submit(worker, tiny, "begun")
    worker.start()
    until(lambda: seen.batches)
    gone, stays = submit(worker, tiny, "gone", [1, 2]), submit(worker, tiny, "stays")
    gone.job.cancel()
    seen.gate.set()
    begun.wait()
    stays.wait()
    assert seen.prompts == [["begun"], ["stays"]]
    assert worker._num_waiting == 0
    assert gauge(worker) == 0
    assert gone.coming.empty()


def test_who_leaves_before_the_plan_costs_nothing(make: Make, tiny: ServedModel) -> None:
    worker, planned = make(), []

    def plan(model: TextToImage) -> list[Canvas]:
        planned.append(model)
        return [model.canvases.new()]

    gone, stays = submit(worker, tiny, plan=plan), submit(worker, tiny)
    gone.job.cancel()
    worker.start()
    stays.wait()
    assert planned == []
    assert worker._num_waiting == 0


def test_a_batch_that_nobody_waits_for_ends(
    make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, steps = make(), []
    generate = tiny.model.objective.generate

    def record(batch: Any, on_step: Any) -> Any:
        def leave(step: GenerationStep) -> None:
            steps.append(step.step)
            if step.step == 3 and step.steps == 16:
                first.job.cancel()
                second.job.cancel()
            on_step(step)

        return generate(batch, leave)

    monkeypatch.setattr(tiny.model.objective, "generate", record)
    first = submit(worker, tiny, steps=16)
    second = submit(worker, tiny, "star", steps=16)
    after = submit(worker, tiny, steps=1)
    worker.start()
    after.wait()
    assert steps == [1, 2, 3, 1]
    assert first.coming.empty()
    assert second.coming.empty()
    end(worker)
    assert count(worker, "tessella_pictures_total", model="tiny") == 1
    assert worker._num_waiting == 0


def test_the_others_of_a_batch_get_theirs(
    make: Make, tiny: ServedModel, watch: Any, until: Until
) -> None:
    worker, seen = make(), watch(tiny.model)
    seen.gate.clear()
    gone, stays = submit(worker, tiny, "gone"), submit(worker, tiny, "a star", [5])
    worker.start()
    until(lambda: seen.batches)
    gone.job.cancel()
    seen.gate.set()
    painted = stays.wait()
    assert seen.prompts == [["gone", "a star"]]
    assert np.array_equal(painted, pixels(tiny.model.generate("a star", seed=5)))


# The bound.


def test_the_bound_is_exact(make: Make, tiny: ServedModel) -> None:
    worker = make(max_queue=3)
    taken = [submit(worker, tiny, seeds=[1, 2])]
    with pytest.raises(QueueFullError) as caught:
        submit(worker, tiny, seeds=[3, 4])
    assert caught.value.retry_after == 1
    taken.append(submit(worker, tiny, seeds=[5]))
    with pytest.raises(QueueFullError):
        submit(worker, tiny)
    assert worker._num_waiting == gauge(worker) == 3
    worker.start()
    for asked in taken:
        asked.wait()
    assert worker._num_waiting == gauge(worker) == 0
    submit(worker, tiny, seeds=[1, 2, 3]).wait()


@pytest.mark.parametrize(
    ("pace", "waiting", "expected"), [(0.0, 90, 1), (10.0, 90, 4), (100.0, 9, 1), (0.1, 256, 60)]
)
def test_when_to_come_back(pace: float, waiting: int, expected: int, make: Make) -> None:
    """Half of what waits is gone by then; between a second and a minute."""
    worker = make()
    worker._pictures_per_second, worker._num_waiting = pace, waiting
    assert worker._estimate_seconds() == expected


def test_the_pace_is_that_of_the_last_batches(make: Make) -> None:
    worker = make()
    worker._measure("tiny", 10, 1.0)
    assert worker._pictures_per_second == 10
    worker._measure("tiny", 20, 1.0)
    assert worker._pictures_per_second == pytest.approx(12)


def test_a_clock_that_stood_still_stops_nobody(make: Make) -> None:
    """Where a clock ticks every 16 ms, a small batch takes no time at all."""
    worker = make()
    worker._measure("tiny", 1, 0.0)
    assert worker._estimate_seconds() == 1


# What fails.


def test_a_plan_that_fails_fails_alone(make: Make, tiny: ServedModel, watch: Any) -> None:
    def fail(model: TextToImage) -> list[Canvas]:
        raise GenerationError("The mask marks nothing.")

    worker, seen = make(), watch(tiny.model)
    before = submit(worker, tiny, "before")
    failing = submit(worker, tiny, "failing", [1, 2, 3], plan=fail)
    after = submit(worker, tiny, "after")
    worker.start()
    before.wait()
    after.wait()
    with pytest.raises(GenerationError, match="marks nothing"):
        failing.wait()
    assert failing.coming.empty()
    assert seen.prompts == [["before", "after"]]
    assert worker._num_waiting == gauge(worker) == 0


def test_of_a_batch_that_fails_each_is_painted_alone(
    make: Make, tiny: ServedModel, watch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    worker, seen = make(), watch(tiny.model)
    seen.broken = "broken"
    good = submit(worker, tiny, "good", [1])
    broken = submit(worker, tiny, "broken", [2, 3])
    fine = submit(worker, tiny, "fine", [4])
    worker.start()
    assert np.array_equal(good.wait(), pixels(tiny.model.generate("good", seed=1)))
    assert np.array_equal(fine.wait(), pixels(tiny.model.generate("fine", seed=4)))
    with pytest.raises(RuntimeError, match="secret"):
        broken.wait()
    assert broken.coming.empty()  # told once
    assert seen.prompts[0] == ["good", "broken", "broken", "fine"]
    assert all(len(prompts) == 1 for prompts in seen.prompts[1:])
    assert worker._num_waiting == gauge(worker) == 0
    assert "each is painted alone" in caplog.text
    seen.broken = None
    submit(worker, tiny, "broken").wait()


def test_what_is_wrong_with_one_is_said_to_one(
    make: Make, tiny: ServedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Not to the log: a request that cannot be met is no news."""
    worker = make()
    wrong = submit(worker, tiny, "far too many words " * 9)
    right = submit(worker, tiny, "a red star")
    worker.start()
    right.wait()
    with pytest.raises(GenerationError, match="at most 64 can be read"):
        wrong.wait()
    assert caplog.text == ""


def test_partial_pictures_are_not_told_twice_when_a_batch_fails(
    make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, generate = make(), tiny.model.objective.generate

    def fail_late(batch: Any, on_step: Any) -> Any:
        painted = generate(batch, on_step)
        if len(batch.seeds) > 1:
            raise MemoryError
        return painted

    monkeypatch.setattr(tiny.model.objective, "generate", fail_late)
    asked = [submit(worker, tiny, prompt, num_partials=2) for prompt in ("a star", "star")]
    worker.start()
    for found in asked:
        found.wait()
        assert [partial.partial_index for partial in found.partials()] == [0, 1]


# The end.


def test_the_end_finishes_what_is_begun_and_refuses_the_rest(
    make: Make, tiny: ServedModel, watch: Any, until: Until
) -> None:
    worker, seen = make(batch_size=1), watch(tiny.model)
    seen.gate.clear()
    begun = submit(worker, tiny, "begun", [1, 2, 3])
    waiting = submit(worker, tiny, "waiting")
    worker.start()
    until(lambda: seen.batches)
    assert worker.takes_jobs
    late = submit(worker, tiny, "late", [1, 2])
    worker.close()
    assert not worker.takes_jobs
    with pytest.raises(ClosingError):
        submit(worker, tiny)
    seen.gate.set()
    assert len(begun.wait()) == 3
    for refused in (waiting, late):
        with pytest.raises(ClosingError):
            refused.wait()
        assert refused.coming.empty()
    worker.join(60)
    assert not worker._thread.is_alive()
    assert seen.seeds == [[1], [2], [3]]
    assert worker._num_waiting == gauge(worker) == 0


def test_an_idle_worker_ends_at_once(make: Make) -> None:
    worker = make()
    assert not worker.takes_jobs
    worker.start()
    assert worker.takes_jobs
    worker.close()
    worker.join(5)
    assert not worker._thread.is_alive()


def test_begun_jobs_whose_clients_left_do_not_hold_up_the_end(
    make: Make, tiny: ServedModel, watch: Any, until: Until
) -> None:
    worker, seen = make(batch_size=1), watch(tiny.model)
    seen.gate.clear()
    begun = submit(worker, tiny, seeds=range(50))
    worker.start()
    until(lambda: seen.batches)
    worker.close()
    begun.job.cancel()
    seen.gate.set()
    worker.join(60)
    assert not worker._thread.is_alive()
    assert len(seen.batches) == 1
    assert worker._num_waiting == gauge(worker) == 0


def test_jobs_may_come_from_many_threads(make: Make, tiny: ServedModel) -> None:
    worker = make(max_queue=40)
    worker.start()
    refused: list[QueueFullError] = []
    painted: list[int] = []

    def ask(first: int) -> None:
        for n in range(first, first + 10):
            try:
                submit(worker, tiny, seeds=[n, n], steps=1).wait()
                painted.append(n)
            except QueueFullError as error:
                refused.append(error)

    threads = [threading.Thread(target=ask, args=(10 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(painted) + len(refused) == 80
    assert painted
    assert worker._num_waiting == gauge(worker) == 0


# Calls.


def test_what_uses_a_network_runs_in_the_workers_thread(make: Make) -> None:
    """A second thread that used PyTorch once made painting three times as slow."""
    worker = make()
    names = [worker.call(lambda: threading.current_thread().name) for _ in range(3)]
    assert worker._num_waiting == gauge(worker) == 3
    worker.start()
    assert [name.result(10) for name in names] == ["painting"] * 3
    assert worker._num_waiting == gauge(worker) == 0


def test_a_call_that_fails_fails_alone(make: Make, tiny: ServedModel) -> None:
    worker = make()
    failing = worker.call(lambda: 1 // 0)
    asked = submit(worker, tiny)
    worker.start()
    assert isinstance(failing.exception(10), ZeroDivisionError)
    assert len(asked.wait()) == 1


def test_calls_wait_in_the_same_queue(make: Make, tiny: ServedModel) -> None:
    worker = make(max_queue=2)
    worker.call(lambda: None)
    submit(worker, tiny)
    with pytest.raises(QueueFullError):
        worker.call(lambda: None)


def test_the_end_refuses_calls_also_those_that_nobody_waits_for(make: Make) -> None:
    """A call whose client had left once ended the thread with an error of its own."""
    worker = make()
    waiting, left = worker.call(lambda: 1), worker.call(lambda: 2)
    assert left.cancel()
    worker.close()
    worker.start()
    assert isinstance(waiting.exception(10), ClosingError)
    worker.join(60)
    assert worker._num_waiting == gauge(worker) == 0
    with pytest.raises(ClosingError):
        worker.call(lambda: 3)


# Faults where none is expected.


def test_a_listener_that_fails_costs_its_own_job_alone(make: Make, tiny: ServedModel) -> None:
    """It ended the thread: `/readyz` said no for ever, `/healthz` yes."""
    worker = make()
    asked = [submit(worker, tiny, seeds=[n]) for n in range(3)]

    def fail(event: JobEvent) -> None:
        raise RuntimeError("nobody listens")

    asked[1].job.emit = fail
    worker.start()
    assert len(asked[0].wait()) == len(asked[2].wait()) == 1
    assert len(submit(worker, tiny).wait()) == 1
    assert worker.is_alive
    assert worker._num_waiting == gauge(worker) == 0


@pytest.mark.parametrize("fault", [ValueError("what"), MemoryError(), SystemExit(1)])
@pytest.mark.parametrize("place", ["_measure", "_take_batch", "_list_pictures"])
def test_a_fault_outside_of_painting_costs_the_jobs_at_hand(
    fault: BaseException,
    place: str,
    make: Make,
    tiny: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker, right = make(batch_size=1), getattr(PaintingWorker, place)
    is_broken = [True]

    def fail_once(self: PaintingWorker, *given: Any) -> Any:
        if is_broken and is_broken.pop():
            raise fault
        return right(self, *given)

    monkeypatch.setattr(PaintingWorker, place, fail_once)
    asked = submit(worker, tiny, seeds=[1, 2])
    worker.start()
    with pytest.raises(MemoryFullError if isinstance(fault, MemoryError) else UnforeseenError):
        asked.wait()
    assert type(fault).__name__ in caplog.text
    assert len(submit(worker, tiny, seeds=[1, 2]).wait()) == 2
    assert worker.is_alive
    assert worker.takes_jobs
    assert worker._num_waiting == gauge(worker) == 0


def test_after_faults_in_a_row_it_gives_up_and_says_so(
    make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    worker = make()

    def fail(self: PaintingWorker) -> Any:
        raise ValueError("always")

    monkeypatch.setattr(PaintingWorker, "_take_batch", fail)
    assert worker.is_alive
    worker.start()
    for _ in range(5):
        with pytest.raises((UnforeseenError, ClosingError)):
            submit(worker, tiny).wait()
    until(lambda: not worker.is_alive)
    assert not worker.takes_jobs
    with pytest.raises(ClosingError):
        submit(worker, tiny)
    with pytest.raises(ClosingError):
        worker.call(lambda: 1)
    assert worker._num_waiting == 0


def test_a_thread_that_cannot_even_report_a_fault_ends_and_says_so(
    make: Make,
    tiny: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
    until: Until,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*given: Any) -> Any:
        raise MemoryError

    worker = make(batch_size=1)
    asked = [submit(worker, tiny, seeds=[n]) for n in range(3)]
    monkeypatch.setattr(PaintingWorker, "_take_batch", fail)
    monkeypatch.setattr(worker_module, "describe_fault", fail)
    worker.start()
    for one in asked:
        with pytest.raises(ClosingError):
            one.wait()
    until(lambda: not worker.is_alive)
    assert not worker.takes_jobs
    assert "could not recover from a fault" in caplog.text
    assert worker._num_waiting == gauge(worker) == 0


def test_where_nothing_can_be_painted_it_ends(
    make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    """As after an illegal access on an accelerator: every later call fails in this process."""

    def fail(*given: Any, **more: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    worker = make()
    monkeypatch.setattr(tiny.model, "generate_images", fail)
    worker.start()
    for _ in range(3):
        with pytest.raises((RuntimeError, ClosingError)):
            submit(worker, tiny).wait()
    until(lambda: not worker.is_alive)
    with pytest.raises(ClosingError):
        submit(worker, tiny)
    worker.close()
    assert not worker.is_alive  # it was not this that ended it


@pytest.mark.parametrize("fault", [MemoryError(), ValueError("what")])
def test_requests_that_cannot_be_painted_end_nothing(
    fault: Exception, make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds one that fails must not be able to end the server with it."""
    generate, checks = tiny.model.generate_images, []

    def fail(requests: Sequence[ImageRequest], *given: Any, **more: Any) -> Any:
        if requests[0].prompt == "broken":
            raise fault
        checks.append(requests[0].prompt)
        return generate(requests, *given, **more)

    worker = make()
    monkeypatch.setattr(tiny.model, "generate_images", fail)
    worker.start()
    for _ in range(7):
        with pytest.raises(type(fault)):
            submit(worker, tiny, "broken").wait()
    assert checks == ["", ""]
    assert len(submit(worker, tiny, "star").wait()) == 1
    assert worker.takes_jobs


def test_an_error_holds_no_tensors_of_its_batch(
    make: Make, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each picture of a batch that was too large is painted in the memory that it took."""
    held: list[weakref.ref[Any]] = []
    alive: list[int] = []
    generate = tiny.model.objective.generate

    def fail(batch: Any, on_step: Any) -> Any:
        if len(batch.seeds) > 1:
            large = np.zeros(1000)
            held.append(weakref.ref(large))
            raise MemoryError
        alive.append(sum(one() is not None for one in held))
        return generate(batch, on_step)

    monkeypatch.setattr(tiny.model.objective, "generate", fail)
    worker = make()
    asked = submit(worker, tiny, seeds=[1, 2])
    worker.start()
    assert len(asked.wait()) == 2
    assert (len(held), alive) == (1, [0, 0])


def test_a_call_that_exits_ends_nothing(make: Make) -> None:
    worker = make()
    worker.start()
    assert isinstance(worker.call(lambda: sys.exit(3)).exception(10), RuntimeError)
    assert worker.call(lambda: 1).result(10) == 1
