"""The report of a run: whole in one file, honest about what is missing, safe with any text."""

import base64
import html
import io
import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.errors import ConfigError, DataError
from tessella.images import save_png
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import ExampleRow
from tessella.runs import report
from tessella.runs.curves import WIDTH, compute_ticks, draw_curve, shorten
from tessella.runs.pictures import choose_evenly, embed_picture
from tessella.runs.record import LOCK_FILE, read_run
from tessella.runs.report import write_report
from tessella.temporary import TEMPORARY_PREFIX

NAMES = {"train": "training", "validation": "validation"}
VOID = {"meta", "link", "img", "br", "input"}
HOSTILE = '<script>alert("&")</script>'


class Page(HTMLParser):
    """Reads a page strictly: every tag closes, every address is on the page itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write_lines(path: Path, *lines: Mapping[str, Any] | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")


def draw(path: Path, size: int = 8) -> None:
    save_png(path, np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def begin(folder: Path) -> Path:
    recipe = {
        "data": {"image_size": 16, "licence": HOSTILE},
        "tokenizer": {"network": "residual", "quantizer": {"name": "vq", "codebook_size": 512}},
        "tokenizer_training": {
            "images": 100,
            "init_from": None,
            "loss": {"mse": 1.0, "l1": 0.0, "perceptual": {"layers": {"conv1": 0.1}}},
        },
        "transformer": {"width": 32, "depth": 2},
        "objective": {"name": "any_order"},
        "transformer_training": {"images": 50, "init_from": "scenes"},
    }
    write_lines(
        folder / "run.json",
        {
            "format": 2,
            "version": "0.1.0",
            "sources": ["/home/someone/pictures"],
            "asked": {"minutes": 5, "seed": 3},
            "recipe": recipe,
        },
    )
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has just begun."""
    return begin(tmp_path / "begun")


@pytest.fixture
def trained(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole run."""
    return Path(shutil.copytree(whole, tmp_path / "trained"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is whole, on data whose captions and skipped files hold HTML."""
    run = begin(tmp_path_factory.mktemp("runs") / "whole")
    pictures = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        draw(pictures / f"{number}.png", 16 + number)
        (pictures / f"{number}.txt").write_text(f"{HOSTILE} {number}\n", encoding="utf-8")
    (pictures / "<b>.png").write_bytes(b"")
    (pictures / "<b>.txt").write_text("empty\n", encoding="utf-8")
    settings = DataSettings(
        image_size=16, validation_fraction=0.25, max_skipped_fraction=0.5, workers=1
    )
    prepare([str(pictures)], settings, run / "data")
    write_lines(
        run / "tokenizer" / "metrics.jsonl",
        {"images_seen": 40, "kind": "train", "loss": 0.4, "psnr": 12.0, "images_per_second": 20},
        {"images_seen": 40, "kind": "validation", "psnr": 13.0, "codes_used": 30.0},
        {"images_seen": 40, "kind": "note", "note": f"Only few codes {HOSTILE}"},
        {"images_seen": 100, "kind": "train", "loss": 0.2, "psnr": 14.0, "images_per_second": 30},
        {"images_seen": 100, "kind": "validation", "psnr": 15.5, "codes_used": 40.0},
    )
    write_lines(
        run / "transformer" / "metrics.jsonl",
        {"images_seen": 50, "kind": "train", "loss": 6.0, "accuracy": 0.1},
        {"images_seen": 50, "kind": "validation", "loss": 6.1, "accuracy": 0.125},
    )
    for stage, name, moments in (
        ("tokenizer", "samples", (40, 100)),
        ("tokenizer", "codebook", (40, 100)),
        ("transformer", "samples", (50,)),
    ):
        for moment in moments:
            draw(run / stage / name / f"{moment:012d}.png")
    (run / "codes").mkdir()
    np.save(run / "codes" / "train.npy", np.zeros((1, 9, 1, 4, 2), dtype=np.uint16))
    draw(run / "model" / "samples.png")
    metrics = {
        "reconstruction_psnr": {"value": 15.51, "protocol": f"dB {HOSTILE}"},
        "all_correct_seen_pairs": {"value": 0.986, "protocol": "500 scenes"},
    }
    write_lines(run / "model" / "metrics.json", metrics)
    return run


def make(run: Path, **words: Any) -> tuple[str, Page]:
    text = write_report(run, **words).path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_needs_nothing_but_itself(trained: Path) -> None:
    text, page = make(trained)
    assert "http:" not in text
    assert "https:" not in text
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:image/"))
    assert "url(" not in text
    assert "@import" not in text
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


def test_everything_can_be_found_and_is_named(trained: Path) -> None:
    _, page = make(trained)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert link["href"].removeprefix("#") in ids
    for label in page.all("label"):
        assert label["for"] in ids
    for section in page.all("section"):
        assert section["aria-labelledby"] in ids
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing["aria-label"] for drawing in page.all("svg"))
    assert [attributes["lang"] for attributes in page.all("html")] == ["en"]


