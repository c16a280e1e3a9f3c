"""What generated pictures are worth, beside the real pictures of the same captions.

    captions ─ model ─▶ pictures ─▶ FID, KID, precision, recall     do they look real?
                                 ─▶ retrieval                       do they show their prompt?
                                 ─▶ copies; loss gap                did it learn by heart?

Each number has its protocol; a number that is left out has the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessella.data.cache import CaptionedImages
from tessella.errors import GenerationError
from tessella.evaluation.distributions import (
    MIN_PICTURES,
    NEIGHBOURS,
    compute_distances,
    compute_precision_recall,
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
from tessella.evaluation.metric import Metric
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
class GenerationEvaluation:
    """Generated pictures and what was measured on them."""

    pixels: Pixels  # (B, S, S, 3), B may be 0
    prompts: Sequence[str]  # B
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]  # the reason by metric
    pairs: Sequence[Pair]  # those nearest to a training picture, the nearest first


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
        return GenerationEvaluation(real.pixels, [], {}, {"painted": reason}, [])
    pixels = model.generate_images(enumerate_requests(real.captions)).pixels
    comparison = _Comparison(model, networks, checks, real, pixels)
    comparison.compare_sets()
    comparison.rank_prompts()
    pairs = comparison.find_copies()
    comparison.compare_losses(images)
    return GenerationEvaluation(
        pixels, real.captions, comparison.metrics, comparison.left_out, pairs
    )


class _Comparison:
    """Generated pictures beside the real ones of the same captions; gathers their metrics."""

    def __init__(
        self,
        model: TextToImage,
        networks: EvalNetworks,
        checks: GenerationChecks,
        real: EvalImages,
        pixels: Pixels,
    ) -> None:
        self.metrics: dict[str, Metric] = {}
        self.left_out: dict[str, str] = {}
        self._model, self._networks, self._checks = model, networks, checks
        self._real, self._pixels = real, pixels
        extractors = {e.name: e for e in (*networks.features.values(), networks.extractor) if e}
        # Of the real and the generated pictures, computed once for all that is measured.
        self._features = {
            name: (extractor.extract(real.pixels), extractor.extract(pixels))
            for name, extractor in extractors.items()
        }

    def compare_sets(self) -> None:
        """Measures how far the generated pictures as a set are from the real ones."""
        for name, extractor in self._networks.features.items():
            keys = {kind: f"painted_{kind}_{name}" for kind in _SET_METRICS}
            if extractor is None or len(self._pixels) < MIN_PICTURES:
                reason = f"It takes at least {MIN_PICTURES} pictures."
                reason = reason if extractor else self._networks.missing
                self.left_out |= dict.fromkeys(keys.values(), reason)
                continue
            real, generated = self._features[name]
            protocol = (
                f"{extractor.describe()}, {len(generated)} painted pictures against the "
                f"{len(real)} real ones of the same captions, {self._real.description}"
            )
            metrics = measure_set_distances(real, generated, protocol)
            among = compute_precision_recall(real, generated)
            neighbours = f"{protocol}; {NEIGHBOURS} neighbours"
            metrics["precision"] = Metric(among.precision, neighbours)
            metrics["recall"] = Metric(among.recall, neighbours)
            self.metrics |= {keys[kind]: metric for kind, metric in metrics.items()}

    def rank_prompts(self) -> None:
        """Measures how often a picture finds its prompt: by features, by CLIP, by the model."""
        checks, captions = self._checks, self._real.captions
        prompts = list(dict.fromkeys(captions))
        prompt_of = torch.tensor([prompts.index(caption) for caption in captions])
        if len(prompts) < 2:
            rankings = {"features": True, "clip": checks.clip, "pmi": checks.pmi_pictures}
            for name in [name for name, is_asked in rankings.items() if is_asked]:
                reason = "It takes at least two different captions."
                self.left_out[f"retrieval_by_{name}"] = reason
            return
        if self._networks.extractor is None:
            self.left_out["retrieval_by_features"] = self._networks.missing
        else:
            name = self._networks.extractor.name
            real, generated = self._features[name]
            # Of several real pictures with one caption the first stands for it.
            first = [captions.index(prompt) for prompt in prompts]
            scores = -compute_distances(generated, real[first])
            by = f"the prompt whose real picture is nearest, {name} features"
            self._add_retrieval("features", scores, prompt_of, by)
        if checks.clip is not None:
            scores = checks.clip.score(self._pixels, prompts)
            by = f"cosine of picture and prompt, CLIP {checks.clip.name}"
            self._add_retrieval("clip", scores, prompt_of, by)
        if checks.pmi_pictures:
            prompts = prompts[:NUM_CHOICES]
            rows = [i for i, prompt in enumerate(prompt_of.tolist()) if prompt < len(prompts)]
            rows = rows[: checks.pmi_pictures]
            try:
                scores = torch.from_numpy(self._model.score(self._pixels[rows], prompts).pmi)
            except GenerationError as error:
                self.left_out["retrieval_by_pmi"] = str(error)
                return
            by = "pointwise mutual information by the model itself"
            self._add_retrieval("pmi", scores, prompt_of[rows], by)

    def _add_retrieval(self, name: str, scores: Tensor, prompt_of: Tensor, by: str) -> None:
        retrieval = measure_retrieval(scores, prompt_of)
        self.metrics[f"retrieval_by_{name}"] = Metric(
            retrieval.fraction,
            f"share of {retrieval.num_pictures} pictures whose own prompt is first of "
            f"{retrieval.num_choices}, chance {retrieval.chance:.3g}; {by}",
        )

    def find_copies(self) -> list[Pair]:
        """Measures the copy rate, if there are an extractor and training pictures."""
        extractor, training = self._networks.extractor, self._checks.training
        if extractor is None or training is None:
            self.left_out["copy_rate"] = self._checks.explain_missing_copies(self._networks)
            return []
        real, generated = self._features[extractor.name]
        copies = measure_copies(
            generated,
            real,
            self._real.pixels,
            training,
            extractor,
            max_training=self._checks.max_training,
        )
        self.metrics["copy_rate"] = Metric(
            copies.rate,
            f"share of {len(generated)} painted pictures closer to a training picture than "
            f"{copies.threshold:.4g}, percentile {COPY_PERCENTILE} of the distances of "
            f"{len(real)} real pictures, {extractor.name} features, {copies.num_training:,} of "
            f"the {len(training):,} training pictures",
        )
        return copies.list_pairs(self._pixels, self._real.captions)

    def compare_losses(self, held_out: EvalImages) -> None:
        """Measures the objective's loss on training images and on others."""
        training, gap = self._checks.training, None
        reason = self._checks.missing_training
        if training is not None:
            gap = measure_loss_gap(self._model, held_out, training, max_images=_LOSS_IMAGES)
            reason = "No training caption is short enough for the model."
        if gap is None:
            names = ("loss_train", "loss_held_out", "loss_gap")
            self.left_out |= dict.fromkeys(names, reason)
            return
        name = self._model.objective.name
        protocol = f"loss of {name}, first captions, mean over {gap.num_images}"
        self.metrics |= {
            "loss_train": Metric(gap.train, f"{protocol} training images"),
            "loss_held_out": Metric(gap.held_out, f"{protocol} of {held_out.description}"),
            "loss_gap": Metric(gap.held_out - gap.train, "loss_held_out minus loss_train"),
        }
