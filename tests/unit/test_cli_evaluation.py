"""`tessella evaluate`: what it prints and saves, on which images, what it refuses."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from commands import invoke, succeeded
from remembering import remember
from tessella.cli import evaluation as module
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.evaluation import squeezenet
from tessella.evaluation.reconstruction import compute_psnr
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.model import sampler
from tessella.model.pipeline import TextToImage, TrainedTokenizer
from untrained import create_untrained, save_untrained

SIZE = 16
FROM_SQUEEZENET = (
    "reconstruction_perceptual_distance",
    "reconstruction_fid_squeezenet-fire9",
    "reconstruction_kid_squeezenet-fire9",
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, without any weights, and SqueezeNet on few pixels."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(squeezenet, "INPUT_SIZE_PX", 31)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder; untrained, which makes no difference to the command line."""
    model = create_untrained(captions=["a red square", "a blue circle"])
    return save_untrained(model, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def tokenizer_alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fit-tokenizer` leaves of the same."""
    folder = tmp_path_factory.mktemp("run") / "tokenizer" / "model"
    TrainedTokenizer.load(model, "cpu").save(folder)
    return folder.parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten captioned pictures."""
    folder = tmp_path_factory.mktemp("data") / "drawn"
    folder.mkdir()
    random = np.random.default_rng(0)
    for index in range(10):
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(f"picture number {index}", encoding="utf-8")
    return folder


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights of SqueezeNet."""
    torch.manual_seed(0)
    state = {name: value.numpy() for name, value in SqueezeNet().state_dict().items()}
    np.savez(tmp_path / "squeezenet.npz", **state)
    monkeypatch.setenv("TESSELLA_SQUEEZENET", str(tmp_path / "squeezenet.npz"))


def run(*arguments: object) -> Any:
    """Runs the command in this process; what is no exit is raised. Paints only if asked to."""
    words = ["evaluate", *arguments, "--device", "cpu", "--set", "data.workers=1"]
    if "--pictures" not in words:
        words += ["--pictures", 0]
    return invoke(*words)


def succeed(*arguments: object) -> str:
    return succeeded(run(*arguments))


def fail(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    return str(result.stderr)


def test_a_table_of_numbers_with_their_protocol(model: Path, data: Path, weights: None) -> None:
    text = " ".join(succeed(model, data, "--features", "squeezenet-fire2").split())
    assert text.startswith(
        "Measuring on all 10 images of drawn. Reconstructing 10 pictures. Its codes give a picture "
    )
    assert " metric value protocol " in text
    assert "dB, mean over all 10 images of drawn" in text
    assert "of 16, all 10 images of drawn" in text
    for name in ("perceptual_distance", "fid_squeezenet-fire2", "kid_squeezenet-fire2"):
        assert f"reconstruction_{name} " in text
    assert "Left out" not in text
    assert not list(Path().iterdir())  # nothing is written unasked, the cache is gone


def test_json_and_files_hold_the_same(model: Path, data: Path, weights: None) -> None:
    printed = json.loads(
        succeed(model, data, "--json", "--out", "found.json", "--sheet", "s.png", "--cache", "c")
    )
    assert json.loads(Path("found.json").read_text(encoding="utf-8")) == printed
    assert (printed["model"], printed["data"]) == (str(model), [str(data)])
    assert (printed["images"], printed["pictures"], printed["left_out"]) == (10, 0, {})
    assert set(printed["metrics"]) == {
        "reconstruction_psnr",
        "reconstruction_ssim",
        *FROM_SQUEEZENET,
        "codes_used",
        "code_perplexity",
    }
    assert all(entry["protocol"] for entry in printed["metrics"].values())
    assert Path("c/manifest.json").is_file()


def test_a_tokenizer_alone_is_measured_as_in_its_model(
    model: Path, tokenizer_alone: Path, data: Path
) -> None:
    alone, whole = (
        json.loads(succeed(which, data, "--json"))["metrics"] for which in (tokenizer_alone, model)
    )
    assert alone == whole
    damaged = Path("damaged")
    shutil.copytree(model, damaged)
    (damaged / "transformer.safetensors").unlink()
    assert "transformer.safetensors" in fail(damaged, data)


def test_the_numbers_are_those_of_the_model(model: Path, data: Path) -> None:
    """Every picture of DATA counts, through the model as Python has it."""
    metrics = json.loads(succeed(model, data, "--json"))["metrics"]
    loaded = TextToImage.load(model, "cpu")
    pictures = []
    for path in sorted(data.glob("*.png")):
        with Image.open(path) as image:
            pictures.append(image.convert("RGB"))
    made = np.stack([np.asarray(image) for image in loaded.reconstruct(pictures)])
    expected = compute_psnr(made, np.stack([np.asarray(image) for image in pictures]))
    assert metrics["reconstruction_psnr"]["value"] == pytest.approx(expected, abs=0.01)


def test_the_sheet_has_each_picture_above_what_is_kept(model: Path, data: Path) -> None:
    """Ten pictures, eight in a row: the first eight, and below them their reconstructions."""
    succeed(model, data, "--sheet", "sheet.png", "--cache", "cache")
    with Image.open("sheet.png") as image:
        sheet = np.asarray(image)
    settings = DataSettings(image_size=SIZE, validation_fraction=0.0, workers=1)
    pixels = prepare([str(data)], settings, Path("cache")).train.pixels(range(8))
    scale, gap = 12, 6
    side = scale * SIZE
    assert sheet.shape[1] == 8 * (side + gap) + gap
    for place, original in enumerate(pixels):
        left = gap + place * (side + gap)
        shown = sheet[gap : gap + side : scale, left : left + side : scale]
        assert np.array_equal(shown, original)
    assert sheet.shape[0] > 2 * side


def test_too_many_images_are_drawn_by_the_seed(model: Path, data: Path) -> None:
    first, again, other = (
        json.loads(succeed(model, data, "--json", "--max-images", 4, "--seed", seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first["images"] == 4
    found = first["metrics"]["reconstruction_psnr"]
    assert found["protocol"].endswith("4 of the 10 images of drawn, drawn with seed 1")
    assert found["value"] != other["metrics"]["reconstruction_psnr"]["value"]


def test_without_weights_the_table_says_how_to_get_them(model: Path, data: Path) -> None:
    text = " ".join(succeed(model, data).split())
    names = [name.replace("squeezenet-fire9", "efficientnet-head") for name in FROM_SQUEEZENET]
    assert f"Left out: {', '.join(names)}. It takes the weights of a network" in text
    assert "pip install 'tessella[evaluate]'" in text
    left_out = json.loads(succeed(model, data, "--json"))["left_out"]
    assert set(left_out) == set(names)


def test_features_that_are_asked_for_have_to_be_there(model: Path, data: Path) -> None:
    assert "SqueezeNet 1.1" in fail(model, data, "--features", "squeezenet-fire5")
    assert "named NETWORK-LAYER" in fail(model, data, "--features", "inception")


def test_features_are_those_asked_for(model: Path, data: Path, weights: None) -> None:
    words = ("--features", "squeezenet-fire2", "--features", "squeezenet-fire3")
    metrics = json.loads(succeed(model, data, "--json", *words))["metrics"]
    assert {name for name in metrics if "fid" in name} == {
        "reconstruction_fid_squeezenet-fire2",
        "reconstruction_fid_squeezenet-fire3",
    }


def test_few_images_leave_fid_and_kid_out(model: Path, data: Path, weights: None) -> None:
    left_out = json.loads(succeed(model, data, "--json", "--max-images", 3))["left_out"]
    assert left_out == dict.fromkeys(FROM_SQUEEZENET[1:], "It takes at least 4 images.")


def make_run(folder: Path, model: Path, data: Path, validation_fraction: float) -> Path:
    """A finished run, as far as evaluation looks at it."""
    folder.mkdir()
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "model").symlink_to(model)
    settings = DataSettings(image_size=SIZE, validation_fraction=validation_fraction, workers=1)
    prepare([str(data)], settings, folder / "data")
    return folder


def test_a_run_brings_the_images_that_it_kept_out(model: Path, data: Path) -> None:
    run_folder = make_run(Path("mine"), model, data, 0.3)
    manifest = json.loads((run_folder / "data/manifest.json").read_text(encoding="utf-8"))
    count = manifest["counts"]["validation"]
    assert 0 < count < 10
    found = json.loads(succeed(run_folder, "--json"))
    assert (found["images"], found["data"]) == (count, [])
    assert f"all {count} images of what the run kept out" in succeed(run_folder)
    # DATA goes before them.
    assert json.loads(succeed(run_folder, data, "--json"))["images"] == 10


def test_without_images_there_is_nothing_to_measure(model: Path, data: Path) -> None:
    assert "Only the folder of a run brings its own images" in fail(model)
    run_folder = make_run(Path("all"), model, data, 0.0)
    assert "The run kept no images out of training: `all`. Name DATA" in fail(run_folder)
    (run_folder / "data/manifest.json").unlink()
    assert "The run has no images any more: `all`. Name DATA" in fail(run_folder)


PAINT = ("--pictures", 8, "--pmi-pictures", 3)


def test_painted_pictures_are_measured(model: Path, data: Path, weights: None) -> None:
    words = (*PAINT, "--json", "--train-data", data, "--pairs", "pairs.png", "--cache", "cache")
    printed = json.loads(succeed(model, data, *words))
    assert (printed["images"], printed["pictures"], printed["left_out"]) == (10, 8, {})
    assert {
        *(f"painted_{k}_squeezenet-fire9" for k in ("fid", "kid", "precision", "recall")),
        "retrieval_by_features",
        "retrieval_by_pmi",
        "copy_rate",
        "loss_train",
        "loss_held_out",
        "loss_gap",
    } < set(printed["metrics"])
    assert "of 3 pictures" in printed["metrics"]["retrieval_by_pmi"]["protocol"]
    # The same images on both sides are told apart by nothing.
    assert printed["metrics"]["loss_gap"]["value"] == 0
    assert Path("cache-train/manifest.json").is_file()
    with Image.open("pairs.png") as image:
        assert image.width > 8 * 128


# Nothing was said for minutes where there is no terminal: a log looked as if it hung.
@pytest.mark.parametrize("seconds", [0, 10])
def test_a_log_says_how_far_it_is(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    monkeypatch.setattr(module, "_LOG_SECONDS", seconds)
    monkeypatch.setitem(sampler._BATCH_SIZES, "cpu", 4)
    said = succeed(model, data, *PAINT).splitlines()
    painting = [line for line in said if line.startswith("Painting")]
    parts = [f"Painting 8 captions{part}." for part in ("", ": 4 of 8", ": 8 of 8")]
    assert painting == (parts[:1] if seconds else parts)
    assert said.index(parts[0]) < said.index("Comparing painted pictures with real ones.")
    assert "Ranking 8 prompts for 3 pictures by the model." in said


def test_a_terminal_says_it_in_its_last_line() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with console.status("") as status:
        module._Progress(console, status)("Painting 8 captions", "4 of 8")
        assert status.status == "Painting 8 captions: 4 of 8"


@pytest.fixture(scope="module")
def looks_up(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with nine of the ten pictures in its memory."""
    paths = [data / f"{index}.png" for index in range(9)]
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    captions = [f"picture number {index}" for index in range(9)]
    model = remember(pixels, captions, names=[path.name for path in paths])
    return save_untrained(model, tmp_path_factory.mktemp("looks_up") / "model")


def test_a_model_that_looks_things_up_is_measured_with_its_memory_and_without(
    looks_up: Path, data: Path, weights: None
) -> None:
    printed = json.loads(succeed(looks_up, data, *PAINT, "--json", "--train-data", data))
    metrics = printed["metrics"]
    assert metrics["images_in_memory"]["value"] == 9
    assert "9 examples, all 10 images of drawn" in metrics["images_in_memory"]["protocol"]
    assert printed["left_out"] == {}
    plain = ("painted_kid_squeezenet-fire9", "retrieval_by_features", "loss_held_out")
    assert {
        *(f"without_examples_{name}" for name in plain),
        "neighbor_copy_rate",
        "neighbor_copy_rate_real",
        "neighbor_copy_excess",
        "neighbor_distance",
        "neighbor_same_codes_rate",
    } < set(metrics)
    rows = printed["nearest"]["pairs"]
    assert {row["example"] is None for row in rows} == {True, False}
    assert all(row["limit"] is not None for row in rows)


def test_of_a_model_that_looks_things_up_there_are_pairs_without_weights(
    looks_up: Path, model: Path, data: Path
) -> None:
    text = succeed(looks_up, data, *PAINT, "--pairs", "pairs.png")
    assert "neighbor_same_codes_rate" in text
    assert (
        "Left out: copy_rate, neighbor_copy_rate, neighbor_copy_rate_real, neighbor_copy_excess, "
        in text
    )
    assert "Written: pairs.png" in text
    assert Path("pairs.png").is_file()
    assert json.loads(succeed(model, data, "--json"))["nearest"] == {"protocol": "", "pairs": []}


def test_a_run_brings_its_training_pictures(model: Path, data: Path, weights: None) -> None:
    run_folder = make_run(Path("mine"), model, data, 0.3)
    for name in (run_folder, run_folder / "model"):
        found = json.loads(succeed(name, data, "--json", *PAINT))
        assert "training pictures" in found["metrics"]["copy_rate"]["protocol"]


def test_without_training_pictures_or_weights_the_table_says_so(model: Path, data: Path) -> None:
    left_out = json.loads(succeed(model, data, "--json", *PAINT))["left_out"]
    assert left_out["loss_gap"].startswith("It takes the training pictures: name them with --train")
    assert left_out["copy_rate"] == left_out["loss_gap"]
    for name in ("retrieval_by_features", "painted_recall_efficientnet-head"):
        assert "pip install 'tessella[evaluate]'" in left_out[name]
    assert "retrieval_by_pmi" not in left_out


def test_what_a_bundled_model_learned_from_is_drawn_again() -> None:
    words = ("scenes", "scenes:4", "--json", "--pictures", 2, "--max-training", 5)
    found = json.loads(succeed(*words, "--pmi-pictures", 0))
    protocol = found["metrics"]["copy_rate"]["protocol"]
    assert protocol.endswith("5 of the 5 training pictures, the first of scenes:60000")
    assert "loss_gap" in found["metrics"]


def test_pairs_that_there_cannot_be_are_refused_before_the_work(
    model: Path, tokenizer_alone: Path, data: Path
) -> None:
    pairs = ("--pairs", "pairs.png")
    assert "are about: `--pairs`. Give a model with a" in fail(model, data, *pairs)
    assert "`--pmi-pictures`, `--pairs`" in fail(tokenizer_alone, data, *pairs, *PAINT)
    assert "no pairs for --pairs. It takes the training" in fail(model, data, *pairs, *PAINT)
    assert not Path("pairs.png").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("--clip", "mine"), ("--pmi-pictures", 3), ("--train-data", "nothing"), ("--pairs", "p.png")],
)
def test_what_is_about_painted_pictures_is_refused_where_none_are(
    name: str, value: object, model: Path, tokenizer_alone: Path, data: Path
) -> None:
    """These were once dropped unsaid, after the training pictures had been prepared."""
    for words in ((model, data), (tokenizer_alone, data, "--pictures", 8)):
        message = " ".join(fail(*words, name, value, "--cache", "cache").split())
        assert f"Nothing is painted, which these options are about: `{name}`. Give" in message
        assert not Path("cache-train").exists()


def test_only_what_is_written_is_named(
    model: Path, data: Path, weights: None, tmp_path: Path
) -> None:
    """No caption is short enough to be painted: there are no pairs, though a file was named."""
    long = tmp_path / "long"
    shutil.copytree(data, long)
    for file in long.glob("*.txt"):
        file.write_text("word " * 200, encoding="utf-8")
    words = ("--train-data", data, "--pairs", "pairs.png", "--sheet", "sheet.png", *PAINT)
    text = succeed(model, long, *words)
    assert "No caption is short enough for the model." in text
    assert "Written: sheet.png" in text
    assert "pairs.png" not in text
    assert not Path("pairs.png").exists()


def test_the_current_folder_is_a_cache_like_others(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--cache .` once ended in `PosixPath('.') has an empty name`."""
    Path("mine.txt").write_text("mine", encoding="utf-8")
    assert "holds something else: `" in " ".join(fail(model, data, "--cache", ".").split())
    succeed(model, data, "--cache", "cache")
    monkeypatch.chdir("cache")
    succeed(model, data, *PAINT, "--train-data", data, "--cache", ".")
    assert Path("../cache-train/manifest.json").is_file()


def test_copies_are_looked_for_among_so_many(model: Path, data: Path, weights: None) -> None:
    words = (*PAINT, "--train-data", data, "--max-training", 6, "--json")
    protocol = json.loads(succeed(model, data, *words))["metrics"]["copy_rate"]["protocol"]
    assert protocol.endswith("6 of the 10 training pictures")


def test_pairs_need_training_pictures(model: Path, data: Path, weights: None) -> None:
    message = fail(model, data, "--pairs", "pairs.png", *PAINT)
    assert "no pairs for --pairs. It takes the training pictures" in message


def test_a_clip_that_is_not_there_is_refused(model: Path, data: Path) -> None:
    assert "CLIP" in fail(model, data, "--clip", Path("nothing").resolve(), *PAINT)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pairs", "found.txt"), "NAME.png: `found.txt`"),
        (("--out", "there.json"), "The file already exists: `there.json`"),
        (("--sheet", "there.png"), "The file already exists: `there.png`"),
        (("--out", "found.txt"), "NAME.json: `found.txt`"),
        (("--sheet", "folder.png"), "A folder has the name of the file: `folder.png`"),
    ],
)
def test_a_file_that_does_not_suit_is_refused_before_the_work(
    words: tuple[str, str], message: str, data: Path
) -> None:
    Path("there.json").write_text("mine", encoding="utf-8")
    Path("there.png").write_text("mine", encoding="utf-8")
    Path("folder.png").mkdir()
    assert message in fail("no-such-model", data, *words)


def test_force_replaces_a_file(model: Path, data: Path) -> None:
    Path("found.json").write_text("mine", encoding="utf-8")
    succeed(model, data, "--out", "found.json", "--force")
    assert json.loads(Path("found.json").read_text(encoding="utf-8"))["images"] == 10