def test_pictures_are_inside_and_the_same(trained: Path) -> None:
    _, page = make(trained)
    images = page.all("img")
    # The model's; reconstructions twice; the last codebook; what the transformer painted.
    assert len(images) == 5
    original = (trained / "model" / "samples.png").read_bytes()
    for image in images:
        assert base64.b64decode(image["src"].partition(",")[2]) == original
        assert (image["width"], image["height"]) == ("8", "8")
    radios = [box for box in page.all("input") if box["type"] == "radio"]
    assert [box["id"] for box in radios if "checked" in box] == [
        "run-reconstructions-100",
        "run-use-of-the-codebook-100",
        "run-samples-over-time-50",
    ]


# A caption is anybody's text: unescaped, it would run as a program in the reader's browser.
def test_text_of_others_stays_text(trained: Path) -> None:
    text, page = make(trained)
    assert not page.all("script")
    assert HOSTILE not in text
    # Licence twice (facts, settings), note, protocol, and 12 captions, some listed thrice.
    assert text.count("&lt;script&gt;") >= 4 + 12
    assert "&lt;b&gt;.png" in text
    assert not page.all("b&gt;.png")


def test_the_numbers_are_the_run_s(trained: Path) -> None:
    text, _ = make(trained)
    said = re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", text)))
    for words in (
        "Finished after 100 images.",
        "15.50 dB",  # the last validation's, not the first, not training's
        "12.5%",
        "98.6%",
        "12 with 12 captions: ",
        "files skipped: 1",
        "16×16 pixels become 4×2 codes, each one of 512",
        "loss 1 pixel MSE + 0.1 ResNet-18 conv1",
        "started from scenes",
        "4 s of training, evaluations excluded",  # 40 images at 20 a second, 60 at 30
        "chosen to fit 5 minutes; seed 3",
        "reconstruction psnr 15.51 dB",
        "tokenizer.quantizer.codebook_size 512",
        "Image tokenizer, 40 images: Only few codes",
    ):
        assert words in said
    assert "someone" not in said  # the owner's folders are not told
    assert "unreadable" not in said


def test_several_codes_at_a_position_are_told(trained: Path) -> None:
    saved = json.loads((trained / "run.json").read_text(encoding="utf-8"))
    saved["recipe"]["tokenizer"]["quantizer"]["codes_per_position"] = 4
    write_lines(trained / "run.json", saved)
    codes = trained / "codes" / "train.npy"
    np.save(codes, np.zeros((1, 9, 4, 4, 2), dtype=np.uint16))
    become = "16×16 pixels become 4 codes"
    assert f"{become} at each of 4×2 positions, each one of 512" in make(trained)[0]
    codes.unlink()
    assert f"{become} a position, each one of 512" in make(trained)[0]


def test_an_older_run_says_what_it_started_from(trained: Path) -> None:
    path = trained / "run.json"
    path.write_text(path.read_text(encoding="utf-8").replace("init_from", "start_from"), "utf-8")
    assert "started from scenes" in make(trained)[0]


def test_a_run_that_has_just_begun_says_what_is_missing(run: Path) -> None:
    text, page = make(run)
    for words in (
        "Nothing is logged yet; it will train on 100 images.",
        "Not finished yet.",
        "None yet: they come with the first evaluation.",
        "Unknown: the run’s pictures are missing.",
    ):
        assert words in text
    assert not page.all("img")
    assert not page.all("progress")


