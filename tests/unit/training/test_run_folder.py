"""The folder of a run: who may train in it, and which calls continue it."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tessella.errors import CheckpointError, ConfigError
from tessella.files import lock
from tessella.runs.facts import list_facts
from tessella.runs.record import read_run
from tessella.runs.report import write_report
from tessella.training.recipe import resolve_recipe
from tessella.training.run_folder import RUN_FORMAT, lock_run, open_run, write_run_file


def asked(*words: str, minutes: float | None = None, seed: int = 0) -> dict[str, Any]:
    recipe = resolve_recipe(None, None, words).model_dump(mode="json")
    return {"minutes": minutes, "seed": seed, "recipe": recipe}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two minutes, whose recipe differs from what was asked for."""
    out = tmp_path / "run"
    recipe = resolve_recipe("small")
    write_run_file(out, ["pictures"], asked(minutes=2.0), recipe)
    return out


# Who may train in it.


def test_two_do_not_train_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    with lock_run(out):
        message = "Another process is training in this folder: `.*run`. Wait for it, stop it, or"
        with pytest.raises(ConfigError, match=message), lock_run(out):
            pytest.fail("both are in")
    with lock_run(out):
        pass


# To ask whether a run is locked is to hold its lock: `fit` was refused if it began just then.
def test_a_question_does_not_keep_a_run_from_beginning(tmp_path: Path) -> None:
    is_asking = threading.Event()

    def ask() -> None:
        with lock(tmp_path / ".lock"):
            is_asking.set()
            time.sleep(0.02)

    other = threading.Thread(target=ask)
    other.start()
    is_asking.wait()
    with lock_run(tmp_path):
        other.join()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"Cannot use the run's folder: `.*file/run`; Not a directory. Choose another --out"
    with pytest.raises(ConfigError, match=message), lock_run(tmp_path / "file" / "run"):
        pytest.fail("it was made")


# Which calls continue it.


def test_the_same_settings_continue_with_the_run_s_own_recipe(run: Path) -> None:
    small = resolve_recipe("small")
    assert open_run(run, asked(minutes=2.0)) == small
    assert open_run(run, asked()) == small  # minutes need not be repeated


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (asked(minutes=3.0), "has minutes = `2.0`, now it is `3.0`. Use the same"),
        (asked(seed=5), "has seed = `0`, now it is `5`. Use the same"),
        (asked("text.max_tokens=9"), "has text.max_tokens = `64`, now it is `9`. Use the same"),
        (asked("text.max_tokens=9", seed=5), "now it is `5` (and 1 more). Use the same"),
    ],
)
def test_other_settings_are_refused(run: Path, now: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_run(run, now)
    assert str(caught.value).startswith(f"The run began with other settings: `{run}` has ")
    assert message in str(caught.value)


# A setting that came later would have ended every run of before.
def test_a_run_from_before_examples_goes_on_without(run: Path) -> None:
    file = run / "run.json"
    values = json.loads(file.read_text())
    for recipe in (values["recipe"], values["asked"]["recipe"]):
        del recipe["retrieval"], recipe["generation"]["neighbors"]
    file.write_text(json.dumps(values))
    recipe = open_run(run, asked())
    assert recipe is not None
    assert recipe.retrieval.neighbors == 0
    with pytest.raises(ConfigError, match=r"has retrieval\.neighbors = `auto`, now it is `2`"):
        open_run(run, asked("retrieval.neighbors=2"))


def test_a_run_tells_what_was_chosen_and_why(run: Path) -> None:
    recipe = resolve_recipe("small", None, ["precision=bf16"])
    reasons = {"precision": "1.8 times as fast as fp32 here"}
    write_run_file(run, ["pictures"], asked(), recipe, reasons)
    assert open_run(run, asked()) == recipe
    told = read_run(run).run
    assert told["asked.recipe.precision"] == "auto"
    assert told["recipe.precision"] == "bf16"
    assert told["reasons.precision"] == reasons["precision"]
    assert ("Precision", f"bf16; {reasons['precision']}") in list_facts(read_run(run))


def test_a_run_from_before_there_was_a_precision(run: Path) -> None:
    file = run / "run.json"
    values = json.loads(file.read_text())
    for recipe in (values["recipe"], values["asked"]["recipe"]):
        del recipe["precision"]
    del values["reasons"]
    file.write_text(json.dumps(values))
    recipe = open_run(run, asked())
    assert recipe is not None
    assert recipe.precision == "auto"  # not measured: test_fit.py
    assert "Precision" not in dict(list_facts(read_run(run)))
    with pytest.raises(ConfigError, match="has precision = `auto`, now it is `bf16`"):
        open_run(run, asked("precision=bf16"))


def test_a_new_run_may_begin_where_nothing_else_is(tmp_path: Path) -> None:
    assert open_run(tmp_path / "nowhere", asked()) is None
    for name in ("data", "text", ".lock", ".data.lock"):
        (tmp_path / name).mkdir()
    (tmp_path / "data.skipped.jsonl").write_text("")
    assert open_run(tmp_path, asked()) is None
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"something other than a run: `.*a new or empty --out"):
        open_run(tmp_path, asked())


def set_format(run: Path, number: int) -> None:
    """Rewrites run.json as a run of another format has it."""
    content = json.loads((run / "run.json").read_text())
    if number == 2:
        for recipe in (content["recipe"], content["asked"]["recipe"]):
            for stage in ("tokenizer_training", "transformer_training"):
                recipe[stage]["start_from"] = recipe[stage].pop("init_from")
    (run / "run.json").write_text(json.dumps(content | {"format": number}))


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (["model", "tokenizer/model"], "To train it further, give a new --out and --from "),
        (["tokenizer/model"], "Its image tokenizer still works: choose a new --out and set tok"),
        ([], "Finish it with the version of tessella that began it, or choose a new --out."),
    ],
)
@pytest.mark.parametrize("number", [2, RUN_FORMAT + 1])
def test_a_run_of_another_format_is_refused_with_what_to_do(
    run: Path, number: int, files: list[str], advice: str
) -> None:
    for name in files:
        (run / name).mkdir(parents=True)
    set_format(run, number)
    with pytest.raises(CheckpointError) as caught:
        open_run(run, asked())
    message = str(caught.value)
    assert message.startswith(f"The run has format `{number}`; this tessella resumes format 3: `")
    assert advice in message
    assert not files or str(run) in message.partition("works")[2]


def test_a_run_of_format_2_can_still_be_looked_at(run: Path) -> None:
    set_format(run, 2)
    assert read_run(run).run["format"] == 2
    assert "width 256, depth 8" in write_report(run).path.read_text(encoding="utf-8")
