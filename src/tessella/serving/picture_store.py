"""Pictures that are answered as URLs."""

import secrets
import time
from collections import OrderedDict

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_MAX_BYTES = 64 * 2**20
_MAX_SECONDS = 3600.0


class PictureStore:
    """Holds pictures for an hour at most, each under an address that cannot be guessed."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, tuple[float, bytes, str]] = OrderedDict()
        self._size = 0

    def add(self, content: bytes, output_format: str) -> str:
        """Stores a file and returns the name to fetch it by."""
        name = f"{secrets.token_urlsafe(24)}.{output_format}"
        self._pictures[name] = (time.monotonic(), content, MEDIA_TYPES[output_format])
        self._size += len(content)
        while self._size > _MAX_BYTES and len(self._pictures) > 1:
            self._remove_oldest()
        return name

    def find(self, name: str) -> tuple[bytes, str] | None:
        """Returns a file and its media type; None once it has expired, or if it never was."""
        oldest = time.monotonic() - _MAX_SECONDS
        while self._pictures and next(iter(self._pictures.values()))[0] < oldest:
            self._remove_oldest()
        picture = self._pictures.get(name)
        return picture[1:] if picture else None

    def _remove_oldest(self) -> None:
        _, (_, content, _) = self._pictures.popitem(last=False)
        self._size -= len(content)
