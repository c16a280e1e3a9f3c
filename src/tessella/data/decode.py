"""Decoding: turns records into square pixels, in several threads and in order.

    Record, Skipped, … ─▶ threads ─▶ Decoded, Skipped, …

Pillow decodes and resizes without Python's lock, so threads keep several cores busy. The order of
the results is the order of the records, whatever the number of threads.
"""

import hashlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessella.data.records import ImageLocation, Record, SceneLocation, Skipped, StoredImage
from tessella.data.scenes.sets import SCENE_SETS
from tessella.data.settings import DataSettings
from tessella.images import (
    ImageError,
    Pixels,
    decode_image,
    fit_square,
    ignores_profile,
    open_image,
)

DIGEST_BYTES = 16
NUM_PARAPHRASES = 4
# Of results that wait for an earlier one: enough to keep the threads busy, not the memory.
_MAX_WAITING = 64
_MAX_WAITING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture that was decoded."""

    record: Record
    captions: tuple[str, ...]  # at least one
    pixels: bytes  # (S, S, 3) uint8
    digest: bytes  # of the pixels
    width: int  # as stored
    height: int
    mode: str  # Pillow's, as stored
    format: str
    ignores_profile: bool = False  # its colour profile is broken: it counts as sRGB


def decode_records(
    records: Iterable[Record | Skipped], settings: DataSettings
) -> Generator[Decoded | Skipped, None, None]:
    """Decodes records.

    Close the generator to stop early: it then waits only for the pictures that are being decoded.

    Args:
        records: read only a few pictures ahead.
        settings: size, limits and number of threads.

    Yields:
        A picture, or why it is skipped, for each record in its order.
    """
    bytes_per_picture = settings.image_size**2 * 3
    most = settings.num_workers + min(_MAX_WAITING, _MAX_WAITING_BYTES // bytes_per_picture)
    waiting: deque[Future[Decoded | Skipped]] = deque()
    threads = ThreadPoolExecutor(settings.num_workers, thread_name_prefix="tessella-decode")
    try:
        for record in records:
            waiting.append(threads.submit(_decode, record, settings))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _decode(record: Record | Skipped, settings: DataSettings) -> Decoded | Skipped:
    """Decodes or draws one picture."""
    if isinstance(record, Skipped):
        return record
    if isinstance(record.location, SceneLocation):
        return _draw(record, record.location, settings.image_size)
    size = settings.image_size
    try:
        location = record.location
        content: Path | bytes
        if isinstance(location, ImageLocation) and location.size is None:
            content = Path(location.path)  # its decoder reads as far as it needs
        else:
            content = read_bytes(location)
        with open_image(
            content,
            max_pixels=settings.max_image_pixels,
            setting="data.max_image_pixels",
            fit_size=size,
        ) as opened:
            (width, height), mode, name = opened.size, opened.file.mode, opened.format
            square = fit_square(decode_image(opened), size)
            is_ignored = ignores_profile(opened.file)
    except ImageError as error:
        return Skipped(record.name, str(error), error.kind)
    pixels = square.tobytes()
    return Decoded(
        record, record.captions, pixels, _hash(pixels), width, height, mode, name, is_ignored
    )


def _draw(record: Record, location: SceneLocation, size: int) -> Decoded:
    """Draws one scene, which depends only on its seed and index."""
    scenes = SCENE_SETS[location.set_name]
    rng = np.random.default_rng([location.seed, location.index])
    scene = scenes.sample(rng, False)
    captions = (scenes.caption(scene), *scenes.paraphrase(scene, rng, NUM_PARAPHRASES))
    square: Pixels = scenes.draw(scene, size)
    pixels = square.tobytes()
    return Decoded(record, captions, pixels, _hash(pixels), size, size, "RGB", "drawn")


def _hash(pixels: bytes) -> bytes:
    return hashlib.blake2b(pixels, digest_size=DIGEST_BYTES).digest()


def read_bytes(location: ImageLocation | StoredImage) -> bytes:
    """Reads a picture's file out of the file that holds it.

    Raises:
        ImageError: it cannot be read.
    """
    if not isinstance(location, ImageLocation):
        return location.read()
    try:
        with Path(location.path).open("rb") as tar:
            tar.seek(location.offset)
            content = tar.read() if location.size is None else tar.read(location.size)
    except OSError as error:
        raise ImageError(f"Cannot read the tar: {error.strerror}.") from None
    if location.size is not None and len(content) < location.size:
        raise ImageError("The tar ends in the middle of the picture.")
    return content
