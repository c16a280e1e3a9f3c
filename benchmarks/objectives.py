r"""Which objective learns to paint: the experiment that the founding report lost.

Why: the report trained one transformer with squared error on the latent and lost the run before
anyone saw a picture. Here its objective and its first plan stand beside the field's own, with the
same tokenizer, codes, transformer size, images seen and seeds.

Theory: the bound is the tokenizer: "tokenizer alone" is what it makes of the real pictures. Where
a caption leaves a choice, squared error learns the mean of the answers and `parallel` samples every
position by itself; the others see the codes that are there already. A scene is right or wrong.

Output contract: one line a cell (data, row, seed); the last line of stdout is the record, one JSON
object. For each data set and row, the mean over the seeds and every seed's value of

- all_correct_seen, all_correct_held_out: fraction of scenes read all-correct off the first picture
  of unseen scenes (`tessella.evaluation.scenes`), pairs seen in training or held out;
- fid, kid (other data): over SqueezeNet's features, one picture a held-out caption against the real
  ones, picture i with seed i; 16-pixel pictures are enlarged to the real ones' size, bicubic;
- train_loss: the objective's own, mean of the last log interval; heldout_nats: nats a code of
  held-out pictures by the objective's likelihood, 8 orders or maskings (of `masked` and `any_order`
  a bound; none for the two that have no likelihood; a palette's codes are pixels);
- images_per_second: of training, median;

and seconds a picture, text and decoder included, at batch 1 and 16, all rows in turn in one run.
Rows that differ in the painting alone share a network. `palette` is Image GPT's way: 512 colours,
16×16 pixels, a code a pixel; scenes of that size cannot be read. OUT/DATA/NETWORK/SEED keeps each
training's checkpoints and results: the same command resumes. OUT/DATA.png shows
the same prompts by every row, real pictures and the tokenizer's first.

    python benchmarks/objectives.py --scenes 20000 --images 20000 --seeds 0 1 \
        --data emoji 3d.tar flat.tar --heldout emoji heldout.tar --tokenizer emoji runs/emoji

Scenes have the bundled model's tokenizer; other data needs `--tokenizer`. SqueezeNet is found as
`tessella evaluate` finds it (TESSELLA_SQUEEZENET).
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from harness import RESULTS, Spread, environment, print_record, write_result
from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.scenes import canonical_caption, draw_scene
from tessella.data.settings import DataSettings
from tessella.evaluation.distributions import compute_fid, compute_kid
from tessella.evaluation.features import create_extractor
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.evaluation.scenes import compute_scene_accuracy, sample_prompts
from tessella.files import write_json
from tessella.generation import GenerationSettings
from tessella.images import Pixels, save_png
from tessella.model.find import find_tokenizer
from tessella.model.folder import ModelConfig, TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest, enumerate_requests
from tessella.sheets import make_sheet
from tessella.text import TextTokenizer
from tessella.tokenizer import VQAutoencoder
from tessella.training.codes import Codes, prepare_codes
from tessella.training.loop import create_accelerator, train
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.transformer_stage import TransformerStage

GENERATION = GenerationSettings(steps=16, temperature=0.6)
"""How every row paints, but for what it says itself."""

# By confidence the noise is in the order and the codes alike, as MaskGIT has it.
BY_CONFIDENCE = {"order": "confidence", "temperature": 1.0, "confidence_temperature": 4.5}


@dataclass(frozen=True)
class Row:
    """A network and a way of painting with it."""

    objective: str
    painting: Mapping[str, Any] = field(default_factory=dict)  # beside GENERATION
    palette: bool = False  # codes are the colours of pixels

    @property
    def network(self) -> str:
        """Names the training that rows share."""
        return f"palette-{self.objective}" if self.palette else self.objective


ROWS: Mapping[str, Row] = {
    "latent_mse": Row("latent_mse"),
    "shared_latent": Row("shared_latent"),
    "parallel": Row("parallel"),
    "autoregressive": Row("autoregressive"),
    "masked": Row("masked", BY_CONFIDENCE),
    "masked, halton": Row("masked", {"order": "halton"}),
    "any_order": Row("any_order", {"order": "random"}),
    "any_order, halton": Row("any_order", {"order": "halton"}),
    "any_order, guided": Row("any_order", {"order": "random", "guidance_scale": 2.0}),
    "palette": Row("autoregressive", palette=True),
}
LIKELIHOODS = ("parallel", "autoregressive", "masked", "any_order")
LIKELIHOOD_IMAGES = 256
LIKELIHOOD_ORDERS = 8

PALETTE_SIZE = 16
SHOWN_PICTURES = 8
SHEET_SCALE = 2
TIMED_BATCHES = (1, 16)
_BATCH = 64


class SceneJudge:
    """Reads pictures of unseen scenes."""

    def __init__(self, count: int, size: int) -> None:
        """Draws `count` scenes of seen pairs and as many of held-out ones."""
        self._scenes = {
            "seen": sample_prompts(count, held_out=False),
            "held_out": sample_prompts(count, held_out=True),
        }
        scenes = [scene for kind in self._scenes.values() for scene in kind]
        self.prompts = [canonical_caption(scene) for scene in scenes]
        self.seeds = [*range(count), *range(count)]
        self.real: Pixels = np.stack([draw_scene(scene, size) for scene in scenes])

    def measure(self, pixels: Pixels) -> dict[str, float]:
        """Counts the all-correct ones; pictures of another size cannot be read."""
        if pixels.shape != self.real.shape:
            return {}
        halves = np.split(pixels, 2)
        return {
            f"all_correct_{kind}": compute_scene_accuracy(half, scenes)
            for half, (kind, scenes) in zip(halves, self._scenes.items(), strict=True)
        }


class PictureJudge:
    """Compares pictures of held-out captions with the real ones."""

    def __init__(self, images: CaptionedImages, count: int, device: str) -> None:
        """Takes at most `count` pictures, evenly spaced, with their first captions."""
        chosen = np.linspace(0, len(images) - 1, min(count, len(images))).astype(int)
        self.prompts = [images.captions(int(index))[0] for index in chosen]
        self.seeds = list(range(len(chosen)))
        self.real: Pixels = images.pixels(chosen)
        self._extractor = create_extractor(device=device)
        self._real_features = self._extractor.extract(self.real)

    def measure(self, pixels: Pixels) -> dict[str, float]:
        """Computes both distances."""
        features = self._extractor.extract(resize(pixels, self.real.shape[1]))
        return {
            "fid": compute_fid(self._real_features, features),
            "kid": compute_kid(self._real_features, features).value,
        }


Judge = SceneJudge | PictureJudge


@dataclass(frozen=True)
class Material:
    """What every objective learns from: captions, and pictures as codes of one tokenizer."""

    config: ModelConfig  # of which the objective means nothing
    text: TextTokenizer
    tokenizer: VQAutoencoder
    data: Mapping[str, CaptionedImages]
    codes: Mapping[str, Codes]

    def create_model(self, row: Row, device: str) -> TextToImage:
        """Builds a model whose transformer has learned nothing."""
        config = self.config.replace(
            objective={"name": row.objective}, generation=GENERATION.replace(**row.painting)
        )
        model = TextToImage.create(config, self.text).with_parts(tokenizer=self.tokenizer)
        model.transformer.eval()
        return model.to(torch.device(device))


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=0, help="drawn to learn from; 0: no scenes")
    for what in ("--data", "--heldout"):
        parser.add_argument(what, action="append", nargs="+", default=[], metavar=("NAME", "DATA"))
    parser.add_argument(
        "--tokenizer", action="append", nargs=2, default=[], metavar=("NAME", "FOLDER")
    )
    parser.add_argument("--preset", default="tiny", help="of transformer and training")
    parser.add_argument("--set", nargs="*", default=[], help="settings for every row")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--prompts", type=int, default=200, help="scenes of each kind")
    parser.add_argument("--heldout-images", type=int, default=1000, help="at most, evenly spaced")
    parser.add_argument("--objectives", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--repeats", type=int, default=7, help="of each timing")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--name", default="objectives", help="of the result files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.scenes = 0 if options.data else 64
        options.images, options.seeds = 64, [0]
        options.prompts, options.repeats = 8, 1
        options.set = ["transformer.width=32", "transformer.depth=2"]
    if options.scenes:
        options.data.insert(0, ["scenes", f"scenes:{options.scenes}"])
        options.tokenizer.append(["scenes", str(find_tokenizer("scenes"))])
    known = dict(options.tokenizer)
    unknown = [name for name, *_ in options.data if name not in known]
    if unknown or not options.data:
        parser.error(f"give --tokenizer for {unknown[0]}" if unknown else "give --scenes or --data")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        options.out = options.out or Path(scratch if options.quick else "runs/objectives")
        results = {name: measure_data(name, sources, options) for name, *sources in options.data}
    record = write_result(
        options.name,
        results,
        config={
            "preset": options.preset,
            "set": options.set,
            "images": options.images,
            "seeds": options.seeds,
            "painting": {
                name: GENERATION.replace(**ROWS[name].painting).model_dump(mode="json")
                for name in options.objectives
            },
        },
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_data(name: str, sources: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Trains and measures every row with every seed on one data set."""
    folder = options.out / name
    rows = {row: ROWS[row] for row in options.objectives}
    recipe = resolve_recipe(options.preset, assignments=options.set)
    own, palette = load_materials(name, sources, recipe, options)
    materials = {False: own, True: palette or own}  # by whether a row is the palette's
    if sources[0].startswith("scenes:"):
        judge: Judge = SceneJudge(options.prompts, own.config.image_size)
    else:
        judge = PictureJudge(own.data["validation"], options.heldout_images, options.device)
    shown = np.linspace(0, len(judge.prompts) - 1, SHOWN_PICTURES).astype(int)
    sheet = [("real", judge.real[shown])]
    results: dict[str, Any] = {"prompts": len(judge.prompts)}
    for what, material in (("tokenizer alone", own), ("palette alone", palette)):
        if material is None:
            continue
        real = resize(judge.real, material.config.image_size)
        made = evaluate_reconstructions(material.tokenizer, real)
        results[what] = {"psnr": made.psnr, **judge.measure(made.pixels)}
        sheet.append((what, made.pixels[shown]))
    for row_name, row in rows.items():
        cells = []
        for seed in options.seeds:
            network = folder / row.network / str(seed)
            cell = Cell(row_name, row, materials[row.palette], network, seed)
            cells.append(cell.measure(judge, shown, recipe, options))
            if seed == options.seeds[0]:
                sheet.append((row_name, np.load(network / cell.file)))
            print(name, row_name, seed, cells[-1], flush=True)
        results[row_name] = {
            key: {"mean": statistics.fmean(c[key] for c in cells), "seeds": [c[key] for c in cells]}
            for key in cells[0]
        }
    models = {
        row_name: materials[row.palette].create_model(row, options.device)
        for row_name, row in rows.items()
    }
    for row_name, seconds in time_pictures(models, judge.prompts, options.repeats).items():
        results[row_name] |= seconds
    save_sheet(options.out / f"{name}.png", sheet, [judge.prompts[i] for i in shown])
    return results


