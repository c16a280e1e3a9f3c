"""How much faster is Muon's update on Gram matrices than the plain iteration?

Why: at the small batches of a laptop the optimizer takes a quarter of a step. Convolutions and MLPs
have matrices that are several times as wide as high: their Gram matrix is small.

Theory: of r rows and c columns the plain iteration takes 5 (2 c / r + 1) products of r × r
matrices, that on the Gram matrix 2 c / r + 17. A 3×3 convolution has c = 9 r: 95 against 35. Square
matrices are iterated as before.

Output contract: a line a network; the last line of stdout is the record, one JSON object: for each
network the seconds of `MuonAdamW.step` with and without, the ratio of both round by round, and the
largest difference of any entry of one update.

    python benchmarks/muon.py
"""

import argparse
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn

from harness import RESULTS, environment, measure_ratio, print_record, write_result
from tessella.tokenizer import VQAutoencoder
from tessella.training import optimizer
from tessella.training.optimizer import MuonAdamW, OptimizerSettings, group_parameters
from tessella.training.recipe import resolve_recipe
from tessella.transformer import Transformer, TransformerSettings
from transformer import QUICK_SETTINGS, SETTINGS, SHAPE


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="some seconds; stores nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = 2 if options.quick else options.rounds
    results = {}
    for name, network, hidden in list_networks(quick=options.quick):
        results[name] = measure(network, hidden, rounds)
        print(name, results[name], flush=True)
    record = write_result(
        "muon",
        results,
        config={"threads": options.threads},
        where=environment("cpu"),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def list_networks(*, quick: bool) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    """Creates the networks, with the matrices that Muon trains."""
    presets = ("tiny",) if quick else ("tiny", "small", "base")
    for preset in presets:
        tokenizer = VQAutoencoder(resolve_recipe(preset).tokenizer)
        yield f"tokenizer_{preset}", tokenizer, tokenizer.hidden_matrices()
    sizes = {"transformer_tiny": TransformerSettings(width=192, depth=4, heads=6)}
    for name, size in {**sizes, "transformer": QUICK_SETTINGS if quick else SETTINGS}.items():
        transformer = Transformer(size, SHAPE)
        yield name, transformer, transformer.hidden_matrices()


def measure(network: nn.Module, hidden: list[nn.Parameter], rounds: int) -> dict[str, object]:
    """Times steps with random gradients, and compares one update's entries."""
    torch.manual_seed(0)
    ours = MuonAdamW(group_parameters(network, hidden), OptimizerSettings())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    wide = [p.grad.flatten(1) for p in hidden if p.grad is not None]
    with plain_iteration():
        expected = [optimizer.orthogonalize(matrix) for matrix in wide]
    difference = max(
        (optimizer.orthogonalize(matrix) - other).abs().max().item()
        for matrix, other in zip(wide, expected, strict=True)
    )

    def plain() -> None:
        with plain_iteration():
            ours.step()

    ratio = measure_ratio(ours.step, plain, repeats=rounds)
    return {
        "ratio": ratio.ratio,
        "ours": ratio.ours,
        "plain": ratio.theirs,
        "difference": difference,
    }


def plain_iteration() -> "mock._patch[Callable[[Tensor], Tensor]]":
    """Lets every matrix be iterated as square ones are."""
    return mock.patch.object(optimizer, "_iterate_gram", optimizer._iterate)


if __name__ == "__main__":
    main()
