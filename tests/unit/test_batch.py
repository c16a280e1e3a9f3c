"""What several processes draw and add up together; `tests/test_ranks.py` has real processes."""

import pytest
import torch
from torch import Tensor

from tessella import batch
from tessella.batch import average_over_batch, draw_rows, drawing, pick_rows, sum_over_batch

CPU = torch.device("cpu")


def draw(rows: int, own: torch.Generator | None) -> Tensor:
    return torch.rand(rows, 3, generator=own)


def pretend(patch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    patch.setattr(batch, "count_processes", lambda: ranks)
    patch.setattr(batch, "_rank", lambda: rank)


def test_each_process_has_its_rows_of_what_one_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    with drawing(1, CPU):
        whole = [draw_rows(4, draw), draw_rows(4, draw)]
    parts = []
    for rank in (0, 1):
        pretend(monkeypatch, rank, 2)
        torch.manual_seed(rank)  # what else it draws does not matter
        with drawing(1, CPU):
            parts.append([draw_rows(2, draw), draw_rows(2, draw)])
    for number in (0, 1):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])
    assert not torch.equal(*whole)


def test_outside_of_a_step_rows_draw_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 1, 2)
    torch.manual_seed(0)
    mine = draw_rows(4, draw)
    torch.manual_seed(0)
    assert torch.equal(mine, torch.rand(4, 3))


def test_picked_rows_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(8.0)[:, None].expand(-1, 2)
    with drawing(3, CPU):
        whole = pick_rows(rows, 5)
    assert set(whole[:, 0].tolist()) <= set(range(8))
    parts = []
    monkeypatch.setattr(batch, "sum_over_batch", lambda tensor: tensor)
    for rank, own in enumerate(rows.chunk(2)):
        pretend(monkeypatch, rank, 2)
        with drawing(3, CPU):
            parts.append(pick_rows(own, 5))
    assert torch.equal(parts[0] + parts[1], whole)


def test_one_process_has_nobody_to_add_up_with() -> None:
    assert batch.count_processes() == 1
    tensor = torch.tensor([1.0, 2.0])
    assert sum_over_batch(tensor) is tensor
    assert average_over_batch(tensor) is tensor
    assert tensor.tolist() == [1.0, 2.0]
