"""A live run: what is said at each moment, that a look is cheap, that nothing leaks."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from filelock import FileLock

from tessella import files
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.images import save_png
from tessella.runs import record
from tessella.serving.api_errors import install_error_handlers
from tessella.serving.run_routes import RunWatch, create_run_router

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
    """The same, with a process that trains in it."""
    with FileLock(run / ".lock"):
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

    first = "Training is starting; its first numbers arrive within seconds."
    assert said() == ("preparing", first)
    log(training, "tokenizer", train_line(40, loss=0.5))
    assert said() == ("tokenizer", "The image tokenizer is training.")
    log(training, "tokenizer", train_line(100, loss=0.25))
    codes = "The image tokenizer is trained; it is encoding the pictures now."
    assert said() == ("preparing", codes)
    log(training, "transformer", train_line(20, loss=6.0))
    assert said() == ("transformer", "The transformer is training.")
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
        "Image tokenizer: 40 of 100 images (40%) so far. Run the same tessella fit command to "
        "resume."
    )
    assert state["stages"][0]["seconds_left"] is None
    log(run, "tokenizer", train_line(100))
    log(run, "transformer", train_line(50))
    assert look(run)["said"].startswith("Both stages are trained, but the model is not saved yet.")


def test_where_locks_cannot_be_had_nothing_is_claimed(
    training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "lock", refuse)
    log(training, "tokenizer", train_line(40))
    state = look(training)
    assert (state["state"], state["is_running"]) == ("tokenizer", None)


# A finished run in a folder that is read-only was said to be silent.
def test_a_finished_run_is_not_silent(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (training / "model").mkdir()
    (training / "model" / "metrics.json").write_text("{}", encoding="utf-8")
    later = time.time() + 9000
    monkeypatch.setattr(time, "time", lambda: later)
    assert b"The run last wrote to its logs on " in RunWatch(training).look().page


def test_the_time_left_follows_from_the_pace_of_late(training: Path) -> None:
    """60 images are missing. The middle of the last nine paces is 20 a second: 3 seconds."""
    paces = [1000.0, *[10.0] * 4, 20.0, *[500.0] * 4]
    for number, pace in enumerate(paces):
        log(training, "tokenizer", train_line(4 * (number + 1), images_per_second=pace))
    [stage, other] = look(training)["stages"]
    assert (stage["images"], stage["images_seen"], stage["images_per_second"]) == (100, 40, 20.0)
    assert stage["seconds_left"] == 3.0
    assert (other["seconds_left"], other["images_per_second"]) == (None, None)


def test_the_latest_values_are_told(training: Path) -> None:
    log(
        training,
        "tokenizer",
        train_line(50, loss=1.0),
        train_line(100, loss=0.0),
        {"images_seen": 50, "kind": "validation", "loss": 0.5},
    )
    assert look(training)["stages"][0]["latest"] == {
        "loss": {"train": [100, 0.0], "validation": [50, 0.5]},
        "images_per_second": {"train": [100, 10.0]},
    }


def test_a_long_log_becomes_few_points(training: Path) -> None:
    log(training, "tokenizer", *[train_line(at, loss=1.0) for at in range(1, 2001)])
    snapshot = RunWatch(training).look()
    [points] = re.findall(rb'data-values="(1?5:1 .*?)"', snapshot.page)
    assert len(points.split()) == 400
    assert len(snapshot.body) < 1_000
    assert len(snapshot.page) < 60_000


# The owner's folders are private; a page is shown to others.
def test_the_owner_s_folders_are_not_told(run: Path) -> None:
    prepare(["scenes:8"], DataSettings(image_size=16, validation_fraction=0.25), run / "data")
    snapshot = RunWatch(run).look()
    assert b"6 for training, 2 for validation" in snapshot.page
    for content in (snapshot.body, snapshot.page):
        assert b"someone" not in content
    assert b"<dd>pictures</dd>" in snapshot.page
    assert b"<td>earlier</td>" in snapshot.page  # `init_from`, in the table of settings


def test_notes_are_told(run: Path) -> None:
    note = {"images_seen": 40, "kind": "note", "note": "Few codes </script> \ud800"}
    log(run, "tokenizer", note, '{"images_seen": 3, "kind": "train"')
    state = look(run)
    assert state["notes"] == [
        {"stage": "tokenizer", "images_seen": 40, "text": "Few codes </script> \ud800"}
    ]
    assert state["unreadable_lines"] == 1
    assert b"Few codes &lt;/script&gt; ?" in RunWatch(run).look().page


def test_the_page_is_the_report_s_without_what_only_a_file_has(training: Path) -> None:
    client = serve(training)
    log(training, "tokenizer", train_line(40, loss=0.5))
    page = client.get("/v1/run/page")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert '<h1 tabindex="-1">mine</h1>' in page.text
    assert "40 of 100 images (40%) so far. About 6 s left at 10 images/s." in page.text
    assert 'role="slider"' in page.text
    assert "<html" not in page.text
    assert "This page was made" not in page.text
    # The studio's policy allows none of these.
    assert not re.search(r"<script|<style|\sstyle=|\son[a-z]+=", page.text)


# Training that hangs looked alive for as long as nobody reloaded the page.
def test_a_silence_is_told_in_minutes(training: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(training, "tokenizer", train_line(40))
    watch, began = RunWatch(training), time.time()
    assert b"The run last wrote to its logs on " in watch.look().page
    for minutes in (2, 3):
        monkeypatch.setattr(time, "time", lambda now=began + 60.5 * minutes: now)
        assert f", {minutes} min ago. Its process is alive".encode() in watch.look().page


# That it is cheap.


def test_what_has_not_changed_is_not_sent_again(training: Path) -> None:
    client = serve(training)
    first = client.get("/v1/run")
    etag = first.headers["ETag"]
    assert etag == f'"{first.json()["version"]}"'
    assert first.headers["Cache-Control"] == "private, no-cache"
    for known in (etag, f'"old", W/{etag}'):
        for address in ("/v1/run", "/v1/run/page"):
            again = client.get(address, headers={"If-None-Match": known})
            assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    log(training, "tokenizer", train_line(40))
    changed = client.get("/v1/run", headers={"If-None-Match": etag})
    assert (changed.status_code, changed.json()["stages"][0]["images_seen"]) == (200, 40)


def test_the_lock_file_s_time_is_no_news(run: Path) -> None:
    """Asking whether it is held may change it; each look would have drawn the page again."""
    (run / ".lock").touch()
    watch = RunWatch(run)
    version = watch.look().version
    os.utime(run / ".lock", (0, 0))
    assert watch.look().version == version


def test_someone_who_stops_training_is_news(run: Path) -> None:
    watch = RunWatch(run)
    with FileLock(run / ".lock"):
        version = watch.look().version
        assert watch.look().version == version
    assert watch.look().version != version


# A run of a week logs 100,000 lines: each look at it parsed them all.
def test_only_what_is_new_in_a_log_is_parsed(
    training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    parse = record._parse_line
    monkeypatch.setattr(record, "_parse_line", lambda text: parsed.append(text) or parse(text))
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
    assert b'data-values="10:2 15:2 25:2 35:2"' in watch.look().page


# Pictures, and nothing else.


def list_pictures(client: TestClient) -> list[str]:
    """The addresses of the page's pictures, in its order."""
    return re.findall(r'<img class="pixels" src="(.*?)"', client.get("/v1/run/page").text)


