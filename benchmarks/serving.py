"""What the server costs on top of the model: throughput, one client's time, the first picture.

Why: a model that paints 140 pictures a second from Python should do so over HTTP too, and one
person who waits for one picture should not notice the server.

Theory: painting is arithmetic on all cores, and the server adds parsing, queueing, PNG, base64 and
sockets, on the same cores. Offline pictures in batches of the server's size are the bound of its
throughput. A closed loop of 32 clients, each with one request in flight, keeps two batches of 16 at
the server: one that is painted, one that waits. While the answers of one batch are written and the
next requests read, the other batch is painted. One client has a batch of its own: its time beyond
the offline picture is the server's. A partial picture after step s of S needs s of S steps and one
more pass of the decoder.

Output contract: a line a measurement; the last line of stdout is the record, one JSON object.
`throughput.of_offline`: pictures/s served over pictures/s offline, PNG encoding in both (as served
pictures need it), pair by pair in alternating order; `throughput.of_bare` the same against painting
without PNG. `client_share`: the fraction of one core that the clients took while they were served.
`identical`: how many of the `compared` pictures are those painted offline, pixel by pixel;
`largest_difference` of any value, of 255. `one_client.seconds_over_offline`: the difference of the
two medians. `first_partial`: the fraction of the whole picture's time after which the first partial
one is there, by `partial_images`.

    python benchmarks/serving.py --repeats 12
"""

import argparse
import asyncio
import io
import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

import tessella
from harness import (
    RESULTS,
    Ratio,
    Spread,
    environment,
    measure_ratio,
    print_record,
    write_result,
)
from http_clients import Answer, Client, decode_picture, encode_generation, serving
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests

