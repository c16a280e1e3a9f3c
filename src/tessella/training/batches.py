"""Batches for the training loop: this process's part, read one batch ahead of the training."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from torch import Tensor

from tessella.training.schedule import ImageOrder

Batch = tuple[Tensor, ...]
LoadBatch = Callable[[npt.NDArray[np.int64], np.random.Generator], Batch]


def load_batches(
    load_batch: LoadBatch,
    order: ImageOrder,
    images_seen: int,
    local_batch_size: int,
    seed: int,
    accelerator: Accelerator,
) -> Generator[list[Tensor]]:
    """Yields batch after batch on the device, while a thread reads the next one.

    Args:
        load_batch: reads images by index, on the CPU; draws from the generator. What it draws
            follows from the seed, the process and the images seen alone.
        order: of the images.
        images_seen: where to start.
        local_batch_size: images of a batch that each process takes.
        seed: of the draws.
        accelerator: says which process this is, and its device.
    """
    rank = accelerator.process_index

    def load(images_seen: int) -> Batch:
        indices = order.indices(images_seen + rank * local_batch_size, local_batch_size)
        return load_batch(indices, np.random.default_rng([seed, rank, images_seen]))

    with ThreadPoolExecutor(max_workers=1) as thread:
        upcoming = thread.submit(load, images_seen)
        while True:
            batch = [tensor.to(accelerator.device) for tensor in upcoming.result()]
            images_seen += local_batch_size * accelerator.num_processes
            upcoming = thread.submit(load, images_seen)
            yield batch
