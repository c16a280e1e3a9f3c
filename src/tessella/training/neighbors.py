"""Which examples each training picture looks at: found once for every caption, drawn at each step.

One memory-mapped file for each side of the split, 4 bytes an example, with a note of what it was
made from. Training looks up exactly as painting does, but never the picture itself, nor what is as
good as the same (`retrieval/copies.py`).
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tessella.data.cache import CaptionedImages
from tessella.errors import CheckpointError
from tessella.files import new_folder, write_json
from tessella.retrieval import ExampleMemory, RetrievalSettings
from tessella.retrieval.copies import NearCopies
from tessella.retrieval.examples import ExampleRow
from tessella.retrieval.names import shorten_names
from tessella.runs import record
from tessella.tokenizer import VQAutoencoder
from tessella.training.codes import Codes, Progress, cached_array, find_mirrored
from tessella.training.text_features import CaptionReader
from tessella.transformer import Examples

_DROPPED_WITH_PROMPT = 0.5
_MADE_FROM = "made_from.json"


@dataclass(frozen=True)
class Neighbors:
    """The best examples of every caption of one side."""

    captions: npt.NDArray[np.int32]  # (C, k, m) of the memory; -1 where there is none
    starts: npt.NDArray[np.int64]  # (images,) the row of each picture's first caption

    def draw(
        self,
        indices: npt.NDArray[np.int64],
        choices: Sequence[int],
        example_of: npt.NDArray[np.int32],
        rngs: Sequence[np.random.Generator] | None = None,
    ) -> npt.NDArray[np.int32]:
        """Draws the examples of pictures: one of the best in each place, none of them twice.

        Args:
            indices: (B,) pictures.
            choices: which of its captions each picture is learned with.
            example_of: the example of each caption of the memory.
            rngs: draw, one for each picture; without them the best are taken.

        Returns:
            (B, k) captions of the memory; -1 where there is none.
        """
        found = self.captions[self.starts[indices] + np.asarray(choices)]  # (B, k, m)
        if rngs is None:
            return np.array(found[:, :, 0])
        drawn = np.full(found.shape[:2], -1, np.int32)
        ranks = np.stack([rng.random(found.shape[1:]) for rng in rngs]).argsort(-1)
        for picture, (rows, orders) in enumerate(zip(found, ranks, strict=True)):
            taken: set[int] = set()
            for place, (row, order) in enumerate(zip(rows, orders, strict=True)):
                for caption in row[order]:
                    if caption >= 0 and int(example_of[caption]) not in taken:
                        drawn[picture, place] = caption
                        taken.add(int(example_of[caption]))
                        break
        return drawn


class ExampleReader:
    """Reads the examples of training pictures as the transformer takes them.

    Args:
        memory: of the training pictures, in their order.
        neighbors: of each side.
        codes: (passes, N, M, h, w) of the training pictures.
        flips: whether the second half of the passes are mirrored.
        settings: how examples are dropped.
        captions: reads captions.
    """

    def __init__(
        self,
        memory: ExampleMemory,
        neighbors: Mapping[str, Neighbors],
        codes: Codes,
        settings: RetrievalSettings,
        captions: CaptionReader,
        *,
        flips: bool = False,
    ) -> None:
        self.memory = memory
        self._neighbors, self._codes, self._settings = neighbors, codes, settings
        self._captions = captions
        self._flips = flips

    def draw(
        self,
        indices: npt.NDArray[np.int64],
        choices: Sequence[int],
        passes: npt.NDArray[np.int64],
        keeps_prompt: npt.NDArray[np.bool_],
        rngs: Sequence[np.random.Generator],
    ) -> Examples:
        """Draws the examples of training pictures.

        Args:
            indices: (B,) pictures.
            choices: which of its captions each is learned with.
            passes: (B,) of their codes: a mirrored picture looks at mirrored examples.
            keeps_prompt: (B,) False where the prompt is dropped, and half of the examples with it.
            rngs: draw them, one for each picture.
        """
        found = self._neighbors["train"].draw(indices, choices, self.memory.example_of, rngs)
        chances = np.stack([rng.random(2 + found.shape[1]) for rng in rngs])
        is_dropped = chances[:, 0] < self._settings.dropout
        # Without the prompt half of them stay: guidance may move away from either.
        is_dropped |= ~keeps_prompt & (chances[:, 1] < _DROPPED_WITH_PROMPT)
        found[is_dropped] = -1
        hidden = chances[:, 2:] < self._settings.caption_dropout
        num_passes = len(self._codes)
        is_mirrored = find_mirrored(passes, num_passes, flips=self._flips)
        mirrored = np.where(is_mirrored, num_passes // 2, 0)
        return self._read(found, mirrored, hidden)

    def read_best(
        self, side: str, indices: npt.NDArray[np.int64], choices: Sequence[int]
    ) -> Examples:
        """Reads the best examples of pictures of a side, as painting has them."""
        found = self._neighbors[side].draw(indices, choices, self.memory.example_of)
        return self._read(found, np.zeros(len(found), np.int64), np.zeros(found.shape, np.bool_))

    def _read(
        self,
        found: npt.NDArray[np.int32],
        passes: npt.NDArray[np.int64],
        hidden: npt.NDArray[np.bool_],
    ) -> Examples:
        """Reads the codes and captions of examples (B, k), found by caption."""
        examples = self.memory.example_of[np.maximum(found, 0)]
        codes = self._codes[passes[:, None], examples]  # (B, k, M, h, w)
        codes = codes.reshape(*codes.shape[:3], -1).swapaxes(2, 3).astype(np.int64)
        codes[found < 0] = -1
        texts = [
            "" if is_hidden or caption < 0 else self.memory.by_caption(caption).caption
            for caption, is_hidden in zip(found.ravel().tolist(), hidden.ravel(), strict=True)
        ]
        text = self._captions.encode_training(texts).text_tokens
        return Examples(torch.from_numpy(codes), text.view(*found.shape, *text.shape[1:]))


def prepare_examples(
    data: Mapping[str, CaptionedImages],
    codes: Codes,
    tokenizer: VQAutoencoder,
    captions: CaptionReader,
    settings: RetrievalSettings,
    folder: Path,
    *,
    sources: Sequence[str],
    flips: bool = False,
    progress: Progress = lambda done, total: None,
) -> ExampleReader:
    """Makes the memory of a run, and finds what every picture looks at, where it is not there yet.

    Args:
        data: images of each side.
        codes: (passes, N, M, h, w) of the training images.
        tokenizer: the codes are of.
        captions: reads captions.
        settings: `neighbors` is a number.
        folder: of the run's examples.
        sources: of the images, as the user wrote them.
        flips: whether the second half of the passes are mirrored.
        progress: told the pictures of each side.

    Raises:
        CheckpointError: a file cannot be written.
    """
    memory = prepare_memory(data["train"], codes, tokenizer, folder / record.MEMORY_FOLDER, sources)
    copies = NearCopies(memory, tokenizer.codebook.detach().cpu().numpy())
    neighbors = {
        side: find_neighbors(
            images,
            memory,
            folder / f"{side}.npy",
            count=int(settings.neighbors),
            candidates=settings.candidates,
            copies=copies if side == "train" else None,
            progress=progress,
        )
        for side, images in data.items()
    }
    return ExampleReader(memory, neighbors, codes, settings, captions, flips=flips)


def prepare_memory(
    images: CaptionedImages,
    codes: Codes,
    tokenizer: VQAutoencoder,
    folder: Path,
    sources: Sequence[str],
) -> ExampleMemory:
    """Makes a memory of the training pictures, unless it is there already.

    Args:
        images: the training side.
        codes: (passes, N, M, h, w), of which the first has the pictures as they are.
        tokenizer: the codes are of.
        folder: of the memory.
        sources: of the images, as the user wrote them.

    Raises:
        CheckpointError: it cannot be written.
    """
    made_from = {"images": images.fingerprint, "tokenizer": tokenizer.hash_encoder()}
    note = folder / _MADE_FROM
    try:
        if json.loads(note.read_bytes()) == made_from and (memory := ExampleMemory.open(folder)):
            return memory
    except (OSError, ValueError, CheckpointError):
        pass  # without a readable note the folder is not to be trusted; what is damaged is remade
    names = (images.name(index) for index in range(len(images)))
    rows = [
        ExampleRow(name, images.captions(index))
        for index, name in enumerate(shorten_names(names, sources))
    ]
    memory = ExampleMemory.build(codes[0], rows, made_from["tokenizer"])
    with new_folder(folder, what="the examples") as building:
        memory.write(building)
        write_json(building / _MADE_FROM, made_from)
    return ExampleMemory.open(folder) or memory


def find_neighbors(
    images: CaptionedImages,
    memory: ExampleMemory,
    path: Path,
    *,
    count: int,
    candidates: int,
    copies: NearCopies | None,
    progress: Progress = lambda done, total: None,
) -> Neighbors:
    """Finds the examples of every caption into a file, unless it is there already.

    Args:
        images: one side of the data.
        memory: where to look.
        path: the `.npy` file; a `.json` beside it notes what it was made from.
        count: examples of a caption (k).
        candidates: that each is drawn from (m).
        copies: the images are those of the memory, in its order: they must not find themselves.
            None where they are others.
        progress: told the pictures.

    Raises:
        CheckpointError: the file cannot be written.
    """
    counts = np.array([len(images.captions(index)) for index in range(len(images))], np.int64)
    starts = np.cumsum(counts) - counts

    def fill(found: npt.NDArray[np.int32]) -> None:
        for index, start in enumerate(starts.tolist()):
            own = None if copies is None else functools.partial(copies.find, index)
            for number, caption in enumerate(images.captions(index)):
                found[start + number] = memory.look_up(
                    caption, count, alternatives=candidates, find_excluded=own
                )
            progress(index + 1, len(images))

    made_from = {
        "images": images.fingerprint,
        "memory": {"tokenizer": memory.tokenizer, "index": _hash_index(memory)},
        "neighbors": {"count": count, "candidates": candidates, "own": copies is not None},
    }
    shape = (int(counts.sum()), count, candidates)
    what = "the neighbours of the images"
    return Neighbors(cached_array(path, made_from, np.int32, shape, fill, what=what), starts)


def _hash_index(memory: ExampleMemory) -> str:
    """Hashes all that looking up reads: 64 hexadecimal digits."""
    index = memory.index
    digest = hashlib.sha256("\n".join(index.words).encode())
    for array in (memory.example_of, index.offsets, index.captions, index.scores):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
