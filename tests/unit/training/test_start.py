"""`fit --from`: a run goes on from another one, with its weights, words and pictures."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hub_server import Hub
from tessella.data import units
from tessella.errors import CheckpointError, ConfigError
from tessella.files import read_tensors
from tessella.model import from_hub
from tessella.model.folder import read_model_config
from tessella.model.pipeline import TextToImage
from tessella.training.fit import FitRequest
from tessella.training.loop import create_accelerator
from tessella.training.request import resolve_run
from tessella.training.run_folder import write_run_file
from tiny_runs import TINY, train

SMALL = (*TINY, "transformer_training.flips=true", "retrieval.neighbors=1")


def add_pictures(folder: Path, names: list[str], captions: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for name, caption in zip(names, captions, strict=True):
        colours = np.random.default_rng(sum(name.encode())).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(colours.repeat(4, 0).repeat(4, 1)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{caption}\n")


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run, and its pictures."""
    folder = tmp_path_factory.mktemp("start")
    names = [f"{number:02}" for number in range(20)]
    add_pictures(folder / "pictures", names, [f"picture {name}" for name in names])
    train(folder / "run", folder / "pictures", *SMALL)
    return folder / "run", folder / "pictures"


@pytest.fixture
def more(before: tuple[Path, Path], tmp_path: Path) -> Path:
    """The same pictures, their times too, and two new ones of a new word."""
    folder = tmp_path / "pictures"
    shutil.copytree(before[1], folder)
    add_pictures(folder, ["x", "y"], ["a dango", "two dango"])
    return folder


def test_it_begins_where_the_run_ended(before: tuple[Path, Path], tmp_path: Path) -> None:
    run, pictures = before
    nothing = ("tokenizer_training.images=0", "transformer_training.images=0")
    folder, said = train(tmp_path / "next", pictures, *nothing, start_from=str(run))
    assert "Examples beside each prompt" not in said  # as there: nothing to choose
    assert read_model_config(folder) == read_model_config(run / "model")
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        old, new = (read_tensors(model / name) for model in (run / "model", folder))
        assert old.keys() == new.keys()
        assert all(np.array_equal(old[key], new[key]) for key in old), name
    recipe = json.loads((tmp_path / "next/run.json").read_text())["recipe"]
    assert recipe["transformer_training"]["flips"]  # of the run, in no model folder
    assert recipe["tokenizer_training"]["learn"] == "decoder"


def test_new_words_become_tokens_and_the_codebook_stays(
    before: tuple[Path, Path], more: Path, tmp_path: Path
) -> None:
    run, _ = before
    folder, said = train(tmp_path / "next", more, start_from=str(run))
    old, new = (TextToImage.load(model, "cpu") for model in (run / "model", folder))
    added = new.text_tokenizer.vocabulary_size - old.text_tokenizer.vocabulary_size
    assert added > 0
    assert f"{added:,} new ones" in said
    assert old.text_tokenizer.count_tokens("dango") > 3
    assert new.text_tokenizer.count_tokens("dango") == 3
    assert torch.equal(
        old.text_tokenizer.encode(["picture 07"]), new.text_tokenizer.encode(["picture 07"])
    )
    assert torch.equal(old.tokenizer.codebook, new.tokenizer.codebook)
    assert not torch.equal(
        old.tokenizer.decode(torch.zeros(1, 1, 4, 4, dtype=torch.int64)),
        new.tokenizer.decode(torch.zeros(1, 1, 4, 4, dtype=torch.int64)),
    )
    assert new.memory is not None
    assert any("dango" in caption for row in new.memory.rows for caption in row.captions)


