"""How fast a picture of 256 codes is generated, against aMUSEd and a Llama of as many weights.

Why: aMUSEd (`UVit2DModel` and `AmusedScheduler` of diffusers) and a decoder that writes one code
at a time (`LlamaForCausalLM.generate` of transformers) are what you would otherwise use for a
text-to-image model over codes.

`packed` is ours for the same 128×128 pixels as it is used: eight codes at each of 64 positions, in
fp32, bf16 or int8, whichever `auto` finds fastest here (what it costs in pictures has to be
measured on a trained model: docs/log.md, "painting in int8").

Theory: guided any order costs the arithmetic of two full passes whatever the steps. aMUSEd costs
two full passes a step, each with fewer operations a weight than ours: a part of its weights works
on the prompt alone. Llama without guidance costs the arithmetic of one pass, but reads all its
weights from cache for each of 256 codes; in a batch that reading is shared, so it comes nearer.
`gflops` is what one picture takes, counted while it is generated (matrix products, convolutions,
attention).

All networks have random weights, as many within 5 %, 512 codes and 16 prompt tokens; on no side is
there a text encoder (aMUSEd is given embeddings) or a decoder to pixels. aMUSEd is driven as
`AmusedPipeline` drives it, guided, in its proportions (residual blocks three quarters as wide, MLP
2.75 times) in two shapes, as wide as ours or as deep; Llama has 512 codes beside 1024 words in its
vocabulary, samples from all of them, uses its cache and is not guided. Of aMUSEd's shapes and
Llama's attentions the one that is faster here counts.

Output contract: a line a contestant; the last line of stdout is the record, one JSON object.
`batch_<B>` holds for each contestant `seconds` of a batch of pictures, `gflops` (batch 1) and
`over_any_order` (above 1, our guided any order at 16 steps is faster), `over_packed` (the same
against `packed`) and `over_masked` (against our guided `masked` at the same steps, batch 1),
medians over rounds in which all took their turn. `parameters` holds those of each network,
`chosen` the peers' shapes and attentions and the precision of `packed`.

    python benchmarks/transformer_peers.py
    python benchmarks/transformer_peers.py --batches 8 --rounds 2
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from diffusers import AmusedScheduler, UVit2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from harness import RESULTS, Spread, environment, measure, print_record, write_result
from tessella.objectives.any_order import AnyOrder
from tessella.objectives.masked import Masked
from tessella.precision import Precision
from tessella.transformer import Transformer, TransformerSettings, has_int8, lower_precision
from transformer import (
    GUIDANCE_SCALE,
    QUICK_SETTINGS,
    SETTINGS,
    SHAPE,
    compare,
    create_batch,
    create_generator,
    create_transformer,
    time_rounds,
)
from transformer_training import ATTENTION

STEPS = 16
AMUSED_STEPS = (12, 16)
AMUSED_SHAPES = {"amused_wide": (512, 3), "amused_deep": (352, 8)}  # width, layers
AMUSED_POOLED = 512  # width of the pooled prompt embedding
AMUSED_SIZE_PX = (128.0, 128.0, 0.0, 0.0, 6.0)  # width, height, crop, aesthetic score
AMUSED_HEADS = 8
LLAMA_MLP_WIDTH = 1408
ATTENTIONS = ("sdpa", "eager")
MASK = SHAPE.codebook_size
GUIDED = {"guidance_scale": GUIDANCE_SCALE}
MAX_DIFFERENCE = 0.05
PACKED_SETTINGS = TransformerSettings(width=480, depth=6, heads=8)
PACKED_SHAPE = replace(SHAPE, grid=(8, 8), codes_per_position=8)


class Amused:
    """aMUSEd's transformer and scheduler, driven as its pipeline drives them."""

    def __init__(self, width: int, layers: int, device: torch.device) -> None:
        """Creates the peer in its own proportions."""
        inner = width * 3 // 4
        self.device = device
        # Its classes are loaded lazily, which hides their types.
        network: Any = UVit2DModel(  # type: ignore[no-untyped-call]
            hidden_size=width,
            cond_embed_dim=AMUSED_POOLED,
            encoder_hidden_size=width,
            vocab_size=SHAPE.codebook_size + 1,
            codebook_size=SHAPE.codebook_size,
            in_channels=inner,
            block_out_channels=inner,
            num_res_blocks=1,
            block_num_heads=inner // 64,
            num_hidden_layers=layers,
            num_attention_heads=AMUSED_HEADS,
            intermediate_size=width * 11 // 4,
            sample_size=SHAPE.grid[0],
        )
        self.network = network.to(device).eval().requires_grad_(False)
        self.scheduler: Any = AmusedScheduler(mask_token_id=MASK)  # type: ignore[no-untyped-call]
        self.width = width

    @torch.inference_mode()
    def paint(self, batch: int, steps: int) -> Tensor:
        """Lays codes (B, h, w), guided."""
        words = torch.randn(2 * batch, SHAPE.max_text_tokens, self.width, device=self.device)
        pooled = torch.randn(2 * batch, AMUSED_POOLED, device=self.device)
        sizes = torch.tensor([AMUSED_SIZE_PX], device=self.device).expand(2 * batch, -1)
        codes = torch.full((batch, *SHAPE.grid), MASK, device=self.device)
        self.scheduler.set_timesteps(steps, (2, 0), self.device)
        for time in self.scheduler.timesteps:
            logits = self.network(
                torch.cat([codes] * 2),
                micro_conds=sizes,
                pooled_text_emb=pooled,
                encoder_hidden_states=words,
            )
            other, prompted = logits.chunk(2)
            guided = other + GUIDANCE_SCALE * (prompted - other)
            codes = self.scheduler.step(guided, time, codes).prev_sample
        return codes


