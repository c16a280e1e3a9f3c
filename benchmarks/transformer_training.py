"""How much of the machine a training step of the transformer uses.

Why: the arithmetic of a step is known exactly; the rest of its time goes into norms, rotations,
masks, embeddings, the optimizer's sums and waiting, and can be won back.

Theory: the bound is the rate of a large matrix product, measured in the same rounds (fp32 on the
CPU, bf16 on CUDA, where training runs in bf16). torch's FLOP counter counts the multiply-adds of
all matrix products and of attention, forward, backward and in Muon's Newton-Schulz iteration;
nothing else is counted. Muon's share does not grow with the batch: 5 iterations over each matrix.

Output contract: a line a size; the last line of stdout is the record, one JSON object. For each
size (`tiny`: the preset's transformer; `wide`: width 512, depth 8, 256 positions) `seconds` of a
step, `images_per_second`, `gflops_network` and `gflops_optimizer` of a step, `bound_gflops`,
`share_of_bound` (all that is counted, round by round) and `share_of_bound_network_alone`.

    python benchmarks/transformer_training.py
    python benchmarks/transformer_training.py --device cuda --batch 256
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from harness import (
    RESULTS,
    Spread,
    environment,
    matmul_bound,
    measure,
    print_record,
    training_bound,
    write_result,
)
from tessella.objectives.any_order import AnyOrder
from tessella.training.optimizer import MuonAdamW, OptimizerSettings
from tessella.transformer import Examples, Transformer, TransformerSettings
from transformer import QUICK_SETTINGS, SETTINGS, SHAPE, create_batch

Shape = Sequence[int]
SIZES = {  # settings, grid, pictures a step on the CPU
    "tiny": (TransformerSettings(), (8, 8), 64),
    "wide": (SETTINGS, (16, 16), 32),
}


def count_attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    """Counts the operations of attention by the shapes that the counter gives."""
    return int(sdpa_flop_count(query, key, value))


def count_attention_backward(
    gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any
) -> int:
    """Counts those of its gradients."""
    return int(sdpa_backward_flop_count(gradient, query, key, value))


ATTENTION = {  # the counter knows the accelerators' kernels alone
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: count_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: count_attention_backward,
}


class Step:
    """A training step on one batch, in its two halves."""

    def __init__(
        self,
        settings: TransformerSettings,
        grid: tuple[int, int],
        batch: int,
        device: torch.device,
        neighbors: int = 0,
    ) -> None:
        """Creates network, optimizer and batch, with so many examples beside each text."""
        torch.manual_seed(0)
        shape = replace(SHAPE, grid=grid, max_examples=neighbors)
        self.network = Transformer(settings, shape)
        codebook = torch.zeros(1, shape.codebook_size, shape.code_width)
        self.objective = AnyOrder(self.network, codebook).to(device).train()
        inside = {id(p) for p in self.network.hidden_matrices()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.network.parameters() if (id(p) in inside) is muon]}
            | {"muon": muon}
            for muon in (True, False)
        ]
        self.optimizer = MuonAdamW(groups, OptimizerSettings())
        self.text = create_batch(batch, device).text
        self.codes = torch.randint(shape.codebook_size, (batch, 1, *grid), device=device)
        self.examples: Examples | None = None
        if neighbors:
            size = (batch, neighbors, shape.num_positions, 1)
            codes = torch.randint(shape.codebook_size, size, device=device)
            self.examples = Examples(codes, self.text[:, None].expand(-1, neighbors, -1))
        self.device = device

    def learn(self) -> None:
        """Goes forward and backward."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.objective(self.text, self.codes, self.examples).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)

    def update(self) -> None:
        """Moves the weights."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self) -> None:
        self.learn()
        self.update()


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch", type=int, help="pictures a step; left out: 64 tiny, 32 wide")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="some seconds; stores nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    results: dict[str, Any] = {}
    for name in options.sizes:
        settings, grid, batch = SIZES[name]
        if options.quick:
            settings, batch, options.rounds = QUICK_SETTINGS, 2, 1
        step = Step(settings, grid, options.batch or batch, device)
        results[name] = result = measure_step(step, options.rounds)
        print(
            f"{name}: {result['images_per_second'].median:.1f} images/s, "
            f"{result['share_of_bound'].median:.0%} of {result['bound_gflops'].median:.0f} "
            f"GFLOP/s, {result['share_of_bound_network_alone'].median:.0%} without the optimizer's",
            flush=True,
        )
    record = write_result(
        "transformer-training",
        results,
        config={
            **vars(options),
            "transformer": {name: SIZES[name][0].model_dump() for name in options.sizes},
        },
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def measure_step(step: Step, rounds: int) -> dict[str, Any]:
    """Measures steps and the bound in turn."""
    network = count_gflops(step.learn)
    optimizer = count_gflops(step.update)
    measure(step, warmup=1, repeats=1, device=step.device)
    seconds, bounds = [], []
    for _ in range(rounds):
        cuda = step.device.type == "cuda"
        bounds.append((training_bound(step.device) if cuda else matmul_bound()).median)
        seconds.append(measure(step, warmup=0, repeats=1, device=step.device).median)
    pairs = list(zip(seconds, bounds, strict=True))
    return {
        "seconds": Spread.of(seconds, 2),
        "images_per_second": Spread.of([len(step.codes) / each for each in seconds], 2),
        "parameters": sum(p.numel() for p in step.network.parameters()),
        "pictures_a_step": len(step.codes),
        "gflops_network": network,
        "gflops_optimizer": optimizer,
        "bound_gflops": Spread.of(bounds, 2),
        "share_of_bound": Spread.of([(network + optimizer) / s / b for s, b in pairs], 2),
        "share_of_bound_network_alone": Spread.of([network / s / b for s, b in pairs], 2),
    }


def count_gflops(work: Callable[[], None]) -> float:
    """Counts the operations of all matrix products and attention; a multiply-add is two."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        work()
    return float(counter.get_total_flops()) / 1e9


if __name__ == "__main__":
    main()
