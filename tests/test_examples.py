"""The examples do what they say: each is run as a reader would, with less of everything."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOK = REPOSITORY / "examples" / "tessella.ipynb"
TINY = {
    "precision": "fp32",  # nothing is measured
    "data": {"image_size": 16, "workers": 1},
    "tokenizer": {"patch": 2, "widths": [16, 16], "quantizer": {"codebook_size": 16}},
    "tokenizer_training": {"images": 64, "batch_size": 8},
    "transformer": {"width": 16, "depth": 2, "heads": 2},
    "transformer_training": {"images": 64, "batch_size": 8},
    "generation": {"steps": 2},
}


def read_notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(cell: Any) -> str:
    """All that a cell shows, as one text."""
    return "\n".join(
        str(output.get("text", "")) + "".join(map(str, output.get("data", {}).values()))
        for output in cell.outputs
    )


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read_notebook()
    [parameters] = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source = f'data, out = "scenes:60", "runs/notebook"\nlength = {{"settings": {TINY}}}'
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = {cell.source.splitlines()[-1]: cell for cell in notebook.cells if cell.source}
    assert "64×64 pixels" in outputs_of(shown["model"])
    assert "data:image/webp" in outputs_of(shown["model"])
    assert outputs_of(shown["pictures"]).count("data:image/png") == 4
    training = shown["mine"]
    assert "16×16 pixels" in outputs_of(training)
    assert "images  validation" in outputs_of(training)
    assert "images  train" not in outputs_of(training)  # the bar has that
    assert (tmp_path / "runs/notebook/model").is_dir()


def run_example(name: str, *words: str, folder: Path) -> str:
    """Runs an example in a folder of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / name), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fine_tuning_goes_on_from_a_model(tmp_path: Path) -> None:
    said = run_example(
        *("fine_tune.py", "scenes:40", "--images", "32", "--out", "run"), folder=tmp_path
    )
    assert re.search(r"^transformer 32/32  loss [\d.]+  accuracy", said, re.MULTILINE)
    assert (tmp_path / "run" / "model").is_dir()
    with Image.open(tmp_path / "run" / "before-and-after.png") as sheet:
        assert sheet.width > 4 * 128


def test_an_objective_of_ones_own_predicts_and_paints(tmp_path: Path) -> None:
    """The transformer knows any order, rows too, if the rule shows it the right codes."""
    said = run_example("custom_objective.py", "--steps", "2", folder=tmp_path)
    [loss, *_] = re.findall(r"loss ([\d.]+)", said)
    assert float(loss) < 2  # by chance 6.2
    with Image.open(tmp_path / "row-by-row.png") as picture:
        assert picture.size == (64, 64)


def test_a_model_is_served_and_asked(tmp_path: Path) -> None:
    run_example("serve_and_ask.py", "scenes", "a large red star", "--out", "a.png", folder=tmp_path)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (64, 64)
