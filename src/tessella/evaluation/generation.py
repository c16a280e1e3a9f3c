"""What painted pictures are worth, beside the real pictures of the same captions.

    captions ─ model ─▶ pictures ─▶ FID, KID, precision, recall     do they look real?
                                 ─▶ retrieval                       do they show what was asked?
                                 ─▶ copies; loss gap                did it learn by heart?

Each number has its protocol; one that cannot be had has the reason why.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tessella.data.cache import CaptionedImages
from tessella.errors import GenerationError
from tessella.evaluation.distributions import (
    MIN_PICTURES,
    NEIGHBOURS,
    compute_fid,
    compute_kid,
    compute_precision_recall,
)
from tessella.evaluation.eval_images import ChosenImages
from tessella.evaluation.features import FeatureExtractor
from tessella.evaluation.memorisation import (
    COPY_PERCENTILE,
    Copies,
    NearestPictures,
    Pair,
    measure_copies,
    measure_loss_gap,
)
from tessella.evaluation.reconstruction import Metric
from tessella.evaluation.retrieval import (
    NUM_CHOICES,
    Clip,
    Retrieval,
    measure_retrieval,
    score_by_features,
    score_by_likelihood,
)
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests

_LOSS_IMAGES = 256  # of each side
_MAX_PAIRS = 32  # to look at


@dataclass(frozen=True)
class PaintingChecks:
    """What is measured on painted pictures."""

    pictures: int  # painted, if there are so many captions; >= 1
    features: Sequence[FeatureExtractor] = ()  # each adds FID, KID, precision and recall
    judge: FeatureExtractor | None = None  # adds retrieval and copies; of no network that learned
    no_judge: str = ""  # why there is none
    clip: Clip | None = None  # adds retrieval by it
    pmi_pictures: int = 0  # so many are scored by the model itself
    training: CaptionedImages | None = None  # adds copies and the loss gap
    no_training: str = ""  # why there is none
    max_training: int = 2000  # training pictures that are looked at

    def explain_no_copies(self) -> str:
        """Says why copies cannot be looked for; nothing if they can."""
        if self.judge is None:
            return self.no_judge
        return self.no_training if self.training is None else ""


@dataclass(frozen=True)
class PaintedEvaluation:
    """Painted pictures and what was found on them."""

    pixels: Pixels  # (B, S, S, 3), B may be 0
    prompts: Sequence[str]  # B
    real: Pixels  # (B, S, S, 3) the real picture of each prompt
    metrics: Mapping[str, Metric]
    left_out: Mapping[str, str]  # by metric, the reason
    nearest: NearestPictures | None  # the nearest training picture of each

    @property
    def pairs(self) -> list[Pair]:
        """The pictures that are nearest to a training picture, the nearest first."""
        if self.nearest is None:
            return []
        order = self.nearest.distances.argsort(kind="stable")[:_MAX_PAIRS].tolist()
        return [
            Pair(
                painted=self.pixels[i],
                prompt=self.prompts[i],
                nearest=self.nearest.pixels[i],
                caption=self.nearest.captions[i],
                distance=float(self.nearest.distances[i]),
            )
            for i in order
        ]


@dataclass
class _Found:
    """Numbers, and reasons for those that are not there."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add_retrieval(self, name: str, found: Retrieval, by: str) -> None:
        self.metrics[name] = Metric(
            found.share,
            f"share of {found.num_pictures} pictures whose own prompt is first of "
            f"{found.num_choices}, chance {found.chance:.3g}; {by}",
        )


def evaluate_painted(
    model: TextToImage, images: ChosenImages, checks: PaintingChecks
) -> PaintedEvaluation:
    """Paints captions of images, picture i with seed i, and measures the pictures.

    Args:
        model: with a transformer.
        images: of the model's size; captions that are too long for it are left out.
        checks: what is measured; it has the judge's features computed once.
    """
    real = images.draw_readable(model, checks.pictures)
    if not len(real.pixels):
        reason = "No caption is short enough for the model."
        return PaintedEvaluation(real.pixels, [], real.pixels, {}, {"painted": reason}, None)
    found = _Found()
    pixels = model.generate_images(enumerate_requests(real.captions)).pixels
    extractors = {e.name: e for e in (*checks.features, *filter(None, [checks.judge]))}
    looks = {n: (e.extract(real.pixels), e.extract(pixels)) for n, e in extractors.items()}
    for extractor in checks.features:
        _compare_sets(found, *looks[extractor.name], extractor, images.description)
    _add_retrieval(found, model, pixels, real, checks, looks)
    copies = _add_copies(found, real, checks, looks)
    _add_loss_gap(found, model, images, checks)
    nearest = copies.nearest if copies else None
    return PaintedEvaluation(
        pixels, real.captions, real.pixels, found.metrics, found.left_out, nearest
    )


