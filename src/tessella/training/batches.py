"""Batches for the training loop: this process's part, read one batch ahead of the training."""

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from torch import Tensor

from tessella.training.schedule import ImageOrder


class BatchSource(Protocol):
    """Training images that can be read by index; every `Stage` is one."""

    num_images: int

    def load_batch(
        self, indices: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Reads images on the CPU; `rng` is for what is drawn afresh."""


def load_batches(
    source: BatchSource,
    images_seen: int,
    local_batch_size: int,
    seed: int,
    accelerator: Accelerator,
) -> Generator[list[Tensor]]:
    """Yields batch after batch on the device, while a thread reads the next one.

    Args:
        source: what to read.
        images_seen: where to start.
        local_batch_size: images of a batch that each process takes.
        seed: of the order and of what is drawn, with the process and the images seen.
        accelerator: says which process this is, and its device.
    """
    rank, order = accelerator.process_index, ImageOrder(source.num_images, seed)

    def load(images_seen: int) -> tuple[Tensor, ...]:
        indices = order.indices(images_seen + rank * local_batch_size, local_batch_size)
        return source.load_batch(indices, np.random.default_rng([seed, rank, images_seen]))

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(load, images_seen)
        while True:
            batch = [tensor.to(accelerator.device) for tensor in upcoming.result()]
            images_seen += local_batch_size * accelerator.num_processes
            upcoming = thread.submit(load, images_seen)
            yield batch
