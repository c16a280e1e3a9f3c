"""Benchmarks that choose defaults: their quick runs, and their conclusions by hand."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tessella.transformer import has_int8

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Iterator[Any]:
    """Imports a script as it imports the others: from its own folder."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module
        for name in set(sys.modules) - before:
            if not name.startswith("tessella") and (BENCHMARKS / f"{name}.py").exists():
                del sys.modules[name]


def run(script: Any, *words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs a script's quick mode and reads the record in its last line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["script", "--quick", *words])
        script.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(record) >= {"what", "environment", "config", "results"}
    results: dict[str, Any] = record["results"]
    return results


@pytest.mark.parametrize("name", ["serving_replicas", "studio"])
def test_what_needs_a_missing_program_is_skipped_only_where_all_are_run(
    scripts: Any, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts(name)
    monkeypatch.setattr(script.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["script", "--quick"])
    script.main()
    said, record = capsys.readouterr().out.splitlines()
    assert said.startswith("Skipped: ")
    assert json.loads(record)["results"] == {}
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit, match=r"^Cannot measure: .+ is here\.$"):
        script.main()


def test_what_a_precision_of_painting_costs(
    scripts: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(scripts("precision"), "--part", "painting", capsys=capsys)
    lowered = {"bf16", "int8"} if has_int8() else {"bf16"}
    [width] = results["painting"].values()
    assert set(width["layer"]) == {f"{name}_batch_{batch}" for name in lowered for batch in (1, 16)}
    assert width["chosen"] in {"fp32", *lowered}
    pictures = results["pictures"]
    assert set(pictures) == {
        "scenes_fp32", *(f"{m}_{p}" for m in ("scenes", "stickers") for p in lowered)
    }  # fmt: skip
    for name in lowered:
        assert 0 < pictures[f"scenes_{name}"]["divergence"] < 0.01
        assert pictures[f"scenes_{name}"]["same_codes"] > 0.5
        assert pictures[f"scenes_{name}"]["seen"]["share"] > 0.4


def test_whether_auto_is_right_by_hand(scripts: Any) -> None:
    script = scripts("precision")
    speedups = {"bf16_batch_1": 1.9, "bf16_batch_16": 1.5, "int8_batch_1": 3.0, "int8_batch_16": 0}
    slower = script.find_slower(speedups)
    assert slower == {"bf16": 1.5, "int8": 0}
    spread = script.Spread.of
    pictures = {n: script.Ratio(spread([s]), spread([1]), spread([s])) for n, s in speedups.items()}
    assert script.is_right("bf16", pictures)
    assert not script.is_right("fp32", pictures)
    assert not script.is_right("int8", pictures)


def test_quality_by_steps(scripts: Any, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(scripts("steps"), capsys=capsys)
    assert set(results) == {"2_steps", "8_steps", "smallest"}
    for name in ("seen", "held_out"):
        assert results["8_steps"][name]["less"] == {"mean": 0, "low": 0, "high": 0}
        assert 0 <= results["2_steps"][name]["share"] <= 1


def test_a_loss_with_more_steps_counts_for_fewer(scripts: Any) -> None:
    find = scripts("steps").find_smallest
    assert find([4, 8, 16], set()) == 4
    assert find([4, 8, 16], {8}) == 16
    assert find([4, 8, 16], {4}) == 8


def test_a_loss_is_measured_pair_by_pair(scripts: Any) -> None:
    """Of 100 pictures 10 are worse and 2 better: 0.08 ± 1.96 · √(0.12 − 0.08²) / 10."""
    most, fewer = np.ones(100, dtype=bool), np.ones(100, dtype=bool)
    most[:2] = False
    fewer[2:12] = False
    less = scripts("steps").compare(most, fewer)
    half = 1.96 * (0.12 - 0.08**2) ** 0.5 / 10
    assert less == pytest.approx({"mean": 0.08, "low": 0.08 - half, "high": 0.08 + half})
