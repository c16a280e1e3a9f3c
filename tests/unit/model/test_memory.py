"""A finished model's examples: added, listed, taken away, left out; in place and in a copy."""

import errno
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella.checksums import SUMS_FILE, read_sums, write_sums
from tessella.errors import CheckpointError, ConfigError, DataError
from tessella.files import sha256_file
from tessella.model import folder as model_folder
from tessella.model import memory as memory_module
from tessella.model.find import explain_fixed, find_model
from tessella.model.memory import (
    ALL_EXAMPLES,
    ExampleFilter,
    add_examples,
    export_model,
    list_examples,
    remove_examples,
)
from tessella.model.pipeline import TextToImage
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE, ExampleRow
from untrained import create_untrained, describe_tokenizer, save_untrained

CARD = "# A card\n<!-- examples -->\n3 are inside.\n\nThey look so.\n<!-- /examples -->\nThe end.\n"
WEIGHTS = ("config.json", "tokenizer.safetensors", "transformer.safetensors", "captions.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that has learned to look at two examples, and has none yet."""
    return save_untrained(create_untrained(neighbors=2), tmp_path / "model", card=CARD)


@pytest.fixture
def pics(tmp_path: Path) -> Path:
    """Three pictures with captions."""
    return draw_pictures(tmp_path / "anna" / "pics", {"cats/a": "a red star", "b": "a blue star"})


def draw_pictures(folder: Path, captions: dict[str, str], seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    for name, caption in captions.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(16, 16, 3)).astype(np.uint8)).save(path)
        path.with_suffix(".txt").write_text(caption)
    return folder


def names_of(folder: Path) -> list[str]:
    return [row.name for _, row in list_examples(folder)]


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_pictures_are_added_and_found(folder: Path, pics: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in WEIGHTS if (folder / name).exists()}
    told: list[tuple[int, int | None]] = []
    change = add_examples(folder, [str(pics)], progress=lambda *done: told.append(done))
    assert [row.name for row in change.examples] == ["pics/b.png", "pics/cats/a.png"]
    assert (change.folder, change.count, change.known, change.skipped) == (folder, 2, [], [])
    assert told == [(2, 2)]
    model = TextToImage.load(folder)
    [star, *_] = model.examples.find("red", 1)
    assert (star.name, star.caption) == ("pics/cats/a.png", "a red star")
    with Image.open(pics / "cats/a.png") as image:
        expected = model.encode_images(np.asarray(image)[None])[0]
    assert np.array_equal(star.codes, expected.numpy())
    assert model.generate("a red star")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert str(pics.parent) not in (folder / ROWS_FILE).read_text()


def test_what_is_there_is_not_added_again(folder: Path, pics: Path) -> None:
    add_examples(folder, [str(pics)])
    files = [(folder / name).read_bytes() for name in (EXAMPLES_FILE, ROWS_FILE)]
    change = add_examples(folder, [str(pics)])
    assert (change.examples, change.count) == ([], 2)
    assert change.known == ["pics/b.png", "pics/cats/a.png"]
    assert [(folder / name).read_bytes() for name in (EXAMPLES_FILE, ROWS_FILE)] == files
    # Another picture under a name that is known, and the same picture under another.
    draw_pictures(pics, {"b": "a blue star"}, seed=9)
    change = add_examples(folder, [str(pics)])
    assert [row.name for row in change.examples] == ["pics/b.png"]
    assert names_of(folder) == ["pics/b.png", "pics/cats/a.png", "pics/b.png"]


def test_a_code_that_rounding_has_changed_is_the_same_picture(pics: Path, tmp_path: Path) -> None:
    model = create_untrained(neighbors=2, tokenizer=describe_tokenizer(2))
    folder = save_untrained(model, tmp_path / "pairs")
    add_examples(folder, [str(pics)])
    memory = ExampleMemory.open(folder)
    assert memory is not None
    codes = np.array(memory.codes)
    assert codes.shape == (2, 2, 4, 4)
    codes[0, 1, 0, 0] += 1  # one of 32
    codes[1, 1, 0, :2] += 1  # two
    ExampleMemory.build(codes % 16, list(memory.rows), memory.tokenizer).write(folder)
    change = add_examples(folder, [str(pics)])
    assert change.known == ["pics/b.png"]
    assert [row.name for row in change.examples] == ["pics/cats/a.png"]


