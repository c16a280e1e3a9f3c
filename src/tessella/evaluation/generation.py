"""What generated pictures are worth, beside the real pictures of the same captions.

    captions ─ model ─▶ pictures ─▶ FID, KID, precision, recall     do they look real?
                                 ─▶ retrieval                       do they show their prompt?
                                 ─▶ copies; loss gap                did it learn by heart?

Each number has its protocol; a number that is left out has the reason.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessella.data.cache import CaptionedImages
from tessella.errors import GenerationError
from tessella.evaluation.distributions import (
    MIN_PICTURES,
    NEIGHBOURS,
    compute_distances,
    compute_fraction_among,
    measure_set_distances,
)
from tessella.evaluation.eval_images import EvalImages
from tessella.evaluation.features import EvalNetworks
from tessella.evaluation.memorisation import (
    COPY_PERCENTILE,
    Pair,
    measure_copies,
    measure_loss_gap,
)
from tessella.evaluation.metric import Evaluation, Metric, Results
from tessella.evaluation.retrieval import NUM_CHOICES, Clip, measure_retrieval
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests

_SET_METRICS = ("fid", "kid", "precision", "recall")
_LOSS_IMAGES = 256  # of each side


@dataclass(frozen=True)
class GenerationChecks:
    """What is measured on generated pictures."""

    pictures: int  # generated, if there are as many captions; >= 1
    pmi_pictures: int = 0  # scored by the model itself
    clip: Clip | None = None  # adds retrieval by it
    training: CaptionedImages | None = None  # adds copies and the loss gap
    missing_training: str = ""  # why there is none
    max_training: int = 2000  # training pictures that are searched

    def explain_missing_copies(self, networks: EvalNetworks) -> str:
        """Says why copies cannot be looked for; empty if they can."""
        if networks.extractor is None:
            return networks.missing
        return self.missing_training if self.training is None else ""


@dataclass(frozen=True)
class GenerationEvaluation(Evaluation):
    """Generated pictures and what was measured on them."""

    pixels: Pixels  # (B, S, S, 3), B may be 0
    prompts: Sequence[str]  # B
    pairs: Sequence[Pair] = ()  # those nearest to a training picture, the nearest first


def evaluate_generation(
    model: TextToImage, images: EvalImages, networks: EvalNetworks, checks: GenerationChecks
) -> GenerationEvaluation:
    """Paints captions of images, picture i with seed i, and measures the pictures.

    Args:
        model: with a transformer.
        images: of the model's size; captions that are too long for it are left out.
        networks: what compares pictures.
        checks: what is measured.
    """
    real = images.draw_readable(model, checks.pictures)
    if not len(real.pixels):
        reason = "No caption is short enough for the model."
        return GenerationEvaluation({"painted": reason}, real.pixels, [])
    pixels = model.generate_images(enumerate_requests(real.captions)).pixels
    comparison = _Comparison(model, networks, checks, real, pixels)
    results = comparison.compare_sets() | comparison.rank_prompts()
    results["copy_rate"], pairs = comparison.find_copies()
    results |= comparison.compare_losses(images)
    return GenerationEvaluation(results, pixels, real.captions, pairs)


@dataclass(frozen=True)
class _Comparison:
    """Generated pictures beside the real ones of the same captions."""

    model: TextToImage
    networks: EvalNetworks
    checks: GenerationChecks
    real: EvalImages
    pixels: Pixels

    @functools.cached_property
    def features(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The features of the real and the generated pictures, by extractor: computed once."""
        extractors = (*self.networks.features.values(), self.networks.extractor)
        return {
            name: (extractor.extract(self.real.pixels), extractor.extract(self.pixels))
            for name, extractor in {each.name: each for each in extractors if each}.items()
        }

    def compare_sets(self) -> Results:
        """Measures how far the generated pictures as a set are from the real ones."""
        results: Results = {}
        for name, extractor in self.networks.features.items():
            metrics: Results
            if extractor is None or len(self.pixels) < MIN_PICTURES:
                too_few = f"It takes at least {MIN_PICTURES} pictures."
                reason = too_few if extractor else self.networks.missing
                metrics = dict.fromkeys(_SET_METRICS, reason)
            else:
                real, generated = self.features[name]
                protocol = (
                    f"{extractor.describe()}, {len(generated)} painted pictures against the "
                    f"{len(real)} real ones of the same captions, {self.real.description}"
                )
                neighbours = f"{protocol}; {NEIGHBOURS} neighbours"
                metrics = {
                    **measure_set_distances(real, generated, protocol),
                    "precision": Metric(compute_fraction_among(generated, real), neighbours),
                    "recall": Metric(compute_fraction_among(real, generated), neighbours),
                }
            results |= {f"painted_{kind}_{name}": metric for kind, metric in metrics.items()}
        return results

    def rank_prompts(self) -> Results:
        """Measures how often a picture finds its prompt: by features, by CLIP, by the model."""
        clip, num_pmi, captions = self.checks.clip, self.checks.pmi_pictures, self.real.captions
        prompts = list(dict.fromkeys(captions))
        prompt_of = torch.tensor([prompts.index(caption) for caption in captions])
        if len(prompts) < 2:
            is_asked = {"features": True, "clip": clip is not None, "pmi": num_pmi > 0}
            reason = "It takes at least two different captions."
            return {f"retrieval_by_{name}": reason for name, asked in is_asked.items() if asked}
        results: Results = {"features": self.networks.missing}
        if self.networks.extractor is not None:
            name = self.networks.extractor.name
            real, generated = self.features[name]
            # Of several real pictures with one caption the first stands for it.
            first = [captions.index(prompt) for prompt in prompts]
            scores = -compute_distances(generated, real[first])
            by = f"the prompt whose real picture is nearest, {name} features"
            results["features"] = measure_retrieval(scores, prompt_of, by)
        if clip is not None:
            by = f"cosine of picture and prompt, CLIP {clip.name}"
            results["clip"] = measure_retrieval(clip.score(self.pixels, prompts), prompt_of, by)
        if num_pmi:
            prompts = prompts[:NUM_CHOICES]
            rows = (prompt_of < len(prompts)).nonzero().flatten()[:num_pmi].tolist()
            by = "pointwise mutual information by the model itself"
            try:
                pmi = torch.from_numpy(self.model.score(self.pixels[rows], prompts).pmi)
                results["pmi"] = measure_retrieval(pmi, prompt_of[rows], by)
            except GenerationError as error:
                results["pmi"] = str(error)
        return {f"retrieval_by_{name}": result for name, result in results.items()}

    def find_copies(self) -> tuple[Metric | str, Sequence[Pair]]:
        """Measures the copy rate, if there are an extractor and training pictures."""
        extractor, training = self.networks.extractor, self.checks.training
        if extractor is None or training is None:
            return self.checks.explain_missing_copies(self.networks), ()
        real, generated = self.features[extractor.name]
        copies = measure_copies(
            generated,
            real,
            self.real.pixels,
            training,
            extractor,
            max_training=self.checks.max_training,
        )
        protocol = (
            f"share of {len(generated)} painted pictures closer to a training picture than "
            f"{copies.threshold:.4g}, percentile {COPY_PERCENTILE} of the distances of "
            f"{len(real)} real pictures, {extractor.name} features, {copies.num_training:,} of "
            f"the {len(training):,} training pictures"
        )
        return Metric(copies.rate, protocol), copies.list_pairs(self.pixels, self.real.captions)

    def compare_losses(self, held_out: EvalImages) -> Results:
        """Measures the objective's loss on training images and on others."""
        training, reason = self.checks.training, self.checks.missing_training
        if training is not None:
            gap = measure_loss_gap(self.model, held_out, training, max_images=_LOSS_IMAGES)
            if gap is not None:
                return {**gap}
            reason = "No training caption is short enough for the model."
        return dict.fromkeys(("loss_train", "loss_held_out", "loss_gap"), reason)
