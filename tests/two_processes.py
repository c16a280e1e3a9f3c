"""Two threads that play the two processes of a distributed run; `test_ranks.py` has real ones."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor


class TwoProcesses:
    """Two threads that talk as two processes of a distributed run would."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=30)
        self._given: dict[int, Tensor] = {}
        self._rank = threading.local()

    def _exchange(self, tensor: Tensor) -> dict[int, Tensor]:
        self._given[self._rank.value] = tensor.clone()
        self._barrier.wait()
        given = dict(self._given)
        self._barrier.wait()
        return given

    def all_reduce(self, tensor: Tensor) -> None:
        given = self._exchange(tensor)
        tensor.copy_(given[0] + given[1])

    def run(self, work: Callable[[int], None]) -> None:
        faults: list[BaseException] = []

        def start(rank: int) -> None:
            self._rank.value = rank
            try:
                work(rank)
            except BaseException as error:  # noqa: BLE001 - told to the test below
                faults.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if faults:
            raise faults[0]


def connect(patch: pytest.MonkeyPatch) -> TwoProcesses:
    """Lets torch find two processes until the patch is undone."""
    two = TwoProcesses()
    patch.setattr(torch.distributed, "is_initialized", lambda: True)
    patch.setattr(torch.distributed, "get_world_size", lambda: 2)
    patch.setattr(torch.distributed, "all_reduce", two.all_reduce)
    return two
