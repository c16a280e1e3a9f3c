"""What a model paints in: fp32, or bf16 or int8 on a CPU; `auto` measures a large model once.

    one of its layers, in both precisions ─▶ how many times as fast
    pictures of its own, in both precisions ─▶ how far apart the predictions are

What was measured is kept in the user's cache, so that the same command paints the same picture.
"""

import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import CheckpointError, ConfigError
from tessella.files import find_cache, hash_tensors, write_json
from tessella.model.request import enumerate_requests
from tessella.objectives import Objective
from tessella.precision import (
    CLEARLY,
    PaintingPrecision,
    Precision,
    PrecisionChoice,
    Work,
    measure_speedup,
)
from tessella.transformer import Transformer, has_int8, lower_precision

if TYPE_CHECKING:
    from tessella.model.pipeline import TextToImage

AS_TRAINED = PrecisionChoice("fp32", "as it was trained")

MAX_DIVERGENCE = 0.01
"""Nats a code, of predictions that no picture shows to be others: docs/log.md."""

_LARGE_WIDTH = 256  # narrower layers do not gain: benchmarks/precision.py
_PROMPTS = ["", ""]  # of the pictures that the predictions are compared on


@dataclass(frozen=True)
class Rounding:
    """What painting in another precision gives, and what it costs."""

    speedup: float  # times as fast as fp32, a layer, for one picture and a full batch: the lower
    divergence: float  # KL divergence from fp32's predictions, nats a code; 0.0: not measured


def paint_in(setting: PaintingPrecision, model: "TextToImage") -> "TextToImage":
    """Returns a loaded model that paints in a precision; its weights are shared.

    Args:
        setting: `auto` is fp32, unless the model is large and on a CPU that is clearly faster in
            another precision whose predictions are as good as the same.
        model: in fp32.

    Raises:
        ConfigError: bf16 or int8 on another device than a CPU, or int8 without kernels for it.
    """
    choice = _choose(setting, model)
    lowered = lower_precision(model.transformer, choice.name)
    model = model.with_parts(transformer=lowered)
    model.precision = choice
    return model


def _choose(setting: PaintingPrecision, model: "TextToImage") -> PrecisionChoice:
    device = model.device.type
    if setting != "auto":
        check_painting_precision(setting, device)
        return PrecisionChoice(setting, "as asked for")
    if device != "cpu":
        return PrecisionChoice("fp32", f"as on every {device} device")
    if model.transformer.settings.width < _LARGE_WIDTH:
        return PrecisionChoice("fp32", f"layers under {_LARGE_WIDTH} wide gain nothing")
    if not model.objective.has_likelihood:
        return PrecisionChoice("fp32", "without a likelihood nothing can be compared with it")
    # Measuring sets the number of threads, which keeps MKL from choosing fewer: what is read from
    # the cache the next time has to compute alike.
    torch.set_num_threads(torch.get_num_threads())
    return choose_rounding(_recall_roundings(model))


def check_painting_precision(precision: Precision, device: str) -> None:
    """Refuses what a device cannot paint in.

    Raises:
        ConfigError: bf16 or int8 on another device than a CPU.
    """
    if precision != "fp32" and device != "cpu":
        raise ConfigError(
            f"Only a CPU paints in another precision than fp32: `{precision}` on {device}. Choose "
            "auto or fp32, or the device cpu."
        )


def choose_rounding(roundings: Mapping[Precision, Rounding]) -> PrecisionChoice:
    """Takes the fastest that is clearly faster and as good as the same."""
    fast = {name: one for name, one in roundings.items() if one.speedup >= CLEARLY}
    good = {name: one for name, one in fast.items() if one.divergence <= MAX_DIVERGENCE}
    if good:
        name = max(good, key=lambda name: good[name].speedup)
        why = f"its layers are {good[name].speedup:.1f} times as fast as in fp32 here"
        return PrecisionChoice(name, why)
    if fast:
        each = (f"{name} by {one.divergence:.2g} nats a code" for name, one in fast.items())
        return PrecisionChoice("fp32", f"others predict otherwise: {', '.join(each)}")
    each = (f"{name} {one.speedup:.2g}" for name, one in roundings.items())
    return PrecisionChoice("fp32", f"times as fast as it here: {', '.join(each)}")


def _recall_roundings(model: "TextToImage") -> dict[Precision, Rounding]:
    """Reads what was measured of a model on this machine, or measures it and writes it."""
    made_from = _describe(model)
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    path = find_cache() / "precision" / f"{digest[:32]}.json"
    if (known := _read(path, made_from)) is not None:
        return known
    roundings = measure_roundings(model)
    measured = {name: asdict(one) for name, one in roundings.items()}
    # A home that cannot be written to has it measured anew the next time.
    with contextlib.suppress(OSError, CheckpointError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"made_from": made_from, "measured": measured}, what="the measurement")
    return roundings


