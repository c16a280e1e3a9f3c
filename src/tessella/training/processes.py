"""What the processes of a run have to agree on: batches, weights, when to log, save and stop."""

import functools
import time
from dataclasses import dataclass

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from tessella.errors import CheckpointError, ConfigError

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


def broadcast_network(network: nn.Module, accelerator: Accelerator) -> None:
    """Gives every process the first one's weights and buffers.

    They should be the same already, but processors of another kind round otherwise.
    """
    if accelerator.num_processes > 1:
        for tensor in network.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


def keep_gradient_strides(network: nn.Module) -> None:
    """Gives gradients the strides of their parameters, in which they are exchanged.

    Where a side is 1 some convolutions write another stride, which means nothing; torch warns.
    """
    for parameter in network.parameters():
        if parameter.requires_grad and 1 in parameter.shape:
            parameter.register_hook(functools.partial(_copy_layout, parameter))


def _copy_layout(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    if gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter, dtype=gradient.dtype).copy_(gradient)


def require_same_start(images_seen: int, accelerator: Accelerator) -> None:
    """Refuses processes that have found different checkpoints; every process must call it.

    Raises:
        CheckpointError: they do not see the same files.
    """
    if accelerator.num_processes == 1:
        return
    everyone = gather_object([images_seen])
    if len(set(everyone)) > 1:
        raise CheckpointError(
            "The processes have found different checkpoints, of these numbers of images: "
            f"`{everyone}`. Give all hosts the same --out, on a file system that they share."
        )


@dataclass(frozen=True)
class Due:
    """What is due after a step."""

    stop: bool = False  # asked to, by a signal
    save: bool = False  # the last checkpoint is old
    log: bool = False  # the last line of the log is


class Agreement:
    """Agrees with the other processes on what is due: all must do it after the same step.

    To ask is to wait for the device, so they ask each other about twice a second, not at every
    step. The first process's clock decides in how many steps they ask again, and what is to be
    logged and saved; any process may be the one that was asked to stop. A single process has nobody
    to ask.

    Args:
        accelerator: reaches the other processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._steps = self._steps_left = 1
        self._asked_at = time.monotonic()

    def settle(self, due: Due) -> Due:
        """Says what all do now; every process must call it after every step with its own view."""
        if self._accelerator.num_processes == 1:
            return due
        self._steps_left -= 1
        return self.ask(due) if self._steps_left == 0 else Due()

    def ask(self, due: Due) -> Due:
        """Asks all processes now; every one must call it."""
        now = time.monotonic()
        pace = self._steps / max(now - self._asked_at, 1e-6)  # steps a second
        next_steps = max(1, int(_SECONDS_BETWEEN_QUESTIONS * pace))
        # The other processes add 0 to the first one's numbers, so that all get exactly those.
        is_first = self._accelerator.is_main_process
        of_first = [float(is_first and value) for value in (next_steps, due.save, due.log)]
        stop, steps, save, log = _sum([float(due.stop), *of_first], self._accelerator)
        self._steps = self._steps_left = int(steps)
        self._asked_at = time.monotonic()
        return Due(bool(stop), bool(save), bool(log))


def _sum(values: list[float], accelerator: Accelerator) -> list[float]:
    """Adds up each value over all processes; waits for the device if there are several."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, device=accelerator.device)
    sums: list[float] = accelerator.reduce(tensor, reduction="sum").tolist()
    return sums