def test_a_run_that_was_killed(trained: Path) -> None:
    """The last line is cut off, a picture is broken, there is no model and no second stage."""
    for path in (trained / "model" / "metrics.json", trained / "transformer" / "metrics.jsonl"):
        path.unlink()
    draw(trained / "tokenizer" / "samples" / "000000000070.png")
    broken = trained / "tokenizer" / "samples" / "000000000070.png"
    broken.write_bytes(broken.read_bytes()[:60])
    lines = (trained / "tokenizer" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    bad = ['{"images_seen": 60, "ki', "[1, 2]", '{"kind": "train"}', '{"images_seen": 9}']
    bad += ["\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "NaN"]
    write_lines(trained / "tokenizer" / "metrics.jsonl", *lines[:2], *bad)
    written = write_report(trained)
    assert written.record.unreadable_lines == 6
    assert [stage.images_seen for stage in written.record.stages] == [40, 0]
    text = written.path.read_text(encoding="utf-8")
    Page(text)
    assert "Unreadable lines in the logs, left out here: 6." in text
    assert "Image tokenizer: 40 of 100 images (40%) so far. Run the same tessella fit" in text
    assert "40 of 100 images (40%) so far." in text
    assert "This picture cannot be read. 000000000070.png: " in text
    assert "Not finished yet." in text


def test_a_value_that_is_no_number_is_not_drawn(run: Path) -> None:
    line = {"images_seen": 8, "kind": "train", "loss": float("nan"), "psnr": float("inf")}
    write_lines(run / "tokenizer" / "metrics.jsonl", line, {**line, "loss": 1.5})
    assert read_run(run).stages[0].curves == {"loss": {"train": [(8, 1.5)]}}


def test_a_run_without_validation_says_so(run: Path) -> None:
    prepare(["scenes:4"], DataSettings(image_size=16, validation_fraction=0.0), run / "data")
    line = {"images_seen": 40, "kind": "validation", "psnr": 13.0}
    write_lines(run / "tokenizer" / "metrics.jsonl", line)
    text, _ = make(run)
    assert "on training pictures, after 40 images" in text
    assert "on training pictures, with averaged weights" in text


# They show training pictures: they belong to the run, not to the model, which is passed on.
def test_neighbours_are_shown_once_they_are_there(trained: Path) -> None:
    assert "Nearest training pictures" not in make(trained)[0]
    draw(trained / "nearest.png")
    assert "Nearest training pictures" not in make(trained)[0]
    pair = {"prompt": "a cat", "caption": "a kitten <i>", "distance": 0.25}
    looked_at = {**pair, "caption": "a lion", "limit": 0.5, "example": "7.png"}
    nearest = {"protocol": "features of SqueezeNet", "pairs": [pair, "not a pair", looked_at]}
    write_lines(trained / "nearest.json", nearest)
    text, page = make(trained)
    kitten, lion = (
        f'<th scope="row">a cat</th><td>{caption}</td><td>{kind}</td><td>0.25</td><td>{limit}</td>'
        for caption, kind, limit in (
            ("a kitten &lt;i&gt;", "training picture", ""),
            ("a lion", "example", "0.5"),
        )
    )
    assert kitten in text
    assert lion in text
    assert "features of SqueezeNet" in text
    assert len(page.all("img")) == 6


def test_what_it_looks_up_is_told_and_why(trained: Path) -> None:
    def tell() -> str:
        found = re.search("<dt>Examples</dt><dd>(.*?)</dd>", make(trained)[0])
        return html.unescape(found.group(1)) if found else ""

    assert tell() == ""
    rows = [ExampleRow(f"{number}.png", [f"number {number}"]) for number in range(1200)]
    memory = ExampleMemory.build(np.zeros((1200, 1, 4, 2), np.uint16), rows, "")
    (trained / "examples" / "memory").mkdir(parents=True)
    memory.write(trained / "examples" / "memory")
    assert tell() == "1,200 pictures to look up"
    why = f"they lower the loss by 0.3 {HOSTILE}"
    write_lines(trained / "examples" / "choice.json", {"neighbors": 3, "why": why})
    assert tell() == f"1,200 pictures to look up, 3 at most beside a prompt; {why}"
    # The finished model's memory may have been changed since.
    ExampleMemory.build(np.zeros((7, 1, 4, 2), np.uint16), rows[:7], "").write(trained / "model")
    assert tell().startswith("7 pictures")
    write_lines(trained / "examples" / "choice.json", {"neighbors": "many", "why": 5})
    (trained / "model" / "examples.safetensors").write_bytes(b"damaged")
    assert tell() == "1,200 pictures to look up"


def test_without_examples_it_says_why(run: Path) -> None:
    choice = {"neighbors": 0, "why": "they did not help"}
    write_lines(run / "examples" / "choice.json", choice)
    assert "<dt>Examples</dt><dd>none; they did not help</dd>" in make(run)[0]


def test_a_palette_and_a_kept_part_are_not_called_unfinished(run: Path) -> None:
    saved = json.loads((run / "run.json").read_text(encoding="utf-8"))
    saved["recipe"]["tokenizer"]["network"] = "palette"
    saved["recipe"]["transformer_training"]["images"] = 0
    write_lines(run / "run.json", saved)
    text, _ = make(run)
    assert "A palette has fixed colours: nothing is trained." in text
    assert "Not trained in this run: it keeps its initial weights." in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "Not the folder of a run: `{0}`. It has no run.json. Name the --out of a"),
        ("{", "Cannot read the configuration: `{0}/run.json`."),
        ('{"recipe": 3}', "The run's file holds no recipe: `{0}/run.json`."),
        (
            '{"recipe": {}, "asked": {"minutes": [1]}}',
            "The run's file was edited by hand: `{0}/run.json` says asked.minutes = `[1]`.",
        ),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(message.format(tmp_path))):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_report_goes_where_it_is_asked(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    written = write_report(run, out)
    assert written.path == out
    assert out.stat().st_size > 0
    assert not (run / "report.html").exists()
    assert write_report(run).path == run / "report.html"


def test_the_next_report_removes_what_a_killed_one_left(run: Path, tmp_path: Path) -> None:
    left = run / f"{TEMPORARY_PREFIX}0123.html"
    left.write_text("<p>", encoding="utf-8")
    with FileLock(run / LOCK_FILE):  # the run's own process does it
        write_report(run)
    write_report(run, tmp_path / "page.html")
    assert left.exists()
    write_report(run)
    assert not left.exists()


# A picture of someone else's name, or numbers changed by hand, ended the report and the training
# that asked for it.
def test_what_others_have_changed_is_left_out(trained: Path) -> None:
    draw(trained / "tokenizer" / "samples" / "000000000100 copy.png")
    metrics = {
        "all_correct_seen_pairs": {"protocol": "without a value"},
        "all_correct_held_out_pairs": {"value": "much"},
        "reconstruction_psnr": 3,
        "codes_used": {"value": 17, "protocol": "of 512"},
    }
    write_lines(trained / "model" / "metrics.json", metrics)
    write_lines(trained / "nearest.json", {"pairs": 3})
    text, page = make(trained)
    assert "ll correct" not in text
    assert '<th scope="row">codes used</th><td>17</td><td>of 512</td>' in text
    assert len(page.all("img")) == len(make(trained)[1].all("img"))


@pytest.mark.parametrize("counts", [{}, {"images": "<b>"}, [1], {"validation": None}])
def test_counts_that_others_have_changed_are_left_out(trained: Path, counts: Any) -> None:
    path = trained / "data" / "manifest.json"
    manifest = json.loads(path.read_bytes())
    is_whole = isinstance(counts, dict) and counts
    manifest["counts"] = manifest["counts"] | counts if is_whole else counts
    path.write_text(json.dumps(manifest), encoding="utf-8")
    text, _ = make(trained)
    assert "The run’s pictures are missing." in text


# The header is Python's notation, and its tokenizer raised an error of its own.
@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"{'descr': ('<u2'"])
def test_codes_that_cannot_be_read_have_no_grid(trained: Path, content: bytes) -> None:
    if content.startswith(b"{"):
        content = b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content
    (trained / "codes" / "train.npy").write_bytes(content)
    assert read_run(trained).grid is None
    make(trained)


