"""The API against its own document: schemathesis sends what it allows, and what it does not.

All of schemathesis' checks, in their default configuration: what fits the document is accepted,
what does not is refused, and every answer (status, headers, body) is one that the document names.
The application is called in this process, with an untrained model of 16×16 pixels.
"""

import base64
import io
from collections import Counter
from pathlib import Path

import schemathesis
from fastapi import FastAPI
from hypothesis import strategies as st
from PIL import Image
from schemathesis.engine import events, from_schema
from schemathesis.python import asgi
from schemathesis.transport.serialization import Binary

from tessella.serving.app import create_app
from tessella.serving.models_served import load_models
from tessella.serving.settings import ServeSettings
from untrained import create_untrained, save_untrained

KEY = "a-key-for-these-tests"
MAX_EXAMPLES = 20  # an operation and phase
# schemathesis 4.32 passes its own pictures to a validator that does not take them, when it draws
# a body that must not fit: it then ends the one scenario. Which draws meet it hypothesis chooses.
NOT_CHECKED = "Unsupported type: 'Binary'"


def draw_picture(form: str, color: tuple[int, int, int]) -> Binary:
    """All of one size, as a mask has to be; none is dark, which would mark nothing."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(file, form)
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
    # AUTOMATIC1111's shape, which programs send as it is, says less than what is refused: no size
    # is too small for it, and no prompt too empty.
    schema = schemathesis.openapi.from_dict(app.openapi()).exclude(path_regex="^/sdapi/")
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
    for name in ("generations", "edits", "variations", "reconstructions"):
        assert statuses[f"POST /v1/images/{name}", 200]
        assert statuses[f"POST /v1/images/{name}", 400]
