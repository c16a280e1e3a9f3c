"""How fast the preset `base` learns, against networks that others build at the same size.

Why: quality grows with the images seen, so between networks with equally many weights the one that
sees more images in an hour wins.

Theory: a convolution's arithmetic grows with the resolution that it works at, its weights do not:
with equally many weights, a network may do several times the arithmetic. So each row counts its own
(torch's FLOP counter, forward and backward) and stands beside the bound, what a large product or
convolution reaches here in the same run (bf16 on CUDA, fp32 elsewhere). `share_of_bound` says how
well the machine is used; images a second is the result.

The peers have the same number of weights (within 3 %), 128×128 pixels and 16×16 codes of width 8
out of 1024: `VQModel` of diffusers with one layer a block, as it is by default; and the encoder
and decoder that the author of vector-quantize-pytorch builds around it (VQGanVAE of
muse-maskgit-pytorch: strided convolutions, residual blocks at the coarsest level alone), with one
residual block, as by default, and `_lean`: thin, with three, so that most weights work at 16×16 and
arithmetic is least. All learn by AdamW and pixel MSE on one batch; `tessella_muon` takes the
project's own optimizer. A peer runs in the memory format that is faster for it here.

Output contract: a line a row; the last line of stdout is the record, one JSON object. For each
row `images_per_second`, `ratio` (seconds of the row's step over those of `tessella`, round by
round: above 1, tessella is faster; rows that end in `_compiled` against `tessella_compiled`),
`parameters`, `gflops_per_image`, `share_of_bound`, `memory_format` and `peak_bytes` (what a step
adds to weights and optimizer).
`ratio_to_best_peer` is the lowest ratio of the peers' rows.

    python benchmarks/tokenizer_training.py
    python benchmarks/tokenizer_training.py --device cuda --batch 64 --compile
"""

import argparse
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from vector_quantize_pytorch import VectorQuantize

from harness import (
    RESULTS,
    Spread,
    environment,
    measure,
    measure_peak_bytes,
    print_record,
    training_bound,
    write_result,
)
from tessella.tokenizer import VQAutoencoder
from tessella.training.optimizer import MuonAdamW, group_parameters
from tessella.training.recipe import Recipe, resolve_recipe

OURS = "tessella"
COMPILED = "_compiled"
DIFFUSERS_WIDTHS = (64, 64, 224, 320)
MUSE_SHAPES = {  # widths, finest first, and residual blocks
    "vector_quantize_pytorch": ((128, 128, 256, 480), 1),
    "vector_quantize_pytorch_lean": ((64, 64, 128, 320), 3),
}
MUSE_GROUPS = 16


class Contestant(nn.Module):
    """image (B, 3, H, W) → loss."""

    coders: list[nn.Module]  # what may be compiled


class Ours(Contestant):
    """image (B, 3, H, W) → loss: the preset."""

    def __init__(self, recipe: Recipe) -> None:
        """Creates the preset's tokenizer."""
        super().__init__()
        self.tokenizer = VQAutoencoder(recipe.tokenizer)
        self.coders = [self.tokenizer.encoder, self.tokenizer.decoder]

    def forward(self, image: Tensor) -> Tensor:
        """Reconstructs and measures."""
        made = self.tokenizer(image)
        loss: Tensor = functional.mse_loss(made.image.float(), image) + made.quantized.loss
        return loss


class Diffusers(Contestant):
    """image (B, 3, H, W) → loss: `VQModel`."""

    def __init__(self, codebook_size: int, code_width: int) -> None:
        """Creates the peer; diffusers is imported here alone."""
        from diffusers import VQModel

        super().__init__()
        levels = len(DIFFUSERS_WIDTHS)
        model: Any = VQModel(  # type: ignore[no-untyped-call]
            block_out_channels=DIFFUSERS_WIDTHS,
            layers_per_block=1,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            latent_channels=code_width,
            num_vq_embeddings=codebook_size,
        )
        self.model = model
        self.coders = [model.encoder, model.decoder]

    def forward(self, image: Tensor) -> Tensor:
        """Reconstructs and measures."""
        made = self.model(image)
        loss: Tensor = functional.mse_loss(made.sample.float(), image) + made.commit_loss
        return loss


