"""Writes a model as a folder of ONNX graphs that other programs run, without torch or tessella.

    text_encoder.onnx  decoding_step.onnx  image_decoder.onnx    `onnx_graphs.py` has their inputs
    onnx.json              sizes, and what each step does; `OnnxModel`
    text_tokenizer.json    the model's own
    examples.*             of a model that looks things up, its own too
    README.md, samples.png the model's card

`examples/paint_by_onnx.py` paints from such a folder.

Source: TorchScript's exporter, which traces (decision 0023).
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tessella.checksums import write_sums
from tessella.errors import ConfigError, needs_extra
from tessella.files import new_folder, write_json
from tessella.model.memory import check_out, copy_card
from tessella.model.onnx_graphs import DecodingStepGraph, ImageDecoderGraph, TextEncoderGraph
from tessella.model.pipeline import TextToImage
from tessella.objectives.sampling import halton_order, scale_guidance, split_positions
from tessella.retrieval import ExampleMemory
from tessella.text import TEXT_FILE

ONNX_FORMAT = 1
"""Of the folder; rises when what reads it has to change."""
ONNX_FILE = "onnx.json"
TEXT_ENCODER_FILE = "text_encoder.onnx"
STEP_FILE = "decoding_step.onnx"
DECODER_FILE = "image_decoder.onnx"
_OPSET = 18  # of ONNX's operators

# Sizes that the exporter runs the graphs with; none is 1, which it would take for a rule.
_PICTURES, _TOKENS, _QUERIES = 2, 5, 3

_Axes = Mapping[int, str]


@dataclass(frozen=True)
class OnnxModel:
    """What a program has to know beside the graphs."""

    format: int
    image_size: int  # side of a picture, in pixels
    grid: tuple[int, int]  # (h, w)
    codes_per_position: int  # M
    codebook_size: int  # K
    max_text_tokens: int  # the longest text (T), begin and end included
    pad_id: int  # the token behind the end of a shorter text
    num_examples: int  # that the text encoder takes (k); 0: no such inputs
    step_sizes: Sequence[int]  # positions of each step (Q)
    guidance_scales: Sequence[float] | None  # of each step; None: no such input, R = B
    order: Sequence[int] | None  # of all positions; None: a random one for each picture
    takes_noise: bool  # whether the decoding step has that input


def export_onnx(
    folder: Path, out: Path, *, without_examples: bool = False, force: bool = False
) -> int:
    """Writes a model folder as ONNX graphs; returns how many examples lie beside them.

    Args:
        folder: of the model; its generation settings become the graphs'.
        out: the folder that is written.
        without_examples: leaves out the pictures that it can look at; the graphs still take some.
        force: replaces what is there.

    Raises:
        ConfigError: the model's objective, order or text encoder is not exported, `out` is taken,
            or the package `onnx` is missing.
        CheckpointError: the model is damaged, or the folder cannot be written.
    """
    check_out(folder, out, force=force)
    with new_folder(out, what="the ONNX graphs") as building:
        memory = write_graphs(folder, building, without_examples=without_examples)
        write_sums(building)
    return 0 if memory is None else len(memory)


def write_graphs(
    folder: Path, building: Path, *, without_examples: bool = False
) -> ExampleMemory | None:
    """Writes the files of a model folder's graphs; returns the examples that are among them.

    Raises:
        ConfigError: the model is not exported, or the package `onnx` is missing.
        CheckpointError: the model is damaged, or the folder cannot be written.
    """
    with needs_extra("onnx", "Writing ONNX graphs"):
        import onnx  # noqa: F401 - PyTorch's exporter takes it
    model = TextToImage.load(folder, "cpu")
    sizes = describe_onnx(model)
    _export_graphs(model, sizes, building)
    write_json(building / ONNX_FILE, asdict(sizes))
    shutil.copyfile(folder / TEXT_FILE, building / TEXT_FILE)
    memory = None if without_examples or not sizes.num_examples else model.memory
    if memory is not None:
        memory.write(building)
    copy_card(folder, building, memory)
    return memory


def describe_onnx(model: TextToImage) -> OnnxModel:
    """Describes what the graphs of a model take.

    Raises:
        ConfigError: the model's objective, order or text encoder is not exported.
    """
    settings, shape = model.config.generation, model.transformer.shape
    if model.objective.name != "any_order":
        raise ConfigError(
            "Only models of the objective any_order are exported as ONNX graphs: "
            f"`{model.objective.name}`. Train one with objective=any_order."
        )
    if shape.text_features is not None:
        raise ConfigError(
            "A model with a frozen text encoder is not exported as ONNX graphs: the encoder's "
            "network is not a part of it. Train one without text.encoder."
        )
    if settings.order == "confidence":
        raise ConfigError(
            "The order `confidence` predicts every open position at each step, which the ONNX "
            "graphs do not. Set generation.order in the model's config.json to random or halton."
        )
    steps = split_positions(shape.num_positions, settings.steps, settings.step_schedule)
    scales = [scale_guidance(settings, n, len(steps)) for n in range(1, len(steps) + 1)]
    return OnnxModel(
        format=ONNX_FORMAT,
        image_size=model.config.image_size,
        grid=shape.grid,
        codes_per_position=shape.codes_per_position,
        codebook_size=shape.codebook_size,
        max_text_tokens=shape.max_text_tokens,
        pad_id=shape.pad_id,
        num_examples=shape.max_examples if settings.neighbors is None else settings.neighbors,
        step_sizes=steps,
        guidance_scales=None if settings.guidance_scale == 1 else scales,
        order=halton_order(*shape.grid).tolist() if settings.order == "halton" else None,
        takes_noise=settings.temperature > 0,
    )


def _export_graphs(model: TextToImage, sizes: OnnxModel, folder: Path) -> None:
    """Writes the three graphs."""
    shape, layers = model.transformer.shape, model.config.transformer.depth
    k, books, positions = sizes.num_examples, sizes.codes_per_position, shape.num_positions
    rows = _PICTURES if sizes.guidance_scales is None else 2 * _PICTURES
    inputs = {"text": torch.ones(rows, _TOKENS, dtype=torch.int64)}
    if k:
        inputs["example_codes"] = torch.zeros(rows, k, positions, books, dtype=torch.int64)
        inputs["example_text"] = torch.ones(rows, k, _TOKENS, dtype=torch.int64)
    keys, values = ([f"{kind}.{n}" for n in range(layers)] for kind in ("keys", "values"))
    context = ["visible", *keys, *values, *(["aligned"] if k else [])]
    encoder = TextEncoderGraph(model.transformer)
    _export(encoder, inputs, context, folder / TEXT_ENCODER_FILE)

    cache = dict(zip(context, encoder(*inputs.values()), strict=True))
    step: dict[str, Tensor | list[Tensor] | None] = {
        "visible": cache["visible"],
        "keys": [cache[name] for name in keys],
        "values": [cache[name] for name in values],
        "positions": torch.arange(_QUERIES).repeat(_PICTURES, 1),
        "noise": torch.rand(_PICTURES, books, _QUERIES, sizes.codebook_size)
        if sizes.takes_noise
        else None,
        "guidance_scale": None if sizes.guidance_scales is None else torch.tensor(2.0),
        "aligned": cache.get("aligned"),
    }
    graph = DecodingStepGraph(model.transformer, model.config.generation)
    grown = [f"new_{name}" for name in (*keys, *values)]
    _export(graph, step, ["sampled_codes", *grown], folder / STEP_FILE)

    codes = torch.zeros(_PICTURES, books, *sizes.grid, dtype=torch.int64)
    decoder = ImageDecoderGraph(model.tokenizer)
    _export(decoder, {"codes": codes}, ["pixels"], folder / DECODER_FILE)


def _export(
    module: nn.Module,
    inputs: Mapping[str, Tensor | list[Tensor] | None],
    outputs: Sequence[str],
    path: Path,
) -> None:
    """Traces a module and writes its graph; inputs that are None are left out of it."""
    names: list[str] = []
    for name, value in inputs.items():
        if isinstance(value, list):
            names += [f"{name}.{n}" for n in range(len(value))]
        elif value is not None:
            names.append(name)
    with warnings.catch_warnings(), torch.no_grad():
        # It says that it is the older exporter, and what it takes for constant: that there are rows
        # to append, that the cache has no room to spare. In the graphs both are always so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            path,
            input_names=names,
            output_names=list(outputs),
            dynamic_axes={name: _find_axes(name) for name in (*names, *outputs)},
            opset_version=_OPSET,
            dynamo=False,
        )


def _find_axes(name: str) -> _Axes:
    """Names the axes of an input or output that have no fixed size."""
    kind = name.removeprefix("new_").partition(".")[0]
    if kind in ("keys", "values"):
        return {0: "rows", 2: "new_length" if name.startswith("new_") else "length"}
    return {
        "text": {0: "rows", 1: "tokens"},
        "example_codes": {0: "rows"},
        "example_text": {0: "rows", 2: "caption_tokens"},
        "visible": {0: "rows", 1: "context"},
        "aligned": {0: "rows"},
        "positions": {0: "pictures", 1: "queries"},
        "noise": {0: "pictures", 2: "queries"},
        "sampled_codes": {0: "pictures", 1: "queries"},
        "codes": {0: "pictures"},
        "pixels": {0: "pictures"},
    }.get(kind, {})
