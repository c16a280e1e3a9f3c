"""Prepare: what comes out is what was in the files; the cache is right, or not used at all."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drawn import display_p3_profile, encoded
from tessella.data import decode
from tessella.data import prepare as prepare_module
from tessella.data.cache import SIDES, CaptionedImages, read_manifest
from tessella.data.prepare import PreparedData, prepare
from tessella.data.scenes import canonical_caption, draw_scene, sample_scene
from tessella.data.settings import DataSettings
from tessella.data.units import Units
from tessella.errors import ConfigError, DataError
from tessella.images import fit_square, read_image

SETTINGS = DataSettings(image_size=16, validation_fraction=0.2, workers=1)


def by_caption(data: PreparedData) -> dict[str, np.ndarray]:
    """All pictures of both sides, by their first caption."""
    found = {}
    for side in (data.train, data.validation):
        for index in range(len(side)):
            found[side.captions(index)[0]] = side.pixels([index])[0]
    return found


def all_captions(data: PreparedData) -> set[str]:
    return {*data.train.all_captions(), *data.validation.all_captions()}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "run" / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Counts what is decoded: a one for each picture."""
    counts: list[int] = []
    decode_one = decode._decode

    def count(record, settings):
        counts.append(1)
        return decode_one(record, settings)

    monkeypatch.setattr(decode, "_decode", count)
    return counts


# --- what comes out ------------------------------------------------------------------------


def test_pixels_and_captions_are_those_of_the_files(draw, cache: Path) -> None:
    folder = draw.captioned(30)
    draw.file("data/0003.txt", "Krake 🐙\nétoile ✨\n\n")
    progress: list[tuple[int, int | None]] = []
    data = prepare([str(folder)], SETTINGS, cache, progress=lambda *a: progress.append(a))
    found = by_caption(data)
    assert len(found) == 30 and not data.skipped and progress[-1] == (30, 30)
    for number in range(30):
        caption = "Krake 🐙" if number == 3 else f"picture {number}"
        assert np.array_equal(found[caption], draw.pixels(number))
    assert "étoile ✨" in all_captions(data)
    assert data.manifest["counts"] == {
        "images": 30,
        "captions": 31,
        "train": len(data.train),
        "validation": len(data.validation),
        "skipped": {},
        "ignored_profiles": 0,
    }
    assert len(data.validation) >= 1 and data.train.image_size == 16


def test_folder_and_shard_of_the_same_pictures_agree(draw, cache: Path) -> None:
    from_folder = prepare([str(draw.captioned(20))], SETTINGS, cache)
    shard = draw.shard("shard.tar", range(20))
    from_shard = prepare([str(shard)], SETTINGS, cache.with_name("other"))
    assert from_folder.train.fingerprint == from_shard.train.fingerprint
    assert from_folder.validation.fingerprint == from_shard.validation.fingerprint
    assert from_folder.train.fingerprint != from_folder.validation.fingerprint


def test_several_sources_make_one_data_set(draw, cache: Path) -> None:
    folder, shard = draw.captioned(3), draw.shard("x.tar", range(10, 14))
    data = prepare([str(folder), str(shard), "scenes:5"], SETTINGS, cache)
    assert len(data.train) + len(data.validation) == 12
    assert {"picture 2", "picture 13"} <= all_captions(data)


def test_one_source_may_be_given_bare(draw, cache: Path) -> None:
    assert len(by_caption(prepare(str(draw.captioned(3)), SETTINGS, cache))) == 3


def test_pictures_are_cropped_and_resized(draw, cache: Path) -> None:
    folder = draw.captioned(1)
    photo = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(photo).save(folder / "wide.png")
    draw.file("data/wide.txt", "wide")
    expected = fit_square(read_image(folder / "wide.png", max_pixels=10**6), 16)
    data = prepare([str(folder)], SETTINGS, cache)
    assert np.array_equal(by_caption(data)["wide"], expected)


