"""Decoding: turns locations into square pixels, in this process or in a decoding process.

A decoding process reads one line of JSON per batch from its standard input and answers with one
line of JSON and the raw pixels of the pictures that could be decoded:

    {"locations": [[path, offset, size] | [seed, index], …], "size": S, "max_pixels": P}
    [{"digest": …, "width": …} | {"kind": …, "reason": …}, …]  then  n·S·S·3 bytes

Without pickles, torch or settings, a process starts in a fraction of a second. It never runs the
user's own script again, as multiprocessing's `spawn` would.
"""

import contextlib
import hashlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tessella.data.records import ImageLocation, Location, SceneLocation
from tessella.images import ImageError, Pixels, decode_image, fit_square, open_image

DIGEST_BYTES = 16
NUM_PARAPHRASES = 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture that was decoded; its pixels travel separately."""

    digest: str  # hex, of the square pixels
    width: int  # as stored
    height: int
    mode: str  # Pillow's, as stored
    format: str
    captions: tuple[str, ...] = ()  # of a scene


@dataclass(frozen=True, slots=True)
class Undecoded:
    """A picture that could not be decoded."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """The outcomes of a batch of locations."""

    outcomes: list[Decoded | Undecoded]  # in the order of the locations
    pixels: bytes  # (n, S, S, 3) uint8 of the n decoded ones, in that order


def decode_batch(locations: Sequence[Location], size: int, max_pixels: int) -> DecodedBatch:
    """Decodes a batch of pictures.

    Args:
        locations: of the pictures.
        size: side of the squares, in pixels.
        max_pixels: larger pictures are refused.
    """
    outcomes: list[Decoded | Undecoded] = []
    squares: list[bytes] = []
    with contextlib.closing(_Files()) as files:
        for location in locations:
            try:
                if isinstance(location, SceneLocation):
                    decoded, square = _draw(location, size)
                else:
                    decoded, square = _decode(files, location, size, max_pixels)
            except ImageError as error:
                outcomes.append(Undecoded(error.kind, str(error)))
                continue
            outcomes.append(decoded)
            squares.append(square)
    return DecodedBatch(outcomes, b"".join(squares))


def _decode(
    files: "_Files", location: ImageLocation, size: int, max_pixels: int
) -> tuple[Decoded, bytes]:
    """Decodes one picture from its file or tar."""
    with open_image(files.read(location), max_pixels=max_pixels) as opened:
        width, height = opened.size
        mode, name = opened.mode, opened.format or ""
        # Twice the size leaves Lanczos enough to work with.
        square = fit_square(decode_image(opened, at_least=2 * size), size)
    content = square.tobytes()
    return Decoded(_hash_pixels(content), width, height, mode, name), content


def _draw(location: SceneLocation, size: int) -> tuple[Decoded, bytes]:
    """Draws one scene, which depends only on its seed and index."""
    from tessella.data.scenes import canonical_caption, draw_scene, paraphrases, sample_scene

    rng = np.random.default_rng([location.seed, location.index])
    scene = sample_scene(rng)
    captions = (canonical_caption(scene), *paraphrases(scene, rng, NUM_PARAPHRASES))
    square: Pixels = draw_scene(scene, size)
    content = square.tobytes()
    return Decoded(_hash_pixels(content), size, size, "RGB", "drawn", captions), content


def _hash_pixels(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


class _Files:
    """Reads pictures; keeps the last tar open, because the next picture is usually in it too."""

    def __init__(self) -> None:
        self._path = ""
        self._tar: IO[bytes] | None = None

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    def read(self, location: ImageLocation) -> Path | bytes:
        if location.size is None:
            return Path(location.path)
        try:
            if self._tar is None or self._path != location.path:
                self.close()
                self._tar = Path(location.path).open("rb")  # noqa: SIM115
                self._path = location.path
            self._tar.seek(location.offset)
            content = self._tar.read(location.size)
        except OSError as error:
            raise ImageError(f"Cannot read the tar: {error.strerror}.", "broken") from None
        if len(content) < location.size:
            raise ImageError("The tar ends in the middle of the picture.", "broken")
        return content


def write_request(
    stream: IO[bytes], locations: Sequence[Location], size: int, max_pixels: int
) -> None:
    """Sends a batch to a decoding process."""
    request = {"locations": list(map(astuple, locations)), "size": size, "max_pixels": max_pixels}
    stream.write(json.dumps(request).encode() + b"\n")
    stream.flush()


def read_answer(stream: IO[bytes], size: int) -> DecodedBatch | None:
    """Reads a decoding process's answer; None if the process has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    outcomes = [
        Undecoded(**fields)
        if "kind" in fields
        else Decoded(**fields | {"captions": tuple(fields["captions"])})
        for fields in json.loads(line)
    ]
    num_bytes = sum(isinstance(outcome, Decoded) for outcome in outcomes) * size * size * 3
    pixels = stream.read(num_bytes)
    return DecodedBatch(outcomes, pixels) if len(pixels) == num_bytes else None


def serve() -> None:
    """Answers requests until the input ends: the main function of a decoding process."""
    # Ctrl-C reaches every process of the terminal; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        request: dict[str, Any] = json.loads(line)
        locations = [
            SceneLocation(*values) if len(values) == 2 else ImageLocation(*values)
            for values in request["locations"]
        ]
        batch = decode_batch(locations, request["size"], request["max_pixels"])
        try:
            target.write(json.dumps(list(map(asdict, batch.outcomes))).encode() + b"\n")
            target.write(batch.pixels)
            target.flush()
        except BrokenPipeError:
            return
