"""The service: who waits, who leaves, and the end."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tessella.images import encode_picture, read_with_transparency
from tessella.serving import bodies, image_answer
from tessella.serving.api_errors import ApiError
from tessella.serving.models_served import ServedModel
from tessella.serving.service import PaintingService
from tessella.serving.settings import ServeSettings

pytestmark = pytest.mark.usefixtures("one_thread")

Models = Mapping[str, ServedModel]
Serve = Callable[..., Any]
GENERATIONS = "/v1/images/generations"


def fault(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    return dict(answer.json()["error"])


def hang_up(server: Any, **said: Any) -> Any:
    """Sends a request; who calls hangs up."""
    body = json.dumps({"prompt": "gone"} | said).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return server.connect(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def is_idle(server: Any) -> bool:
    return server.num_waiting == 0 == server.metric("tessella_queue_pictures")


def test_models_that_are_not_there(models: Models) -> None:
    service = PaintingService(models, ServeSettings())
    assert service.find(None) is service.find("") is models["tiny"]
    assert service.find("twin") is models["twin"]
    for name in ("Tiny", "tiny ", "../tiny", "none"):
        with pytest.raises(ApiError, match=r"There is no such model: `.*`\. This server has: "):
            service.find(name)


def test_the_health_looks_at_the_painting_thread(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    server = serve()
    assert server.get("/healthz").status_code == server.get("/readyz").status_code == 200

    def fail(worker: Any) -> None:
        raise ValueError("always")

    monkeypatch.setattr(type(server.service.worker), "_take_batch", fail)
    for _ in range(5):
        assert server.generate().status_code in (500, 503)
    until(lambda: server.get("/healthz").status_code == 503)
    assert fault(server.get("/healthz"), 503)["code"] == "worker_ended"
    assert server.get("/readyz").status_code == 503


# Who waits.


def test_a_full_queue_refuses_and_says_when_to_come_back(
    serve: Serve, tiny: ServedModel, watch: Any, until: Any
) -> None:
    server, seen = serve(max_queue=3, max_pictures=3), watch(tiny.model)
    seen.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        begun = pool.submit(server.generate, n=2)
        until(lambda: seen.batches)
        assert is_idle(server)
        waiting = [pool.submit(server.generate, n=2, prompt="second")]
        until(lambda: server.num_waiting == 2)
        answer = server.generate(n=2)
        assert fault(answer, 429) == {
            "message": "Too many pictures wait. Try again in 1 s.",
            "type": "rate_limit_error",
            "param": None,
            "code": "queue_full",
        }
        assert answer.headers["retry-after"] == "1"
        fault(server.generate(n=2, stream=True), 429)
        waiting.append(pool.submit(server.generate, n=1, prompt="third"))
        until(lambda: server.num_waiting == 3)
        assert server.metric("tessella_queue_pictures") == 3
        fault(server.generate(), 429)
        assert server.get("/readyz").status_code == 200
        seen.gate.set()
        for answer in (begun, *waiting):
            assert answer.result().status_code == 200
    assert is_idle(server)
    assert server.generate(n=3).status_code == 200
    until(lambda: server.metric("tessella_requests_total", route=GENERATIONS, status="429") == 3)


def test_what_takes_too_long_is_given_up(
    serve: Serve, tiny: ServedModel, watch: Any, until: Any
) -> None:
    server, seen = serve(request_timeout_seconds=0.3), watch(tiny.model)
    seen.gate.clear()
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(server.generate, prompt=prompt) for prompt in ("a", "b")]
        answers.append(pool.submit(server.generate, prompt="c", stream=True))
        for answer in answers:
            body = fault(answer.result(), 503)
            assert body["code"] == "timeout"
            assert body["message"] == ("It took too long. Ask for less, or try again later.")
            assert answer.result().headers["retry-after"] == "5"
    assert 0.25 < time.monotonic() - started < 30
    seen.gate.set()
    until(lambda: is_idle(server))
    until(lambda: server.generate(prompt="after").status_code == 200)
    assert ["c"] not in seen.prompts[1:]  # nobody waited for it any more


def test_a_stream_that_takes_too_long_says_so(
    serve: Serve, tiny: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, opening = serve(request_timeout_seconds=3), threading.Event()
    decode, shown = tiny.model.decode_codes, []

    def stop_later(*codes: Any) -> Any:
        shown.append(codes)
        if len(shown) == 2:
            opening.wait(60)
        return decode(*codes)

    monkeypatch.setattr(tiny.model, "decode_codes", stop_later)
    answer = server.generate(stream=True, partial_images=2)
    opening.set()
    first, last = answer.text.strip().split("\n\n")
    assert first.startswith("event: image_generation.partial_image\n")
    assert last.startswith('event: error\ndata: {"error": {"message": "It took too long')


# Who leaves.


def test_who_hangs_up_while_waiting_is_not_painted(
    serve: Serve, tiny: ServedModel, watch: Any, until: Any
) -> None:
    server, seen = serve(), watch(tiny.model)
    seen.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        begun = pool.submit(server.generate, prompt="begun")
        until(lambda: seen.batches)
        leaving = [hang_up(server, n=2), hang_up(server, stream=True, partial_images=2)]
        until(lambda: server.num_waiting == 3)
        stays = pool.submit(server.generate, prompt="stays")
        until(lambda: server.num_waiting == 4)
        for connected in leaving:
            connected.close()
        until(
            lambda: server.metric("tessella_requests_total", route=GENERATIONS, status="499") == 2
        )
        seen.gate.set()
        assert begun.result().status_code == stays.result().status_code == 200
    assert seen.prompts == [["begun"], ["stays"]]
    assert is_idle(server)


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_while_painted_is_given_up(
    stream: bool, serve: Serve, tiny: ServedModel, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of a thousand steps ends where its client left; the next comes soon."""
    server, steps, going = serve(max_steps=4096), [], threading.Event()
    generate = tiny.model.objective.generate

    def go_slowly(batch: Any, on_step: Any) -> Any:
        def wait(step: Any) -> None:
            steps.append(step.step)
            if len(steps) == 2:
                going.wait(60)
            on_step(step)

        return generate(batch, wait)

    monkeypatch.setattr(tiny.model.objective, "generate", go_slowly)
    worker, jobs = server.service.worker, []
    submit = worker.submit
    monkeypatch.setattr(worker, "submit", lambda *asked: jobs.append(submit(*asked)) or jobs[-1])
    connected = hang_up(server, steps=16, stream=stream, partial_images=16)
    until(lambda: len(steps) == 2)
    if stream:
        said = b""
        while b"partial_image" not in said:
            said += connected.recv(9999)
    connected.close()
    until(lambda: jobs[0].is_cancelled)
    status = "200" if stream else "499"
    until(lambda: server.metric("tessella_requests_total", route=GENERATIONS, status=status) == 1)
    going.set()
    assert server.generate(steps=1).status_code == 200
    assert steps == [1, 2, 1]
    assert is_idle(server)
    assert worker.takes_jobs
    until(lambda: server.metric("tessella_pictures_total", model="tiny") == 1)


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[int], threading.Event]]:
    """Each begun writing of a picture's file, which waits at a gate."""
    begun, gate = [], threading.Event()

    def wait(*asked: Any) -> bytes:
        begun.append(threading.get_ident())
        assert gate.wait(60)
        return encode_picture(*asked)

    monkeypatch.setattr(image_answer, "encode_picture", wait)
    yield begun, gate
    gate.set()


