"""How long a picture takes, against bare forward passes of the same network.

Why: the promise of `any_order` is that a whole picture costs about as much arithmetic as two full
passes, however many steps it takes. Whoever serves pictures pays for everything above that.

Theory: a full pass encodes the text and all N codes and predicts all N positions. Generating also
encodes and predicts each position once, in `steps` pieces: the bound is 1 pass, plus the decoder's.
With guidance it is 2, for both branches. The rest is the cost of small pieces.

Output contract: a line a measurement; the last line of stdout is the record, one JSON object.
`one_picture` and `batch_seconds`: seconds of `TextToImage.generate_images`, decoder included.
`batch_in_passes`: how many forward passes over the same batch take as long as sampling its codes;
`with_decoder` the same, with the decoder on both sides. `cold_start_seconds`: from the shell to
the file; `help_seconds`: of `tessella --help`.

    python benchmarks/generation.py --repeats 30
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import tessella
from harness import RESULTS, environment, measure, measure_ratio, print_record, write_result
from tessella.data.scenes import canonical_caption
from tessella.evaluation.scenes import sample_prompts
from tessella.generation import GenerationSettings
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.objectives import GenerationBatch

BATCH = 16


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="scenes", help="model folder or bundled name")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 3
    torch.set_num_threads(options.threads)
    model = tessella.load(options.model, device="cpu")
    prompts = [canonical_caption(scene) for scene in sample_prompts(BATCH, seed=1)]
    settings = model.generation_settings(steps=options.steps)
    guided = model.generation_settings(steps=options.steps, guidance_scale=2.0)

    def paint(count: int) -> Callable[[], object]:
        requests = enumerate_requests(prompts[:count])
        return lambda: model.generate_images(requests, settings)

    results: dict[str, object] = {
        "one_picture": measure(paint(1), warmup=3, repeats=options.repeats),
        "batch_seconds": measure(paint(BATCH), repeats=options.repeats),
    }
    for name, each in (("batch_in_passes", settings), ("guided_batch_in_passes", guided)):
        results[name] = measure_passes(model, prompts, each, options.repeats)
    results |= {
        "cold_start_seconds": measure(cold_start, warmup=1, repeats=max(3, options.repeats // 6)),
        "help_seconds": measure(show_help, warmup=1, repeats=max(3, options.repeats // 3)),
    }
    for name, value in results.items():
        print(name, value)
    record = write_result(
        "generation",
        results,
        config={"model": options.model, "batch": BATCH, "settings": settings.model_dump()},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_passes(
    model: TextToImage, prompts: list[str], settings: GenerationSettings, repeats: int
) -> dict[str, object]:
    """Measures a batch's codes in forward passes, in turn; also with the decoder on both sides."""
    text = model.sampler.encode_text(prompts)
    num_positions = model.transformer.shape.num_positions
    size = (len(prompts), num_positions, model.transformer.shape.codes_per_position)
    codes = torch.zeros(size, dtype=torch.int64)
    positions = torch.arange(num_positions).expand(len(prompts), -1)
    batch = GenerationBatch(
        text=text,
        negative_text=model.sampler.encode_text([""]),
        prompt_of=torch.arange(len(prompts)),
        negative_of=torch.zeros(len(prompts), dtype=torch.int64),
        seeds=range(len(prompts)),
        settings=settings,
        known_codes=codes,
        known=codes[..., 0].bool(),
    )

    def generate() -> torch.Tensor:
        return model.objective.generate(batch).latent

    @torch.inference_mode()
    def full_pass() -> None:
        cache = model.transformer.encode_context(text)
        model.transformer.append_codes(cache, codes[:, :-1], positions[:, :-1])
        hidden = model.transformer.predict(cache, positions, torch.arange(num_positions))
        model.transformer.compute_logits(hidden, codes)

    @torch.inference_mode()
    def decode(latent: torch.Tensor) -> None:
        model.tokenizer.decode_latent(latent)

    latent = generate()

    def pass_and_decode() -> None:
        full_pass()
        decode(latent)

    # The ratio is theirs / ours: the pass stands for "ours".
    alone = measure_ratio(full_pass, generate, repeats=repeats)
    whole = measure_ratio(pass_and_decode, lambda: decode(generate()), repeats=repeats)
    return {
        "passes": alone.ratio,
        "pass_seconds": alone.ours,
        "codes_seconds": alone.theirs,
        "with_decoder": whole.ratio,
    }


def cold_start() -> None:
    """Paints one picture from the shell."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "picture.png"
        prompt = "a large red circle left of a small blue star on a white background"
        run("generate", prompt, "--out", str(out))
        if not out.exists():
            raise RuntimeError("no picture was written")


def show_help() -> None:
    """Asks for help from the shell."""
    run("--help")


def run(*words: str) -> None:
    """Calls the command line in a process of its own."""
    command = Path(sys.executable).with_name("tessella")
    subprocess.run([str(command), *words], check=True, capture_output=True)


if __name__ == "__main__":
    main()
