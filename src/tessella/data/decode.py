"""Decoding: a record's place becomes square pixels, here or in a decoding process.

A decoding process reads one line of JSON a batch from its standard input and answers with one
line of JSON and the raw pixels of the pictures that could be decoded:

    {"places": [[path, offset, size] | [seed, index], …], "size": S, "max_pixels": P}
    [{"digest": …, "width": …} | {"kind": …, "reason": …}, …]  then  n·S·S·3 bytes

No pickles, no torch, no settings: a process starts in a fraction of a second. It never runs the
user's own script again, as multiprocessing's `spawn` would.
"""

import contextlib
import hashlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from tessella.data.records import Place, ScenePlace
from tessella.images import ImageError, Pixels, decode_image, fit_square, open_image

DIGEST_BYTES = 16
NUM_PARAPHRASES = 4


@dataclass(frozen=True, slots=True)
class Decoded:
    """One picture that was decoded; its pixels travel beside it."""

    digest: str  # hex of the square pixels
    width: int  # as stored
    height: int
    mode: str  # Pillow's, as stored
    format: str
    captions: tuple[str, ...] = ()  # of a scene


@dataclass(frozen=True, slots=True)
class Undecoded:
    """One picture that could not be decoded."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """What became of a batch of places."""

    outcomes: list[Decoded | Undecoded]  # in the order of the places
    pixels: bytes  # (n, S, S, 3) uint8 of the n decoded ones, in that order


def decode_batch(places: Sequence[Place | ScenePlace], size: int, max_pixels: int) -> DecodedBatch:
    """Decodes a batch of pictures.

    Args:
        places: where they are.
        size: side of the squares, in pixels.
        max_pixels: larger pictures are refused.
    """
    outcomes: list[Decoded | Undecoded] = []
    squares: list[bytes] = []
    with contextlib.closing(_Files()) as files:
        for place in places:
            try:
                if isinstance(place, ScenePlace):
                    decoded, square = _draw(place, size)
                else:
                    decoded, square = _decode(files, place, size, max_pixels)
            except ImageError as error:
                outcomes.append(Undecoded(error.kind, str(error)))
                continue
            outcomes.append(decoded)
            squares.append(square)
    return DecodedBatch(outcomes, b"".join(squares))


def _decode(files: "_Files", place: Place, size: int, max_pixels: int) -> tuple[Decoded, bytes]:
    """Decodes one picture from its file or tar."""
    with open_image(files.read(place), max_pixels=max_pixels) as opened:
        width, height = opened.size
        mode, name = opened.mode, opened.format or ""
        # Twice the size leaves Lanczos enough to work with.
        square = fit_square(decode_image(opened, at_least=2 * size), size)
    content = square.tobytes()
    return Decoded(_digest(content), width, height, mode, name), content


def _draw(place: ScenePlace, size: int) -> tuple[Decoded, bytes]:
    """Draws one scene, which depends on its seed and index alone."""
    from tessella.data.scenes import canonical_caption, draw_scene, paraphrases, sample_scene

    rng = np.random.default_rng([place.seed, place.index])
    scene = sample_scene(rng)
    captions = (canonical_caption(scene), *paraphrases(scene, rng, NUM_PARAPHRASES))
    square: Pixels = draw_scene(scene, size)
    content = square.tobytes()
    return Decoded(_digest(content), size, size, "RGB", "drawn", captions), content


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


class _Files:
    """Reads places; keeps the last tar open, because its pictures follow one another."""

    def __init__(self) -> None:
        self._path = ""
        self._tar: BinaryIO | None = None

    def close(self) -> None:
        if self._tar is not None:
            self._tar.close()

    def read(self, place: Place) -> Path | bytes:
        if place.size is None:
            return Path(place.path)
        try:
            if self._tar is None or self._path != place.path:
                self.close()
                self._tar = Path(place.path).open("rb")  # noqa: SIM115
                self._path = place.path
            self._tar.seek(place.offset)
            content = self._tar.read(place.size)
        except OSError as error:
            raise ImageError(f"Cannot read the tar: {error.strerror}.", "broken") from None
        if len(content) < place.size:
            raise ImageError("The tar ends in the middle of the picture.", "broken")
        return content


def write_request(
    stream: IO[bytes], places: Sequence[Place | ScenePlace], size: int, max_pixels: int
) -> None:
    """Asks a decoding process for a batch."""
    lists = [
        [p.seed, p.index] if isinstance(p, ScenePlace) else [p.path, p.offset, p.size]
        for p in places
    ]
    request = {"places": lists, "size": size, "max_pixels": max_pixels}
    stream.write(json.dumps(request).encode() + b"\n")
    stream.flush()


def read_answer(stream: IO[bytes], size: int) -> DecodedBatch | None:
    """Reads a decoding process's answer; None if the process has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    outcomes: list[Decoded | Undecoded] = []
    for fields in json.loads(line):
        if "kind" in fields:
            outcomes.append(Undecoded(**fields))
        else:
            outcomes.append(Decoded(**fields | {"captions": tuple(fields["captions"])}))
    expected = sum(isinstance(o, Decoded) for o in outcomes) * size * size * 3
    pixels = stream.read(expected)
    return DecodedBatch(outcomes, pixels) if len(pixels) == expected else None


def serve() -> None:
    """Answers requests until the input ends: the main function of a decoding process."""
    # Ctrl-C reaches every process of the terminal; the parent decides what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        request: dict[str, Any] = json.loads(line)
        places = [ScenePlace(*p) if len(p) == 2 else Place(*p) for p in request["places"]]
        batch = decode_batch(places, request["size"], request["max_pixels"])
        try:
            target.write(json.dumps([asdict(o) for o in batch.outcomes]).encode() + b"\n")
            target.write(batch.pixels)
            target.flush()
        except BrokenPipeError:
            return
