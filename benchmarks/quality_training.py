"""How the peers of `quality_per_minute.py` train: for processor seconds, on what ours learns from.

Why: minutes are only comparable if they are counted alike. A clock on the wall counts what other
programs take; this counts the seconds that the process itself was given, of one thread.

Theory: a stage ends when its seconds are spent, whatever its steps. The learning rate is a function
of the seconds spent, in the shape that ours has (up over the first images, level, down to 0 over
the last 40 %), and the weights are averaged as ours are: peers get everything but our networks,
objectives and Muon. Captions are drawn, and dropped, as stage 2 of ours draws them.

Output contract: none; `quality_per_minute.py` prints and stores the results.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tessella.data.cache import CaptionedImages
from tessella.files import read_tensors, write_json, write_tensors
from tessella.images import to_float
from tessella.precision import Precision
from tessella.text import TextTokenizer
from tessella.training.ema import create_average, update_average
from tessella.training.precision import autocast
from tessella.training.schedule import (
    create_image_generators,
    learning_rate_multiplier,
    order_images,
)

N = TypeVar("N", bound=nn.Module)
CPU = torch.device("cpu")

# The schedule and the average of `TrainingSettings`.
DECAY_FRACTION = 0.4
WARMUP_FRACTION = 0.02
HALF_LIFE_IMAGES = 5_000
_PARTS = 1_000_000  # of a stage, by which its progress is told

CAPTION_DROPOUT = 0.1
FIRST_CAPTION_FRACTION = 0.75  # prompts are labels, not keywords: configs/stickers.toml
MAX_TEXT_TOKENS = 24
_BATCH = 50


@dataclass(frozen=True)
class Optimizer:
    """AdamW as a peer has published it, at a rate for its smaller size."""

    learning_rate: float
    batch_size: int
    beta2: float = 0.95
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0


@dataclass(frozen=True)
class Training:
    """What one stage did."""

    images: int  # seen, repetitions included
    steps: int
    seconds: float  # of the processor
    loss: float  # mean of the last tenth of the steps


@dataclass(frozen=True)
class Material:
    """Captioned pictures, and their captions as tokens of tessella's own tokenizer."""

    images: CaptionedImages
    text: TextTokenizer
    seed: int

    def order(self, start: int, count: int) -> np.ndarray:
        """Returns which pictures the `start`-th and the next ones of a stage are."""
        return order_images(len(self.images), self.seed, start, count)

    def draw_captions(self, indices: np.ndarray, start: int) -> list[str]:
        """Draws a caption of each picture, or none, for guidance."""
        rngs = create_image_generators(self.seed, start, len(indices))
        captions = []
        for index, rng in zip(indices.tolist(), rngs, strict=True):
            texts = self.images.captions(index)
            is_first = rng.random() < FIRST_CAPTION_FRACTION
            choice = 0 if is_first else int(rng.integers(len(texts)))
            captions.append("" if rng.random() < CAPTION_DROPOUT else texts[choice])
        return captions

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Turns captions into tokens (B, T) of one length, cut or padded before the end token.

        So codes follow a token that always means the same.
        """
        tokens = torch.full((len(captions), MAX_TEXT_TOKENS), self.text.pad_id)
        tokens[:, -1] = self.text.end_id
        for number, row in enumerate(self.text.cut(captions).rows):
            words = torch.tensor(row[:-1])[: MAX_TEXT_TOKENS - 1]
            tokens[number, : len(words)] = words
        return tokens

    def read(self, indices: np.ndarray) -> Tensor:
        """Reads pictures (B, 3, H, W) in [-1, 1]."""
        return to_float(self.images.pixels(indices))


def learn(
    network: N,
    compute_loss: Callable[[N, int, float], Tensor],
    optimizer: Optimizer,
    *,
    seconds: float,
    precision: Precision,
    seed: int,
) -> tuple[N, Training]:
    """Trains a network until its seconds are spent; returns its average.

    Args:
        network: learns.
        compute_loss: of the network, the images seen before, and the progress in [0, 1).
        optimizer: rates and batch size.
        seconds: of the processor; at least one step is done.
        precision: of the forward pass.
        seed: of what the loss draws.
    """
    torch.manual_seed(seed)
    network.train()
    average = create_average(network)
    adamw = torch.optim.AdamW(
        network.parameters(),
        lr=optimizer.learning_rate,
        betas=(0.9, optimizer.beta2),
        weight_decay=optimizer.weight_decay,
    )
    losses: list[float] = []
    began, images_seen, spent = time.process_time(), 0, 0.0
    while spent < seconds or not losses:
        progress = spent / seconds if losses else 0.0
        multiplier = learning_rate_multiplier(
            int(_PARTS * progress), _PARTS, int(_PARTS * WARMUP_FRACTION), DECAY_FRACTION
        )
        for group in adamw.param_groups:
            group["lr"] = optimizer.learning_rate * multiplier
        with autocast(CPU, precision):
            loss = compute_loss(network, images_seen, progress)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), optimizer.max_gradient_norm)
        adamw.step()
        adamw.zero_grad()
        images_seen += optimizer.batch_size
        losses.append(float(loss.detach()))
        update_average(
            average,
            network,
            half_life_images=HALF_LIFE_IMAGES,
            images_seen=images_seen,
            step_images=optimizer.batch_size,
        )
        spent = time.process_time() - began
    last = losses[-max(1, len(losses) // 10) :]
    return average, Training(images_seen, len(losses), spent, float(np.mean(last)))


def learn_once(
    path: Path, network: N, train: Callable[[N], tuple[N, Training]]
) -> tuple[N, Training]:
    """Trains a stage, or reads what an earlier call has trained; in eval mode, without gradients.

    Args:
        path: of its weights; beside it lies what the training did.
        network: of that size.
        train: returns the trained network.
    """
    note = path.with_suffix(".json")
    if note.exists():
        network.load_state_dict(read_tensors(path))
        training = Training(**json.loads(note.read_text(encoding="utf-8")))
    else:
        network, training = train(network)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, network.state_dict())
        write_json(note, vars(training))
    return network.eval().requires_grad_(False), training


def in_batches(make: Callable[[Any], Tensor], rows: Any) -> Tensor:
    """Makes something of rows, some at a time."""
    return torch.cat([make(rows[n : n + _BATCH]) for n in range(0, len(rows), _BATCH)])


def count_parameters(*networks: nn.Module | None) -> int:
    """Counts the weights of networks."""
    return sum(p.numel() for network in networks if network for p in network.parameters())