def load_materials(
    name: str, sources: list[str], recipe: Recipe, options: argparse.Namespace
) -> tuple[Material, Material | None]:
    """Loads what the rows learn from: by the trained tokenizer, and by a palette if asked for."""
    folder, device = options.out / name, options.device
    heldout = {key: rest for key, *rest in options.heldout}.get(name, [])
    trained = TrainedTokenizer.load(dict(options.tokenizer)[name], device)
    wanted = recipe.describe_model()
    config = wanted.replace(
        image_size=trained.config.image_size, tokenizer=trained.config.tokenizer
    )
    settings = recipe.data.replace(image_size=config.image_size)
    data = prepare_sides(sources, heldout, settings, folder / "data")
    text = TextTokenizer.train(data["train"].all_captions(), recipe.text)
    own = Material(
        config, text, trained.tokenizer, data, encode(data, trained.tokenizer, folder / "codes")
    )
    if not any(ROWS[row].palette for row in options.objectives):
        return own, None
    settings = settings.replace(image_size=PALETTE_SIZE)
    data = prepare_sides(sources, heldout, settings, folder / "palette-data")
    tokenizer = VQAutoencoder(resolve_recipe("palette").tokenizer)
    tokenizer.learn_palette(data["train"].pixels(np.arange(len(data["train"]))), seed=0)
    tokenizer.eval().requires_grad_(False).to(torch.device(device))
    config = wanted.replace(image_size=PALETTE_SIZE, tokenizer=tokenizer.settings)
    codes = encode(data, tokenizer, folder / "palette-codes")
    return own, Material(config, text, tokenizer, data, codes)


