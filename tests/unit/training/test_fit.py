"""`fit`: data in, model folder out; called again it goes on, or refuses what would not fit."""

import json
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tessella.errors import CheckpointError, ConfigError, DataError
from tessella.evaluation import squeezenet as squeezenet_module
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.files import read_tensors
from tessella.images import to_uint8
from tessella.model.find import find_model, find_tokenizer
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.objectives import AnyOrder
from tessella.retrieval.examples import EXAMPLES_FILE, ROWS_FILE
from tessella.training import fit as fit_module
from tessella.training import precision as precision_module
from tessella.training import request as request_module
from tessella.training.budget import TrainingBudget
from tessella.training.fit import FitRequest, fit
from tessella.training.interrupt import Interrupted
from tessella.training.run_folder import lock_run
from tessella.training.tokenizer_stage import TokenizerLoss
from tiny_runs import TINY, draw_pictures, train

WORDS = (*TINY, "data.licence=CC0-1.0", "transformer.dropout=0.1")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures with captions, in a folder of their own."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"), 20)


def call(out: Path, pictures: Path, *words: str, **changes: Any) -> tuple[Path, str]:
    return train(out, pictures, *WORDS, *words, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    folder, said = call(out, pictures)
    assert folder == out / "model"
    assert "20 images, 20 captions" in said
    assert "Read: captions from the .txt beside each picture (20 images)." in said
    assert "The model is in" in said
    return out


def read_all(folder: Path) -> dict[Path, bytes]:
    """The contents of all files under a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def assert_same_model(out: Path, other: Path) -> None:
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        mine, theirs = (read_tensors(run / "model" / name) for run in (out, other))
        assert mine.keys() == theirs.keys()
        differ = [key for key in mine if not np.array_equal(mine[key], theirs[key])]
        assert not differ
    for name in ("samples.png", "metrics.json", "config.json", "text_tokenizer.json", "README.md"):
        assert (out / "model" / name).read_bytes() == (other / "model" / name).read_bytes(), name


def test_the_model_is_whole(whole: Path, pictures: Path) -> None:
    model = TextToImage.load(whole / "model", device="cpu")
    [picture] = model.generate("picture 3", seed=1)
    assert picture.size == (16, 16)
    card = (whole / "model" / "README.md").read_text()
    assert f"`{pictures.name}`" in card
    assert "CC0-1.0" in card
    metrics = json.loads((whole / "model" / "metrics.json").read_text())
    assert metrics["reconstruction_psnr"]["value"] > 0
    assert (whole / "run.json").exists()
    for stage in ("tokenizer", "transformer"):
        assert (whole / stage / "metrics.jsonl").read_text().count("validation") >= 1


def test_again_it_finds_all_done(
    whole: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for learner in (TokenizerLoss, AnyOrder):

        def refuse(self: Any, *_: object) -> None:
            if self.training:
                pytest.fail("it trained again")

        monkeypatch.setattr(learner, "forward", refuse)
    before = (whole / "model" / "transformer.safetensors").read_bytes()
    call(whole, pictures)
    assert (whole / "model" / "transformer.safetensors").read_bytes() == before


def test_a_model_paints_larger_with_a_new_decoder(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    """The report's way to higher resolution, on a model that is there already."""
    start = str(whole / "model")
    call(
        tmp_path / "large",
        pictures,
        "data.image_size=32",
        "tokenizer.upsampling=1",
        "tokenizer_training.learn=decoder",
        f"tokenizer_training.init_from={start}",
        f"transformer_training.init_from={start}",
        "transformer_training.images=0",
    )
    old, large = (TextToImage.load(run, "cpu") for run in (start, tmp_path / "large" / "model"))
    [small_picture], [picture] = (model.generate("picture 3", seed=1) for model in (old, large))
    assert (small_picture.size, picture.size) == ((16, 16), (32, 32))
    request = ImageRequest("picture 3", seed=1)
    codes, larger_codes = (model.generate_images([request]).codes for model in (old, large))
    assert codes is not None
    assert larger_codes is not None
    assert torch.equal(codes, larger_codes)


def test_a_tokenizer_alone_can_be_looked_at_and_started_from(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    _, said = call(out, pictures, stage="tokenizer")
    assert "The image tokenizer is in" in said
    found = TrainedTokenizer.load(find_tokenizer(out), "cpu")
    theirs = read_tensors(whole / "model" / "tokenizer.safetensors")
    mine = found.tokenizer.state_dict()
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    with Image.open(pictures / "00.png") as image:
        [made] = found.reconstruct([image])
    assert made.size == (16, 16)
    with pytest.raises(CheckpointError, match="no finished model yet"):
        find_model(out)
    # A finished model goes before it; the name of a bundled one stays its name.
    assert find_tokenizer(whole) == find_model(whole)
    assert find_tokenizer("scenes") == find_model("scenes")
    start = (f"tokenizer_training.init_from={out}", "tokenizer_training.images=0")
    call(tmp_path / "next", pictures, *start, stage="tokenizer")
    again = read_tensors(tmp_path / "next" / "tokenizer" / "model" / "tokenizer.safetensors")
    assert all(np.array_equal(mine[name], again[name]) for name in again)


def test_a_palette_is_chosen_not_trained(pictures: Path, tmp_path: Path) -> None:
    """Image GPT's way, from folder to picture: every pixel is one of the palette's colours."""
    words = [word for word in WORDS if not word.startswith("tokenizer")]
    request = FitRequest(
        sources=[str(pictures)],
        out=tmp_path / "run",
        device="cpu",
        preset="palette",
        assignments=[*words, "tokenizer.quantizer.codebook_size=12"],
    )
    fit(request, Console(quiet=True))
    model = TextToImage.load(tmp_path / "run" / "model", "cpu")
    palette = to_uint8(model.tokenizer.codebook.mT[..., None]).reshape(-1, 3)
    [picture] = model.generate("picture 3", seed=1)
    painted = np.asarray(picture).reshape(-1, 3)
    assert {tuple(colour) for colour in painted} <= {tuple(colour) for colour in palette}
    before = (tmp_path / "run" / "model" / "tokenizer.safetensors").read_bytes()
    fit(request, Console(quiet=True))
    assert (tmp_path / "run" / "model" / "tokenizer.safetensors").read_bytes() == before


def test_a_part_without_images_is_its_model_s(whole: Path, pictures: Path, tmp_path: Path) -> None:
    """Either command finds it done, and a run that is moved away from its model goes on."""
    model = tmp_path / "model"
    shutil.copytree(whole / "model", model)
    kept = ("tokenizer_training.images=0", f"tokenizer_training.init_from={model}")
    out = tmp_path / "run"
    call(out, pictures, *kept, stage="tokenizer")
    shutil.rmtree(model)
    call(out, pictures, *kept, stage="transformer")
    call(out, pictures, *kept)
    mine, theirs = (read_tensors(run / "model" / "tokenizer.safetensors") for run in (out, whole))
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    assert f"taken as it is from `{model.name}`" in (out / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    "word",
    [
        "tokenizer_training.init_from=nowhere",
        "transformer_training.init_from=nowhere",
        "tokenizer_training.loss.perceptual={layers={conv1=1.0},weights='nowhere.npz'}",
    ],
)
def test_what_is_not_there_claims_no_folder(word: str, pictures: Path, tmp_path: Path) -> None:
    """The corrected command used to be refused: the folder had become a run of the wrong one."""
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        call(tmp_path / "run", pictures, word)
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_go_together_are_refused(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    start = str(whole / "model")
    with pytest.raises(ConfigError, match=r"new decoder has to learn: `0` images"):
        call(
            tmp_path / "noise",
            pictures,
            "data.image_size=32",
            "tokenizer.upsampling=1",
            "tokenizer_training.images=0",
            f"tokenizer_training.init_from={start}",
        )
    with pytest.raises(ConfigError, match=r"trained on another codebook.*learn to decoder"):
        call(
            tmp_path / "codes",
            pictures,
            "tokenizer_training.images=16",
            "transformer_training.images=0",
            f"transformer_training.init_from={start}",
        )


# A recipe that cannot be built had made the folder its run: the corrected command was refused.
def test_what_cannot_be_built_claims_no_folder(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"must be a multiple of 4 .*: `18`. Try 16 or 20"):
        call(out, pictures, "data.image_size=18")
    assert not out.exists()
    call(out, pictures, stage="tokenizer")


# Training cuts long captions, painting refuses them: such a run died at its first evaluation, and
# with none that is short enough again at its end.
def test_captions_that_are_too_long_do_not_stop_a_run(pictures: Path, tmp_path: Path) -> None:
    long = Path(shutil.copytree(pictures, tmp_path / "long"))
    for number, path in enumerate(sorted(long.glob("*.txt"))):
        path.write_text(f"one two three four picture {number}\n")
    _, said = call(tmp_path / "run", long, "text.max_tokens=5")
    assert "Captions: 18 of 18 checked have more than 5 tokens (text.max_tokens)" in said
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "model.generate('a prompt', seed=7)" in card


# A run that was killed between its recipe and its vocabulary never wrote the vocabulary down.
def test_a_vocabulary_that_was_not_saved_is_saved(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (out / "text_tokenizer.json").unlink()
    call(out, pictures)
    assert (out / "text_tokenizer.json").read_bytes() == (
        whole / "text_tokenizer.json"
    ).read_bytes()


# They were written after the model, whose folder says that all is done: a kill between left them
# out for good. And they show training pictures, which are not to go where the model goes.
def test_neighbours_are_in_the_run_before_the_model_is_there(
    whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(out / "model")
    torch.manual_seed(0)
    state = {name: value.numpy() for name, value in SqueezeNet().state_dict().items()}
    np.savez(tmp_path / "squeezenet.npz", **state)
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(tmp_path / "squeezenet.npz"))
    monkeypatch.setattr(squeezenet_module, "INPUT_SIZE_PX", 63)

    def die(*_: object, **__: object) -> None:
        raise Interrupted("killed")

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(TextToImage, "save", die)
        call(out, pictures)
    assert (out / "nearest.png").exists()
    pairs = json.loads((out / "nearest.json").read_text())["pairs"]
    assert {pair["prompt"].split()[0] for pair in pairs} == {"picture"}
    call(out, pictures)
    names = {path.name for path in (out / "model").iterdir()}
    assert names == {path.name for path in (whole / "model").iterdir()}
    assert "Nearest training pictures" in (out / "report.html").read_text()


# For a tokenizer alone nobody reads captions: a frozen encoder kept it waiting for nothing.
def test_a_tokenizer_alone_waits_for_no_captions(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "prepare_captions", lambda *_, **__: pytest.fail("it read"))
    call(tmp_path / "run", pictures, stage="tokenizer")


# A frozen encoder reads every caption once, those of mirrored pictures too.
@pytest.mark.parametrize("flips", ["true", "false"])
def test_what_is_read_of_mirrored_pictures(
    flips: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def prepare(encoder: object, captions: Iterable[str], *_: object, **__: object) -> object:
        read.extend(captions)
        return encoder

    monkeypatch.setattr(fit_module, "prepare_captions", prepare)
    call(tmp_path / "run", pictures, f"transformer_training.flips={flips}")
    mirrored = [caption for caption in read if caption.startswith("mirrored, ")]
    assert bool(mirrored) == (flips == "true")
    assert {caption.removeprefix("mirrored, ") for caption in mirrored} <= set(read)


# The report is to look at: without one there is still a model.
def test_a_report_that_cannot_be_written_stops_nothing(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    (out / "report.html").unlink()
    (out / "report.html").mkdir()
    (out / "report.html" / "mine.txt").write_text("")
    _, said = call(out, pictures)
    assert "The run has no report: " in said
    assert "The model is in" in said


@pytest.mark.parametrize("learner", [TokenizerLoss, AnyOrder])
def test_stopped_and_called_again_it_ends_in_the_same_model(
    learner: type, whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, steps = learner.forward, iter(range(99))

    def stop(self: Any, *batch: object) -> Any:
        if self.training and next(steps) == 1:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, *batch)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(learner, "forward", stop)
        call(tmp_path / "run", pictures)
    assert not (tmp_path / "run" / "model").exists()
    call(tmp_path / "run", pictures)
    assert_same_model(tmp_path / "run", whole)


# Its memory and its neighbours are found once, and the resumed run looks at the same ones.
def test_a_run_that_looks_pictures_up_ends_in_the_same_model(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, whole, out = "retrieval.neighbors=2", tmp_path / "whole", tmp_path / "run"
    call(whole, pictures, looks)
    forward, steps = AnyOrder.forward, iter(range(99))

    def stop(self: Any, *batch: object) -> Any:
        if self.training and next(steps) == 1:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, *batch)

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(AnyOrder, "forward", stop)
        call(out, pictures, looks)
    found = {path: path.stat().st_mtime_ns for path in (out / "examples").rglob("*.*")}
    assert {path.name for path in found} >= {"train.npy", "validation.npy", EXAMPLES_FILE}
    call(out, pictures, looks)
    assert {path: path.stat().st_mtime_ns for path in found} == found
    assert_same_model(out, whole)
    mine, theirs = (read_tensors(run / "model" / EXAMPLES_FILE) for run in (out, whole))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    mine, theirs = ((run / "model" / ROWS_FILE).read_bytes() for run in (out, whole))
    assert mine == theirs
    memory = TextToImage.load(out / "model", device="cpu").memory
    assert memory is not None
    assert len(memory) == 18  # none of the two that are held out


def test_one_stage_after_the_other_is_both_at_once(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(
        ConfigError, match=r"not trained yet: `.*tokenizer` has seen 0 of 32 images"
    ):
        call(out, pictures, stage="transformer")
    folder, _ = call(out, pictures, stage="tokenizer")
    assert folder == out
    assert not (out / "transformer").exists()
    call(out, pictures, stage="transformer")
    assert_same_model(out, whole)


# What is refused.


@pytest.mark.parametrize(
    ("words", "changes", "said"),
    [
        (
            ("transformer.width=32",),
            {},
            r"has transformer\.width = `16`, now it is `32`\. Use the same settings to resume",
        ),
        (
            ("transformer.width=32", "text.max_tokens=9"),
            {},
            r"`16`, now it is `32` \(and 1 more\)|`64`, now it is `9` \(and 1 more\)",
        ),
        ((), {"seed": 5}, "has seed = `0`, now it is `5`"),
        ((), {"minutes": 3.0}, "has minutes = `None`, now it is `3.0`"),
    ],
)
def test_other_settings(
    whole: Path, pictures: Path, words: tuple[str, ...], changes: dict[str, Any], said: str
) -> None:
    before = (whole / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=f"began with other settings: `.*{said}"):
        call(whole, pictures, *words, **changes)
    assert (whole / "run.json").read_bytes() == before


def test_other_data(whole: Path, pictures: Path, tmp_path: Path) -> None:
    """And with the data that it began with it still goes on."""
    more = tmp_path / "more"
    more.mkdir()
    for path in pictures.iterdir():
        (more / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (16, 16), "red").save(more / "red.png")
    (more / "red.txt").write_text("red\n")
    before = read_all(whole)
    for _ in range(2):
        with pytest.raises(DataError) as caught:
            call(whole, more)
        assert str(caught.value) == (
            "The data is not what the run began with: it had 20 images (2 held out), now there "
            "are 21 images (2 held out). Nothing was changed. Use the data that the run began "
            "with, or choose a new --out to train on what is there now."
        )
        assert read_all(whole) == before
    # Of a run from before run.json named its data, the cache tells what it was.
    run = json.loads((whole / "run.json").read_text())
    (whole / "run.json").write_text(json.dumps({k: v for k, v in run.items() if k != "data"}))
    with pytest.raises(DataError, match="not what the run began with"):
        call(whole, more)
    (whole / "run.json").write_bytes(before[Path("run.json")])
    call(whole, pictures)


def test_other_data_is_refused_also_where_the_cache_is_lost(
    whole: Path, pictures: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "data")
    other = tmp_path / "other"
    shutil.copytree(pictures, other)
    Image.new("RGB", (16, 16), "red").save(other / "03.png")
    with pytest.raises(DataError, match=r"now there are 20 images \(2 held out\), of which some"):
        call(run, other)
    assert not (run / "data").exists()
    # Files that were only copied are the same data.
    again = tmp_path / "again"
    again.mkdir()
    for path in pictures.iterdir():
        (again / path.name).write_bytes(path.read_bytes())
    call(run, again)
    assert (run / "data" / "manifest.json").exists()


def test_what_is_refused_is_refused_first_and_changes_nothing(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of it was found out after hours of reading data, and left folders and locks."""
    monkeypatch.setattr(fit_module, "prepare", lambda *_, **__: pytest.fail("data was read"))
    before = read_all(pictures)
    out = tmp_path / "new" / "run"
    with pytest.raises(DataError, match=r"inside the data: `.*run/data` in `"):
        call(pictures / "run", pictures)
    with pytest.raises(DataError, match="no such data: `nowhere`"):
        call(out, pictures, sources=["nowhere"])
    with pytest.raises(ConfigError, match=r"multiple of 4 .*: `18`"):
        call(out, pictures, "data.image_size=18", minutes=5.0, preset="tiny")
    with pytest.raises(ConfigError, match="image tokenizer is not trained yet: `"):
        call(out, pictures, stage="transformer")
    with pytest.raises(ConfigError, match="Unknown setting"):
        call(out, pictures, "data.image_sizes=16")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"The run's folder is a file: `.*file`\. Choose"):
        call(tmp_path / "file", pictures)
    assert read_all(pictures) == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_in_use_is_refused_first(whole: Path, pictures: Path) -> None:
    with lock_run(whole), pytest.raises(ConfigError, match="Another process is training in this"):
        call(whole, pictures)


def test_who_comes_second_does_not_begin_the_run_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the folder new; the other one was quicker."""
    out = tmp_path / "run"
    choose = request_module.choose_precision

    def dawdle(*arguments: Any) -> Any:
        out.mkdir()
        (out / "run.json").write_text("{}")
        return choose(*arguments)

    monkeypatch.setattr(request_module, "choose_precision", dawdle)
    with pytest.raises(ConfigError, match="has begun a run in this folder meanwhile: `"):
        call(out, pictures)
    assert (out / "run.json").read_text() == "{}"


@pytest.mark.parametrize("minutes", [float("nan"), 0.0, -1.0, float("inf")])
def test_minutes_are_above_zero(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Minutes must be a number above 0: `{minutes:g}`"):
        FitRequest(["nowhere"], tmp_path, minutes=minutes)


def test_one_picture_is_measured_on_itself_and_the_card_says_so(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red")
    folder, said = call(tmp_path.parent / f"{tmp_path.name}-run", tmp_path)
    assert "No image is held out: all numbers will be of training pictures." in said
    lines = (folder / "README.md").read_text().split("# A tessella model\n", 1)[1].split("\n")
    assert lines[1].startswith("**Its numbers and samples are of training pictures: none were ")
    assert "![Samples: training captions" in "\n".join(lines)


def test_the_card_lists_different_captions(pictures: Path, tmp_path: Path) -> None:
    repeated = Path(shutil.copytree(pictures, tmp_path / "repeated"))
    for number, path in enumerate(sorted(repeated.glob("*.txt"))):
        path.write_text(f"picture {number % 2}\n")
    folder, _ = call(tmp_path / "run", repeated, "data.validation_fraction=0.5")
    card = (folder / "README.md").read_text()
    listed = [line for line in card.splitlines() if line.startswith("- `picture")]
    assert sorted(listed) == ["- `picture 0`", "- `picture 1`"]


def test_a_folder_that_is_no_run(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds something other than a run: `.*new or empty"):
        call(tmp_path, pictures)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [
        "thesis.tex"
    ]


# Precision.


def watch_training(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bool]]:
    """Notes for each stage whether it learns in bf16."""
    seen: dict[str, set[bool]] = {}
    for name, learner in (("tokenizer", TokenizerLoss), ("transformer", AnyOrder)):
        forward = learner.forward

        def note(self: Any, *args: Any, name: str = name, forward: Any = forward) -> Any:
            if torch.is_grad_enabled():
                seen.setdefault(name, set()).add(torch.is_autocast_enabled("cpu"))
            return forward(self, *args)

        monkeypatch.setattr(learner, "forward", note)
    return seen


def test_both_stages_train_in_bf16(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_training(monkeypatch)
    adversarial = "tokenizer_training.loss.adversarial"
    words = (f"{adversarial}.weight=0.5", f"{adversarial}.layers=1", f"{adversarial}.width=16")
    counts = (f"{adversarial}.start_images=0", f"{adversarial}.warmup_images=8")
    folder, said = call(tmp_path / "run", pictures, "precision=bf16", *words, *counts)
    assert "Precision: bf16; as the settings say." in said
    assert seen == {"tokenizer": {True}, "transformer": {True}}
    for name in ("tokenizer", "transformer"):
        weights = read_tensors(folder / f"{name}.safetensors").values()
        assert all(w.dtype != torch.bfloat16 and w.isfinite().all() for w in weights)


@pytest.mark.parametrize(("speedup", "name"), [(1.84, "bf16"), (0.5, "fp32")])
def test_what_was_measured_is_kept(
    speedup: float, name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the second stage, and on another machine."""
    seen, in_bf16 = watch_training(monkeypatch), name == "bf16"
    monkeypatch.setattr(precision_module, "measure_bf16_speedup", lambda: speedup)
    _, said = call(tmp_path / "run", pictures, stage="tokenizer")
    why = "1.8 times as fast as fp32 here" if in_bf16 else "bf16 takes 2 times as long here"
    assert f"Precision: {name}; {why}." in said
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["asked"]["recipe"]["precision"] == "auto"
    assert run["recipe"]["precision"] == name
    assert run["reasons"] == {"precision": why}

    monkeypatch.setattr(precision_module, "measure_bf16_speedup", lambda: pytest.fail("again"))
    _, said = call(tmp_path / "run", pictures)
    assert f"Precision: {name}; as the run began." in said
    assert seen == {"tokenizer": {in_bf16}, "transformer": {in_bf16}}


# A processor that is faster in bf16 would have ended such a run in other weights.
def test_a_run_from_before_there_was_a_precision_goes_on_in_fp32(
    whole: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    call(out, pictures, stage="tokenizer")
    file = out / "run.json"
    values = json.loads(file.read_text())
    for recipe in (values["recipe"], values["asked"]["recipe"]):
        del recipe["precision"]
    del values["reasons"]
    file.write_text(json.dumps(values))
    monkeypatch.setattr(precision_module, "measure_bf16_speedup", lambda: 9.0)
    _, said = call(out, pictures)
    assert "Precision: fp32; as the run began." in said
    assert_same_model(out, whole)


# Minutes.


def test_a_plan_is_made_once_and_kept(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run does not measure again: it keeps to the lengths that it began with."""
    plans = []

    def plan(recipe: Any, seconds_left: float, *_: object) -> TrainingBudget:
        plans.append(seconds_left)
        shorter = recipe.replace(tokenizer_training=recipe.tokenizer_training.replace(images=16))
        return TrainingBudget(shorter, {"tokenizer": 1.0}, 1.0)

    monkeypatch.setattr(request_module, "choose_preset", lambda *_: "tiny")
    monkeypatch.setattr(fit_module, "compute_budget", plan)
    for _ in range(2):
        call(tmp_path / "run", pictures, minutes=2.0, stage="tokenizer")
    assert len(plans) == 1
    assert 60 < plans[0] < 120
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["recipe"]["tokenizer_training"]["images"] == 16
    assert run["asked"]["minutes"] == 2.0
    names = [path.name for path in (tmp_path / "run" / "tokenizer" / "checkpoints").iterdir()]
    assert f"checkpoint-{16:012d}" in names


def test_a_finished_model_tells_what_it_looks_up_and_whether_it_copies_that(
    pictures: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    folder, _ = call(out, pictures, "retrieval.neighbors=2")
    metrics = json.loads((folder / "metrics.json").read_text())
    data = json.loads((out / "data" / "manifest.json").read_text())["counts"]
    assert metrics["images_in_memory"]["value"] == 0
    assert metrics["images_in_memory"]["protocol"].startswith("images whose codes are those of")
    assert 0 <= metrics["neighbor_copy_rate"]["value"] <= 1
    assert "without_examples_loss_held_out" in metrics
    assert f"{data['train']} of the training pictures are inside" in (
        folder / "README.md"
    ).read_text(encoding="utf-8")
    nearest = json.loads((out / "nearest.json").read_text(encoding="utf-8"))
    assert nearest["protocol"].startswith("copy_rate: ")
    assert {row["example"] is None for row in nearest["pairs"]} == {False, True}
    assert (out / "nearest.png").is_file()
    report = (out / "report.html").read_text(encoding="utf-8")
    assert f"<dt>Examples</dt><dd>{data['train']} pictures to look up, 2 at most" in report