BATCH = 16  # of the server and of `TextToImage`
BARS = {"of_offline": 0.85, "seconds_over_offline": 0.025, "first_partial": 0.40}


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=320, help="a repeat, of all clients")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2, help="of torch, offline")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.pictures, options.repeats = 64, 2
    torch.set_num_threads(options.threads)
    model = tessella.load(options.model, device="cpu")
    prompts = [canonical_caption(scene) for scene in sample_prompts(options.pictures, seed=1)]
    with serving(options.model) as server:
        results = {
            "throughput": measure_throughput(
                model, server.port, prompts, options.clients, options.repeats
            ),
            "one_client": measure_one_client(model, server.port, prompts, options.repeats * 5),
            "first_partial": asyncio.run(
                measure_partials(server.port, prompts, options.repeats * 5)
            ),
        }
    for name, value in results.items():
        print(name, value)
    record = write_result(
        "serving",
        {**results, "bars": BARS},
        config={
            "model": options.model,
            "batch": BATCH,
            "clients": options.clients,
            "pictures": options.pictures,
            "settings": model.config.generation.model_dump(),
        },
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_throughput(
    model: TextToImage, port: int, prompts: Sequence[str], num_clients: int, repeats: int
) -> dict[str, object]:
    """Measures the same pictures by the clients and offline, in turn."""
    requests = [encode_generation(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)]
    answers: dict[int, Answer] = {}
    shares: list[float] = []

    def serve() -> None:
        start, used = time.perf_counter(), time.process_time()
        answers.update(asyncio.run(serve_all(port, requests, num_clients)))
        shares.append((time.process_time() - used) / (time.perf_counter() - start))

    with_png = measure_ratio(serve, lambda: encode(paint(model, prompts)), repeats=repeats)
    share = Spread.of(shares)
    bare = measure_ratio(serve, lambda: paint(model, prompts), repeats=repeats)
    return {
        "pictures_per_second": rate(with_png.ours, len(prompts)),
        "offline_pictures_per_second": rate(with_png.theirs, len(prompts)),
        "of_offline": with_png.ratio,
        "of_bare": bare.ratio,
        "client_share": share,
        **compare(paint(model, prompts), answers),
    }


async def serve_all(port: int, requests: Sequence[bytes], num_clients: int) -> dict[int, Answer]:
    """Lets clients take request after request until none is left.

    Returns:
        The answers by their request's number.
    """
    waiting = iter(enumerate(requests))
    answers = {}

    async def run_client() -> None:
        client = Client(port)
        for number, request in waiting:
            answer = await client.send(request)
            if answer.status != 200:
                raise SystemExit(f"{answer.status}: {answer.body!r}")
            answers[number] = answer
        await client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(run_client())
    return answers


def paint(model: TextToImage, prompts: Sequence[str]) -> np.ndarray:
    """Paints picture i with seed i, in batches of the server's size; (B, H, W, 3)."""
    return model.generate_images(enumerate_requests(prompts)).pixels


def encode(pixels: np.ndarray) -> None:
    """Encodes pictures as PNG, as the server has to."""
    for picture in pixels:
        Image.fromarray(picture).save(io.BytesIO(), format="PNG")


def rate(seconds: Spread, count: int) -> Spread:
    """Turns seconds for some pictures into pictures a second."""
    median, low, high = (count / s for s in (seconds.median, seconds.max, seconds.min))
    iqr = seconds.iqr / seconds.median * median
    return Spread(median, low, high, iqr, seconds.repeats, seconds.warmup)


def compare(offline: np.ndarray, answers: dict[int, Answer]) -> dict[str, int]:
    """Compares every served picture with the one painted offline."""
    differences = []
    for number, answer in answers.items():
        served = decode_picture(answer.json()["data"][0]["b64_json"])
        differences.append(int(np.abs(served.astype(int) - offline[number]).max()))
    return {
        "compared": len(differences),
        "identical": differences.count(0),
        "largest_difference": max(differences),
    }


def measure_one_client(
    model: TextToImage, port: int, prompts: Sequence[str], repeats: int
) -> dict[str, object]:
    """Measures one picture over HTTP and from Python, in turn; PNG is encoded in both."""
    loop = asyncio.new_event_loop()
    client = Client(port)
    requests = [encode_generation(prompt=prompt, seed=0) for prompt in prompts]
    served, offline = iter(range(10**9)), iter(range(10**9))

    def serve() -> None:
        answer = loop.run_until_complete(client.send(requests[next(served) % len(requests)]))
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {answer.body!r}")

    pair: Ratio = measure_ratio(
        serve,
        lambda: encode(paint(model, [prompts[next(offline) % len(prompts)]])),
        warmup=5,
        repeats=repeats,
    )
    loop.run_until_complete(client.close())
    loop.close()
    return {
        "seconds": pair.ours,
        "offline_seconds": pair.theirs,
        "seconds_over_offline": pair.ours.median - pair.theirs.median,
    }


async def measure_partials(port: int, prompts: Sequence[str], repeats: int) -> dict[str, object]:
    """Measures when the first partial picture is there, as a fraction of the whole one's time."""
    client = Client(port)
    results: dict[str, object] = {}
    for num_partials in (1, 2, 3):
        fractions, seconds = [], []
        for prompt in [prompts[0], *prompts][: repeats + 1]:
            request = encode_generation(
                prompt=prompt, seed=0, stream=True, partial_images=num_partials
            )
            start = time.perf_counter()
            times, names = [], []
            async for name, _ in client.events(request):
                times.append(time.perf_counter() - start)
                names.append(name.removeprefix("image_generation."))
            if names != ["partial_image"] * num_partials + ["completed"]:
                raise SystemExit(f"These events came: {names}.")
            fractions.append(times[0] / times[-1])
            seconds.append(times[-1])
        results[f"of_{num_partials}"] = Spread.of(fractions[1:], warmup=1)
        results[f"seconds_with_{num_partials}"] = Spread.of(seconds[1:], warmup=1)
    await client.close()
    return results


if __name__ == "__main__":
    main()