def test_scenes_depend_on_seed_and_index_alone(cache: Path) -> None:
    data = prepare(["scenes:12"], SETTINGS, cache)
    found = by_caption(data)
    for index in range(12):
        scene = sample_scene(np.random.default_rng([0, index]))
        assert np.array_equal(found[canonical_caption(scene)], draw_scene(scene, 16))
    assert all(len(data.train.captions(i)) > 1 for i in range(len(data.train)))
    more = by_caption(prepare(["scenes:20"], SETTINGS, cache))
    assert all(np.array_equal(more[caption], found[caption]) for caption in found)
    other = by_caption(prepare(["scenes:12"], SETTINGS.replace(seed=1), cache))
    assert set(other) != set(found)


def test_no_validation_if_none_is_wished(draw, cache: Path) -> None:
    settings = SETTINGS.replace(validation_fraction=0.0)
    data = prepare([str(draw.captioned(5))], settings, cache)
    assert (len(data.train), len(data.validation)) == (5, 0)
    assert list(data.validation.all_captions()) == []
    assert data.validation.pixels([]).shape == (0, 16, 16, 3)


# --- CaptionedImages -----------------------------------------------------------------------


def test_pictures_are_copies_in_any_order(draw, cache: Path) -> None:
    train = prepare([str(draw.captioned(9))], SETTINGS, cache).train
    batch = train.pixels(np.array([2, 0, 2]))
    assert batch.shape == (3, 16, 16, 3) and batch.dtype == np.uint8
    assert type(batch) is np.ndarray and batch.flags.writeable
    assert np.array_equal(batch[0], batch[2])
    batch[:] = 0
    assert train.pixels([2]).any()


def test_indices_out_of_range_are_refused(draw, cache: Path) -> None:
    train = prepare([str(draw.captioned(9))], SETTINGS, cache).train
    for index in (len(train), -len(train) - 1):
        with pytest.raises(IndexError):
            train.pixels([index])
        with pytest.raises(IndexError):
            train.captions(index)


def test_only_the_name_of_the_cache_travels_to_another_process(draw, cache: Path) -> None:
    train = prepare([str(draw.captioned(9))], SETTINGS, cache).train
    rebuild, arguments = train.__reduce__()
    assert rebuild is CaptionedImages and arguments[0] == cache
    sent = multiprocessing.reduction.ForkingPickler.dumps(train)
    assert len(sent) < 1000
    assert np.array_equal(rebuild(*arguments).pixels([1]), train.pixels([1]))


# --- the split -----------------------------------------------------------------------------


def test_identical_pictures_stay_together(draw, cache: Path) -> None:
    for number in range(40):
        for copy in range(3):
            name = f"data/{copy}/{number * 7 + copy}"
            draw.image(f"{name}.png", number)
            draw.file(f"{name}.txt", f"{number} copy {copy}")
    data = prepare([str(draw.folder / "data")], SETTINGS, cache)
    train = {caption.split()[0] for caption in data.train.all_captions()}
    validation = {caption.split()[0] for caption in data.validation.all_captions()}
    assert train and validation and not train & validation
    assert len(train | validation) == 40


def test_renaming_changes_no_side(draw, cache: Path) -> None:
    folder = draw.captioned(30)
    before = set(prepare([str(folder)], SETTINGS, cache).validation.all_captions())
    for path in list(folder.iterdir()):
        path.rename(folder / f"{1000 - int(path.stem):04}{path.suffix}")
    after = set(prepare([str(folder)], SETTINGS, cache).validation.all_captions())
    assert before == after


