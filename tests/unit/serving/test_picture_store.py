"""Pictures by their address: for an hour, as many as fit."""

import pytest

from tessella.serving import picture_store
from tessella.serving.picture_store import PictureStore


def test_pictures_are_kept_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(picture_store.time, "monotonic", lambda: now)
    store = PictureStore()
    first = store.add(b"first", "png")
    now += 1800
    second = store.add(b"second", "jpeg")
    assert store.find(first) == (b"first", "image/png")
    assert store.find(second) == (b"second", "image/jpeg")
    now += 1801
    assert store.find(first) is None
    assert store.find(second) == (b"second", "image/jpeg")
    assert store._size == len(b"second")
    now += 1800
    assert store.find(second) is None
    assert store._size == 0
    assert store.find("") is None


def test_as_many_pictures_are_kept_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_store, "_MAX_BYTES", 100)
    store = PictureStore()
    names = [store.add(b"x" * 40, "png") for _ in range(3)]
    assert store.find(names[0]) is None
    assert all(store.find(name) for name in names[1:])
    large = store.add(b"y" * 300, "webp")
    assert store.find(large) == (b"y" * 300, "image/webp")
    assert store.find(names[2]) is None
    small = store.add(b"z", "png")
    assert store.find(large) is None
    assert store.find(small)
    assert store._size == 1


def test_names_cannot_be_guessed() -> None:
    store = PictureStore()
    names = {store.add(b"same", "png") for _ in range(100)}
    assert len(names) == 100
    assert all(len(name) == 36 for name in names)
