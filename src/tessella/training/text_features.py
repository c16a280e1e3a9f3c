"""Features of all captions, computed once by a frozen text encoder: stage 2 trains on them.

One memory-mapped file, 2 bytes a feature, with the tokens of all captions one after another, and
a note of what it was made from.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tessella.data.cache import CaptionedImages
from tessella.evaluation.eval_images import draw_indices
from tessella.files import hash_tensors
from tessella.text import TextEncoder
from tessella.text.base import CutRows, TrainingTokens
from tessella.text.frozen import FrozenTextEncoder, pad_features
from tessella.training.codes import Progress, cached_array

_BATCH = 64
_SAMPLE = 4096  # images: half a second


class TextFeatures:
    """Reads the features of captions from an array.

    Args:
        captions: all that will be read, each once.
        cut: their tokens.
        features: (tokens of all captions, F), in the captions' order.
    """

    def __init__(
        self, captions: Sequence[str], cut: CutRows, features: npt.NDArray[np.float16]
    ) -> None:
        lengths = [len(row) for row in cut.rows]
        ends = accumulate(lengths)
        self._spans = {
            caption: slice(end - length, end)
            for caption, length, end in zip(captions, lengths, ends, strict=True)
        }
        self._truncated = {c for c, short in zip(captions, cut.truncated, strict=True) if short}
        self._features = features

    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Reads features (B, T, F) float32 of captions that are in the file."""
        texts = [self._features[self._spans[caption]] for caption in captions]
        return TrainingTokens(pad_features(texts), self.count_truncated(captions))

    def count_truncated(self, captions: Sequence[str]) -> int:
        """Counts the captions that are too long."""
        return sum(caption in self._truncated for caption in captions)


CaptionReader = TextEncoder | TextFeatures
"""Turns training captions into the transformer's input."""


def prepare_captions(
    encoder: TextEncoder,
    captions: Iterable[str],
    path: Path,
    *,
    progress: Progress = lambda done, total: None,
) -> CaptionReader:
    """Computes the features of captions into a file, unless it is there already.

    Args:
        encoder: of the run; one that only makes tokens is quick, and returned as it is.
        captions: of all images, repeated or not; the empty caption is added.
        path: the `.npy` file; a `.json` beside it notes what it was made from.
        progress: told the captions.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if not isinstance(encoder, FrozenTextEncoder):
        return encoder
    unique = list(dict.fromkeys(["", *captions]))
    cut = encoder.cut(unique)
    tokens = hashlib.sha256(json.dumps(cut.rows).encode()).hexdigest()
    made_from = {"encoder": hash_tensors(encoder.network.state_dict()), "tokens": tokens}

    lengths = np.array([len(row) for row in cut.rows])
    begins = np.cumsum(lengths) - lengths

    def read(features: npt.NDArray[np.float16]) -> None:
        """Reads captions of the same length together: nothing is computed for padding."""
        done = 0
        for length in np.unique(lengths):
            [same] = np.nonzero(lengths == length)
            for start in range(0, len(same), _BATCH):
                batch = same[start : start + _BATCH]
                rows = begins[batch, None] + np.arange(length)
                features[rows] = encoder.read([cut.rows[index] for index in batch])  # (B, T, F)
                done += len(batch)
                progress(done, len(lengths))

    shape = (int(lengths.sum()), encoder.num_features)
    what = "the features of the captions"
    features = cached_array(path, made_from, np.float16, shape, read, what=what)
    return TextFeatures(unique, cut, features)


def describe_cut(reader: CaptionReader, images: CaptionedImages, max_tokens: int) -> str | None:
    """Says how many training captions lose their last words; None if none do.

    Args:
        reader: of the captions.
        images: to train on; of very many, some thousand are checked.
        max_tokens: the longest that a caption may be.
    """
    sample = draw_indices(len(images), _SAMPLE).tolist()
    captions = [caption for index in sample for caption in images.captions(index)]
    num_cut = reader.count_truncated(captions)
    if not num_cut:
        return None
    return (
        f"Captions: {num_cut:,} of {len(captions):,} checked have more than "
        f"{max_tokens} tokens (text.max_tokens). Training drops their last words; as prompts they "
        "are refused."
    )
