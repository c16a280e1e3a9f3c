"""How fast stage 2 generates a picture: by each objective, against bare passes and without a cache.

Why: `any_order` promises a whole picture for about the arithmetic of two passes, whatever the
number of steps, where `masked` pays one pass a step and `autoregressive` one step a code. What is
lost on top of the arithmetic (small pieces, masks, random numbers, Python) is paid by whoever
serves pictures.

Theory: a `plain_pass` sends text and all positions through all layers, without a mask. Any order
sends each position through the self-decoder once and through the cross-decoder once, in `steps`
pieces: 1 pass is its bound, 2 with guidance, but a piece of few rows costs what reading all weights
from cache costs. `masked` is bounded by `steps` passes, `autoregressive` by reading the weights
once a code. Without a cache, everything before a code goes through the network again for each code:
`recomputed_lean` encodes it again and predicts the one position; `recomputed_whole`
sends it through all layers, as a decoder does in which every layer reads; a full pass a code is
what a network of fixed length would need.

The network has random weights (none of them zero, as a fresh one's are), the prompts have 16
tokens. Times include encoding the text, sampling codes and looking them up, but no pixels.

Output contract: a line a measurement; the last line of stdout is the record, one JSON object.
`batch_<B>` holds `seconds` of each contestant, and ratios that are medians over rounds in which
all took their turn: `any_order_in_plain_passes`, `any_order_in_own_passes` (text, codes and
positions through their own halves at once), `masked_over_any_order`,
`autoregressive_over_any_order`, `guided_over_unguided`, `full_passes_over_autoregressive` (256
plain passes). `cache` holds for
`any_order` and `autoregressive` (`_guided`: both branches, padding) the largest difference of any
logit from those computed anew, the largest logit beside it, and how many times faster the cached
autoregressive picture is than the two ways without a cache, whose 256 steps are integrated over 9
measured ones.

    python benchmarks/transformer.py
    python benchmarks/transformer.py --device cuda
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness import RESULTS, Spread, environment, measure, print_record, write_result
from tessella.generation import GenerationSettings
from tessella.objectives import Generated, GenerationBatch, Objective
from tessella.objectives.any_order import AnyOrder, predict_in_order
from tessella.objectives.autoregressive import Autoregressive
from tessella.objectives.decoding import gather_positions
from tessella.objectives.masked import Masked
from tessella.transformer import (
    KVCache,
    Transformer,
    TransformerSettings,
    TransformerShape,
    flatten_codes,
)

SETTINGS = TransformerSettings(width=512, depth=8, heads=8)
QUICK_SETTINGS = TransformerSettings(width=64, depth=2, heads=2)
SHAPE = TransformerShape(
    vocabulary_size=1024,
    max_text_tokens=16,
    pad_id=0,
    codebook_size=512,
    grid=(16, 16),
    code_width=8,
)
GUIDANCE_SCALE = 3.0
PREFIXES = 9
Contestants = Mapping[str, Callable[[], object]]


class Recorder:
    """A transformer that records the positions it predicts and their hidden rows."""

    def __init__(self, transformer: Transformer) -> None:
        """Wraps a transformer."""
        self._transformer = transformer
        self.positions: list[Tensor] = []
        self.hidden: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transformer, name)

    def predict(self, cache: KVCache, positions: Tensor, num_visible_codes: Tensor) -> Tensor:
        """Predicts, and records it."""
        hidden = self._transformer.predict(cache, positions, num_visible_codes)
        self.positions.append(positions)
        self.hidden.append(hidden)
        return hidden


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="some seconds; stores nothing")
    options = parser.parse_args()
    settings = QUICK_SETTINGS if options.quick else SETTINGS
    options.rounds = 2 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    transformer = create_transformer(settings, torch.device(options.device))
    results: dict[str, Any] = {"parameters": sum(p.numel() for p in transformer.parameters())}
    for batch in (1, 8, 16):
        results[f"batch_{batch}"] = measure_batch(transformer, batch, options)
    results["cache"] = measure_cache(transformer, options)
    record = write_result(
        "transformer",
        results,
        config={
            **vars(options),
            "transformer": settings.model_dump(),
            "grid": SHAPE.grid,
            "codebook_size": SHAPE.codebook_size,
            "text_tokens": SHAPE.max_text_tokens,
        },
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def create_transformer(
    settings: TransformerSettings, device: torch.device, shape: TransformerShape = SHAPE
) -> Transformer:
    """Creates a transformer whose every layer changes what it gets, for generation alone."""
    torch.manual_seed(0)
    transformer = Transformer(settings, shape)
    for matrix in transformer.hidden_matrices():
        if not matrix.any():  # a fresh layer is the identity
            torch.nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
    torch.nn.init.normal_(transformer.mask_token)
    return transformer.to(device).eval().requires_grad_(False)


def create_batch(
    batch: int, device: torch.device, shape: TransformerShape = SHAPE, **settings: Any
) -> GenerationBatch:
    """Makes a batch of that many pictures and prompts; the negative prompt is short."""
    generator = torch.Generator().manual_seed(batch)
    size = (batch, shape.max_text_tokens)
    text = torch.randint(1, shape.vocabulary_size, size, generator=generator)
    negative = torch.full_like(text[:1], SHAPE.pad_id)
    negative[:, :2] = torch.tensor([1, 2])
    return GenerationBatch(
        text=text.to(device),
        negative_text=negative.to(device),
        prompt_of=torch.arange(batch, device=device),
        negative_of=torch.zeros(batch, dtype=torch.int64, device=device),
        seeds=range(batch),
        settings=GenerationSettings(temperature=1.0, **settings),
        known_codes=torch.zeros(
            batch, shape.num_positions, shape.codes_per_position, dtype=torch.int64, device=device
        ),
        known=torch.zeros(batch, shape.num_positions, dtype=torch.bool, device=device),
    )


def create_generator(
    kind: type[Objective], transformer: Transformer, batch: int, **settings: Any
) -> Callable[[], Generated]:
    """Returns a function that generates the pictures of one batch, over and over."""
    device, shape = transformer.mask_token.device, transformer.shape
    size = (shape.codes_per_position, shape.codebook_size, shape.code_width)
    objective = kind(transformer, torch.randn(size, device=device))
    pictures = create_batch(batch, device, shape, **settings)
    return lambda: objective.generate(pictures)


def create_plain_pass(
    transformer: Transformer, batch: int, num_positions: int = SHAPE.num_positions
) -> Callable[[], Tensor]:
    """Returns a function that sends text and positions through all layers, and predicts."""
    device = transformer.mask_token.device
    text = create_batch(batch, device).text
    codes = torch.zeros(batch, num_positions, 1, dtype=torch.int64, device=device)
    positions = torch.arange(num_positions, device=device)
    ahead = len(text[0])  # text has no position: it is turned by no angle
    cosine, sine = (
        transformer.rotation_cosine[:num_positions],
        transformer.rotation_sine[:num_positions],
    )
    cosine = torch.cat([torch.ones_like(cosine[:1]).expand(ahead, -1), cosine])
    sine = torch.cat([torch.zeros_like(sine[:1]).expand(ahead, -1), sine])
    rotation = (cosine[None, None], sine[None, None])

    @torch.inference_mode()
    def run() -> Tensor:
        words = transformer.text_embedding(text) + transformer.text_position.weight[:ahead]
        tiles = transformer.code_embedding(codes) + transformer.position_embedding(positions)
        hidden = torch.cat([words, tiles], dim=1)  # (B, T + N, D)
        for layer in [*transformer.self_decoder, *transformer.cross_decoder]:
            normed = layer.attention_norm(hidden)
            keys, values = layer.project_kv(normed, rotation)
            hidden = layer(hidden, normed, keys, values, None, rotation)
        logits: Tensor = transformer.out(transformer.out_norm(hidden[:, ahead:]))
        return logits

    return run


def create_own_pass(transformer: Transformer, batch: int) -> Callable[[], Tensor]:
    """Returns a function that does at once what any order does in steps."""
    device = transformer.mask_token.device
    text = create_batch(batch, device).text
    codes = torch.zeros(batch, SHAPE.num_positions, 1, dtype=torch.int64, device=device)
    positions = torch.arange(SHAPE.num_positions, device=device).expand(batch, -1)
    return lambda: torch.inference_mode()(predict_in_order)(transformer, text, codes, positions)


def measure_batch(
    transformer: Transformer, batch: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measures all that is compared at a batch size."""
    steps = options.steps
    contestants: dict[str, Callable[[], object]] = {
        "any_order": create_generator(AnyOrder, transformer, batch, steps=steps),
        "any_order_guided": create_generator(
            AnyOrder, transformer, batch, steps=steps, guidance_scale=GUIDANCE_SCALE
        ),
        "plain_pass": create_plain_pass(transformer, batch),
        "own_pass": create_own_pass(transformer, batch),
    }
    ratios = {
        "any_order_in_plain_passes": ("any_order", "plain_pass"),
        "any_order_in_own_passes": ("any_order", "own_pass"),
        "guided_over_unguided": ("any_order_guided", "any_order"),
    }
    if batch == 1:  # the others take too long to be of use in batches here
        contestants["masked"] = create_generator(Masked, transformer, batch, steps=steps)
        contestants["autoregressive"] = create_generator(Autoregressive, transformer, batch)
        ratios["masked_over_any_order"] = ("masked", "any_order")
        ratios["autoregressive_over_any_order"] = ("autoregressive", "any_order")
    seconds = time_rounds(contestants, options.rounds, options.device)
    results: dict[str, Any] = {
        "seconds": {name: Spread.of(times, 1) for name, times in seconds.items()}
    }
    for name, (above, below) in ratios.items():
        results[name] = compare(seconds[above], seconds[below])
        print(f"batch {batch}: {name} {results[name].median:.2f}", flush=True)
    if batch == 1:
        passes = [SHAPE.num_positions * each for each in seconds["plain_pass"]]
        results["full_passes_over_autoregressive"] = compare(passes, seconds["autoregressive"])
    return results