# The captions of all held-out pictures stood under a sheet of others.
def test_the_model_s_sheet_has_its_captions_inside(trained: Path) -> None:
    text, _ = make(trained)
    assert "one try each, not" in text
    section = text[text.index('<h2 id="run-model">') : text.index('<h2 id="run-tokenizer">')]
    assert "<ol" not in section
    assert '<ol class="captions">' in text


# Curves.


def test_a_curve_is_where_it_belongs() -> None:
    """Worked by hand: 4 % of air around 0 to 100, that is −4 to 104 over the height."""
    values = {"train": [(0, 0.0), (100, 100.0)], "validation": [(50, 50.0)]}
    curve = draw_curve("Loss", "", values, NAMES)
    assert curve.lines["train"].points == "50.0,168.9 348.0,16.1"
    assert curve.lines["train"].values == "0:0 100:100"
    assert not curve.lines["train"].marks
    [mark] = curve.lines["validation"].marks
    assert (mark.x, mark.y, mark.label) == (199.0, 92.5, "50 images: 50")
    assert [tick.label for tick in curve.y_ticks] == ["0", "50", "100"]
    assert [tick.x for tick in curve.x_ticks] == [50.0, 199.0, 348.0]
    assert curve.description == (
        "training: from 0 at 0 images to 100 at 100; lowest 0, highest 100; recently rising. "
        "validation: 50 at 50 images."
    )
    assert not curve.is_log