class MuseBlock(nn.Module):
    """Two normalised 3×3 convolutions and a 1×1 around a skip; gated in the decoder."""

    def __init__(self, width: int, gated: bool) -> None:
        """Creates a block."""
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers.append(nn.Conv2d(width, 2 * width if gated else width, 3, padding=1))
            norm = nn.GroupNorm(MUSE_GROUPS, width)
            layers += [nn.GLU(dim=1), norm] if gated else [norm, nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, width, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Adds what the convolutions make of the input to it."""
        added: Tensor = self.layers(hidden)
        return hidden + added


class Muse(Contestant):
    """image (B, 3, H, W) → loss: a network around `VectorQuantize`."""

    def __init__(
        self, widths: Sequence[int], blocks: int, codebook_size: int, code_width: int
    ) -> None:
        """Creates the peer, its quantizer as that VQGanVAE sets it."""
        super().__init__()
        encoder: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, padding=2)]
        decoder: list[nn.Module] = [nn.Conv2d(widths[0], 3, 1)]  # from its end
        for fine, coarse in itertools.pairwise(widths):
            encoder += [nn.Conv2d(fine, coarse, 4, stride=2, padding=1), nn.LeakyReLU(0.1)]
            decoder += [nn.LeakyReLU(0.1), nn.ConvTranspose2d(coarse, fine, 4, 2, padding=1)]
        for _ in range(blocks):
            encoder.append(MuseBlock(widths[-1], gated=False))
            decoder.append(MuseBlock(widths[-1], gated=True))
        self.encoder = nn.Sequential(*encoder)
        self.quantizer = VectorQuantize(
            dim=widths[-1],
            codebook_dim=code_width,
            codebook_size=codebook_size,
            decay=0.8,
            commitment_weight=1.0,
            accept_image_fmap=True,
            kmeans_init=True,
            use_cosine_sim=True,
        )
        self.decoder = nn.Sequential(*reversed(decoder))
        self.coders = [self.encoder, self.decoder]

    def forward(self, image: Tensor) -> Tensor:
        """Reconstructs and measures."""
        quantized, _, loss = self.quantizer(self.encoder(image))
        total: Tensor = functional.mse_loss(self.decoder(quantized).float(), image) + loss.sum()
        return total


@dataclass(frozen=True)
class Row:
    """One network and its optimizer, ready to step."""

    step: Callable[[], None]  # one training step on the batch
    facts: dict[str, Any]  # what is known without timing


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="of one round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="each row once more, compiled")
    parser.add_argument("--set", dest="assignments", action="append", default=[])
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    with_diffusers = importlib.util.find_spec("diffusers") is not None
    if not with_diffusers and not options.quick:
        parser.error("a peer is not installed: `diffusers`. Install it, or ask for --quick")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    recipe = resolve_recipe("base", assignments=options.assignments)
    size_px = recipe.data.image_size
    if options.quick:
        size_px, options.batch, options.rounds, options.steps = 32, 1, 1, 1
    shape = (recipe.tokenizer.quantizer.codebook_size, recipe.tokenizer.quantizer.code_width)
    makers: dict[str, Callable[[], Contestant]] = {
        OURS: lambda: Ours(recipe),
        f"{OURS}_muon": lambda: Ours(recipe),
        **{name: partial(Muse, *muse, *shape) for name, muse in MUSE_SHAPES.items()},
    }
    if with_diffusers:
        makers["diffusers"] = lambda: Diffusers(*shape)
    else:
        print("Without the row of diffusers, which is not installed.")
    torch.manual_seed(0)
    image = (torch.rand(options.batch, 3, size_px, size_px) * 2 - 1).to(device)
    bound = training_bound(device)
    rows: dict[str, Row] = {}
    for name, make in makers.items():
        for suffix in ("", COMPILED) if options.compile else ("",):
            muon = recipe if name.endswith("_muon") else None
            rows[name + suffix] = prepare_row(make().to(device), image, muon, bool(suffix))
            print("ready:", name + suffix, flush=True)
    results: dict[str, Any] = {"bound_gflops": bound}
    results |= summarize(rows, time_rounds(rows, device, options), options, bound.median)
    record = write_result(
        "tokenizer-training",
        results,
        config={**vars(options), "image_size": size_px, "preset": "base"},
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def prepare_row(network: Contestant, image: Tensor, muon: Recipe | None, compiled: bool) -> Row:
    """Chooses memory format and optimizer, counts and warms up."""
    network.train()
    device = image.device
    if isinstance(network, Ours):
        formats = [torch.channels_last]  # what it chooses itself
    else:
        formats = [torch.contiguous_format, torch.channels_last]
    optimizer = create_optimizer(network, muon)
    seconds: dict[torch.memory_format, float] = {}
    for memory_format in formats:
        step = create_step(network, optimizer, image, memory_format)
        seconds[memory_format] = measure(step, warmup=1, repeats=2, device=device).min
    best = min(seconds, key=seconds.__getitem__)
    with autocast(device), FlopCounterMode(display=False) as counter:
        network(image).backward()  # not the first pass: k-means starts the codebooks there
    network.zero_grad()
    if compiled:
        for coder in network.coders:
            coder.compile()
    step = create_step(network, optimizer, image, best)
    step()
    facts = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflops_per_image": counter.get_total_flops() / len(image) / 1e9,
        "memory_format": str(best).removeprefix("torch."),
        "peak_bytes": measure_peak_bytes(step, device),
    }
    return Row(step, facts)


def create_optimizer(network: Contestant, muon: Recipe | None) -> torch.optim.Optimizer:
    """Creates AdamW, or the project's own optimizer as a recipe sets it."""
    learning = [p for p in network.parameters() if p.requires_grad]
    if muon is None or not isinstance(network, Ours):
        return torch.optim.AdamW(learning, lr=1e-4, fused=True)
    groups = group_parameters(network, network.tokenizer.hidden_matrices())
    return MuonAdamW(groups, muon.tokenizer_training.optimizer)


def create_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    image: Tensor,
    memory_format: torch.memory_format,
) -> Callable[[], None]:
    """Puts network and batch into a memory format; returns a training step on it."""
    network.to(memory_format=memory_format)  # type: ignore[call-overload]
    image = image.contiguous(memory_format=memory_format)

    def step() -> None:
        with autocast(image.device):
            loss = network(image)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def autocast(device: torch.device) -> torch.autocast:
    """Trains in bf16 on CUDA, as the project does; in fp32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def time_rounds(
    rows: dict[str, Row], device: torch.device, options: argparse.Namespace
) -> dict[str, list[float]]:
    """Times every row in every round, in an order that changes: seconds of one step."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for index in range(options.rounds):
        names = list(rows) if index % 2 else list(reversed(rows))
        for name in names:
            synchronize(device)
            began = time.perf_counter()
            for _ in range(options.steps):
                rows[name].step()
            synchronize(device)
            seconds[name].append((time.perf_counter() - began) / options.steps)
    return seconds


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarize(
    rows: dict[str, Row],
    seconds: dict[str, list[float]],
    options: argparse.Namespace,
    bound: float,
) -> dict[str, Any]:
    """Turns times into what the record holds."""
    results: dict[str, Any] = {}
    for name, row in rows.items():
        own = seconds[OURS + COMPILED if name.endswith(COMPILED) else OURS]
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], own, strict=True)]
        pace = Spread.of([options.batch / each for each in seconds[name]])
        results[name] = {
            "images_per_second": pace,
            "ratio": Spread.of(ratios),
            "share_of_bound": pace.median * row.facts["gflops_per_image"] / bound,
            **row.facts,
        }
        print(describe(name, results[name]), flush=True)
    results["ratio_to_best_peer"] = lowest_ratio(results, rows)
    return results


def lowest_ratio(results: dict[str, Any], names: Iterable[str]) -> float:
    """Finds the ratio to the peer that comes nearest, or is ahead."""
    return min(float(results[name]["ratio"].median) for name in names if not name.startswith(OURS))


def describe(name: str, result: dict[str, Any]) -> str:
    """Says a row's numbers in one line."""
    return (
        f"{name}: {result['images_per_second'].median:.2f} images/s, "
        f"ratio {result['ratio'].median:.2f}, {result['parameters'] / 1e6:.2f} M weights, "
        f"{result['gflops_per_image']:.1f} GFLOP an image, "
        f"{result['share_of_bound']:.0%} of the bound, {result['memory_format']}, "
        f"{result['peak_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