def _compare_sets(
    found: _Found, real: Tensor, painted: Tensor, extractor: FeatureExtractor, description: str
) -> None:
    """Adds how far the painted pictures as a set are from the real ones."""
    name = extractor.name
    if len(painted) < MIN_PICTURES:
        for kind in ("fid", "kid", "precision", "recall"):
            found.left_out[f"painted_{kind}_{name}"] = f"It takes at least {MIN_PICTURES} pictures."
        return
    what = (
        f"{name} features ({extractor.num_features}, mean over places), {len(painted)} painted "
        f"pictures against the {len(real)} real ones of the same captions, {description}"
    )
    kid = compute_kid(real, painted)
    subsets = f"{kid.subsets} random subsets of {kid.subset_size}, std {kid.std:.3g}"
    among = compute_precision_recall(real, painted)
    neighbours = f"{NEIGHBOURS} neighbours"
    found.metrics |= {
        f"painted_fid_{name}": Metric(compute_fid(real, painted), what),
        f"painted_kid_{name}": Metric(kid.value, f"{what}; {subsets}"),
        f"painted_precision_{name}": Metric(among.precision, f"{what}; {neighbours}"),
        f"painted_recall_{name}": Metric(among.recall, f"{what}; {neighbours}"),
    }


def _add_retrieval(
    found: _Found,
    model: TextToImage,
    pixels: Pixels,
    real: ChosenImages,
    checks: PaintingChecks,
    looks: Mapping[str, tuple[Tensor, Tensor]],
) -> None:
    """Adds how often a picture finds its own prompt: by features, by CLIP, by the model itself."""
    prompts = list(dict.fromkeys(real.captions))
    own = torch.tensor([prompts.index(caption) for caption in real.captions])
    if len(prompts) < 2:
        wanted = {"features": True, "clip": checks.clip, "pmi": checks.pmi_pictures}
        names = [f"retrieval_by_{judge}" for judge in wanted if wanted[judge]]
        found.left_out |= dict.fromkeys(names, "It takes at least two different captions.")
        return
    if checks.judge is None:
        found.left_out["retrieval_by_features"] = checks.no_judge
    else:
        theirs, ours = looks[checks.judge.name]
        # Of several real pictures with one caption the first stands for it.
        firsts = [real.captions.index(prompt) for prompt in prompts]
        score = score_by_features(ours, theirs[firsts])
        by = f"the prompt whose real picture is nearest, {checks.judge.name} features"
        found.add_retrieval("retrieval_by_features", measure_retrieval(score, own), by)
    if checks.clip is not None:
        score = checks.clip.score(pixels, prompts)
        by = f"cosine of picture and prompt, CLIP {checks.clip.name}"
        found.add_retrieval("retrieval_by_clip", measure_retrieval(score, own), by)
    if checks.pmi_pictures:
        prompts = prompts[:NUM_CHOICES]
        rows = [i for i in range(len(own)) if own[i] < len(prompts)][: checks.pmi_pictures]
        try:
            score = score_by_likelihood(model, pixels[rows], prompts)
        except GenerationError as error:
            found.left_out["retrieval_by_pmi"] = str(error)
            return
        by = "pointwise mutual information by the model itself"
        found.add_retrieval("retrieval_by_pmi", measure_retrieval(score, own[rows]), by)


def _add_copies(
    found: _Found,
    real: ChosenImages,
    checks: PaintingChecks,
    looks: Mapping[str, tuple[Tensor, Tensor]],
) -> Copies | None:
    """Adds the copy rate, if there are a judge and training pictures."""
    if checks.judge is None or checks.training is None:
        found.left_out["copy_rate"] = checks.explain_no_copies()
        return None
    theirs, ours = looks[checks.judge.name]
    copies = measure_copies(
        ours,
        theirs,
        real.pixels,
        checks.training,
        checks.judge,
        max_training=checks.max_training,
    )
    total = len(checks.training)
    searched = f"{copies.num_training:,} of the {total:,} training pictures"
    found.metrics["copy_rate"] = Metric(
        copies.rate,
        f"share of {len(ours)} painted pictures closer to a training picture than "
        f"{copies.threshold:.4g}, percentile {COPY_PERCENTILE} of the distances of {len(theirs)} "
        f"real pictures, {checks.judge.name} features, {searched}",
    )
    return copies


def _add_loss_gap(
    found: _Found, model: TextToImage, images: ChosenImages, checks: PaintingChecks
) -> None:
    """Adds the objective's loss on training images and on others, if there are training images."""
    names = ("loss_train", "loss_held_out", "loss_gap")
    gap = None
    if checks.training is not None:
        gap = measure_loss_gap(model, images, checks.training, max_images=_LOSS_IMAGES)
    if gap is None:
        reason = checks.no_training or "No training caption is short enough for the model."
        found.left_out |= dict.fromkeys(names, reason)
        return
    what = f"loss of {model.objective.name}, first captions, mean over {gap.num_images}"
    found.metrics |= {
        "loss_train": Metric(gap.train, f"{what} training images"),
        "loss_held_out": Metric(gap.held_out, f"{what} of {images.description}"),
        "loss_gap": Metric(gap.held_out - gap.train, "loss_held_out minus loss_train"),
    }