def time_rounds(
    contestants: Contestants,
    rounds: int,
    device: str,
    warm_up: Callable[[Callable[[], object]], object] = lambda contestant: contestant(),
) -> dict[str, list[float]]:
    """Times every contestant in every round, in an order that changes: seconds of one call."""
    for contestant in contestants.values():
        warm_up(contestant)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for index in range(rounds):
        for name in list(contestants) if index % 2 else list(reversed(list(contestants))):
            spread = measure(contestants[name], warmup=0, repeats=1, device=device)
            seconds[name].append(spread.median)
    return seconds


def compare(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divides times round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)], 1)


def measure_cache(transformer: Transformer, options: argparse.Namespace) -> dict[str, Any]:
    """Compares what the cache gives with what is computed anew, and their times."""
    results: dict[str, Any] = {}
    cases: dict[str, tuple[type[Objective], dict[str, Any]]] = {
        "any_order": (AnyOrder, {"steps": options.steps}),
        "any_order_guided": (AnyOrder, {"steps": options.steps, "guidance_scale": GUIDANCE_SCALE}),
        "autoregressive": (Autoregressive, {}),
    }
    for name, (kind, settings) in cases.items():
        results[name] = find_difference(kind, transformer, settings)
        print(name, results[name], flush=True)
    results["autoregressive"] |= time_recomputing(transformer, options)
    return results


