"""How fast the vector quantizer is, and how much memory it takes, against vector-quantize-pytorch.

Why: finding the nearest code of every position is the one part of a tokenizer whose cost grows with
the codebook, and the part where the scores of all positions for all codes are easily kept in memory
by mistake.

Theory: a step needs one product of (N, C) latents with a (C, K) codebook, 2·N·C·K operations,
and the highest of K scores for each of N positions. The N·K scores need not exist at once: apart
from the codebook, memory need not grow with K. `bound_seconds` is the time of that product at
the rate of a large square one.

Output contract: a line a rule and size; the last line of stdout is the record, one JSON object. For
each rule (`gradient`, `ema`, `cosine_ema`: those that both have) and codebook: seconds of a forward
and backward pass of either and their ratio; the highest number of bytes that tensors took on top of
those that were there before (on the CPU as the profiler counts them, on CUDA
`max_memory_allocated`); the fraction of positions with the same code, and how far the losses
differ.

    python benchmarks/quantizer.py
    python benchmarks/quantizer.py --quick
"""

import argparse
from typing import Any

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from harness import (
    RESULTS,
    environment,
    matmul_bound,
    measure_peak_bytes,
    measure_ratio,
    print_record,
    write_result,
)
from tessella.tokenizer import VectorQuantizer, VectorQuantizerSettings

NEVER = 10**9
DECAY = 0.99
RULES: dict[str, tuple[bool, bool]] = {  # cosine similarity, moving averages
    "gradient": (False, False),
    "ema": (False, True),
    "cosine_ema": (True, True),
}


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=4, default=(32, 16, 16, 16), metavar="SIZE")
    parser.add_argument("--codebooks", type=int, nargs="+", default=(512, 8192))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="some seconds; stores nothing")
    options = parser.parse_args()
    if options.quick:
        options.shape, options.codebooks, options.repeats = (4, 16, 16, 16), (512,), 2
    torch.set_num_threads(options.threads)
    rate = matmul_bound(device=options.device).median * 1e9
    batch, width, height, columns = options.shape
    results: dict[str, Any] = {}
    for size in options.codebooks:
        for rule in RULES:
            result = compare(rule, size, options)
            result["bound_seconds"] = 2 * batch * height * columns * width * size / rate
            results[f"{rule}_{size}"] = result
            print(
                f"{rule} K={size}: {result['speed'].ratio.median:.2f} times as fast, memory "
                f"{result['our_peak_bytes'] / 2**20:.1f} against "
                f"{result['their_peak_bytes'] / 2**20:.1f} MiB",
                flush=True,
            )
    record = write_result(
        "quantizer",
        results,
        config=vars(options),
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def compare(rule: str, size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one rule with one codebook size."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    ours, theirs = create_pair(rule, size, options.shape[1], device)
    latent = torch.randn(*options.shape, device=device)
    weight = torch.randn(*options.shape, device=device)

    def our_step() -> tuple[Tensor, Tensor]:
        made = ours(latent.detach().requires_grad_())
        ((made.quantized * weight).sum() + made.loss).backward()
        ours.zero_grad()
        return made.codes, made.loss.detach()

    def their_step() -> tuple[Tensor, Tensor]:
        quantized, codes, loss = theirs(latent.detach().requires_grad_())
        ((quantized * weight).sum() + loss.sum()).backward()
        theirs.zero_grad()
        return codes, loss.detach().sum()

    (our_codes, our_loss), (their_codes, their_loss) = our_step(), their_step()
    # Where the codebook has a loss, ours counts it beside the commitment loss, equally large.
    shares = 1 if RULES[rule][1] else 2
    return {
        "speed": measure_ratio(our_step, their_step, repeats=options.repeats, device=device),
        "our_peak_bytes": measure_peak_bytes(our_step, device),
        "their_peak_bytes": measure_peak_bytes(their_step, device),
        "same_codes": (our_codes == their_codes).float().mean().item(),
        "loss_difference": (our_loss / shares - their_loss).abs().item(),
    }


def create_pair(
    rule: str, size: int, width: int, device: torch.device
) -> tuple[VectorQuantizer, VectorQuantize]:
    """Creates both quantizers with the same codebook; neither moves unused codes."""
    cosine, ema = RULES[rule]
    start = torch.randn(size, width)
    if cosine:
        start = torch.nn.functional.normalize(start, dim=-1)
    ours = VectorQuantizer(
        VectorQuantizerSettings(
            codebook_size=size,
            code_width=width,
            normalize=cosine,
            learning="ema" if ema else "gradient",
            ema_decay=DECAY,
            commitment_weight=1.0,
            revive_after_images=NEVER,
        )
    )
    theirs = VectorQuantize(
        dim=width,
        codebook_size=size,
        accept_image_fmap=True,
        use_cosine_sim=cosine,
        learnable_codebook=not ema,
        ema_update=ema,
        decay=DECAY,
        commitment_weight=1.0,
        rotation_trick=False,
    )
    with torch.no_grad():
        ours.vectors.copy_(start)
        ours.started.fill_(True)
        theirs._codebook.embed.copy_(start[None])
        if ema:
            ours.cluster_sum.copy_(start)
            theirs._codebook.embed_avg.copy_(start[None])
            theirs._codebook.cluster_size.fill_(1.0)
    return ours.to(device).train(), theirs.to(device).train()


if __name__ == "__main__":
    main()
