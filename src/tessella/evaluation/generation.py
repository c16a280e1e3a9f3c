"""What generated pictures are worth, beside the real pictures of the same captions.

    captions ─ model ─▶ pictures ─▶ FID, KID, precision, recall     do they look real?
                                 ─▶ retrieval                       do they show their prompt?
                                 ─▶ copies; loss gap                did it learn by heart?

A model that looks things up is measured as it paints, with its memory; what is cheap to measure
without it stands beside, as `without_examples_…`. No picture is its own example.

Each number has its protocol; a number that is left out has the reason.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
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
from tessella.evaluation.features import EvalNetworks, FeatureExtractor
from tessella.evaluation.lookup import ExampleLookup
from tessella.evaluation.memorisation import (
    COPY_PERCENTILE,
    Pair,
    measure_copies,
    measure_loss_gap,
)
from tessella.evaluation.metric import Evaluation, Metric, Results
from tessella.evaluation.neighbor_copies import Beside, measure_neighbor_copies
from tessella.evaluation.progress import Tell, paint, tell_nobody
from tessella.evaluation.retrieval import NUM_CHOICES, Clip, measure_retrieval
from tessella.images import Pixels
from tessella.model.pipeline import TextToImage
from tessella.model.request import GeneratedImages, ImageRequest, enumerate_requests
from tessella.retrieval import Example
from tessella.retrieval.examples import Codes

PLAIN = "without_examples_"
"""Begins the names of what is measured without the memory."""

_NOT_LOOKED_UP = "without examples"
_SET_METRICS = ("fid", "kid", "precision", "recall")
_LOSS_IMAGES = 256  # of each side


@dataclass(frozen=True)
class GenerationChecks:
    """What is measured on generated pictures."""

    pictures: int  # generated, if there are as many captions; >= 1
    pmi_pictures: int = 0  # scored by the model itself
    clip: Clip | None = None  # adds retrieval by it
    training: CaptionedImages | None = None  # adds copies and the loss gap
    training_name: str = "training pictures"  # for the protocol
    missing_training: str = ""  # why there is none
    max_training: int = 2000  # training pictures that are searched


@dataclass(frozen=True)
class GenerationEvaluation(Evaluation):
    """Generated pictures and what was measured on them."""

    pixels: Pixels  # (B, S, S, 3), B may be 0
    prompts: Sequence[str]  # B
    # Those nearest to a training picture, then those nearest to an example.
    pairs: Sequence[Pair] = ()

    def describe_pairs(self) -> dict[str, Any]:
        """Returns the pairs as plain values with their protocols, the worst of each kind first."""
        names = ("copy_rate", "neighbor_copy_rate", "neighbor_distance")
        protocols = [
            f"{name}: {self.metrics[name].protocol}" for name in names if name in self.metrics
        ]
        return {
            "protocol": "; ".join(protocols),
            "pairs": [pair.describe() for pair in self.pairs],
        }


def evaluate_generation(
    model: TextToImage,
    images: EvalImages,
    networks: EvalNetworks,
    checks: GenerationChecks,
    tell: Tell = tell_nobody,
) -> GenerationEvaluation:
    """Paints captions of images, picture i with seed i, and measures the pictures.

    Args:
        model: with a transformer.
        images: of the model's size; captions that are too long for it are left out.
        networks: what compares pictures.
        checks: what is measured.
        tell: is told how far it is.
    """
    real = images.draw_readable(model, checks.pictures)
    if not len(real.pixels):
        reason = "No caption is short enough for the model."
        return GenerationEvaluation({"painted": reason}, real.pixels, [])
    lookup = ExampleLookup.create(model)
    real_codes = lookup.encode(real.pixels) if lookup else None
    examples = None if real_codes is None or not lookup else lookup.find(real.captions, real_codes)
    count = f"{len(real.captions):,} captions"
    painted = paint(model, _list_requests(real.captions, examples), f"Painting {count}", tell)
    plain = None
    if lookup and (networks.extractor or any(networks.features.values())):
        nothing = [()] * len(real.captions)
        requests = _list_requests(real.captions, nothing)
        plain = paint(model, requests, f"Painting {count} {_NOT_LOOKED_UP}", tell).pixels
    comparison = _Comparison(model, networks, checks, real, painted, plain, lookup, tell)
    tell("Comparing painted pictures with real ones", "")
    results = comparison.compare_sets() | comparison.rank_prompts()
    results["copy_rate"], pairs = comparison.find_copies()
    if lookup and real_codes is not None:
        results |= count_in_memory(lookup, images)
        results |= comparison.measure_without_examples()
        of_examples, more = comparison.find_neighbor_copies(real_codes)
        results, pairs = results | of_examples, [*pairs, *more]
    results |= comparison.compare_losses(images)
    return GenerationEvaluation(results, painted.pixels, real.captions, pairs)


def count_in_memory(lookup: ExampleLookup, images: EvalImages) -> Results:
    """Counts the images that the model itself can look at: `images_in_memory`."""
    own = lookup.find_own(lookup.encode(images.pixels))
    protocol = (
        f"images whose codes are those of one of the {len(lookup.memory):,} examples, "
        f"{images.description}; they find neither themselves nor near copies"
    )
    return {"images_in_memory": Metric(sum(one is not None for one in own), protocol)}


def _list_requests(
    captions: Sequence[str], examples: Sequence[tuple[Example, ...]] | None
) -> list[ImageRequest]:
    """Lists one picture a caption, beside its examples; None leaves them to the model."""
    requests = enumerate_requests(captions)
    if examples is None:
        return requests
    return [replace(one, examples=e) for one, e in zip(requests, examples, strict=True)]


@dataclass(frozen=True)
class _Comparison:
    """Generated pictures beside the real ones of the same captions."""

    model: TextToImage
    networks: EvalNetworks
    checks: GenerationChecks
    real: EvalImages
    painted: GeneratedImages
    plain: Pixels | None  # painted without examples; None: there is no memory, or no features
    lookup: ExampleLookup | None  # None: there is no memory
    tell: Tell

    @functools.cached_property
    def features(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The features of the real and the generated pictures, by extractor: computed once."""
        return {
            name: (extractor.extract(self.real.pixels), extractor.extract(self.painted.pixels))
            for name, extractor in self._extractors.items()
        }

    @property
    def _extractors(self) -> dict[str, FeatureExtractor]:
        extractors = (*self.networks.features.values(), self.networks.copy_extractor)
        return {each.name: each for each in extractors if each}

    def compare_sets(self) -> Results:
        """Measures how far the generated pictures as a set are from the real ones."""
        results: Results = {}
        for name, extractor in self.networks.features.items():
            metrics: Results
            if extractor is None or len(self.painted.pixels) < MIN_PICTURES:
                too_few = f"It takes at least {MIN_PICTURES} pictures."
                reason = too_few if extractor else self.networks.missing
                metrics = dict.fromkeys(_SET_METRICS, reason)
            else:
                real, generated = self.features[name]
                protocol = self._describe_sets(extractor, self._beside)
                neighbours = f"{protocol}; {NEIGHBOURS} neighbours"
                metrics = {
                    **measure_set_distances(real, generated, protocol),
                    "precision": Metric(compute_fraction_among(generated, real), neighbours),
                    "recall": Metric(compute_fraction_among(real, generated), neighbours),
                }
            results |= {f"painted_{kind}_{name}": metric for kind, metric in metrics.items()}
        return results

    def _describe_sets(self, extractor: FeatureExtractor, beside: str) -> str:
        return (
            f"{extractor.describe()}, {len(self.real.pixels)} painted pictures against the "
            f"{len(self.real.pixels)} real ones of the same captions, {self.real.description}"
            f"{beside}"
        )

    @property
    def _beside(self) -> str:
        """What the pictures were painted beside, for a protocol."""
        return f"; {self.lookup.describe()}" if self.lookup else ""

    def measure_without_examples(self) -> Results:
        """Measures the pictures that were painted without the memory, where features are there."""
        if self.plain is None:
            return {}
        results: Results = {}
        features = {name: each.extract(self.plain) for name, each in self._extractors.items()}
        for name, extractor in self.networks.features.items():
            if extractor is not None and len(self.plain) >= MIN_PICTURES:
                protocol = self._describe_sets(extractor, f"; {_NOT_LOOKED_UP}")
                distances = measure_set_distances(self.features[name][0], features[name], protocol)
                results |= {f"{PLAIN}painted_{kind}_{name}": m for kind, m in distances.items()}
        if self.networks.extractor is not None and len(self._prompts) >= 2:
            of_plain = features[self.networks.extractor.name]
            ranked = self._rank_by_features(of_plain, f"; {_NOT_LOOKED_UP}")
            results[f"{PLAIN}retrieval_by_features"] = ranked
        return results

    @functools.cached_property
    def _prompts(self) -> list[str]:
        """The different captions."""
        return list(dict.fromkeys(self.real.captions))

    @functools.cached_property
    def _prompt_of(self) -> Tensor:
        """(B,) of each picture."""
        return torch.tensor([self._prompts.index(caption) for caption in self.real.captions])

    def _rank_by_features(self, generated: Tensor, beside: str) -> Metric:
        """Measures how often a picture is nearest to the real picture of its own prompt."""
        name = next(n for n, each in self._extractors.items() if each is self.networks.extractor)
        # Of several real pictures with one caption the first stands for it.
        first = [self.real.captions.index(prompt) for prompt in self._prompts]
        scores = -compute_distances(generated, self.features[name][0][first])
        by = f"the prompt whose real picture is nearest, {name} features{beside}"
        return measure_retrieval(scores, self._prompt_of, by)

    def rank_prompts(self) -> Results:
        """Measures how often a picture finds its prompt: by features, by CLIP, by the model."""
        clip, num_pmi, prompts = self.checks.clip, self.checks.pmi_pictures, self._prompts
        if len(prompts) < 2:
            is_asked = {"features": True, "clip": clip is not None, "pmi": num_pmi > 0}
            reason = "It takes at least two different captions."
            return {f"retrieval_by_{name}": reason for name, asked in is_asked.items() if asked}
        results: Results = {"features": self.networks.missing}
        if self.networks.extractor is not None:
            _, generated = self.features[self.networks.extractor.name]
            results["features"] = self._rank_by_features(generated, self._beside)
        if clip is not None:
            self.tell(f"Asking CLIP which of {len(prompts):,} prompts fits", "")
            by = f"cosine of picture and prompt, CLIP {clip.name}"
            scores = clip.score(self.painted.pixels, prompts)
            results["clip"] = measure_retrieval(scores, self._prompt_of, by)
        if num_pmi:
            results["pmi"] = self._rank_by_pmi(num_pmi)
        return {f"retrieval_by_{name}": result for name, result in results.items()}

    def _rank_by_pmi(self, count: int) -> Metric | str:
        """Measures how often the model itself finds a picture's prompt, without examples."""
        prompts = self._prompts[:NUM_CHOICES]
        rows = (self._prompt_of < len(prompts)).nonzero().flatten()[:count].tolist()
        by = "pointwise mutual information by the model itself"
        if self.lookup is not None:
            by += f", {_NOT_LOOKED_UP}"
        self.tell(f"Ranking {len(prompts)} prompts for {len(rows)} pictures by the model", "")
        try:
            pmi = torch.from_numpy(self.model.score(self.painted.pixels[rows], prompts).pmi)
        except GenerationError as error:
            return str(error)
        return measure_retrieval(pmi, self._prompt_of[rows], by)

    def find_copies(self) -> tuple[Metric | str, Sequence[Pair]]:
        """Measures the copy rate, if there are training pictures."""
        extractor, training = self.networks.copy_extractor, self.checks.training
        if training is None:
            return self.checks.missing_training, ()
        num_training = min(len(training), self.checks.max_training)
        self.tell(f"Looking for copies of {num_training:,} training pictures", "")
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
            f"the {len(training):,} {self.checks.training_name}"
        )
        pairs = copies.list_pairs(self.painted.pixels, self.real.captions)
        return Metric(copies.rate, protocol), pairs

    def find_neighbor_copies(self, real_codes: Codes) -> tuple[Results, Sequence[Pair]]:
        """Measures how many pictures are as good as one of their examples."""
        codes = self.painted.codes
        beside = Beside(
            prompts=self.real.captions,
            examples=self.painted.examples,
            pixels=self.painted.pixels,
            codes=None if codes is None else codes.cpu().numpy().astype(np.uint16),
            real_codes=real_codes,
            description=self.real.description,
        )
        checks = self.checks
        self.tell("Looking for copies of examples", "")
        return measure_neighbor_copies(self.model, beside, checks.training, checks.missing_training)

    def compare_losses(self, held_out: EvalImages) -> Results:
        """Measures the objective's loss on training images and on others."""
        training, reason = self.checks.training, self.checks.missing_training
        if training is not None:
            self.tell("Comparing the losses of training pictures and others", "")
            gap = measure_loss_gap(
                self.model, held_out, training, max_images=_LOSS_IMAGES, lookup=self.lookup
            )
            if gap is not None:
                return {**gap}
            reason = "No training caption is short enough for the model."
        return dict.fromkeys(("loss_train", "loss_held_out", "loss_gap"), reason)
