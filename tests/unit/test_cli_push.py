"""`tessella push`, and a model by its address on the hub, as a person types them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from commands import invoke
from hub_server import ANNS_TOKEN, Hub
from tessella.text.vocabulary import summarize_captions
from untrained import CAPTIONS, create_with_examples, save_untrained


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made = create_with_examples(CAPTIONS)
    summary = summarize_captions(CAPTIONS, made.text_tokenizer)
    card = "---\nlicense: mit\n---\n\n# Stars\n"
    return save_untrained(made, tmp_path / "stars", card=card, captions=summary)


def test_a_dry_run_lists_what_would_go_and_asks_nobody(hub: Hub, model: Path) -> None:
    hub.status = 500
    (model / "notes.txt").write_text("mine")
    result = invoke("push", model, "ann/stars", "--dry-run")
    assert result.exit_code == 0, result.output
    *files, total, left_out, examples, end = result.output.splitlines()
    weights = model / "transformer.safetensors"
    assert f"{weights.name}  {weights.stat().st_size:>14,} bytes" in files
    assert [line.split()[0] for line in files][-4:] == [
        "transformer.safetensors",
        "widget/1.png",
        "widget/2.png",
        "widget/3.png",
    ]
    assert all(line.endswith(" bytes") for line in files)
    assert total.endswith(" MB. Licence: mit.")
    assert left_out == "Left out, because they do not belong to a model: notes.txt."
    assert examples.startswith("Of the pictures that it looks at, 3 travel along, as codes with")
    assert end == "Would push that; nothing was sent."
    without = invoke("push", model, "ann/stars", "--dry-run", "--without-examples", "--json")
    values = json.loads(without.stdout)
    assert values["examples"] == 0
    assert "examples.jsonl" not in values["files"]
    assert values["licence"] == "mit"


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_a_push_says_where_it_is_and_how_to_paint_with_it(hub: Hub, model: Path) -> None:
    result = invoke("push", model, "hf:ann/stars", "--private", "--licence", "cc-by-4.0")
    assert result.exit_code == 0, result.output
    commit = hub.repositories["model", "ann/stars"].branches["main"]
    assert result.output.splitlines()[-3:] == [
        f"Pushed to {hub.url}/ann/stars, which is new.",
        "Paint with it: tessella generate PROMPT --model hf:ann/stars",
        f"This version, whatever comes later: --model hf:ann/stars@{commit}",
    ]
    assert ANNS_TOKEN not in result.output
    values = json.loads(invoke("push", model, "ann/stars", "--licence", "mit", "--json").stdout)
    assert values["commit"] == hub.repositories["model", "ann/stars"].branches["main"] != commit


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stars"], "Not the name of a repository on the hub: `stars`."),
        (["ann/stars:train"], "Not the name of a repository on the hub: `ann/stars:train`."),
        (["ann/stars@" + 40 * "a"], "A commit cannot be pushed to"),
    ],
)
def test_a_bad_name_is_refused(model: Path, words: list[str], said: str) -> None:
    result = invoke("push", model, *words, "--dry-run")
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_model_without_licence_is_refused(model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: other\n---\n")
    result = invoke("push", model, "ann/stars", "--dry-run")
    assert result.exit_code == 1
    assert "The model's card names no licence" in result.stderr
    result = invoke("push", model, "ann/stars", "--dry-run", "--licence", "unknown")
    assert "Licence: unknown." in result.output


def test_without_the_client_the_extra_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = invoke("push", model, "ann/stars")
    assert result.exit_code == 1
    assert "`tessella push` needs the package `huggingface_hub`" in result.stderr
    assert "pip install 'tessella[hub]'" in result.stderr


def test_the_whole_way_with_variables_of_the_environment(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    """As a person does it: in a process of its own, where the client reads its variables."""
    out = tmp_path / "star.png"
    push = ["push", str(model), "ann/stars", "--private"]
    generate = ["generate", "a red star", "--model", "hf:ann/stars", "--out", str(out), "--json"]
    script = (
        "from tessella.cli import app\n"
        f"for words in {[push, generate]!r}: app(words, standalone_mode=False)\n"
    )
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": ANNS_TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",  # whatever the tests are run with
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"Pushed to {hub.url}/ann/stars, which is new.\n" in done.stdout
    assert '"model": "hf:ann/stars"' in done.stdout
    assert out.exists()
    assert ANNS_TOKEN not in done.stdout + done.stderr
    assert (tmp_path / "home/hub/models--ann--stars").is_dir()