@torch.inference_mode()
def find_difference(
    kind: type[Objective], transformer: Transformer, settings: dict[str, Any]
) -> dict[str, float]:
    """Generates a picture, then computes every step's logits anew from nothing."""
    device = transformer.mask_token.device
    recorder: Any = Recorder(transformer)
    batch = create_batch(1, device, **settings)
    codebook = torch.zeros(1, SHAPE.codebook_size, SHAPE.code_width, device=device)
    generated = kind(recorder, codebook).generate(batch)
    branches = len(recorder.positions[0])
    text = torch.cat([batch.text, batch.negative_text])[:branches]
    assert generated.codes is not None  # not of an objective that predicts latents
    codes = flatten_codes(generated.codes).expand(branches, -1, -1)
    difference = largest = 0.0
    for step, (queries, hidden) in enumerate(zip(recorder.positions, recorder.hidden, strict=True)):
        before = torch.cat([queries[:, :0], *recorder.positions[:step]], dim=1)
        known = gather_positions(codes, before)
        anew, logits = (
            transformer.out(rows)
            for rows in (predict_anew(transformer, text, known, before, queries), hidden)
        )
        difference = max(difference, (anew - logits).abs().max().item())
        largest = max(largest, logits.abs().max().item())
    return {"largest_difference": difference, "largest_logit": largest}


def predict_anew(
    transformer: Transformer, text: Tensor, codes: Tensor, before: Tensor, queries: Tensor
) -> Tensor:
    """Encodes text and codes from nothing and predicts some positions."""
    cache = transformer.encode_context(text)
    transformer.append_codes(cache, codes, before)
    visible = torch.full((queries.shape[1],), before.shape[1], device=text.device)
    return transformer.predict(cache, queries, visible)


def time_recomputing(transformer: Transformer, options: argparse.Namespace) -> dict[str, Any]:
    """Times a cached picture and samples of the steps without a cache, in turn."""
    device = transformer.mask_token.device
    cached = create_generator(Autoregressive, transformer, 1)
    text = create_batch(1, device).text
    positions = torch.arange(SHAPE.num_positions, device=device)[None]
    known = torch.linspace(0, SHAPE.num_positions - 1, PREFIXES).long().tolist()

    def lean(count: int) -> Callable[[], object]:
        before, query = positions[:, :count], positions[:, count : count + 1]
        return lambda: predict_anew(
            transformer, text, torch.zeros_like(before)[..., None], before, query
        )

    samples: dict[str, list[Callable[[], object]]] = {
        "recomputed_lean": [torch.inference_mode()(lean(count)) for count in known],
        "recomputed_whole": [create_plain_pass(transformer, 1, count + 1) for count in known],
    }
    seconds: dict[str, list[float]] = {"cached": [], **{name: [] for name in samples}}
    for index in range(options.rounds + 1):  # the first is thrown away
        took = {"cached": measure(cached, warmup=0, repeats=1, device=device).median}
        for name, steps in samples.items():
            times = [measure(step, warmup=0, repeats=1, device=device).median for step in steps]
            mean = torch.trapezoid(torch.tensor(times), torch.tensor(known)) / known[-1]
            took[name] = SHAPE.num_positions * mean.item()
        for name in took if index else ():
            seconds[name].append(took[name])
    results: dict[str, Any] = {
        "seconds": {name: Spread.of(times, 1) for name, times in seconds.items()}
    }
    for name in samples:
        results[f"{name}_over_cached"] = compare(seconds[name], seconds["cached"])
        print(f"{name}_over_cached {results[f'{name}_over_cached'].median:.1f}", flush=True)
    return results


if __name__ == "__main__":
    main()