def test_only_new_pictures_are_decoded(
    before: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pictures = before
    decoded: list[int] = []
    decode = units.decode_records

    def count(records: Any, *rest: Any) -> Any:
        records = list(records)
        decoded.append(len(records))
        return decode(records, *rest)

    monkeypatch.setattr(units, "decode_records", count)
    nothing = ("tokenizer_training.images=0", "transformer_training.images=0")
    train(tmp_path / "next", pictures, *nothing, start_from=str(run))
    assert not decoded
    train(tmp_path / "anew", pictures, *SMALL, "tokenizer_training.images=8")
    assert sum(decoded) == 20


def test_it_resumes_when_the_run_is_gone(
    before: tuple[Path, Path], more: Path, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    shutil.copytree(before[0], first)
    out = tmp_path / "next"
    folder, _ = train(out, more, start_from=str(first))
    weights = (folder / "transformer.safetensors").read_bytes()
    shutil.rmtree(first)
    train(out, more, start_from=str(first))
    assert (folder / "transformer.safetensors").read_bytes() == weights
    with pytest.raises(ConfigError, match=r"has seed = `0`, now it is `1`.*--from"):
        train(out, more, start_from=str(first), seed=1)
    with pytest.raises(CheckpointError, match=r"no such model"):
        train(tmp_path / "other", more, start_from=str(first))


@pytest.mark.parametrize("is_setting", [False, True])
def test_what_is_pushed_later_does_not_join_a_run(
    before: tuple[Path, Path], hub: Hub, is_setting: bool, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in (before[0] / "model").iterdir()}
    repository = hub.put("ann/stars", files)
    out = tmp_path / "run"
    out.mkdir()
    asked: dict[str, Any] = {"sources": [str(before[1])], "out": out, "device": "cpu"}
    stages = ("tokenizer_training", "transformer_training")
    if is_setting:
        words = [*SMALL, *(f"{stage}.init_from=hf:ann/stars" for stage in stages)]
        asked["assignments"] = words
    else:
        asked["start_from"] = "hf:ann/stars"
    request = FitRequest(**asked)
    began = resolve_run(request, create_accelerator("cpu"))
    pinned = [f"hf:ann/stars@{repository.branches['main']}"] * 2
    assert [getattr(began.recipe, stage).init_from for stage in stages] == pinned
    write_run_file(out, request.sources, request.describe(), began.recipe)
    repository.commit({**files, "README.md": b"# New\n"})
    from_hub.forget()
    resumed = resolve_run(FitRequest(**asked), create_accelerator("cpu"))
    assert not resumed.is_new
    assert [getattr(resumed.recipe, stage).init_from for stage in stages] == pinned


def test_a_model_folder_brings_its_sizes(
    before: tuple[Path, Path], more: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(before[0] / "model", alone)
    lengths = ("tokenizer_training.images=8", "transformer_training.images=8")
    folder, _ = train(tmp_path / "next", more, *lengths, start_from=str(alone))
    assert read_model_config(folder) == read_model_config(alone)
    recipe = json.loads((tmp_path / "next/run.json").read_text())["recipe"]
    assert not recipe["transformer_training"]["flips"]  # no model folder knows it


@pytest.mark.parametrize("in_file", [False, True])
def test_a_preset_is_refused(before: tuple[Path, Path], in_file: bool, tmp_path: Path) -> None:
    run, pictures = before
    (tmp_path / "my.toml").write_text('preset = "small"\n')
    said = {"config_file": tmp_path / "my.toml"} if in_file else {"preset": "small"}
    with pytest.raises(ConfigError, match=r"not those of a preset: `small`. Leave the preset out"):
        train(tmp_path / "next", pictures, start_from=str(run), **said)
    assert not (tmp_path / "next").exists()


def test_other_sizes_are_refused(before: tuple[Path, Path], tmp_path: Path) -> None:
    run, pictures = before
    with pytest.raises(ConfigError, match=r"transformer\.depth is `2` there, here `4`"):
        train(tmp_path / "next", pictures, "transformer.depth=4", start_from=str(run))
    assert not (tmp_path / "next").exists()


def test_a_finished_run_names_the_way_on(before: tuple[Path, Path]) -> None:
    run, pictures = before
    with pytest.raises(
        ConfigError, match=rf"minutes = `None`.*`8(\.0)?`.*new --out and --from {run}"
    ):
        train(run, pictures, *SMALL, minutes=8)
