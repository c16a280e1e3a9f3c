"""How the pictures of `quality_per_minute.py` are judged: alike, from their pixels alone.

Theory: a picture is classified as the real picture that is nearest by a network's features: of
emoji among all pictures of the held-out subjects in all styles, held-out ones included; of other
data among training pictures, one kind a caption. The same is done with what an image tokenizer
keeps of the real held-out pictures, which bounds what is painted through it, and with the real ones
themselves. FID and KID compare with the real held-out pictures; of 300 they are for comparison
within this table alone. A copy is nearer to one of 2,000 training pictures than all but the
nearest hundredth of the real held-out pictures are.

Output contract: none; `quality_per_minute.py` prints and stores the results.
"""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from emoji_subjects import Gallery, Kind, choose_gallery, compare, load_extractor, read_kinds
from quality_training import CPU
from scenes_accuracy import describe
from tessella.data.cache import CaptionedImages
from tessella.evaluation.distributions import compute_distances, compute_fid, compute_kid
from tessella.evaluation.eval_images import EvalImages, draw_indices, read_images
from tessella.evaluation.features import DEFAULT_FEATURES, FeatureExtractor
from tessella.evaluation.memorisation import measure_copies
from tessella.evaluation.reconstruction import compute_psnr
from tessella.files import read_tensors, write_tensors
from tessella.images import Pixels
from tessella.tokenizer.weights import has_weights

MAX_PROMPTS = 300
MAX_GALLERY = 2_000
"""Training pictures that are searched for the nearest, and for copies."""


class RememberingExtractor(FeatureExtractor):
    """Computes the features of the same pictures once, for all contenders.

    Args:
        extractor: computes them.
        folder: keeps them between calls.
    """

    def __init__(self, extractor: FeatureExtractor, folder: Path) -> None:
        vars(self).update(vars(extractor))
        self._path = folder / f"{extractor.name.replace(' ', '-')}.safetensors"
        self._known = read_tensors(self._path) if self._path.exists() else {}
        self._num_kept = len(self._known)

    def extract(self, pixels: Pixels) -> Tensor:
        """Computes the features (B, F) of pictures, or remembers them."""
        digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
        if digest not in self._known:
            self._known[digest] = super().extract(pixels)
        return self._known[digest]

    def save(self) -> None:
        """Keeps what was computed."""
        if len(self._known) > self._num_kept:
            write_tensors(self._path, self._known)
            self._num_kept = len(self._known)


@dataclass(frozen=True)
class Judge:
    """What is painted, and what the pictures are compared with."""

    heldout: Gallery  # whose captions are painted
    gallery: Gallery  # real pictures, of which the nearest is looked for
    training: CaptionedImages
    extractors: Sequence[RememberingExtractor]
    has_styles: bool

    @classmethod
    def of_emoji(
        cls,
        heldout: CaptionedImages,
        training: CaptionedImages,
        shards: Sequence[str],
        extractors: Sequence[RememberingExtractor],
        count: int = MAX_PROMPTS,
    ) -> "Judge":
        """Judges pairs of subject and style, so many; the tars say what is what."""
        kinds = read_kinds(shards)
        held = choose_gallery(heldout, kinds, None)
        seen = choose_gallery(training, kinds, {kind.subject for kind in held.kinds})
        real = EvalImages(
            np.concatenate([held.images.pixels, seen.images.pixels]),
            [*held.images.captions, *seen.images.captions],
            "of the held-out subjects",
        )
        rows = draw_indices(len(held.kinds), count).tolist()
        some = Gallery(held.images.select(rows), [held.kinds[row] for row in rows])
        return cls(some, Gallery(real, [*held.kinds, *seen.kinds]), training, extractors, True)

    @classmethod
    def of_captions(
        cls,
        heldout: CaptionedImages,
        training: CaptionedImages,
        extractors: Sequence[RememberingExtractor],
    ) -> "Judge":
        """Judges whether a picture is of its caption's kind, where captions repeat."""
        galleries = []
        for images, count in ((heldout, MAX_PROMPTS), (training, MAX_GALLERY)):
            chosen = read_images(images, draw_indices(len(images), count).tolist(), "drawn")
            kinds = [Kind(caption, "", False) for caption in chosen.captions]
            galleries.append(Gallery(chosen, kinds))
        return cls(galleries[0], galleries[1], training, extractors, False)

    @property
    def prompts(self) -> Sequence[str]:
        """What is painted, one picture each."""
        return self.heldout.images.captions

    def measure(self, pixels: Pixels, *, searches_copies: bool = True) -> dict[str, Any]:
        """Measures pictures (B, S, S, 3) of the prompts, by the features of each network."""
        results = {}
        for extractor in self.extractors:
            of_real, of_gallery = self._features[extractor.name]
            features = extractor.extract(pixels)
            nearest = compute_distances(features, of_gallery).argmin(1).tolist()
            right = compare(self.heldout.kinds, [self.gallery.kinds[at] for at in nearest])
            measured: dict[str, Any] = (
                right if self.has_styles else {"right_kind": right["right_subject"]}
            )
            measured["fid"] = compute_fid(of_real, features)
            measured["kid"] = compute_kid(of_real, features).value
            if searches_copies:
                copies = measure_copies(
                    features,
                    of_real,
                    self.heldout.images.pixels,
                    self.training,
                    extractor,
                    max_training=MAX_GALLERY,
                )
                measured["copies"] = describe(copies.rate, len(pixels))
            extractor.save()
            results[extractor.name] = measured
        return results

    def measure_kept(self, kept: Pixels) -> dict[str, Any]:
        """Measures what an image tokenizer keeps of the real held-out pictures."""
        psnr = compute_psnr(kept, self.heldout.images.pixels)
        return {"psnr": psnr, **self.measure(kept, searches_copies=False)}

    @functools.cached_property
    def real(self) -> Mapping[str, Any]:
        """The real held-out pictures, classified in the same way."""
        return self.measure(self.heldout.images.pixels, searches_copies=False)

    @functools.cached_property
    def _features(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of the real held-out pictures and of the gallery, by extractor."""
        return {
            extractor.name: (
                extractor.extract(self.heldout.images.pixels),
                extractor.extract(self.gallery.images.pixels),
            )
            for extractor in self.extractors
        }


def load_extractors(folder: Path, *, quick: bool) -> list[RememberingExtractor]:
    """Loads both networks, or those that are here; a quick run may take an untrained one."""
    names = [name for weights, name in DEFAULT_FEATURES.items() if has_weights(weights)]
    chosen: list[str | None] = [*names[:1]] if quick else [*names]
    folder.mkdir(parents=True, exist_ok=True)
    return [
        RememberingExtractor(load_extractor(name, CPU, quick), folder) for name in chosen or [None]
    ]
