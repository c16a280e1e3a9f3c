"""What several processes agree on, with threads for processes."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessella.errors import CheckpointError, ConfigError
from tessella.training import processes
from tessella.training.processes import (
    Agreement,
    Due,
    any_process,
    keep_gradient_strides,
    local_batch_size,
    require_same_start,
)


class Processes:
    """Accelerators of several processes that reach each other."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reductions = 0
        self._barrier = threading.Barrier(count, timeout=30)
        self._tensors: dict[int, Tensor] = {}

    def accelerator(self, rank: int) -> Any:
        def reduce(tensor: Tensor, reduction: str) -> Tensor:
            assert reduction == "sum"
            self._tensors[rank] = tensor
            self._barrier.wait()
            total = torch.stack([self._tensors[r] for r in range(self.count)]).sum(0)
            self.reductions += rank == 0
            self._barrier.wait()
            return total

        return SimpleNamespace(
            num_processes=self.count,
            is_main_process=rank == 0,
            device=torch.device("cpu"),
            reduce=reduce,
        )

    def run(self, work: Callable[[int, Any], Any]) -> list[Any]:
        results: dict[int, Any] = {}

        def start(rank: int) -> None:
            results[rank] = work(rank, self.accelerator(rank))

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [results[rank] for rank in range(self.count)]


class Clock:
    """Stands still until a step moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return self.seconds


def test_a_batch_is_divided_evenly() -> None:
    assert local_batch_size(64, 4) == 16
    with pytest.raises(ConfigError, match=r"`64` over 3\. .*batch_size to 66"):
        local_batch_size(64, 3)


@pytest.mark.parametrize(("values", "expected"), [((0, 0), False), ((0, 1), True), ((1, 1), True)])
def test_any_of_two(values: tuple[int, int], expected: bool) -> None:
    two = Processes(2)
    assert two.run(lambda rank, a: any_process(bool(values[rank]), a)) == [expected] * 2


@pytest.mark.parametrize("value", [False, True])
def test_one_process_asks_nobody(value: bool) -> None:
    accelerator: Any = SimpleNamespace(num_processes=1, is_main_process=True)
    agreement, due = Agreement(accelerator), Due(stop=value, log=not value)
    assert [agreement.settle(due) for _ in range(3)] == [due] * 3
    assert any_process(value, accelerator) is value


@pytest.mark.parametrize(("step_seconds", "most_late"), [(0.01, 1.0), (0.3, 1.0), (4.0, 4.0)])
def test_all_leave_after_the_same_step_soon_after_one_was_asked(
    step_seconds: float, most_late: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process may be asked at any step; clocks that run apart must not part them."""
    asked_after = 321
    three, clocks = Processes(3), threading.local()
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clocks.now))

    def work(rank: int, accelerator: Any) -> int:
        clocks.now = 1000.0 * rank
        agreement = Agreement(accelerator)
        for step in range(1, 10_000):
            clocks.now += step_seconds * (1 + 0.5 * rank)
            if agreement.settle(Due(stop=rank == 1 and step >= asked_after)).stop:
                return step
        return 0

    first, *others = three.run(work)
    assert others == [first, first]
    assert first >= asked_after
    assert (first - asked_after) * step_seconds <= most_late
    # About twice a second, not at every step.
    assert three.reductions <= 3 + first * max(step_seconds / 0.4, 0.02) or step_seconds > 0.25


def test_a_pause_does_not_make_them_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation between two questions makes steps look slow: the next question comes soon."""
    one_of_two, clocks = Processes(2), threading.local()
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clocks.now))

    def work(rank: int, accelerator: Any) -> int:
        clocks.now = 0.0
        agreement = Agreement(accelerator)
        for step in range(1, 1000):
            clocks.now += 60.0 if step == 100 else 0.01
            if agreement.settle(Due(stop=rank == 0 and step >= 200)).stop:
                return step
        return 0

    first, second = one_of_two.run(work)
    assert first == second
    assert 200 <= first <= 300


def test_the_first_process_decides_when_to_log_and_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their clocks differ, and all have to add up their metrics, and save, after the same step."""
    two, clocks = Processes(2), threading.local()
    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=lambda: clocks.now))

    def work(rank: int, accelerator: Any) -> list[Due]:
        clocks.now = 0.0
        agreement, settled = Agreement(accelerator), []
        for step in range(40):
            clocks.now += 1.0
            own = Due(save=step == 20 + rank, log=step % 10 == rank)
            settled.append(agreement.settle(own))
        return settled

    first, second = two.run(work)
    assert first == second
    assert [step for step, due in enumerate(first) if due.log] == [0, 10, 20, 30]
    assert [step for step, due in enumerate(first) if due.save] == [20]


def test_gradients_have_the_strides_of_their_weights() -> None:
    """Torch warns of a stride that differs, even along a side of 1, where it means nothing."""
    weight = nn.Parameter(torch.ones(4, 1, 3))
    keep_gradient_strides(nn.ParameterList([weight]))
    gradient = torch.arange(12.0).view(4, 1, 3).as_strided((4, 1, 3), (3, 1, 1))
    torch.autograd.backward([weight.clone()], [gradient])
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride() != gradient.stride()
    assert torch.equal(weight.grad, gradient)


def test_hosts_that_do_not_see_the_same_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Processes(2).accelerator(0)
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, 64])
    require_same_start(64, two)
    with pytest.raises(CheckpointError, match=r"`\[0, 64\]`\. Give all hosts the same --out"):
        require_same_start(0, two)
