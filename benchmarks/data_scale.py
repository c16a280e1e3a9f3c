"""Whether reading pictures stays flat in memory and linear in time, from thousands to a million.

Why: what grows with the number of pictures is what ends a run on many. A list of Python objects,
a sort, an order of 8 bytes an image in every process are nothing at 10,000 and gigabytes at 10⁸.

Theory: a unit of some thousand pictures is held at a time, so that peak memory is that of a unit
and of the threads' pictures, plus a byte a picture for the split; each picture is decoded once. So
seconds a picture are constant, and memory grows by 1 MB from 10,000 to 1,000,000. Reading an order
shard by shard takes a list of units, no list of pictures. A second start reads a manifest and
looks at the files' dates.

Output contract: a line per size and kind of cache; the last line of stdout is the record, one JSON
object, with `seconds`, `microseconds_per_image`, `peak_mib`, `second_start_seconds`,
`one_more_shard_seconds` and `bytes_per_image` (of the cache on the disk) by kind and number of
pictures, and of the largest number over 10,000 `peak_ratio` (bar 1.2), `time_ratio` (bar 1.1) and
`cpu_time_ratio`, which other programs disturb less. Pictures are 32×32 JPEGs of a thousand drawings
in tars of 10,000. Each measurement is a fresh process.

    python benchmarks/data_scale.py --images 1000 10000 100000 1000000
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings

SIZE_PX = 32
PER_SHARD = 10_000


def main() -> None:
    """Writes the tars, measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--caches", nargs="+", default=["pixels", "codes"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the tars; 2.5 kB a picture")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)  # DATA CACHE KIND
    options = parser.parse_args()
    if options.once:
        data, cache, kind = options.once
        print(json.dumps(read_once(data, Path(cache), kind, options.workers)))
        return
    if options.quick:
        options.images = [1_000, 4_000]

    # Not at the top: it imports torch, which the measured processes do not need.
    from harness import RESULTS, environment, print_record, write_result

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for kind in options.caches:
            results[kind] = {
                str(count): measure(Path(name), count, kind, options.workers)
                for count in sorted(options.images)
            }
            results[kind]["ratios"] = compare(results[kind])
    record = write_result(
        "data-scale",
        results,
        config={"images": options.images, "workers": options.workers, "size_px": SIZE_PX},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure(folder: Path, count: int, kind: str, workers: int) -> dict[str, float]:
    """Measures a first start, a second one, and one with a shard more."""
    data, cache = folder / f"tars-{count}", folder / "cache" / kind
    if not data.exists():
        write_shards(data, count)
    first = run(data, cache, kind, workers)
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    second = run(data, cache, kind, workers)
    more = data / "more.tar"
    write_shard(more, draw(), range(count, count + PER_SHARD // 10))
    third = run(data, cache, kind, workers)
    more.unlink()
    subprocess.run(["rm", "-rf", str(cache)], check=True)
    found = {
        "seconds": first["seconds"],
        "microseconds_per_image": 1e6 * first["seconds"] / count,
        "cpu_microseconds_per_image": 1e6 * first["cpu_seconds"] / count,
        "peak_mib": first["peak_mib"],
        "second_start_seconds": second["seconds"],
        "one_more_shard_seconds": third["seconds"],
        "bytes_per_image": size / count,
    }
    numbers = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{kind}, {count:,} images: {numbers}", flush=True)
    return found


def compare(by_count: dict[str, dict[str, float]]) -> dict[str, float]:
    """Compares the largest number of pictures with 10,000, or else with the smallest."""
    counts = sorted(map(int, by_count))
    low = by_count[str(10_000 if 10_000 in counts else counts[0])]
    high = by_count[str(counts[-1])]
    return {
        "peak_ratio": high["peak_mib"] / low["peak_mib"],
        "time_ratio": high["microseconds_per_image"] / low["microseconds_per_image"],
        "cpu_time_ratio": high["cpu_microseconds_per_image"] / low["cpu_microseconds_per_image"],
    }


def draw() -> list[bytes]:
    """Draws a thousand smooth pictures as JPEGs."""
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(1000):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC).save(stream, "JPEG")
        contents.append(stream.getvalue())
    return contents


def write_shards(folder: Path, count: int) -> None:
    """Writes the pictures into tars of ten thousand, over and over, each with its caption."""
    folder.mkdir()
    contents = draw()
    for start in range(0, count, PER_SHARD):
        path = folder / f"{start // PER_SHARD:05}.tar"
        write_shard(path, contents, range(start, min(count, start + PER_SHARD)))


def write_shard(path: Path, contents: list[bytes], numbers: range) -> None:
    """Writes one tar, as WebDataset's writer does."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            picture = contents[number % len(contents)]
            for suffix, content in (("jpg", picture), ("txt", f"picture number {number}".encode())):
                member = tarfile.TarInfo(f"{number:08}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def run(data: Path, cache: Path, kind: str, workers: int) -> dict[str, float]:
    """Reads the pictures in a fresh process."""
    command = [sys.executable, __file__, "--once", str(data), str(cache), kind]
    command += ["--workers", str(workers)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run(command, check=True, capture_output=True, env=environment)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def read_once(data: str, cache: Path, kind: str, workers: int) -> dict[str, float]:
    """Prepares the data, and measures time and memory."""
    settings = DataSettings.model_validate(
        {"workers": workers, "image_size": SIZE_PX, "cache": kind}
    )
    start = time.perf_counter()
    prepare([data], settings, cache)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    status = Path("/proc/self/status").read_text()
    # Not `ru_maxrss`: on Linux it starts at the parent's memory when it started this process.
    peak = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": round(peak / 1024, 1),
    }


if __name__ == "__main__":
    main()
