"""How fast captioned images become a cache, and whether memory stays flat.

Why: every run spends its first minutes on this. Training on a few hundred thousand pictures must
not wait long for its data, and its memory must not grow with them.

Theory: for a 128x128 picture, decoding takes some 0.4 ms (WebP; JPEG half of that) and Lanczos to
64x64 0.3 ms; everything else should be small. So the bound is about 1,400 WebP pictures per second
for one core, 2,800 for two. The bound is measured here too: one process that only decodes and
resizes pictures in memory, times the number of cores. Peak memory is that of a few batches; it may
grow by the 32 bytes an image that the split needs.

Output contract: one line per measurement; the last line of stdout is the record, one JSON object.
For `folder` and `tar` it has `images_per_second` (spread over the repeats),
`images_per_cpu_second` (by CPU time of all processes, which other programs disturb less),
`share_of_bound`, and `peak_mib`, the largest process at a quarter of N and at N. Each repeat runs
in a fresh process and includes recognising, reading, decoding, writing, fsync and splitting.

    python benchmarks/data_cache.py --images 20000 --repeats 5
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image

from tessella.data.prepare import prepare
from tessella.data.settings import DataSettings
from tessella.images import fit_square, read_image

STORED_PX = 128


def main() -> None:
    """Draws the pictures, measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="N; a quarter of it too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    parser.add_argument("--once", nargs=2, metavar=("DATA", "CACHE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        data, cache = options.once
        print(json.dumps(build_once(data, cache, options.workers, options.image_size)))
        return
    if options.quick:
        options.images, options.repeats = 2_000, 3

    # Not at the top: it imports torch, which the measured processes do not need.
    from harness import RESULTS, environment, print_record, write_result

    with tempfile.TemporaryDirectory() as name:
        results = measure(Path(name), options)
    config = {
        "images": options.images,
        "workers": options.workers,
        "stored_px": STORED_PX,
        "image_size": options.image_size,
        "pillow": PIL.__version__,
    }
    folder = None if options.quick else RESULTS
    record = write_result("data-cache", results, config=config, where=environment(), folder=folder)
    print_record(record)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures the folder and the tar, each at two sizes, against the bound."""
    from harness import Spread

    count = options.images
    contents = draw(min(count, 1000))
    bound = Spread.of([decode_bound(contents, options.image_size) for _ in range(3)])
    print(f"bound: {bound.median:.0f} images per CPU second")
    results: dict[str, Any] = {"bound_images_per_cpu_second": bound}
    for kind, write in (("folder", write_folder), ("tar", write_tar)):
        small, large = folder / f"{kind}_small.tar", folder / f"{kind}_large.tar"
        write(small, contents, count // 4)
        write(large, contents, count)
        # The first run also warms the disk's cache; only its memory counts.
        low = run(small, folder / "cache", options)
        runs = [run(large, folder / "cache", options) for _ in range(options.repeats)]
        rates = Spread.of([count / result["seconds"] for result in runs], warmup=1)
        per_cpu = Spread.of([count / result["cpu_seconds"] for result in runs], warmup=1)
        peaks = {count // 4: low["peak_mib"], count: max(result["peak_mib"] for result in runs)}
        results[kind] = {
            "images_per_second": rates,
            "images_per_cpu_second": per_cpu,
            "share_of_bound": per_cpu.median / bound.median,
            "peak_mib": {str(number): peak for number, peak in peaks.items()},
        }
        print(
            f"{kind}: {rates.median:.0f} images/s (from {rates.min:.0f} to {rates.max:.0f}), "
            f"{per_cpu.median / bound.median:.0%} of the bound, peak MiB by images: {peaks}"
        )
    return results


def draw(count: int) -> list[tuple[str, bytes]]:
    """Draws smooth pictures with some noise, every other one JPEG and WebP."""
    rng = np.random.default_rng(0)
    contents = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((STORED_PX, STORED_PX), Image.Resampling.BICUBIC))
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        suffix = "jpg" if number % 2 else "webp"
        kind = "JPEG" if number % 2 else "WEBP"
        Image.fromarray(noisy).save(stream, format=kind, quality=90)
        contents.append((suffix, stream.getvalue()))
    return contents


def write_folder(folder: Path, contents: list[tuple[str, bytes]], count: int) -> None:
    """Writes the pictures, over and over, with caption files beside them."""
    folder.mkdir()
    for number in range(count):
        suffix, content = contents[number % len(contents)]
        (folder / f"{number:07}.{suffix}").write_bytes(content)
        (folder / f"{number:07}.txt").write_text(f"picture number {number}\nanother caption")


def write_tar(path: Path, contents: list[tuple[str, bytes]], count: int) -> None:
    """Writes the same as a WebDataset shard."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            suffix, content = contents[number % len(contents)]
            text = f"picture number {number}\nanother caption".encode()
            for name, data in ((suffix, content), ("txt", text)):
                member = tarfile.TarInfo(f"{number:07}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def decode_bound(contents: list[tuple[str, bytes]], size: int) -> float:
    """Measures how many pictures can be decoded and resized per CPU second."""
    read_image(contents[0][1], max_pixels=10**6)
    start = time.process_time()
    for _, content in contents:
        fit_square(read_image(content, max_pixels=10**6, fit_size=size), size)
    return len(contents) / (time.process_time() - start)


def run(data: Path, cache: Path, options: argparse.Namespace) -> dict[str, float]:
    """Builds one cache in a fresh process, to measure its peak memory."""
    command = [sys.executable, __file__, "--once", str(data), str(cache)]
    command += ["--workers", str(options.workers), "--image-size", str(options.image_size)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    answer = subprocess.run(command, check=True, capture_output=True, env=environment)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def build_once(data: str, cache: str, workers: int, image_size: int) -> dict[str, float]:
    """Builds one cache and measures its time and memory."""
    import resource
    import shutil

    shutil.rmtree(cache, ignore_errors=True)
    settings = DataSettings(workers=workers, image_size=image_size)
    start, cpu = time.perf_counter(), time.process_time()
    prepare([data], settings, Path(cache))
    seconds = time.perf_counter() - start
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    parent = time.process_time() - cpu
    return {
        "seconds": seconds,
        "cpu_seconds": parent + children.ru_utime + children.ru_stime,
        "peak_mib": round(max(read_peak_kib(), children.ru_maxrss) / 1024, 1),
    }


def read_peak_kib() -> int:
    """Reads this process's largest resident memory.

    Not `ru_maxrss`: on Linux it starts at the parent's memory when it started this process.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)


if __name__ == "__main__":
    main()