def test_a_loss_that_falls_far_is_drawn_on_a_log_scale() -> None:
    points = [(at, value) for at, value in enumerate([1000.0, 10.0, 1.0, 1.0, 1.0])]
    curve = draw_curve("Loss", "", {"train": points}, NAMES)
    assert curve.is_log
    assert [tick.label for tick in curve.y_ticks] == ["1", "10", "100", "1,000"]
    assert not draw_curve("Loss", "", {"train": [(at, -v) for at, v in points]}, NAMES).is_log


def test_an_axis_from_zero_shows_small_changes_small() -> None:
    points = {"train": [(0, 99.0), (10, 100.0)]}
    curve = draw_curve("Speed", "", points, NAMES, from_zero=True)
    first, last = curve.lines["train"].points.split()
    assert abs(float(first.split(",")[1]) - float(last.split(",")[1])) < 3


@pytest.mark.parametrize("value", [0.0, 3.5, -2.0, 1e-9, 1e12])
def test_one_value_and_a_constant_can_be_drawn(value: float) -> None:
    for points in ([(0, value)], [(1, value), (2, value)]):
        curve = draw_curve("Loss", "", {"train": points}, NAMES)
        assert curve.y_ticks
        # A line of one point is invisible.
        assert len(curve.lines["train"].marks) == (len(points) == 1)
        numbers = re.findall(r"[-\d.]+", curve.lines["train"].points)
        assert all(0 <= float(number) <= WIDTH for number in numbers)


def test_a_long_log_is_thinned_to_means() -> None:
    points = [(at, float(at % 2)) for at in range(1, 2001)]
    line = draw_curve("Loss", "", {"train": points}, NAMES).lines["train"]
    assert len(line.values.split()) == 400
    places = line.points.split()
    assert len(places) == 400
    assert places[-1].startswith("348.0,")


# Who does not see a curve hears whether it still falls; each eighth holds two of these values.
@pytest.mark.parametrize(
    ("last", "trend"),
    [((4, 4, 4, 4), "level"), ((7, 4, 4, 3), "falling"), ((3, 4, 4, 7), "rising")],
)
def test_a_curve_is_told_in_words(last: tuple[int, ...], trend: str) -> None:
    values = [float(value) for value in (104, *[9] * 11, *last)]
    curve = draw_curve("Loss", "", {"train": list(enumerate(values))}, NAMES)
    said = f"training: from 104 at 0 images to {last[-1]} at 15; lowest {min(last)}, highest 104;"
    assert curve.description == f"{said} recently {trend}."


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 50, 100]),
        (0, 8, [0, 2, 4, 6, 8]),
        (0.31, 0.42, [0.35, 0.4]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert compute_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.25, "0.25"),
        (0.1 + 0.2, "0.3"),
        (1200, "1,200"),
        (15_000, "15 k"),
        (2.5e6, "2.5 M"),
        (0, "0"),
    ],
)
def test_numbers_are_short(value: float, said: str) -> None:
    assert shorten(value) == said


# Pictures.


def test_a_picture_that_is_too_large_is_compressed_then_halved(tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    draw(path, 200)
    assert embed_picture(path, path.stat().st_size).is_exact
    for limit, sides in ((100_000, {200}), (4_000, {100, 50, 25})):
        found = embed_picture(path, limit)
        content = base64.b64decode(found.address.partition(",")[2])
        assert len(content) <= limit
        assert not found.is_exact
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.format == "WEBP"
            assert opened.size == (found.width, found.height)
        assert found.width in sides


def test_a_broken_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        embed_picture(tmp_path / "a.png", 1000)


@pytest.mark.parametrize(
    ("count", "chosen"), [(20, list(range(10))), (2, [0, 9]), (4, [0, 3, 6, 9]), (3, [0, 4, 9])]
)
def test_evaluations_are_chosen_evenly(count: int, chosen: list[int]) -> None:
    assert choose_evenly(range(10), count) == chosen


def test_the_page_stays_under_8_mb(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many and large the pictures are; here a limit in small, for speed."""
    assert report._PICTURE_BYTES * (2 * report._FRAMES + 3) * 4 / 3 < 7.5e6
    monkeypatch.setattr(report, "_PICTURE_BYTES", 2_000)
    for moment in range(30):
        draw(trained / "tokenizer" / "samples" / f"{moment:012d}.png", 64)
    text, page = make(trained)
    frames = [image for image in page.all("img") if "Originals" in image["alt"]]
    assert len(frames) == 8
    assert all(len(image["src"]) < 2_000 * 4 / 3 + 40 for image in page.all("img"))
    assert "Some pictures are compressed" in text
