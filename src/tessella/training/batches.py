"""Batches for the training loop: each process's part, read one batch ahead of the training."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from accelerate import Accelerator
from torch import Tensor

from tessella.training.processes import local_batch_size
from tessella.training.schedule import ImageOrder

LoadBatch = Callable[[npt.NDArray[np.int64], np.random.Generator], tuple[Tensor, ...]]


class BatchLoader:
    """Loads batches that follow from the seed, the process and the images seen alone.

    Args:
        load_batch: reads images by index, on the CPU; draws from the generator.
        num_images: images to train on.
        batch_size: images per step, over all processes.
        seed: of the order and the draws.
        accelerator: says which process this is, and its device.

    Raises:
        ConfigError: the batch cannot be divided evenly among the processes.
    """

    def __init__(
        self,
        load_batch: LoadBatch,
        num_images: int,
        batch_size: int,
        seed: int,
        accelerator: Accelerator,
    ) -> None:
        self._local_batch_size = local_batch_size(batch_size, accelerator.num_processes)
        self._load_batch, self._batch_size, self._seed = load_batch, batch_size, seed
        self._rank, self._device = accelerator.process_index, accelerator.device
        self._order = ImageOrder(num_images, seed)

    def load_from(self, images_seen: int) -> Generator[list[Tensor]]:
        """Yields batch after batch on the device, while a thread reads the next one."""
        with ThreadPoolExecutor(max_workers=1) as thread:
            upcoming = thread.submit(self._load, images_seen)
            while True:
                batch = [tensor.to(self._device) for tensor in upcoming.result()]
                images_seen += self._batch_size
                upcoming = thread.submit(self._load, images_seen)
                yield batch

    def _load(self, images_seen: int) -> tuple[Tensor, ...]:
        start = images_seen + self._rank * self._local_batch_size
        indices = self._order.indices(start, self._local_batch_size)
        return self._load_batch(
            indices, np.random.default_rng([self._seed, self._rank, images_seen])
        )