def test_for_who_hangs_up_no_more_is_written(serve: Serve, writing: Any, until: Any) -> None:
    server, (begun, gate) = serve(), writing
    connected = hang_up(server, n=10)
    until(lambda: begun)
    connected.close()
    until(lambda: server.metric("tessella_requests_total", route=GENERATIONS, status="499") == 1)
    gate.set()
    assert server.generate().status_code == 200
    assert len(begun) == 2  # one for who left
    assert is_idle(server)


def test_a_slow_file_is_given_up_in_time(serve: Serve, writing: Any, until: Any) -> None:
    server, (begun, gate) = serve(request_timeout_seconds=0.2), writing
    # A thread that goes on keeps its place: two write, a third waits.
    until(lambda: fault(server.generate(), 503)["code"] == "timeout" and len(begun) == 2)
    fault(server.generate(), 503)
    assert len(begun) == 2
    gate.set()
    until(lambda: server.generate().status_code == 200)


def test_what_waits_to_be_written_fills_the_queue_too(
    serve: Serve, writing: Any, until: Any
) -> None:
    server, (begun, gate) = serve(max_queue=4, max_pictures=2), writing
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(server.generate, n=2) for _ in range(2)]
        until(lambda: server.metric("tessella_pictures_total", model="tiny") == 4)
        until(lambda: len(begun) == 2)
        until(lambda: server.generate().status_code == 429)
        gate.set()
        assert [one.result().status_code for one in asked] == [200, 200]
    assert server.generate().status_code == 200


