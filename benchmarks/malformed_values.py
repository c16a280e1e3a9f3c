"""What makes good bytes and good JSON bad, for the inputs that `fuzz.py` sends.

Nothing is measured here; run by itself, this file does nothing.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Rng = random.Random

# What a parser may take for something else, as bytes and as values of JSON.
BYTES = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\x1b[2J", b"\r\n", b'"', b"\\", b"../" * 9, b"%s%n",
    b"=1+1",    b"9" * 5_000, b"[" * 9_000,
    b'{"a":' * 9_000, b"-1", b"1e999", b"NaN", b"\xe2\x80\xae", b"a" * 140_000,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**30, 1e308, float("nan"), float("inf"), "", "\ud800",
    "\0", "../../x", "/etc/passwd", "\x1b[2J", "a" * 20_000, [], {}, [[]], {"a": {}}, [None],
    "9" * 5_000,
)  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """Something that reads what others wrote."""

    draw: Callable[[Rng], bytes]  # an input
    read: Callable[[bytes, Path], object]  # reads it, in a folder of its own


def damage(whole: bytes, rng: Rng) -> bytes:
    """Flips, cuts, repeats and replaces parts of something good."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 1, 4, 30, len(data))))
        match rng.randrange(6):
            case 0 if data:
                data[min(start, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del data[start:]
            case 2:
                data[start:end] = data[start:end] * rng.choice((2, 2, 20))
            case 3:
                data[start:end] = rng.choice(BYTES)
            case 4:
                data[start:end] = rng.randbytes(end - start)
            case _:
                del data[start:end]
        del data[2_000_000:]
    return bytes(data)


def change_json(good: Any, rng: Rng) -> bytes:
    """Puts something else in the place of one or two values of a JSON document."""
    document = json.loads(json.dumps(good))
    for _ in range(rng.choice((1, 1, 2))):
        places = list(_places(document))
        if not places:
            break
        owner, key = rng.choice(places)
        if rng.random() < 0.15:
            del owner[key]
        else:
            owner[key] = rng.choice((*VALUES, rng.choice(places)[0]))
        try:
            json.dumps(document)
        except ValueError:  # it holds itself now
            return b"[" * rng.randrange(100_000)
    text = json.dumps(document, ensure_ascii=rng.random() < 0.7)
    return text.encode(errors="surrogatepass")


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    pairs: list[tuple[Any, Any]] = []
    if isinstance(document, dict):
        pairs = list(document.items())
    elif isinstance(document, list):
        pairs = list(enumerate(document[:50]))
    for key, value in pairs:
        yield document, key
        yield from _places(value)


def either(good: Any, rng: Rng) -> bytes:
    """Damages a JSON document, as values or as bytes."""
    if rng.random() < 0.6:
        return change_json(good, rng)
    return damage(json.dumps(good).encode(), rng)


def write(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return folder / name