def prepare_sides(
    sources: list[str], heldout: list[str], settings: DataSettings, folder: Path
) -> dict[str, CaptionedImages]:
    """Reads both sides; without held-out data of its own, some are kept out."""
    if not heldout:
        return prepare(sources, settings, folder).sides
    every = settings.replace(validation_fraction=0.0)
    return {
        "train": prepare(sources, every, folder / "train").train,
        "validation": prepare(heldout, every, folder / "heldout").train,
    }


def encode(
    data: Mapping[str, CaptionedImages], tokenizer: VQAutoencoder, folder: Path
) -> dict[str, Codes]:
    """Encodes both sides, or finds them encoded."""
    folder.mkdir(parents=True, exist_ok=True)
    device = tokenizer.codebook.device
    return {
        side: prepare_codes(images, tokenizer, folder / f"{side}.npy", device=device)
        for side, images in data.items()
    }


@dataclass(frozen=True)
class Cell:
    """One row with one seed on one data set."""

    name: str
    row: Row
    material: Material
    folder: Path  # of the network, shared by the rows that paint with it
    seed: int

    @property
    def file(self) -> str:
        """Names the file of the pictures that are shown."""
        return f"{self.name.replace(', ', '-')}.npy"

    def measure(
        self,
        judge: Judge,
        shown: np.ndarray,
        recipe: Recipe,
        options: argparse.Namespace,
    ) -> dict[str, float]:
        """Trains and measures it, or finds it measured."""
        settings = recipe.transformer_training.replace(
            images=options.images, evaluate_every_images=options.images
        )
        torch.manual_seed(self.seed)
        model = self.material.create_model(self.row, options.device)
        asked: dict[str, Any] = {
            "model": model.config.model_dump(mode="json"),
            "text": recipe.text.model_dump(mode="json"),
            "training": settings.model_dump(mode="json"),
            "data": {side: images.fingerprint for side, images in self.material.data.items()},
            "codes": hashlib.sha256(self.material.codes["train"].tobytes()).hexdigest(),
        }
        painting = {"painting": asked["model"].pop("generation"), "prompts": len(judge.prompts)}
        kept = (self.folder / self.file).with_suffix(".json")
        if kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found["asked"] == asked | painting:
                values: dict[str, float] = found["values"]
                return values
        stage = TransformerStage(model, settings, self.material.data, self.material.codes)
        average = train(
            stage,
            settings,
            self.folder,
            seed=self.seed,
            accelerator=create_accelerator(options.device),
            console=Console(quiet=True),
            fingerprint=json.dumps(asked),
        )
        model = model.with_parts(transformer=average)
        pairs = zip(judge.prompts, judge.seeds, strict=True)
        pixels = model.generate_images([ImageRequest(*pair) for pair in pairs]).pixels
        np.save(self.folder / self.file, pixels[shown])
        values = judge.measure(pixels) | self.read_training()
        if self.row.objective in LIKELIHOODS:
            values["heldout_nats"] = self.measure_nats(model)
        write_json(kept, {"asked": asked | painting, "values": values})
        return values

    def read_training(self) -> dict[str, float]:
        """Reads the last loss and the median pace that the training has logged."""
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [m for m in map(json.loads, lines) if m["kind"] == "train"]
        return {
            "train_loss": logged[-1]["loss"],
            "images_per_second": statistics.median(m["images_per_second"] for m in logged),
        }

    @torch.inference_mode()
    def measure_nats(self, model: TextToImage) -> float:
        """Measures how surprising held-out pictures are, in nats a code."""
        images, codes = self.material.data["validation"], self.material.codes["validation"][0]
        count, total = min(LIKELIHOOD_IMAGES, len(images)), 0.0
        for start in range(0, count, _BATCH):
            chosen = range(start, min(start + _BATCH, count))
            likelihood = model.objective.compute_log_likelihood(
                model.sampler.encode_text([images.captions(index)[0] for index in chosen]),
                torch.from_numpy(codes[list(chosen)].astype(np.int64)).to(model.device),
                num_orders=LIKELIHOOD_ORDERS,
            )
            total -= float(likelihood.sum())
        nats: float = total / count / codes[0].size
        return nats


