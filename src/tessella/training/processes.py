"""What the processes of a distributed run have to agree on: batches, buffers, when to stop."""

import time

import torch
import torch.distributed
from accelerate import Accelerator
from torch import nn

from tessella.errors import ConfigError
from tessella.training.interrupt import StopRequest

_SECONDS_BETWEEN_QUESTIONS = 0.5


def local_batch_size(batch_size: int, num_processes: int) -> int:
    """Returns how many images of a batch one process takes.

    Raises:
        ConfigError: the batch cannot be divided evenly.
    """
    if batch_size % num_processes:
        raise ConfigError(
            f"The batch size must be a multiple of the number of processes: `{batch_size}` over "
            f"{num_processes}. Set"
            f" …_training.batch_size to {num_processes * (batch_size // num_processes + 1)}."
        )
    return batch_size // num_processes


def any_process(value: bool, accelerator: Accelerator) -> bool:
    """Returns whether the value is true in any process; every process must call it."""
    return bool(_sum([float(value)], accelerator)[0])


def broadcast_buffers(network: nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the first one's buffers, such as the running statistics of its images."""
    if accelerator.num_processes > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)


class StopAgreement:
    """Agrees with the other processes on stopping: all must leave after the same step.

    To ask is to wait for the device, so they ask each other about twice a second, not at every
    step. The first process's clock decides in how many steps they ask again. A single process has
    nobody to ask and stops at once.

    Args:
        request: whether this process was asked to stop.
        accelerator: reaches the other processes.
    """

    def __init__(self, request: StopRequest, accelerator: Accelerator) -> None:
        self._request = request
        self._accelerator = accelerator
        self._steps = self._steps_left = 1
        self._asked_at = time.monotonic()

    def is_reached(self) -> bool:
        """Whether all stop here; every process must call it after every step."""
        if self._accelerator.num_processes == 1:
            return self._request.is_set
        self._steps_left -= 1
        return self._steps_left == 0 and self.ask()

    def ask(self) -> bool:
        """Asks all processes now; every one must call it."""
        now = time.monotonic()
        pace = self._steps / max(now - self._asked_at, 1e-6)  # steps a second
        next_steps = max(1, int(_SECONDS_BETWEEN_QUESTIONS * pace))
        is_first = self._accelerator.is_main_process
        # The other processes add 0 to the first one's number, so that all get exactly that.
        stops, steps = _sum(
            [float(self._request.is_set), float(next_steps if is_first else 0)], self._accelerator
        )
        self._steps = self._steps_left = int(steps)
        self._asked_at = time.monotonic()
        return bool(stops)


def _sum(values: list[float], accelerator: Accelerator) -> list[float]:
    """Adds up each value over all processes; waits for the device if there are several."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, device=accelerator.device)
    sums: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return sums
