"""The live view of a run: what it says at each moment, that it is cheap, that nothing leaks."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.images import save_png
from tessella.serving.api_errors import install_error_handlers
from tessella.serving.run_routes import create_run_router
from tessella.serving.run_state import RunWatch

RECIPE = {
    "data": {"image_size": 16},
    "tokenizer": {"network": "residual", "quantizer": {"name": "vq", "codebook_size": 512}},
    "tokenizer_training": {"images": 100, "init_from": "/home/someone/earlier"},
    "transformer": {"width": 32, "depth": 2},
    "objective": {"name": "any_order"},
    "transformer_training": {"images": 50, "init_from": None},
}


def log(run: Path, stage: str, *lines: dict[str, Any] | str) -> None:
    """Adds lines to a stage's log, as training does."""
    (run / stage).mkdir(exist_ok=True)
    with (run / stage / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(line if isinstance(line, str) else json.dumps(line) + "\n")


def train_line(images_seen: int, **values: float) -> dict[str, Any]:
    return {"images_seen": images_seen, "kind": "train", "images_per_second": 10.0, **values}


def draw(path: Path, seed: int = 0) -> None:
    save_png(path, np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has just begun, and that nobody trains in."""
    folder = tmp_path / "mine"
    folder.mkdir()
    content = {"format": 2, "sources": ["/home/someone/pictures"], "recipe": RECIPE}
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def training(run: Path) -> Iterator[Path]:
    """The same, with somebody who trains in it."""
    with (run / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield run


def serve(run: Path) -> TestClient:
    app = FastAPI()
    app.include_router(create_run_router(run))
    install_error_handlers(app)
    return TestClient(app)


def look(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(RunWatch(run).look().body)
    return state


# What is said.


def test_a_run_is_followed_from_its_first_line_to_its_model(training: Path) -> None:
    client = serve(training)

    def said() -> tuple[str, str]:
        state = client.get("/v1/run").json()
        assert state["is_running"] is True
        return state["state"], state["said"]

    first = "The first line of the log comes some seconds after the start."
    assert said() == ("preparing", first)
    log(training, "tokenizer", train_line(40, loss=0.5))
    assert said() == ("tokenizer", "The image tokenizer learns.")
    log(training, "tokenizer", train_line(100, loss=0.25))
    codes = "The image tokenizer is trained. The pictures are turned into codes."
    assert said() == ("preparing", codes)
    log(training, "transformer", train_line(20, loss=6.0))
    assert said() == ("transformer", "The transformer learns.")
    log(training, "transformer", train_line(50, loss=5.0))
    saved = "Both stages are trained; the model is being measured and saved."
    assert said() == ("finishing", saved)
    (training / "model").mkdir()
    metrics = {"psnr": {"value": 15.5, "protocol": "dB"}, "odd": 3}
    (training / "model" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert said() == ("finished", "The model is in the run’s folder.")
    assert client.get("/v1/run").json()["metrics"] == [["psnr", "15.5", "dB"]]


def test_a_run_that_nobody_trains_in_is_stopped(run: Path) -> None:
    log(run, "tokenizer", train_line(40, loss=0.5))
    state = look(run)
    assert (state["state"], state["is_running"]) == ("stopped", False)
    assert state["said"] == (
        "Image tokenizer: 40 of 100 images (40%) so far. The same tessella fit command goes on "
        "from there."
    )
    assert state["stages"][0]["seconds_left"] is None
    log(run, "tokenizer", train_line(100))
    log(run, "transformer", train_line(50))
    assert look(run)["said"].startswith("Both stages have seen their images, but the model is not")


def test_where_locks_cannot_be_had_nothing_is_claimed(
    training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    log(training, "tokenizer", train_line(40))
    state = look(training)
    assert (state["state"], state["is_running"]) == ("tokenizer", None)


def test_the_time_left_follows_from_the_pace_of_late(training: Path) -> None:
    """60 images are missing. The middle of the last nine paces is 20 a second: 3 seconds."""
    paces = [1000.0, *[10.0] * 4, 20.0, *[500.0] * 4]
    for number, pace in enumerate(paces):
        log(training, "tokenizer", train_line(4 * (number + 1), images_per_second=pace))
    [stage, other] = look(training)["stages"]
    assert (stage["images"], stage["images_seen"], stage["images_per_second"]) == (100, 40, 20.0)
    assert stage["seconds_left"] == 3.0
    assert (other["seconds_left"], other["images_per_second"]) == (None, None)


def test_curves_come_with_their_axes_and_words(training: Path) -> None:
    log(
        training,
        "tokenizer",
        train_line(50, loss=1.0, gradient_norm=0.1234567891),
        train_line(100, loss=0.0),
        {"images_seen": 100, "kind": "validation", "loss": 0.5},
    )
    curves = look(training)["stages"][0]["curves"]
    assert list(curves) == ["loss", "images_per_second", "gradient_norm"]  # main ones first
    loss = curves["loss"]
    assert loss["title"] == "Loss"
    assert loss["train"] == [[50, 1.0], [100, 0.0]]
    assert loss["validation"] == [[100, 0.5]]
    assert loss["limits"] == [-0.04, 1.04]
    assert (loss["furthest"], loss["is_log"], loss["is_main"]) == (100, False, True)
    assert loss["x_ticks"][1] == [50, "50"]
    assert loss["description"] == (
        "training: from 1 at 50 images to 0 at 100; lowest 0, highest 1; lately falling. "
        "validation: 0.5 at 100 images."
    )
    assert curves["gradient_norm"]["train"] == [[50, 0.123457]]
    assert not curves["gradient_norm"]["is_main"]
    assert curves["images_per_second"]["limits"][0] < 0 < curves["images_per_second"]["limits"][1]


def test_a_long_log_becomes_few_points(training: Path) -> None:
    log(training, "tokenizer", *[train_line(at, loss=1.0) for at in range(1, 2001)])
    snapshot = RunWatch(training).look()
    assert len(json.loads(snapshot.body)["stages"][0]["curves"]["loss"]["train"]) == 400
    assert len(snapshot.body) < 50_000


def test_the_data_is_told_and_the_owner_s_folders_are_not(run: Path) -> None:
    prepare(["scenes:8"], DataSettings(image_size=16, validation_fraction=0.25), run / "data")
    skipped = {"name": "a.png", "kind": "broken", "reason": "cut off \ud800"}
    (run / "data" / "skipped.jsonl").write_text(json.dumps(skipped), encoding="utf-8")
    body = RunWatch(run).look().body
    state = json.loads(body)
    assert state["skipped"] is None  # not as it was written: the data is damaged
    assert b"someone" not in body
    assert dict(state["facts"])["Data"] == "pictures"

    shutil.rmtree(run / "data")
    prepare(["scenes:8"], DataSettings(image_size=16, validation_fraction=0.25), run / "data")
    state = look(run)
    assert {side: len(found) for side, found in state["captions"].items()} == {
        "train": 6,
        "validation": 2,
    }
    assert state["skipped"] == []


def test_notes_neighbours_and_the_report_are_told(run: Path) -> None:
    note = {"images_seen": 40, "kind": "note", "note": "Few codes </script> \ud800"}
    log(run, "tokenizer", note, '{"images_seen": 3, "kind": "train"')
    draw(run / "nearest.png")
    pairs = [{"prompt": "a cat", "caption": "a kitten", "distance": 0.25}]
    (run / "nearest.json").write_text(json.dumps({"pairs": pairs}), encoding="utf-8")
    (run / "report.html").touch()
    state = look(run)
    assert state["notes"] == [
        {"stage": "tokenizer", "images_seen": 40, "text": "Few codes </script> \ud800"}
    ]
    assert state["unreadable_lines"] == 1
    assert state["nearest_pairs"] == [["a cat", "a kitten", "0.25"]]
    assert state["nearest"].startswith("/v1/run/pictures/nearest.png?")
    assert state["report_available"] is True


# That it is cheap.


def test_what_has_not_changed_is_not_sent_again(training: Path) -> None:
    client = serve(training)
    first = client.get("/v1/run")
    etag = first.headers["ETag"]
    assert etag == f'"{first.json()["version"]}"'
    assert first.headers["Cache-Control"] == "private, no-cache"
    for wanted in (etag, f'"old", W/{etag}'):
        again = client.get("/v1/run", headers={"If-None-Match": wanted})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    log(training, "tokenizer", train_line(40))
    changed = client.get("/v1/run", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["stages"][0]["images_seen"]) == (200, 40)


def test_someone_who_stops_training_is_news(run: Path) -> None:
    watch = RunWatch(run)
    with (run / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        version = watch.look().version
        assert watch.look().version == version
    assert watch.look().version != version


# A run of a week logs 100,000 lines: each look at it parsed them all.
def test_only_what_is_new_in_a_log_is_parsed(
    training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    parse = run_record._parse_line
    monkeypatch.setattr(run_record, "_parse_line", lambda text: parsed.append(text) or parse(text))
    watch = RunWatch(training)
    log(training, "tokenizer", *[train_line(at) for at in range(1, 31)])
    watch.look()
    assert len(parsed) == 30
    watch.look()
    assert len(parsed) == 30
    log(training, "tokenizer", train_line(31), '{"images_seen": 32, "kind": "tr')
    assert json.loads(watch.look().body)["unreadable_lines"] == 1
    assert len(parsed) == 31
    log(training, "tokenizer", 'ain", "loss": 1.0}\n')
    state = json.loads(watch.look().body)
    assert len(parsed) == 32
    assert (state["unreadable_lines"], state["stages"][0]["images_seen"]) == (0, 32)


# Training that is resumed drops what it had logged beyond its checkpoint and logs it anew.
@pytest.mark.parametrize("in_place", [False, True])
def test_a_log_that_was_written_anew_is_read_anew(training: Path, in_place: bool) -> None:
    path = training / "tokenizer" / "metrics.jsonl"
    log(training, "tokenizer", *[train_line(at, loss=1.0) for at in (10, 20, 30)])
    watch = RunWatch(training)
    watch.look()
    lines = [json.dumps(train_line(at, loss=2.0)) + "\n" for at in (10, 15, 25, 35)]
    new = path if in_place else path.with_suffix(".new")
    new.write_text("".join(lines), encoding="utf-8")
    os.replace(new, path)  # noqa: PTH105  # as `tessella.files` does
    [stage, _] = json.loads(watch.look().body)["stages"]
    assert stage["curves"]["loss"]["train"] == [[10, 2.0], [15, 2.0], [25, 2.0], [35, 2.0]]


# Pictures, and nothing else.


def test_a_picture_that_is_listed_is_sent(training: Path) -> None:
    client = serve(training)
    path = training / "tokenizer" / "samples" / f"{40:012d}.png"
    draw(path)
    draw(training / "model" / "samples.png")
    state = client.get("/v1/run").json()
    [listed] = state["stages"][0]["pictures"]["samples"]
    assert listed["images_seen"] == 40
    sent = client.get(listed["url"])
    assert (sent.status_code, sent.content) == (200, path.read_bytes())
    assert sent.headers["Content-Type"] == "image/png"
    assert client.get(state["samples"]).content == path.read_bytes()
    draw(path, seed=1)
    [again] = client.get("/v1/run").json()["stages"][0]["pictures"]["samples"]
    assert again["url"] != listed["url"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..%2F..%2Frun.json",
        "%2e%2e/run.json",
        "tokenizer/metrics.jsonl",
        "tokenizer/samples/000000000040.png",
        "tokenizer/samples/41.png",
        "tokenizer/samples/..%2F..%2Frun.json",
        "%2Fetc%2Fpasswd",
        "tokenizer%5Csamples%5C40.png",
        "tokenizer/samples/40.png%00",
        "tokenizer/samples/" + "9" * 3000,
        "%ff%fe",
    ],
)
def test_nothing_else_is_sent(training: Path, name: str) -> None:
    draw(training / "tokenizer" / "samples" / f"{40:012d}.png")
    client = serve(training)
    answer = client.get(f"/v1/run/pictures/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    assert client.get("/v1/run/pictures/tokenizer/samples/40.png").status_code == 200


def test_a_picture_that_went_away_is_not_found(training: Path) -> None:
    path = training / "tokenizer" / "samples" / f"{40:012d}.png"
    draw(path)
    watch = RunWatch(training)
    listed = watch.look().pictures
    assert list(listed) == ["tokenizer/samples/40.png"]
    path.unlink()
    answer = serve(training).get("/v1/run/pictures/tokenizer/samples/40.png")
    assert answer.status_code == 404
    assert "The run has no such picture." in answer.json()["error"]["message"]


# Whatever a folder holds.


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"recipe": 3}',
        '{"recipe": {"tokenizer": 3, "transformer": []}}',
        '{"recipe": {"tokenizer": {"quantizer": {"levels": "x"}}}}',
        '{"recipe": {}, "sources": 3}',
        '{"recipe": {}, "asked": {"minutes": "x"}}',
        "\udcff",
    ],
)
def test_a_damaged_run_is_a_state(run: Path, content: str) -> None:
    (run / "run.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    answer = serve(run).get("/v1/run")
    assert answer.status_code == 200
    assert answer.json()["state"] == "none"
    assert answer.json()["said"] == "The run’s files are damaged. tessella report says where."


@pytest.mark.parametrize(
    "line",
    [
        "null",
        '{"images_seen": -1, "kind": "train", "loss": 1}',
        '{"images_seen": true, "kind": "train", "loss": 1}',
        '{"images_seen": 1' + "0" * 400 + ', "kind": "train", "loss": 1}',
        '{"images_seen": 10.5, "kind": "train", "loss": 1}',
        '{"images_seen": "9", "kind": "train", "loss": 1}',
        '{"images_seen": 9, "kind": ["train"], "loss": 1}',
        "[" * 100_000,
        "\x00\x00",
    ],
)
def test_a_damaged_line_is_counted_and_left_out(training: Path, line: str) -> None:
    log(training, "tokenizer", train_line(4, loss=0.5), line + "\n", train_line(8, loss=0.25))
    state = look(training)
    assert state["unreadable_lines"] == 1
    assert state["stages"][0]["curves"]["loss"]["train"] == [[4, 0.5], [8, 0.25]]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "true", '"1"', "1" + "0" * 400])
def test_a_value_that_cannot_be_drawn_is_left_out(training: Path, value: str) -> None:
    line = '{"images_seen": 9, "kind": "train", "loss": ' + value + ', "psnr": 1e99}\n'
    log(training, "tokenizer", line)
    state = look(training)
    assert list(state["stages"][0]["curves"]) == ["psnr"]


def test_a_run_that_comes_goes_and_comes_again(tmp_path: Path, run: Path) -> None:
    log(run, "tokenizer", train_line(40, loss=0.5))
    folder = tmp_path / "later"
    watch = RunWatch(folder)

    def said() -> str:
        text: str = json.loads(watch.look().body)["said"]
        return text

    assert said() == "The folder holds no run: it has not begun, or was removed."
    folder.mkdir()
    with (folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert said() == "The data is being prepared; the run begins after that."
        assert json.loads(watch.look().body)["state"] == "preparing"
    shutil.copytree(run, folder, dirs_exist_ok=True)
    assert "40 of 100 images" in said()
    shutil.rmtree(folder)
    assert said() == "The folder holds no run: it has not begun, or was removed."
    shutil.copytree(run, folder)
    (folder / "tokenizer" / "metrics.jsonl").unlink()
    assert "Nothing is logged yet" in said()