def _describe(model: "TextToImage") -> dict[str, Any]:
    """Names the machine, the model and what counts of its settings, in plain values."""
    transformer = model.transformer
    parts = ("out_norm.", "kv_norm.", "out.bias")
    weights = {n: t for n, t in transformer.state_dict().items() if n.startswith(parts)}
    return {
        "machine": [platform.node(), platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "torch": torch.__version__,
        "objective": model.objective.name,
        "transformer": transformer.settings.model_dump(mode="json"),
        "grid": list(transformer.shape.grid),
        "weights": hash_tensors(weights),
        "steps": model.config.generation.steps,
    }


def _read(path: Path, made_from: Mapping[str, Any]) -> dict[Precision, Rounding] | None:
    try:
        note = json.loads(path.read_bytes())
        if note["made_from"] != made_from:
            return None
        return {name: Rounding(**values) for name, values in note["measured"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not measured yet, or damaged: measuring is quick


def measure_roundings(model: "TextToImage") -> dict[Precision, Rounding]:
    """Measures every other precision that this machine has.

    Args:
        model: in fp32, on a CPU; its objective has a likelihood.
    """
    transformer, sampler, settings = model.transformer, model.sampler, model.config.generation
    num_rows = -(-transformer.shape.num_positions // settings.steps)
    names: list[Precision] = ["bf16", "int8"] if has_int8() else ["bf16"]
    codes: Tensor | None = None
    roundings: dict[Precision, Rounding] = {}
    for name in names:
        lowered, divergence = lower_precision(transformer, name), 0.0
        speedup = measure_layer_speedup(transformer, lowered, 1, num_rows)
        if speedup >= CLEARLY:
            batch = measure_layer_speedup(transformer, lowered, sampler.batch_size, num_rows)
            speedup = min(speedup, batch)
        if speedup >= CLEARLY:
            if codes is None:
                codes = sampler.sample(enumerate_requests(_PROMPTS), settings).codes
            if codes is not None:  # of an objective with a likelihood it never is
                text = sampler.encode_text(_PROMPTS)
                divergence = compute_divergence(model.objective, lowered, text, codes)
        roundings[name] = Rounding(speedup, divergence)
    return roundings


def measure_layer_speedup(
    transformer: Transformer, lowered: Transformer, batch_size: int, num_rows: int
) -> float:
    """Measures how many times as fast as `transformer`'s a layer of `lowered` is.

    Args:
        transformer: in fp32.
        lowered: the same in another precision.
        batch_size: pictures that are painted together.
        num_rows: positions of each that a step fills.
    """
    layers = [next(iter(one.cross_decoder)) for one in (transformer, lowered)]
    fp32, other = (_create_work(layer, batch_size, num_rows) for layer in layers)
    return measure_speedup([(fp32, other)])


def _create_work(layer: Any, batch: int, num_rows: int) -> Work:
    """Creates a layer's work on the rows of a step."""
    generator = torch.Generator().manual_seed(0)  # torch's own stays where it is
    width = layer.query.in_features
    rows = torch.randn(batch, num_rows, width, generator=generator)
    mask = torch.ones(batch, 1, num_rows, num_rows, dtype=torch.bool)

    @torch.inference_mode()
    def work() -> None:
        normed = layer.attention_norm(rows)
        layer(rows, normed, *layer.project_kv(normed), mask)

    return work


@torch.inference_mode()
def compute_divergence(
    objective: Objective, lowered: Transformer, text: Tensor, codes: Tensor
) -> float:
    """Computes how far a lowered transformer's predictions are from fp32's.

    Args:
        objective: with its transformer in fp32; it has a likelihood.
        lowered: the same transformer in another precision.
        text: (B, T) or (B, T, F), one a picture.
        codes: (B, M, h, w) int64, pictures that are likely under it.

    Returns:
        The mean Kullback-Leibler divergence, in nats a code.
    """
    other = type(objective)(lowered, objective.codebook, objective.settings)
    fp32, rounded = (_read_log_probabilities(one, text, codes) for one in (objective, other))
    divergence = functional.kl_div(rounded, fp32, reduction="none", log_target=True).sum(-1)
    return divergence.mean().item()


def _read_log_probabilities(objective: Objective, text: Tensor, codes: Tensor) -> Tensor:
    """Returns what the likelihood of pictures is computed from: (B, N, M, K)."""
    read: list[Tensor] = []
    transformer = objective.transformer
    compute_logits = transformer.compute_logits

    def remember(hidden: Tensor, codes: Tensor) -> Tensor:
        read.append(compute_logits(hidden, codes))
        return read[-1]

    transformer.compute_logits = remember  # type: ignore[method-assign]
    try:
        objective.compute_log_likelihood(text, codes, num_orders=1)
    finally:
        del transformer.compute_logits
    return torch.cat(read).double().log_softmax(-1)
