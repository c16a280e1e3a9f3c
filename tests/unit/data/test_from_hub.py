"""Data sets on the hub are files like yours; their code stays there."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from huggingface_hub import constants

from hub_server import Files, Hub
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.data.sources import recognise
from tessella.errors import DataError

SETTINGS = DataSettings(image_size=16, workers=1, validation_fraction=0.2)
SCRIPT = {"pics.py": b"raise SystemExit", "README.md": b"# Pics"}


def table(draw, numbers: range, **columns: list) -> bytes:
    images = [{"bytes": draw.content(number), "path": None} for number in numbers]
    values = {"image": images, "text": [f"picture {n}" for n in numbers]} | columns
    stream = io.BytesIO()
    parquet.write_table(arrow.table(values), stream)
    return stream.getvalue()


def splits(draw) -> Files:
    return {
        **SCRIPT,
        "data/train-00000-of-00002.parquet": table(draw, range(0, 6)),
        "data/train-00001-of-00002.parquet": table(draw, range(6, 10)),
        "data/test-00000-of-00001.parquet": table(draw, range(10, 13)),
        "dataset_infos.json": b"{}",
    }


def captions(argument: str, tmp_path: Path, **settings: object) -> dict[str, list[str]]:
    """The captions of both sides, after all of it was read."""
    folder = tmp_path / argument.replace("/", "-").replace(":", "-")
    prepared = prepare([argument], SETTINGS.model_copy(update=settings), folder)
    return {name: sorted(side.all_captions()) for name, side in prepared.sides.items()}


def numbered(*numbers: int) -> list[str]:
    return sorted(f"picture {number}" for number in numbers)


def test_a_data_set_is_read_with_its_splits(hub: Hub, draw, tmp_path: Path) -> None:
    files = splits(draw)
    hub.put("ann/pics", files, kind="dataset")
    found = captions("hf:ann/pics", tmp_path)
    assert found == {"train": numbered(*range(10)), "validation": numbered(10, 11, 12)}
    assert sorted(hub.fetched) == sorted(name for name in files if name.endswith(".parquet"))


def test_a_split_alone_comes_alone(hub: Hub, draw, tmp_path: Path) -> None:
    hub.put("ann/pics", splits(draw), kind="dataset")
    source = recognise("hf:ann/pics:test")
    assert source.kind == "parquet"
    assert hub.fetched == ["data/test-00000-of-00001.parquet"]
    found = captions("hf:ann/pics:train", tmp_path)
    assert sorted(found["train"] + found["validation"]) == numbered(*range(10))


def test_a_column_of_captions_is_named(hub: Hub, draw, tmp_path: Path) -> None:
    titles = [f"title {number}" for number in range(4)]
    hub.put("ann/pics", {"all.parquet": table(draw, range(4), title=titles)}, kind="dataset")
    found = captions("hf:ann/pics", tmp_path, caption_column="title")
    assert sorted(found["train"] + found["validation"]) == titles
    with pytest.raises(DataError, match=r"no column nothing .*all.parquet`. Name one of: text, ti"):
        recognise("hf:ann/pics", "nothing")


def test_shards_and_folders_of_pictures_are_read(hub: Hub, draw, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(3):
            for name, content in (
                (f"{number}.png", draw.content(number)),
                (f"{number}.txt", f"picture {number}".encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    hub.put("ann/tars", {"pics-0000.tar": stream.getvalue()}, kind="dataset")
    found = captions("hf:ann/tars", tmp_path)
    assert sorted(found["train"] + found["validation"]) == numbered(0, 1, 2)
    rows = [{"file_name": f"{n} [a].png", "text": f"picture {n}"} for n in range(3)]
    folder = {
        f"{side}/{n} [a].png": draw.content(n) for side in ("train", "test") for n in range(3)
    }
    lines = "\n".join(map(json.dumps, rows)).encode()
    hub.put(
        "ann/folder",
        {**folder, "train/metadata.jsonl": lines, "test/metadata.jsonl": lines},
        kind="dataset",
    )
    hub.fetched.clear()
    assert recognise("hf:ann/folder:train").kind == "table"
    assert all(name.startswith("train/") for name in hub.fetched)
    found = captions("hf:ann/folder:train", tmp_path)
    assert sorted(found["train"] + found["validation"]) == numbered(0, 1, 2)


def test_a_revision_is_pinned_and_found_without_a_network(
    hub: Hub, draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.put("ann/pics", {"a.parquet": table(draw, range(3))}, kind="dataset")
    old = repository.branches["main"]
    repository.commit({"a.parquet": table(draw, range(5))})
    sizes = {}
    for name in ("hf:ann/pics", f"hf:ann/pics@{old}"):
        sizes[name] = sum(map(len, captions(name, tmp_path).values()))
    assert list(sizes.values()) == [5, 3]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in sizes:
        assert recognise(name).kind == "parquet"
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set"):
        recognise("hf:ann/moons")


def test_a_half_fetched_data_set_is_not_read_without_a_network(
    hub: Hub, draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("ann/pics", splits(draw), kind="dataset")
    recognise("hf:ann/pics:test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert recognise("hf:ann/pics:test").kind == "parquet"
    with pytest.raises(DataError, match=r"its cache does not hold all of this: `hf:ann/pics`"):
        recognise("hf:ann/pics")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (SCRIPT, r"is a program, which is never run: .*\(pics.py\).*hf:ann/pics@refs/convert/parq"),
        ({"data.pkl": b""}, r"`data.pkl` is a pickle\. Write its pictures as PNG"),
        ({"texts.csv": b"a"}, r"holds no pictures that are read: .* holds texts.csv\. Expected"),
        ({".gitattributes": b""}, r"holds no files\. Expected pictures"),
    ],
)
def test_what_cannot_be_read_is_refused_before_it_comes(hub: Hub, files: Files, said: str) -> None:
    hub.put("ann/pics", files, kind="dataset")
    with pytest.raises(DataError, match=said):
        recognise("hf:ann/pics")
    assert hub.fetched == []


def test_a_split_that_is_not_there_is_said(hub: Hub, draw) -> None:
    hub.put("ann/pics", splits(draw), kind="dataset")
    with pytest.raises(DataError, match=r"no such split: `hf:ann/pics:tes`.*data/train-00000-of-0"):
        recognise("hf:ann/pics:tes")
    hub.put("ann/mixed", {"train.csv": b"", "pics/a.png": draw.content(0)}, kind="dataset")
    with pytest.raises(DataError, match=r"which pictures are of the split: .*keeps train.csv"):
        recognise("hf:ann/mixed:train")
    with pytest.raises(DataError, match=r"no such repository: `hf:ann/nothing`"):
        recognise("hf:ann/nothing")
    with pytest.raises(DataError, match=r"Expected hf:USER/DATASET, with @REVISION and :SPLIT"):
        recognise("hf:pics")
