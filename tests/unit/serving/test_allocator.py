"""Memory that was freed goes back to the system."""

import ctypes
import os
import platform
from pathlib import Path

import pytest

from tessella.serving import allocator

BLOCK, COUNT = 100_000, 1_000  # bytes of a block, too few for glibc to map it by itself


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_what_lies_between_blocks_in_use_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    blocks = [libc.malloc(BLOCK) for _ in range(COUNT)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    for block in blocks[:-1]:  # the last holds the end of the heap
        libc.free(block)
    before = resident_bytes()
    allocator.return_freed_memory()
    given_back = before - resident_bytes()
    libc.free(blocks[-1])
    assert given_back > 0.9 * BLOCK * COUNT


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])  # musl, macOS; Windows
def test_another_allocator_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", fail)
    allocator.return_freed_memory()