def test_a_picture_on_the_page_is_sent(training: Path) -> None:
    client = serve(training)
    path = training / "tokenizer" / "samples" / f"{40:012d}.png"
    draw(path)
    draw(training / "model" / "samples.png", seed=1)
    [address] = list_pictures(client)  # the model's is shown once it has been measured
    sent = client.get(address)
    assert (sent.status_code, sent.content) == (200, path.read_bytes())
    assert sent.headers["Content-Type"] == "image/png"
    assert re.fullmatch(r"v1/pictures/run/[0-9a-f]{40}\.png", address)
    # Its address cannot be guessed, is another one with another picture, and of another server.
    assert list_pictures(serve(training)) != [address]
    draw(path, seed=2)
    [again] = list_pictures(client)
    assert again != address
    (training / "model" / "metrics.json").write_text("{}", encoding="utf-8")
    [samples, _] = list_pictures(client)
    assert client.get(samples).content == (training / "model" / "samples.png").read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..%2F..%2Frun.json",
        "%2e%2e/run.json",
        "tokenizer/metrics.jsonl",
        "tokenizer/samples/000000000040.png",
        "%2Fetc%2Fpasswd",
        "tokenizer%5Csamples%5C40.png",
        "0" * 40 + ".png",
        "tokenizer/samples/40.png%00",
        "9" * 3000,
        "%ff%fe",
    ],
)
def test_nothing_else_is_sent(training: Path, name: str) -> None:
    draw(training / "tokenizer" / "samples" / f"{40:012d}.png")
    client = serve(training)
    answer = client.get(f"/v1/pictures/run/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"
    [address] = list_pictures(client)
    assert client.get(address).status_code == 200


def test_a_picture_that_went_away_is_not_found(training: Path) -> None:
    path = training / "tokenizer" / "samples" / f"{40:012d}.png"
    draw(path)
    client = serve(training)
    [address] = list_pictures(client)
    path.unlink()
    answer = client.get(address)
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
    assert answer.json()["said"] == "The run’s files are damaged; tessella report says where."


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
    assert b'data-values="4:0.5 8:0.25"' in RunWatch(training).look().page


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "true", '"1"', "1" + "0" * 400])
def test_a_value_that_cannot_be_drawn_is_left_out(training: Path, value: str) -> None:
    line = '{"images_seen": 9, "kind": "train", "loss": ' + value + ', "psnr": 1e99}\n'
    log(training, "tokenizer", line)
    state = look(training)
    assert list(state["stages"][0]["latest"]) == ["psnr"]


def test_a_run_that_comes_goes_and_comes_again(tmp_path: Path, run: Path) -> None:
    log(run, "tokenizer", train_line(40, loss=0.5))
    folder = tmp_path / "later"
    watch = RunWatch(folder)

    def said() -> str:
        text: str = json.loads(watch.look().body)["said"]
        return text

    assert said() == "The folder holds no run: it has not started, or it was removed."
    folder.mkdir()
    with FileLock(folder / ".lock"):
        assert said() == "The data is being prepared; training starts after that."
        assert json.loads(watch.look().body)["state"] == "preparing"
    shutil.copytree(run, folder, dirs_exist_ok=True)
    assert "40 of 100 images" in said()
    shutil.rmtree(folder)
    assert said() == "The folder holds no run: it has not started, or it was removed."
    shutil.copytree(run, folder)
    (folder / "tokenizer" / "metrics.jsonl").unlink()
    assert "Nothing is logged yet" in said()
