"""The API against its own document: schemathesis sends what it allows, and what it does not.

All of schemathesis' checks, in their default configuration: what fits the document is accepted,
what does not is refused, and every answer (status, headers, body) is one that the document names.
The application is called in this process, with an untrained model of 16×16 pixels.

A second test walks through sequences of calls while keys, hosts, origins and limits change: each is
refused as it should be, or answered as the document says.
"""

import base64
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from PIL import Image
from schemathesis.engine import events, from_schema
from schemathesis.python import asgi
from schemathesis.transport.serialization import Binary

from tessella.serving.app import create_app
from tessella.serving.middleware import needs_key
from tessella.serving.models_served import load_models
from tessella.serving.settings import ServeSettings
from untrained import create_untrained, save_untrained

KEY = "a-key-for-these-tests"
MAX_EXAMPLES = 20  # an operation and phase
# schemathesis 4.32 passes its own pictures to a validator that does not take them, when it draws
# a body that must not fit: it then ends the one scenario. Which draws meet it hypothesis chooses.
NOT_CHECKED = "Unsupported type: 'Binary'"


def draw_picture(form: str, color: tuple[int, int, int]) -> Binary:
    """All of one size, as a mask has to be; half bright and half dark, so that it marks some of it,
    inverted too.
    """
    file, image = io.BytesIO(), Image.new("RGB", (16, 16), color)
    image.paste("black", (0, 0, 8, 16))
    image.save(file, form)
    return Binary(file.getvalue())


def write_url(picture: Binary) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.data).decode()


# JSON Schema cannot say that bytes are a picture; this tells schemathesis what `binary` stands for.
channels = st.integers(128, 255)
schemathesis.openapi.format(
    "binary",
    st.builds(
        draw_picture,
        st.sampled_from(("PNG", "JPEG", "WEBP", "GIF")),
        st.tuples(channels, channels, channels),
    ),
)
# In JSON the same picture is a URL.
schemathesis.openapi.format(
    "data-url", st.just(draw_picture("PNG", (255, 200, 128))).map(write_url)
)


def run_schemathesis(app: FastAPI) -> tuple[list[str], Counter[tuple[str, int]]]:
    """Runs all phases: examples, coverage of bounds, fuzzing, and sequences of calls.

    Returns:
        What failed, in words; and how often an operation answered with a status.
    """
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    schema.config.update(headers={"Authorization": f"Bearer {KEY}"}, request_timeout=60)
    schema.config.generation.update(max_examples=MAX_EXAMPLES, deterministic=True)
    failures: list[str] = []
    statuses: Counter[tuple[str, int]] = Counter()
    try:
        for event in from_schema(schema).execute():
            if isinstance(event, events.FatalError):
                failures.append(repr(event))
            if isinstance(event, events.NonFatalError) and str(event.value) != NOT_CHECKED:
                failures.append(repr(event))
            if not isinstance(event, events.ScenarioFinished):
                continue
            for case, interaction in event.recorder.interactions.items():
                label = event.recorder.cases[case].value.operation.label
                if interaction.response is not None:
                    statuses[label, interaction.response.status_code] += 1
            for node in (node for nodes in event.recorder.checks.values() for node in nodes):
                if node.failure_info is not None:
                    failure, code = node.failure_info.failure, node.failure_info.code_sample
                    failures.append(f"{node.name}: {failure}\n{code}")
    finally:
        asgi.shutdown_lifespans()
    return failures, statuses


def test_the_server_does_what_its_document_says(tmp_path: Path) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "scenes")
    # Both ends of each range are sent: small ranges, small costs. The document tells them.
    limits = ServeSettings(max_pictures=2, max_best_of=2, max_steps=4)
    app = create_app(load_models([str(folder)], device="cpu"), limits, keys=[KEY])
    failures, statuses = run_schemathesis(app)
    assert not failures, "\n\n".join(failures)
    # A document that allows nothing would pass without one picture painted, one that allows all
    # without one refused. How many there are of each is for hypothesis to choose.
    images = [
        f"/v1/images/{one}" for one in ["generations", "edits", "variations", "reconstructions"]
    ]
    for path in (*images, "/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        assert statuses[f"POST {path}", 200], path
        assert statuses[f"POST {path}", 400], path


@dataclass(frozen=True)
class Way:
    """A way for a request to reach a server, or not."""

    headers: dict[str, str]
    key: str | None = KEY
    is_foreign: bool = False  # of another host, or of another page


WAYS = (
    Way({}),
    Way({}, key=None),
    Way({}, key="another-key-for-these-tests"),
    Way({"Host": "paint.example"}, is_foreign=True),
    Way({"Origin": "https://page.example"}, is_foreign=True),
    Way({"Content-Encoding": "gzip"}),
)


@dataclass(frozen=True)
class Door:
    """What a server asks of everybody."""

    limits: dict[str, Any]
    has_keys: bool = True

    def refuses(self, way: Way, path: str) -> int | None:
        """The status by which it refuses a request that came this way; None: it answers it."""
        hosts = self.limits.get("allowed_hosts")
        if way.is_foreign and (not self.has_keys or (hosts and "Host" in way.headers)):
            return 403
        if self.has_keys and way.key != KEY and needs_key(path):
            return 401
        return 415 if "Content-Encoding" in way.headers else None


DOORS = {
    "keys": Door({"max_pictures": 2, "max_best_of": 2, "max_steps": 4}),
    "no keys": Door({"max_pictures": 1, "max_best_of": 1, "max_steps": 1}, has_keys=False),
    "a host": Door({"allowed_hosts": ("localhost",), "max_pictures": 3, "max_steps": 2}),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_whoever_may_not_is_refused_whatever_came_before(door: Door, tmp_path: Path) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "scenes")
    keys = [KEY] if door.has_keys else []
    models = load_models([str(folder)], device="cpu")
    app = create_app(models, ServeSettings(**door.limits), keys=keys)
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    seen: Counter[int] = Counter()

    calls = st.one_of([found.ok().as_strategy() for found in schema.get_all_operations()])

    class Visitor(RuleBasedStateMachine):
        @rule(case=calls, way=st.sampled_from(WAYS))
        def ask(self, case: Any, way: Way) -> None:
            key = {} if way.key is None else {"Authorization": f"Bearer {way.key}"}
            response = case.call(headers={"Host": "localhost", **key, **way.headers})
            seen[response.status_code] += 1
            status = door.refuses(way, case.formatted_path)
            if status is None:
                case.validate_response(response)
            else:
                assert response.status_code == status, (way, case.formatted_path)
                assert response.json()["error"]["message"]

    try:
        run_state_machine_as_test(
            Visitor,
            settings=hypothesis.settings(
                max_examples=15,
                stateful_step_count=8,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
    finally:
        asgi.shutdown_lifespans()
    assert seen[200]
    assert seen[403 if door is not DOORS["keys"] else 401]
    assert not {status for status in seen if status >= 500}