class Llama:
    """A decoder over words and codes."""

    def __init__(self, device: torch.device) -> None:
        """Creates the peer, as wide and deep as ours."""
        config = LlamaConfig(
            vocab_size=SHAPE.vocabulary_size + SHAPE.codebook_size,
            hidden_size=SETTINGS.width,
            intermediate_size=LLAMA_MLP_WIDTH,
            num_hidden_layers=SETTINGS.depth,
            num_attention_heads=SETTINGS.heads,
            max_position_embeddings=SHAPE.max_text_tokens + SHAPE.num_positions,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        self.device = device
        self.network = LlamaForCausalLM(config).to(device).eval().requires_grad_(False)

    def paint(self, batch: int, codes: int) -> Tensor:
        """Generates that many codes after the prompts, sampled from the whole vocabulary."""
        text = create_batch(batch, self.device).text
        written: Tensor = self.network.generate(
            text,
            attention_mask=torch.ones_like(text),
            max_new_tokens=codes,
            do_sample=True,
            top_k=0,
            use_cache=True,
        )
        return written


def main() -> None:
    """Measures, stores and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=4, help="at batch 1; half in batches")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="under a minute; stores nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    settings, shapes = SETTINGS, AMUSED_SHAPES
    attentions: Sequence[str] = ATTENTIONS
    precisions: list[Precision] = ["fp32", "bf16", "int8"]
    if device.type != "cpu" or not has_int8():
        precisions = precisions[:1]
    if options.quick:  # nothing to choose, ours small, the peers' pictures unfinished
        settings, shapes = QUICK_SETTINGS, {"amused_wide": AMUSED_SHAPES["amused_wide"]}
        options.batches, options.rounds, attentions = [1], 1, ATTENTIONS[:1]
        precisions = precisions[:1]
    ours = create_transformer(settings, device)
    peers = {name: Amused(*shape, device) for name, shape in shapes.items()}
    llama = Llama(device)
    packed = create_transformer(
        QUICK_SETTINGS if options.quick else PACKED_SETTINGS, device, PACKED_SHAPE
    )
    networks: dict[str, nn.Module] = {
        "tessella": ours,
        "packed": packed,
        **{name: p.network for name, p in peers.items()},
    }
    networks["llama"] = llama.network
    parameters = {name: count_parameters(network) for name, network in networks.items()}
    if not options.quick:
        check_equal(parameters)
    results: dict[str, Any] = {"parameters": parameters, "chosen": {}}
    for batch in options.batches:
        shape = choose({name: partial(p.paint, batch, 1) for name, p in peers.items()}, device)
        attention = choose(
            {name: partial(write, llama, batch, name) for name in attentions}, device
        )
        llama.network.set_attn_implementation(attention)
        results["chosen"][f"batch_{batch}"] = [shape, attention]
        precision: Any = choose(
            {
                name: create_generator(
                    AnyOrder, lower_precision(packed, name), batch, steps=STEPS, **GUIDED
                )
                for name in precisions
            },
            device,
        )
        results["chosen"][f"batch_{batch}"].append(precision)
        fast = lower_precision(packed, precision)
        results[f"batch_{batch}"] = measure_batch(ours, fast, peers[shape], llama, batch, options)
    record = write_result(
        "transformer-peers",
        results,
        config={
            **vars(options),
            "transformer": settings.model_dump(),
            "steps": STEPS,
            "amused_shapes": shapes,
            "guidance_scale": GUIDANCE_SCALE,
        },
        where=environment(options.device),
        folder=None if options.quick else RESULTS,
    )
    print_record(record)


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def check_equal(parameters: dict[str, int]) -> None:
    """Refuses a comparison of networks of unequal size."""
    ours = parameters["tessella"]
    for name, theirs in parameters.items():
        if abs(theirs / ours - 1) > MAX_DIFFERENCE:
            raise ValueError(f"A peer has not as many weights: `{name}` {theirs:,}, not {ours:,}.")


def write(llama: Llama, batch: int, attention: str) -> None:
    """Writes some codes with one of the attentions."""
    llama.network.set_attn_implementation(attention)
    llama.paint(batch, 32)


def choose(candidates: dict[str, Callable[[], object]], device: torch.device) -> str:
    """Finds the one that is fastest here."""
    if len(candidates) == 1:
        return next(iter(candidates))
    seconds = {
        name: measure(run, warmup=1, repeats=3, device=device).median
        for name, run in candidates.items()
    }
    return min(seconds, key=seconds.__getitem__)


def measure_batch(
    ours: Transformer,
    packed: Transformer,
    amused: Amused,
    llama: Llama,
    batch: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Measures all contestants in turn."""
    steps, codes = ((1,), 4) if options.quick else (AMUSED_STEPS, SHAPE.num_positions)
    contestants: dict[str, Callable[[], object]] = {
        "any_order": create_generator(AnyOrder, ours, batch, steps=STEPS, **GUIDED),
        "packed": create_generator(AnyOrder, packed, batch, steps=STEPS, **GUIDED),
        "llama": partial(llama.paint, batch, codes),
    }
    for count in steps:
        contestants[f"amused_{count}"] = partial(amused.paint, batch, count)
        if batch == 1:
            contestants[f"masked_{count}"] = create_generator(
                Masked, ours, batch, steps=count, **GUIDED
            )
    gflops: dict[str, float] = {}
    for name, run in contestants.items() if batch == 1 else ():  # warms up too
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            run()
        gflops[name] = counter.get_total_flops() / 1e9
    contestants["any_order"]()
    rounds = options.rounds if batch == 1 else max(1, options.rounds // 2)
    seconds = time_rounds(contestants, rounds, options.device, warm_up=lambda run: None)
    results: dict[str, Any] = {}
    for name in contestants:
        results[name] = {
            "seconds": Spread.of(seconds[name], 1),
            "over_any_order": compare(seconds[name], seconds["any_order"]),
            "over_packed": compare(seconds[name], seconds["packed"]),
        }
        if batch == 1:
            results[name]["gflops"] = gflops[name]
        if batch == 1 and name.startswith("amused"):
            own = seconds[name.replace("amused", "masked")]
            results[name]["over_masked"] = compare(seconds[name], own)
        said = ", ".join(
            f"{key} {getattr(value, 'median', value):.3g}" for key, value in results[name].items()
        )
        print(f"batch {batch}, {name}: {said}", flush=True)
    return results


if __name__ == "__main__":
    main()