def test_a_picture_that_is_read_slowly_keeps_its_thread(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    server, begun, gate = serve(request_timeout_seconds=0.2), [], threading.Event()

    def read(content: bytes, **limits: Any) -> Any:
        begun.append(content)
        assert gate.wait(60)
        return read_with_transparency(content, **limits)

    monkeypatch.setattr(bodies, "read_with_transparency", read)
    file = {"image": encode_picture(np.zeros((16, 16, 3), np.uint8))}
    until(lambda: fault(server.post("/images/variations", files=file), 503) and len(begun) == 4)
    for _ in range(2):
        fault(server.post("/images/variations", files=file), 503)
    assert len(begun) == 4
    gate.set()
    until(lambda: server.post("/images/variations", files=file).status_code == 200)


def test_others_of_the_batch_get_theirs(
    serve: Serve, tiny: ServedModel, watch: Any, until: Any
) -> None:
    server, seen = serve(), watch(tiny.model)
    seen.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(server.generate)
        until(lambda: seen.batches)
        connected = hang_up(server)
        until(lambda: server.num_waiting == 1)
        stays = pool.submit(server.generate, prompt="stays")
        until(lambda: server.num_waiting == 2)
        seen.gate.set()
        until(lambda: len(seen.batches) == 2)
        connected.close()
        assert first.result().status_code == stays.result().status_code == 200
    assert seen.prompts[1] == ["gone", "stays"]
    until(lambda: is_idle(server))


# The end.


def test_the_end_finishes_what_is_begun_and_refuses_the_rest(
    serve: Serve, tiny: ServedModel, watch: Any, until: Any
) -> None:
    server, seen = serve(batch_size=1), watch(tiny.model)
    seen.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        begun = pool.submit(server.generate, n=2)
        until(lambda: seen.batches)
        waiting = pool.submit(server.generate, prompt="waiting")
        streamed = pool.submit(server.generate, prompt="streamed", stream=True)
        until(lambda: server.num_waiting == 3)
        server.service.worker.close()
        late = server.generate()
        ready = server.get("/readyz")
        alive = server.get("/healthz")
        seen.gate.set()
        assert len(begun.result().json()["data"]) == 2
        for answer in (waiting.result(), streamed.result(), late):
            assert fault(answer, 503) == {
                "message": "The server is shutting down. Try again later.",
                "type": "server_error",
                "param": None,
                "code": "shutting_down",
            }
            assert answer.headers["retry-after"] == "5"
    assert fault(ready, 503)["code"] == "not_ready"
    assert ready.headers["retry-after"] == "5"
    assert alive.json() == {"status": "ok"}
    assert is_idle(server)