def test_examples_of_two_codes_a_position_are_found_and_removed(pics: Path, tmp_path: Path) -> None:
    pairs = describe_tokenizer(2, "residual")
    untrained = create_untrained(neighbors=2, tokenizer=pairs)
    folder = save_untrained(untrained, tmp_path / "pairs")
    assert add_examples(folder, [str(pics)]).count == 2
    model = TextToImage.load(folder)
    [star, *_] = model.examples.find("red", 1)
    with Image.open(pics / "cats/a.png") as image:
        expected = model.encode_images(np.asarray(image)[None])[0]
    assert star.codes.shape == (2, 4, 4)
    assert np.array_equal(star.codes, expected.numpy())
    beside, without = (
        model.generate("a red star", neighbors=count)[0].tobytes() for count in (1, 0)
    )
    assert beside != without
    remove_examples(folder, ExampleFilter(name="b.png"))
    [again] = TextToImage.load(folder).examples.find("red", 2)
    assert np.array_equal(again.codes, expected.numpy())


def test_every_kind_of_data_can_be_added(folder: Path, pics: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for name in ("b.png", "b.txt"):
            tar.add(pics / name, name)
    row = {"file_name": "b.png", "text": "a table's"}
    (pics / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    table = str(pics / "metadata.jsonl")
    add_examples(folder, ["scenes:2", str(tmp_path / "shard.tar"), table])
    expected = ["scenes:2/0", "scenes:2/1", "shard.tar/b.png", "pics/b.png"]
    assert names_of(folder) == expected


def test_what_cannot_be_used_is_skipped_and_told(folder: Path, pics: Path) -> None:
    (pics / "broken.png").write_bytes(b"no picture")
    (pics / "broken.txt").write_text("a star")
    change = add_examples(folder, [str(pics)])
    assert change.count == 2
    assert [Path(one.name).name for one in change.skipped] == ["broken.png"]
    for name in ("b.png", "cats/a.png"):
        (pics / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"no picture that can be used. 3 were skipped, the first"):
        add_examples(folder, [str(pics)])
    with pytest.raises(DataError, match="There is no such data: `nowhere`"):
        add_examples(folder, ["nowhere"])
    assert len(names_of(folder)) == 2


def test_examples_are_removed_by_any_filter(folder: Path, pics: Path, tmp_path: Path) -> None:
    dogs = draw_pictures(tmp_path / "dogs", {"a": "a green star", "c": "a dog"}, seed=1)
    add_examples(folder, [str(pics), str(dogs)])
    everything = names_of(folder)
    assert everything == ["pics/b.png", "pics/cats/a.png", "dogs/a.png", "dogs/c.png"]
    tried = remove_examples(folder, ExampleFilter(source="DOGS"), dry_run=True)
    assert [row.name for row in tried.examples] == everything[2:]
    assert (tried.count, names_of(folder)) == (2, everything)
    change = remove_examples(folder, ExampleFilter(source="dogs", caption="star"))
    assert [row.name for row in change.examples] == ["dogs/a.png"]
    assert names_of(folder) == [*everything[:2], everything[3]]
    [dog] = TextToImage.load(folder).examples.find("dog", 1)
    assert (dog.index, dog.name) == (2, "dogs/c.png")
    assert remove_examples(folder, ExampleFilter(name="nothing")).count == 3
    assert remove_examples(folder, ALL_EXAMPLES).count == 0
    assert not (folder / EXAMPLES_FILE).exists()
    assert not (folder / ROWS_FILE).exists()
    assert (names_of(folder), remove_examples(folder, ALL_EXAMPLES).count) == ([], 0)
    assert TextToImage.load(folder).generate("a red star")
    # From nothing again.
    assert add_examples(folder, [str(pics)]).count == 2


@pytest.mark.parametrize(
    ("which", "matches"),
    [
        (ALL_EXAMPLES, True),
        (ExampleFilter(name="A.PNG"), True),
        (ExampleFilter(name="pics/*.png"), True),
        (ExampleFilter(name="[1]"), True),
        (ExampleFilter(name="b"), False),
        (ExampleFilter(name="a?png"), True),
        (ExampleFilter(caption="blue"), True),
        (ExampleFilter(caption="red*blue"), False),
        (ExampleFilter(source="pics"), True),
        (ExampleFilter(source="pic"), False),
        (ExampleFilter(source="pic*"), True),
        (ExampleFilter(source="pics", caption="red", name="cats"), True),
        (ExampleFilter(source="pics", caption="green"), False),
    ],
)
def test_patterns(which: ExampleFilter, matches: bool) -> None:
    row = ExampleRow("pics/cats/[1]a.png", ["a red star", "a blue ring"])
    assert which.matches(row) is matches
    assert not ExampleFilter(caption="red").matches(ExampleRow("x", []))


def test_a_copy_is_changed_and_the_model_is_not(folder: Path, pics: Path, tmp_path: Path) -> None:
    files = {path: path.read_bytes() for path in folder.iterdir()}
    out = tmp_path / "copy"
    change = add_examples(folder, [str(pics)], out=out)
    assert (change.folder, names_of(out)) == (out, ["pics/b.png", "pics/cats/a.png"])
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    TextToImage.load(out)
    with pytest.raises(ConfigError, match=f"is there already: `{out}`. Name another --out"):
        add_examples(folder, [str(pics)], out=out)
    remove_examples(out, ALL_EXAMPLES, out=tmp_path / "third")
    assert (names_of(out), names_of(tmp_path / "third")) == (change_names(change), [])
    remove_examples(folder, ALL_EXAMPLES, out=out, force=True)
    assert names_of(out) == []


def change_names(change: memory_module.MemoryChange) -> list[str]:
    return [row.name for row in change.examples]


def test_a_copy_cannot_lie_in_its_model(folder: Path) -> None:
    for out in (folder, folder / "copy", folder.parent):
        with pytest.raises(ConfigError, match="may not lie in each other: `"):
            export_model(folder, out, force=True)


def test_a_dry_run_writes_nothing(folder: Path, pics: Path, tmp_path: Path) -> None:
    files = sorted(folder.iterdir())
    assert add_examples(folder, [str(pics)], dry_run=True).count == 2
    assert add_examples(folder, [str(pics)], dry_run=True, out=tmp_path / "copy").count == 2
    assert sorted(folder.iterdir()) == files
    assert not (tmp_path / "copy").exists()


def test_a_model_without_examples_says_so(tmp_path: Path, pics: Path) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "plain")
    for change in (
        lambda: add_examples(folder, [str(pics)]),
        lambda: remove_examples(folder, ALL_EXAMPLES),
        lambda: list_examples(folder),
    ):
        with pytest.raises(ConfigError, match=f"was trained without .*: `{folder}`. Train one"):
            change()
    assert export_model(folder, tmp_path / "copy", without_examples=True) == 0


def test_a_bundled_model_is_changed_in_a_copy_only(
    folder: Path, pics: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tessella.model.find._BUNDLED", folder.parent)
    with pytest.raises(
        ConfigError, match=r"package: `model`, and stays as it is\. Write a copy: --out FOLDER"
    ):
        add_examples(folder, [str(pics)])
    assert add_examples(folder, [str(pics)], out=tmp_path.parent / f"{tmp_path.name}-out").count


def test_what_is_bundled_or_from_the_hub_stays_as_it_is(tmp_path: Path) -> None:
    assert "bundled" in (explain_fixed(find_model("scenes")) or "")
    assert "hub's cache" in (explain_fixed(tmp_path / "models--a--b/snapshots/1") or "")
    assert explain_fixed(tmp_path) is None


def test_a_folder_that_cannot_be_written_is_said(
    folder: Path, pics: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(memory_module, "lock", refuse)
    with pytest.raises(CheckpointError, match=r"Cannot change the examples: .*\(Permission denied"):
        add_examples(folder, [str(pics)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a killed process is a fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_killed_change_leaves_nothing_half_written(folder: Path, pics: Path) -> None:
    add_examples(folder, [str(pics)])
    (folder / ".tmp-tessella-123.safetensors").write_bytes(b"half")
    child = os.fork()
    if not child:
        Path.replace = lambda *_: os._exit(9)  # type: ignore[method-assign, assignment]
        remove_examples(folder, ExampleFilter(name="b.png"))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len(names_of(folder)) == 2
    remove_examples(folder, ExampleFilter(name="b.png"))
    assert names_of(folder) == ["pics/cats/a.png"]
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("is_written", [False, True])
def test_a_change_that_fails_before_the_card_is_ended_by_the_next(
    folder: Path, pics: Path, monkeypatch: pytest.MonkeyPatch, is_written: bool
) -> None:
    """The pictures were there already for the second command, so the card told the old number."""
    write_sums(folder)
    write = ExampleMemory.write

    def fail(memory: ExampleMemory, place: Path) -> None:
        if is_written:
            write(memory, place)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(ExampleMemory, "write", fail)
        with pytest.raises(CheckpointError, match="Cannot write the model card"):
            add_examples(folder, [str(pics)])
    assert card_of(folder) == CARD
    remove_examples(folder, ExampleFilter(name="none fits"))
    assert ("2 are inside as codes now" in card_of(folder)) == is_written
    sums = read_sums(folder)
    assert sums and all(
        sums[p.name] == {sha256_file(p)} for p in folder.iterdir() if p.name in sums
    )


# The card, and a copy for others.


def test_a_card_that_is_not_utf8_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes(b"# Caf\xe9\n")
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(CheckpointError, match=r"not UTF-8: `.*README.md`; .* at byte 5"):
        export_model(folder, tmp_path / "bare", without_examples=True)
    assert not (tmp_path / "bare").exists()


def test_the_card_says_what_is_inside_now(folder: Path, pics: Path) -> None:
    add_examples(folder, [str(pics)])
    note = "Since the training, examples were changed: 2 are inside as codes now.\n"
    assert card_of(folder) == CARD.replace("so.\n", f"so.\n\n{note}")
    remove_examples(folder, ExampleFilter(name="b.png"))
    assert card_of(folder) == CARD.replace("so.\n", f"so.\n\n{note.replace('2', '1')}")
    remove_examples(folder, ALL_EXAMPLES)
    gone = "Since the training, the examples were taken out: no picture is inside as codes.\n"
    part = f"<!-- examples -->\n{gone}<!-- /examples -->\n"
    assert card_of(folder) == f"# A card\n{part}The end.\n"
    add_examples(folder, [str(pics)])
    assert card_of(folder) == f"# A card\n{part.replace(gone, note)}The end.\n"


def test_an_export_is_the_model_with_its_examples_or_without(
    folder: Path, pics: Path, tmp_path: Path
) -> None:
    add_examples(folder, [str(pics)])
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("kept")
    assert export_model(folder, tmp_path / "whole") == 2
    for path in folder.rglob("*"):
        copied = tmp_path / "whole" / path.relative_to(folder)
        if path.is_file() and not path.name.startswith((".", SUMS_FILE)):
            assert copied.read_bytes() == path.read_bytes()
    assert export_model(folder, tmp_path / "bare", without_examples=True) == 0
    bare = {path.name for path in (tmp_path / "bare").iterdir()}
    assert bare == {p.name for p in (tmp_path / "whole").iterdir()} - {EXAMPLES_FILE, ROWS_FILE}
    assert "inside." not in card_of(tmp_path / "bare")
    assert "no picture is inside" in card_of(tmp_path / "bare")
    model = TextToImage.load(tmp_path / "bare")
    assert (model.memory, model.config.neighbors) == (None, 2)
    with Image.open(pics / "b.png") as image:
        assert model.generate("a red star", references=[image])
    with pytest.raises(CheckpointError, match="This is not a model folder"):
        export_model(pics, tmp_path / "other")


# Loading: the memory must be the model's own.


def test_a_memory_of_another_model_is_refused(folder: Path, pics: Path, tmp_path: Path) -> None:
    add_examples(folder, [str(pics)])
    other = save_untrained(create_untrained(seed=1, neighbors=2), tmp_path / "other")
    for name in (EXAMPLES_FILE, ROWS_FILE):
        (other / name).write_bytes((folder / name).read_bytes())
    write_sums(other)
    match = f"not this model's: `{other}`; their codes are of another image tokenizer. Copy"
    for action in (lambda: TextToImage.load(other), lambda: add_examples(other, [str(pics)])):
        with pytest.raises(CheckpointError, match=match):
            action()
    # What the message advises.
    export_model(other, tmp_path / "bare", without_examples=True)
    assert add_examples(tmp_path / "bare", [str(pics)]).count == 2
    TextToImage.load(tmp_path / "bare")


@pytest.mark.parametrize(
    ("codes", "fault"),
    [
        (
            np.zeros((1, 1, 4, 5), np.uint16),
            "they have `1×4×5` codes each, the model's pictures 1×4×4",
        ),
        (
            np.zeros((1, 2, 4, 4), np.uint16),
            "they have `2×4×4` codes each, the model's pictures 1×4×4",
        ),
        (
            np.full((1, 1, 4, 4), 16, np.uint16),
            "code `16`, the largest of the image tokenizer is 15",
        ),
    ],
)
def test_codes_that_do_not_fit_are_refused(folder: Path, codes: np.ndarray, fault: str) -> None:
    tokenizer = TextToImage.load(folder).tokenizer
    memory = ExampleMemory.build(codes, [ExampleRow("a", ["b"])], tokenizer.hash_encoder())
    memory.write(folder)
    with pytest.raises(CheckpointError, match=fault):
        TextToImage.load(folder)


def test_a_model_without_neighbors_does_not_look_at_the_files(tmp_path: Path) -> None:
    folder = save_untrained(create_untrained(), tmp_path / "plain")
    (folder / EXAMPLES_FILE).write_bytes(b"anything")
    assert TextToImage.load(folder).memory is None


def test_another_decoder_keeps_the_examples(folder: Path) -> None:
    tokenizer = model_folder.TrainedTokenizer.load(folder).tokenizer
    before = tokenizer.hash_encoder()
    tokenizer.decoder.get_parameter("last.weight").add_(1)
    tokenizer.get_buffer("quantizer.parts.0.idle_images").add_(1)
    assert tokenizer.hash_encoder() == before
    tokenizer.get_parameter("quantizer.parts.0.vectors").add_(1)
    assert tokenizer.hash_encoder() != before
    changed = tokenizer.hash_encoder()
    next(tokenizer.encoder.parameters()).add_(1)
    assert tokenizer.hash_encoder() != changed
