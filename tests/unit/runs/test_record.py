"""Who trains in a run, and what a reader notices of a run that grows."""

from pathlib import Path

import filelock
import pytest
from filelock import FileLock

from tessella.runs.record import LOCK_FILE, RUN_FILE, RunRecord, is_running


def test_a_run_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    with FileLock(tmp_path / LOCK_FILE):
        assert is_running(tmp_path) is True
    assert is_running(tmp_path) is False
    # The look itself has let go again.
    FileLock(tmp_path / LOCK_FILE).acquire(blocking=False).lock.release()


# A look at a folder once could not be told from a training that prepares its data there.
def test_a_look_leaves_nothing_in_a_folder(tmp_path: Path) -> None:
    assert is_running(tmp_path) is False
    assert is_running(tmp_path / "missing") is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [13, 30, 38])
def test_without_a_way_to_lock_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A file of another user, a read-only file system, one without locks."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, "refused")

    (tmp_path / LOCK_FILE).touch()
    monkeypatch.setattr(filelock, "FileLock", refuse)
    assert is_running(tmp_path) is None


def test_the_stamp_changes_with_the_run(tmp_path: Path) -> None:
    reader = RunRecord(tmp_path)
    stamps = [reader.stamp()]
    for change in (
        lambda: (tmp_path / RUN_FILE).write_text("{}", encoding="utf-8"),
        lambda: (tmp_path / "tokenizer" / "samples").mkdir(parents=True),
        lambda: (tmp_path / "tokenizer" / "metrics.jsonl").write_text("{}", encoding="utf-8"),
        lambda: (tmp_path / "tokenizer" / "metrics.jsonl").write_text("{}\n", encoding="utf-8"),
        lambda: (tmp_path / "tokenizer" / "samples" / "1.png").touch(),
    ):
        assert reader.stamp() == stamps[-1]
        change()
        assert reader.stamp() not in stamps
        stamps.append(reader.stamp())
