r"""What each preset's image tokenizer costs to train: arithmetic, time, memory.

Why: whoever chooses a preset wants to know, before a night of training, whether it fits the
machine.

Theory: a step cannot take less than its floating-point operations over the machine's rate of
convolutions (bf16 products on CUDA), measured in the same run. Memory is what activations, weights,
gradients and the optimizer's moments take; recomputing activations
(`tokenizer_training.recompute`) trades about a third more arithmetic for most of the first.

Output contract: one line a row; the last line of stdout is the record, one JSON object: for each
preset parameters, GFLOP of a training step an image (forward and backward, counted by torch),
images/s of whole steps (Muon's work included, which counts at small batches), the fraction of the
bound, and the peak of memory that forward and backward add to weights and optimizer's moments, with
and without recomputing.

    python benchmarks/tokenizer_presets.py --batch 4
"""

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from harness import (
    RESULTS,
    environment,
    measure,
    measure_peak_bytes,
    print_record,
    training_bound,
    write_result,
)
from tessella.tokenizer import VQAutoencoder
from tessella.training.optimizer import MuonAdamW, group_parameters
from tessella.training.recipe import resolve_recipe
from tessella.training.tokenizer_stage import TokenizerLoss

PRESETS = ("tiny", "small", "base", "report2021", "taming")


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.presets, options.steps, options.batch = ("tiny",), 1, 2
    bound = training_bound(torch.device(options.device))
    results: dict[str, object] = {"bound_gflops": bound}
    for preset in options.presets:
        row = measure_row(preset, False, options)
        row["share_of_bound"] = row["gflop"] * row["images_per_second"] / bound.median
        if preset != "report2021":  # its batch normalization cannot be computed again
            again = measure_row(preset, True, options)
            row["recompute_images_per_second"] = again["images_per_second"]
            row["recompute_peak_mib"] = again["peak_mib"]
        results[preset] = row
        print(preset, row, flush=True)
    record = write_result(
        "tokenizer-presets",
        results,
        config={"batch": options.batch, "steps": options.steps},
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_row(preset: str, recompute: bool, options: argparse.Namespace) -> dict[str, float]:
    """Trains some steps on noise."""
    recipe = resolve_recipe(preset)
    device = torch.device(options.device)
    torch.manual_seed(0)
    tokenizer = VQAutoencoder(recipe.tokenizer)
    tokenizer.set_recompute(recompute)
    loss_module = TokenizerLoss(tokenizer, recipe.tokenizer_training).to(device).train()
    groups = group_parameters(tokenizer, tokenizer.hidden_matrices())
    optimizer = MuonAdamW(groups, recipe.tokenizer_training.optimizer)
    size = recipe.data.image_size
    pixels = torch.randint(256, (options.batch, size, size, 3), dtype=torch.uint8, device=device)

    def learn() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            result = loss_module(pixels)
        result.loss.backward()

    def step() -> None:
        learn()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the first starts the codebook by k-means
    with FlopCounterMode(display=False) as counter:
        learn()
    optimizer.zero_grad()
    times = measure(step, warmup=1, repeats=options.steps, device=device)
    return {
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
        "gflop": counter.get_total_flops() / options.batch / 1e9,
        "images_per_second": options.batch / times.median,
        "peak_mib": measure_peak_bytes(learn, device) / 2**20,
    }


if __name__ == "__main__":
    main()