def time_pictures(
    models: Mapping[str, TextToImage], prompts: Sequence[str], repeats: int
) -> dict[str, dict[str, Spread]]:
    """Times a picture of every row, in turn; what a network has learned does not matter.

    Args:
        models: by row.
        prompts: the first of which are painted, over and over if there are too few.
        repeats: that count, after one that does not.

    Returns:
        For each row seconds a picture in batches of 1 and of 16.
    """
    seconds: dict[str, dict[str, Spread]] = {row: {} for row in models}
    for batch in TIMED_BATCHES:
        requests = enumerate_requests([prompts[n % len(prompts)] for n in range(batch)])
        taken: dict[str, list[float]] = {row: [] for row in models}
        for _ in range(1 + repeats):
            for row, model in models.items():
                start = time.perf_counter()
                model.generate_images(requests)
                taken[row].append((time.perf_counter() - start) / batch)
        for row, values in taken.items():
            seconds[row][f"seconds_at_batch_{batch}"] = Spread.of(values[1:], warmup=1)
    return seconds


def resize(pixels: Pixels, size: int) -> Pixels:
    """Brings pictures (B, S, S, 3) to another size, bicubic; those that have it stay the same."""
    if pixels.shape[1] == size:
        return pixels
    method = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((size, size), method)) for p in pixels])


def save_sheet(path: Path, rows: Sequence[tuple[str, Pixels]], prompts: Sequence[str]) -> None:
    """Lays rows of pictures out under the prompts' real ones, each row's name under its first."""
    size = rows[0][1].shape[1]
    pixels = []
    for _, pictures in rows:
        times = size // pictures.shape[1]  # a palette's pixels stay square
        pixels.append(pictures.repeat(times, axis=1).repeat(times, axis=2))
    labels = list(prompts)
    for name, pictures in rows[1:]:
        labels += [name, *[""] * (len(pictures) - 1)]
    save_png(path, make_sheet(np.concatenate(pixels), len(prompts), labels, SHEET_SCALE))


if __name__ == "__main__":
    main()
