"""Features of all captions, computed once by a frozen text encoder: what stage 2 reads.

One memory-mapped file of 2 bytes a feature, the tokens of all captions one after another, with a
note from what it was made.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from tessella.data.cache import CaptionedImages
from tessella.evaluation.eval_images import draw_indices
from tessella.files import new_file, write_json
from tessella.text import TextEncoder
from tessella.text.base import CutRows, TrainingTokens
from tessella.text.frozen import FrozenTextEncoder, pad_features
from tessella.training.codes import hash_weights, read_note

_BATCH = 64
_LOOKED_AT = 4096  # pictures: half a second

Progress = Callable[[int, int], None]


class CaptionReader(Protocol):
    """Turns training captions into what the transformer reads: `TextEncoder`, `TextFeatures`."""

    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Reads captions; over-long ones are cut, and counted."""


class TextFeatures:
    """Reads the features of captions from a file.

    Args:
        captions: all that will be asked for, each once.
        cut: their tokens.
        path: the features (tokens of all captions, F), in the captions' order.
    """

    def __init__(self, captions: Sequence[str], cut: CutRows, path: Path) -> None:
        lengths = [len(row) for row in cut.rows]
        ends = accumulate(lengths)
        self._spans = {
            caption: slice(end - length, end)
            for caption, length, end in zip(captions, lengths, ends, strict=True)
        }
        self._truncated = {c for c, short in zip(captions, cut.truncated, strict=True) if short}
        self._features = np.load(path, mmap_mode="r")

    def encode_training(self, captions: Sequence[str]) -> TrainingTokens:
        """Reads features (B, T, F) float32 of captions that the file was made for."""
        texts = [self._features[self._spans[caption]] for caption in captions]
        return TrainingTokens(pad_features(texts), sum(c in self._truncated for c in captions))


def prepare_captions(
    encoder: TextEncoder,
    captions: Iterable[str],
    path: Path,
    *,
    progress: Progress | None = None,
) -> CaptionReader:
    """Computes the features of captions into a file, or uses the file that is there.

    Args:
        encoder: of the run; one that makes tokens is quick, and returned as it is.
        captions: of all images, repeated or not; the empty one comes by itself.
        path: the `.npy` file; beside it a `.json` says from what it was made.
        progress: called with captions done and their number.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if not isinstance(encoder, FrozenTextEncoder):
        return encoder
    unique = list(dict.fromkeys(["", *captions]))
    cut = encoder.cut(unique)
    tokens = hashlib.sha256(json.dumps(cut.rows).encode()).hexdigest()
    made_from = {"encoder": hash_weights(encoder.network), "tokens": tokens}
    note = path.with_suffix(".json")
    if not (path.exists() and read_note(note) == made_from):
        note.unlink(missing_ok=True)
        with new_file(path, what="the features of the captions") as building:
            _write(encoder, cut, building, progress)
        write_json(note, made_from)
    return TextFeatures(unique, cut, path)


def describe_cut(reader: CaptionReader, images: CaptionedImages, max_tokens: int) -> str | None:
    """Says how many training captions lose their last words; None if none does.

    Args:
        reader: of the captions.
        images: to train on; if there are very many, some thousand are looked at.
        max_tokens: the most that one may have.
    """
    drawn = draw_indices(len(images), _LOOKED_AT).tolist()
    captions = [images.captions(index) for index in drawn]
    num_cut = sum(reader.encode_training(texts).num_truncated for texts in captions)
    if not num_cut:
        return None
    return (
        f"Captions: {num_cut:,} of {sum(map(len, captions)):,} looked at have more than "
        f"{max_tokens} tokens (text.max_tokens): training leaves out their last words, and as "
        "prompts they are refused."
    )


def _write(encoder: FrozenTextEncoder, cut: CutRows, path: Path, progress: Progress | None) -> None:
    """Reads captions of one length together: nothing is computed for padding."""
    lengths = np.array([len(row) for row in cut.rows])
    begins = np.cumsum(lengths) - lengths
    shape = (int(lengths.sum()), encoder.num_features)
    features = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    done = 0
    for length in np.unique(lengths):
        [same] = np.nonzero(lengths == length)
        for start in range(0, len(same), _BATCH):
            chosen = same[start : start + _BATCH]
            made = encoder.read([cut.rows[index] for index in chosen])  # (B, T, F)
            features[begins[chosen, None] + np.arange(length)] = made
            done += len(chosen)
            if progress is not None:
                progress(done, len(lengths))
    features.flush()
