"""Pictures that were answered as URLs."""

import secrets
import time
from collections import OrderedDict

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

_KEPT_BYTES = 64 * 2**20
_KEPT_SECONDS = 3600.0


class KeptPictures:
    """Pictures that can be fetched by an address that cannot be guessed, for an hour at most."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, bytes, str]] = OrderedDict()
        self._size = 0

    def keep(self, content: bytes, output_format: str) -> str:
        """Keeps a file and returns the name that it can be fetched by."""
        name = f"{secrets.token_urlsafe(24)}.{output_format}"
        self._kept[name] = (time.monotonic(), content, MEDIA_TYPES[output_format])
        self._size += len(content)
        while self._size > _KEPT_BYTES and len(self._kept) > 1:
            self._drop()
        return name

    def find(self, name: str) -> tuple[bytes, str] | None:
        """Returns a file and its media type; None if there is none (any more)."""
        now = time.monotonic()
        while self._kept and next(iter(self._kept.values()))[0] < now - _KEPT_SECONDS:
            self._drop()
        found = self._kept.get(name)
        return found[1:] if found else None

    def _drop(self) -> None:
        _, (_, content, _) = self._kept.popitem(last=False)
        self._size -= len(content)