def test_split_by_a_field(draw, cache: Path) -> None:
    shard = draw.shard("x.tar", range(60))
    data = prepare([str(shard)], SETTINGS.replace(split_by="base"), cache)
    bases = [
        {int(c.split()[1]) // 2 for c in side.all_captions()}
        for side in (data.train, data.validation)
    ]
    assert bases[0] and bases[1] and not bases[0] & bases[1]


def test_split_by_a_field_that_is_nowhere_is_refused(draw, cache: Path) -> None:
    shard = draw.shard("x.tar", range(6))
    with pytest.raises(DataError, match=r"No image has the field to split by: `bass`"):
        prepare([str(shard)], SETTINGS.replace(split_by="bass"), cache)
    assert not cache.exists()


def split_folders(draw, **counts: int) -> Path:
    """A folder for each side, with texts beside the pictures."""
    start = 0
    for side, count in counts.items():
        draw.captioned(count, f"data/{side}", start)
        start += count
    return draw.folder / "data"


def numbers(images: CaptionedImages) -> list[int]:
    return sorted(int(caption.split()[1]) for caption in images.all_captions())


def test_what_the_data_holds_out_is_never_trained_on(draw, cache: Path) -> None:
    folder = split_folders(draw, train=20, test=3, val=2)
    data = prepare([str(folder)], SETTINGS, cache)
    assert numbers(data.train) == list(range(20))
    assert numbers(data.validation) == list(range(20, 25))
    data = prepare([str(folder)], SETTINGS.replace(validation_fraction=0.0), cache)
    assert numbers(data.validation) == list(range(20, 25))
    data = prepare([str(folder)], SETTINGS.replace(named_splits=False), cache)
    assert numbers(data.validation) != list(range(20, 25))


def test_a_folder_called_train_alone_is_split_as_ever(draw, cache: Path) -> None:
    data = prepare([str(split_folders(draw, train=30))], SETTINGS, cache)
    assert 0 < len(data.validation) < 30


def test_a_training_picture_that_is_held_out_too_is_not_trained_on(draw, cache: Path) -> None:
    folder = split_folders(draw, train=10, test=2)
    draw.image("data/train/copy.png", 11)
    draw.file("data/train/copy.txt", "picture 100")
    data = prepare([str(folder)], SETTINGS, cache)
    assert numbers(data.train) == list(range(10)) and numbers(data.validation) == [10, 11, 100]


def test_a_split_that_leaves_nothing_to_train_on_is_refused(draw, cache: Path) -> None:
    for side in ("train", "test"):
        draw.captioned(3, f"data/{side}")
    with pytest.raises(
        DataError, match=r"No image is left to train on: .*data\.named_splits=false"
    ):
        prepare([str(draw.folder / "data")], SETTINGS, cache)


def test_repeats_are_rows_of_the_training_side(draw, cache: Path) -> None:
    draw.captioned(2, "data/20_sks dog")
    draw.captioned(3, "data/30_dog", 2)
    draw.captioned(2, "data/test", 5)
    data = prepare([str(draw.folder / "data")], SETTINGS, cache)
    assert numbers(data.train) == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert numbers(data.validation) == [5, 6]
    assert data.manifest["counts"]["train"] == 5
    assert any("are repeats" in note for note in data.notes)


def test_repeats_of_one_folder_change_nothing(draw, cache: Path) -> None:
    settings = SETTINGS.replace(validation_fraction=0.0)
    draw.captioned(4, "data/10_sks dog")
    assert numbers(prepare([str(draw.folder / "data")], settings, cache).train) == [0, 1, 2, 3]


def test_the_manifest_says_where_captions_were_read(draw, cache: Path) -> None:
    draw.captioned(4)
    rows = [f"{number:04}.png,a dog, number {number}" for number in range(4, 7)]
    for number in range(4, 7):
        draw.image(f"data/{number:04}.png", number)
    draw.file("data/more.csv", "\n".join(["image,caption", *rows]))
    data = prepare([str(draw.folder / "data")], SETTINGS, cache)
    assert data.readings == {
        "captions from the .txt beside each picture": 4,
        "captions from more.csv, column caption": 3,
    }
    assert data.notes == ("3 rows of more.csv with unquoted text joined",)
    assert not data.skipped


# --- bad files -----------------------------------------------------------------------------


def spoil(draw) -> Path:
    """Fifty-five good pictures and one bad file of each kind."""
    folder = draw.captioned(55)
    for name, content in {
        "broken": draw.content(1)[:60],
        "empty": b"",
        "text": b"this is no picture",
        "large": draw.content(9, size=200),
    }.items():
        draw.file(f"data/{name}.png", content)
        draw.file(f"data/{name}.txt", "a caption")
    draw.image("data/silent.png", 3)
    draw.file("data/alone.txt", "no picture")
    return folder


def test_bad_files_are_left_out_counted_and_named(draw, cache: Path) -> None:
    settings = SETTINGS.replace(max_skipped_fraction=0.1, max_image_pixels=10_000)
    data = prepare([str(spoil(draw))], settings, cache)
    assert len(data.train) + len(data.validation) == 55
    assert all(caption.startswith("picture") for caption in all_captions(data))
    kinds = {Path(s.name).name: s.kind for s in data.skipped}
    assert kinds == {
        "broken.png": "broken",
        "empty.png": "empty",
        "text.png": "broken",
        "large.png": "too_large",
        "silent.png": "captionless",
        "alone.txt": "imageless",
    }
    lines = [json.loads(line) for line in (cache / "skipped.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"name", "reason", "kind"}] * 6
    assert data.manifest["counts"]["skipped"]["broken"] == 2
    # Used again, a stricter limit holds all the same.
    with pytest.raises(DataError, match=f"All are listed in `{cache}/skipped.jsonl`"):
        prepare([str(draw.folder / "data")], settings.replace(max_skipped_fraction=0.05), cache)


def test_what_is_no_readable_picture_is_named(draw, cache: Path) -> None:
    """Beside JPEGs, the raw files and HEIC of a camera were left out without a word."""
    folder = draw.captioned(50)
    (folder / "0049.png").rename(folder / "0049.jxl")
    draw.file("data/0049.jxl", b"\xff\x0a" + bytes(20))
    [skipped] = prepare(
        [str(draw.folder / "data")], SETTINGS.replace(max_skipped_fraction=0.1), cache
    ).skipped[:1]
    assert (Path(skipped.name).name, skipped.kind) == ("0049.jxl", "unsupported")
    assert skipped.reason.startswith("This is JPEG XL, which is not read.")


def test_a_photo_of_any_size_is_read_and_its_profile_counted(draw, cache: Path) -> None:
    folder = draw.captioned(2)
    for number, profile in enumerate((display_p3_profile(), b"no profile")):
        image = Image.new("RGB", (900, 600), (200, 120, 60))
        content = encoded(image, "JPEG", quality=95, icc_profile=profile)
        draw.file(f"data/photo{number}.jpg", content)
        draw.file(f"data/photo{number}.txt", f"photo {number}")
    data = prepare([str(folder)], SETTINGS.replace(max_image_pixels=50_000), cache)
    found = by_caption(data)
    assert np.abs(found["photo 0"].astype(int) - (213, 115, 42)).max() <= 3
    assert np.abs(found["photo 1"].astype(int) - (200, 120, 60)).max() <= 3
    assert data.manifest["counts"]["ignored_profiles"] == 1


def test_a_missing_picture_of_a_table_is_skipped(draw, cache: Path) -> None:
    draw.image("data/a.png", 1)
    draw.image("data/b.png", 2)
    rows = [{"file_name": name, "text": name} for name in ("a.png", "gone.png", "b.png")]
    draw.file("data/metadata.jsonl", "\n".join(map(json.dumps, rows)))
    settings = SETTINGS.replace(max_skipped_fraction=0.5)
    data = prepare([str(draw.folder / "data")], settings, cache)
    [skipped] = data.skipped
    assert (skipped.kind, Path(skipped.name).name) == ("missing", "gone.png")
    assert all_captions(data) == {"a.png", "b.png"}


def test_too_many_bad_files_stop_with_a_clear_error(draw, cache: Path, decoded: list[int]) -> None:
    folder = spoil(draw)
    report = cache / "skipped.jsonl"
    with pytest.raises(DataError) as caught:
        prepare([str(folder)], SETTINGS.replace(max_image_pixels=10_000), cache)
    message = str(caught.value)
    assert message.startswith(
        "Too many files were skipped: 6 of 61 (2 broken, 1 captionless, 1 empty, "
        "1 imageless, 1 too_large), at most 5% may be. The first: `"
    )
    assert f"`{report}`" in message and "data.max_skipped_fraction" in message
    assert len(report.read_text().splitlines()) == 6
    # A looser limit needs no second reading.
    before = len(decoded)
    settings = SETTINGS.replace(max_image_pixels=10_000, max_skipped_fraction=0.2)
    assert len(by_caption(prepare([str(folder)], settings, cache))) == 55
    assert len(decoded) == before


def test_only_bad_files_stop_even_if_all_may_be_bad(draw, cache: Path) -> None:
    draw.file("data/a.png", b"")
    draw.file("data/a.txt", "a")
    with pytest.raises(DataError, match="Too many files were skipped: 1 of 1"):
        prepare([str(draw.folder / "data")], SETTINGS.replace(max_skipped_fraction=1.0), cache)


def test_data_without_images_is_refused(draw, cache: Path) -> None:
    with pytest.raises(DataError, match="The data holds no images"):
        prepare([str(draw.tar("x.tar", {"notes.md": "x"}))], SETTINGS, cache)


def test_a_file_name_that_is_no_utf8_is_written_down(draw, cache: Path) -> None:
    folder = draw.captioned(30)
    name = os.fsencode(folder) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(name)).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    [skipped] = prepare([str(folder)], SETTINGS, cache).skipped
    assert os.fsencode(skipped.name) == name and skipped.kind == "captionless"


# --- the cache -----------------------------------------------------------------------------


# A run that an older version began must find its cache.
def test_the_identity_of_a_cache_stays_what_it_was(draw, cache: Path) -> None:
    folder = draw.captioned(2)
    manifest = prepare([str(folder), "scenes:3"], SETTINGS, cache).manifest
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(folder.iterdir())
    for path in files:
        status = path.stat()
        digest.update(f"/{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    assert manifest["format"] == "tessella-cache/3"
    assert manifest["identity"] == {
        "sources": [
            {
                "source": str(folder),
                "kind": "captions",
                "files": 4,
                "bytes": sum(path.stat().st_size for path in files),
                "digest": digest.hexdigest(),
            },
            {"source": "scenes:3", "kind": "scenes", "files": 0, "bytes": 0, "digest": ""},
        ],
        "settings": {
            "image_size": 16,
            "validation_fraction": 0.2,
            "split_by": None,
            "max_image_pixels": 100_000_000,
            "seed": 0,
            "num_paraphrases": 4,
        },
    }


def test_unchanged_data_is_not_decoded_again(draw, cache: Path, decoded: list[int]) -> None:
    folder = draw.captioned(9)
    first = prepare([str(folder)], SETTINGS, cache)
    assert sum(decoded) == 9
    again = prepare([str(folder)], SETTINGS.replace(workers=2, max_skipped_fraction=0.5), cache)
    assert sum(decoded) == 9
    assert again.train.fingerprint == first.train.fingerprint
    assert again.manifest == first.manifest


def test_units_that_a_kill_left_beside_a_complete_cache_go(draw, cache: Path) -> None:
    """Killed after the cache had its name, and before the folder it was built from was gone."""
    folder = draw.captioned(9)
    prepare([str(folder)], SETTINGS, cache)
    names = set(cache.parent.iterdir())
    units = cache.with_name(f".{cache.name}.units")
    shutil.copytree(cache / "units", units)
    prepare([str(folder)], SETTINGS, cache)
    assert set(cache.parent.iterdir()) == names


@pytest.mark.parametrize(
    ("change", "is_decoded"),
    [
        ({"image_size": 32}, True),
        ({"max_image_pixels": 50}, True),
        ({"split_by": "base"}, True),
        ({"validation_fraction": 0.5}, False),
    ],
)
def test_a_changed_setting_rebuilds(draw, cache: Path, decoded, change, is_decoded) -> None:
    """And what has nothing to do with pixels and captions does not decode them again."""
    shard = draw.shard("x.tar", range(9))
    prepare([str(shard)], SETTINGS.replace(max_skipped_fraction=1.0), cache)
    before = len(decoded)
    try:
        data = prepare([str(shard)], SETTINGS.replace(**change), cache)
        assert data.train.image_size == change.get("image_size", 16)
    except DataError:
        assert "max_image_pixels" in change
    assert len(decoded) == (2 * before if is_decoded else before)
    fraction = change.get("validation_fraction", 0.2)
    manifest = read_manifest(cache)
    assert manifest is not None
    assert manifest["identity"]["settings"]["validation_fraction"] == fraction


def test_the_seed_only_matters_to_scenes(draw, cache: Path, decoded: list[int]) -> None:
    folder = str(draw.captioned(3))
    prepare([folder], SETTINGS, cache)
    prepare([folder], SETTINGS.replace(seed=5), cache)
    assert sum(decoded) == 3
    prepare(["scenes:4"], SETTINGS, cache)
    prepare(["scenes:4"], SETTINGS.replace(seed=5), cache)
    assert sum(decoded) == 3 + 4 + 4


def test_a_changed_added_or_removed_file_rebuilds(draw, cache: Path) -> None:
    folder = draw.captioned(9)
    prepare([str(folder)], SETTINGS, cache)
    draw.file("data/0002.txt", "another caption")
    assert "another caption" in all_captions(prepare([str(folder)], SETTINGS, cache))
    draw.captioned(1, start=50)
    assert "picture 50" in all_captions(prepare([str(folder)], SETTINGS, cache))
    (folder / "0003.png").unlink()
    (folder / "0003.txt").unlink()
    assert "picture 3" not in all_captions(prepare([str(folder)], SETTINGS, cache))
    # Same size, other contents: the time of the change gives it away.
    image = folder / "0004.png"
    later = image.stat().st_mtime_ns + 10**9
    draw.image("data/0004.png", 5)
    os.utime(image, ns=(later, later))
    found = by_caption(prepare([str(folder)], SETTINGS, cache))
    assert np.array_equal(found["picture 4"], draw.pixels(5))


def test_a_changed_shard_rebuilds(draw, cache: Path) -> None:
    shard = draw.shard("x.tar", range(5))
    prepare([str(shard)], SETTINGS, cache)
    draw.shard("x.tar", range(6))
    assert len(by_caption(prepare([str(shard)], SETTINGS, cache))) == 6


@pytest.mark.parametrize("name", ["units/*.pixels", "units/*.gz", "captions.bin", "train.bin"])
def test_a_damaged_cache_is_built_again(draw, cache: Path, name: str) -> None:
    folder = str(draw.captioned(9))
    expected = prepare([folder], SETTINGS, cache).train.fingerprint
    [path] = cache.glob(name)
    with path.open("ab") as file:
        file.truncate(5)
    data = prepare([folder], SETTINGS, cache)
    assert data.train.fingerprint == expected
    for number in range(9):
        assert np.array_equal(by_caption(data)[f"picture {number}"], draw.pixels(number))
    path.unlink()
    assert len(by_caption(prepare([folder], SETTINGS, cache))) == 9


def test_a_cache_of_another_format_is_built_again(draw, cache: Path, decoded) -> None:
    folder = str(draw.captioned(3))
    prepare([folder], SETTINGS, cache)
    manifest = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(manifest | {"format": "tessella-cache/0"}))
    prepare([folder], SETTINGS, cache)
    assert sum(decoded) == 3  # its units are as good as before


@pytest.mark.parametrize("where", ["_build", "assemble", "write_json"])
@pytest.mark.parametrize("error", [RuntimeError("crash"), KeyboardInterrupt()])
def test_a_crash_leaves_nothing_that_is_used(draw, cache: Path, monkeypatch, where, error) -> None:
    folder = draw.captioned(9)
    manifest = prepare([str(folder)], SETTINGS, cache).manifest
    draw.captioned(3, start=20)

    def crash(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Units if where == "_build" else prepare_module, where, crash)
        with pytest.raises(type(error)):
            prepare([str(folder)], SETTINGS, cache)
    finished = set() if where == "_build" else {".cache.units"}  # for the next attempt
    assert {path.name for path in cache.parent.iterdir()} == {"cache", ".cache.lock", *finished}
    assert read_manifest(cache) == manifest
    assert sum(len(CaptionedImages(cache, side, manifest)) for side in SIDES) == 9
    assert len(by_caption(prepare([str(folder)], SETTINGS, cache))) == 12
    assert {path.name for path in cache.parent.iterdir()} == {"cache", ".cache.lock"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_clear_error(draw, cache: Path, monkeypatch, code: int) -> None:
    folder = draw.captioned(9)

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Units, "_build", full)
    message = rf"Cannot write the cache of the data: `{cache}` .* free some space"
    with pytest.raises(DataError, match=message):
        prepare([str(folder)], SETTINGS, cache)
    assert {path.name for path in cache.parent.iterdir()} == {".cache.lock"}


def test_a_place_that_cannot_be_written_is_a_clear_error(draw) -> None:
    folder, blocked = draw.captioned(2), draw.file("file", "x")
    with pytest.raises(DataError, match=r"Cannot write the cache: `.*file/cache` \("):
        prepare([str(folder)], SETTINGS, blocked / "cache")


def test_a_folder_with_something_else_in_it_is_left_alone(draw, cache: Path) -> None:
    folder = draw.captioned(2)
    cache.mkdir(parents=True)
    (cache / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="The cache's folder holds something else"):
        prepare([str(folder)], SETTINGS, cache)
    assert (cache / "thesis.txt").read_text() == "mine"
    (cache / "thesis.txt").unlink()
    assert len(by_caption(prepare([str(folder)], SETTINGS, cache))) == 2


def test_nothing_is_written_into_the_data(draw) -> None:
    folder = draw.captioned(2)
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    with pytest.raises(DataError, match=r"The cache would lie inside the data: `.*` in `"):
        prepare([str(folder)], SETTINGS, folder / "run" / "cache")
    prepare([str(folder)], SETTINGS, draw.folder / "cache")
    assert before == {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_two_at_once_build_one_cache(draw, cache: Path, decoded: list[int]) -> None:
    folder = str(draw.captioned(9))
    results: list[PreparedData] = []
    threads = [
        threading.Thread(target=lambda: results.append(prepare([folder], SETTINGS, cache)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(decoded) == 9
    assert len({data.train.fingerprint for data in results}) == 1 and len(results) == 3


# --- decoding threads ----------------------------------------------------------------------


def test_the_number_of_threads_changes_nothing(draw, cache: Path) -> None:
    folder = draw.captioned(150)
    draw.file("data/0010.png", b"broken")
    draw.file("data/0140.txt", "")
    sources = [str(folder), str(draw.shard("x.tar", range(200, 240))), "scenes:30"]
    results = []
    for number in (1, 3):
        data = prepare(sources, SETTINGS.replace(workers=number), cache.with_name(str(number)))
        files = [path for path in cache.with_name(str(number)).rglob("*") if path.is_file()]
        content = {path.name: path.read_bytes() for path in files}
        results.append((content, data.skipped))
    assert results[0] == results[1]
    assert len(results[0][1]) == 2


def test_records_are_read_only_a_few_pictures_ahead(draw) -> None:
    read: list[int] = []

    def records():
        for index in range(1000):
            read.append(index)
            yield decode.Record(f"scenes/{index}", decode.SceneLocation(0, index, "scenes"), ())

    for size, most in ((16, 70), (1024, 26)):
        read.clear()
        settings = SETTINGS.replace(workers=2, image_size=size)
        pictures = decode.decode_records(records(), settings)
        next(pictures)
        pictures.close()
        assert 2 < len(read) <= most


def test_an_error_in_a_thread_ends_the_call(draw, cache: Path, monkeypatch) -> None:
    folder = draw.captioned(130)

    def fail(*_: object) -> None:
        raise MemoryError("no memory is left")

    monkeypatch.setattr(decode, "_hash", fail)
    with pytest.raises(MemoryError):
        prepare([str(folder)], SETTINGS.replace(workers=2), cache)
    assert not cache.exists() and not list_decoding_threads()


def test_an_interruption_ends_the_decoding_threads(draw, cache: Path, decoded: list[int]) -> None:
    folder = draw.captioned(400)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([str(folder)], SETTINGS.replace(workers=2), cache, progress=interrupt)
    assert 0 < sum(decoded) < 100
    assert not cache.exists() and not list_decoding_threads()


def list_decoding_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("tessella-decode")]


def test_a_picture_cut_off_by_the_end_of_its_tar_is_skipped(draw) -> None:
    shard = draw.file("x.tar", draw.content(1))
    size = shard.stat().st_size
    cut_off = decode.ImageLocation(str(shard), 0, size + 1)
    missing = decode.ImageLocation(f"{shard}.gone", 0, 5)
    records = [decode.Record("a.png", location, ("a",)) for location in (cut_off, missing)]
    cut, gone = decode.decode_records(records, SETTINGS)
    assert cut.reason == "The tar ends in the middle of the picture."
    assert gone.reason == "Cannot read the tar: No such file or directory."


# --- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 4},
        {"validation_fraction": 1.0},
        {"max_skipped_fraction": -0.1},
        {"max_image_pixels": 0},
        {"workers": 0},
        {"workers": -1},
        {"split_by": ""},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"Setting `{next(iter(change))}`"):
        DataSettings().replace(**change)


def test_the_number_of_threads_is_found_or_given() -> None:
    assert 1 <= DataSettings().num_workers <= 16
    assert DataSettings(workers=3).num_workers == 3
