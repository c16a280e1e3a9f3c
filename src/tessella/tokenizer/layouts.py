"""Published weights of VQGAN's network, by the names of three libraries ⇄ by our own.

    names and shapes ─▶ layout, settings        tensors by their names ⇄ tensors by ours

diffusers, Taming Transformers and LlamaGen build one network (`taming.py`) and call its parts
differently. Query, key and value, which are three layers of theirs, are one of ours. What the
shapes cannot tell, what the network reads and whether its codes lie on a sphere, the caller knows.

Source: `VQModel` of diffusers; `taming/modules/diffusionmodules/model.py` of Taming Transformers
(arXiv:2012.09841); `tokenizer_image/vq_model.py` of LlamaGen (arXiv:2406.06525).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tessella.errors import CheckpointError
from tessella.tokenizer.body import NormalizedBlock
from tessella.tokenizer.taming import Attention, TamingAttention
from tessella.tokenizer.vq_autoencoder import TokenizerSettings, VQAutoencoder

CODEBOOK = "quantize.embedding.weight"
"""Of every layout."""

_MOST_PARTS = 1000  # levels, or blocks of one
_OWN_CODEBOOK = "quantizer.parts.0."
# What training alone needs: losses and discriminators, counts of used codes, averages.
_UNUSED = ("loss.", "quantize.codebook_used", "model_ema.")


@dataclass(frozen=True)
class Layout:
    """The names of one library, without `encoder.` or `decoder.` before them.

    `{level}` counts levels from the finest, `{order}` in the order of work.
    """

    name: str  # of the library
    encoder_block: str
    encoder_attention: str
    encoder_resample: str  # behind a level
    decoder_block: str
    decoder_attention: str
    decoder_resample: str  # behind a level
    middle: tuple[str, str, str]  # block, attention, block
    last_norm: str
    skip: str  # of a block
    attention: tuple[str, ...]  # its norm; query, key and value; its last layer
    is_linear: bool = False  # attention's weights are (C, C) instead of (C, C, 1, 1)


DIFFUSERS = Layout(
    name="diffusers",
    encoder_block="down_blocks.{level}.resnets.{index}",
    encoder_attention="down_blocks.{level}.attentions.{index}",
    encoder_resample="down_blocks.{level}.downsamplers.0.conv",
    decoder_block="up_blocks.{order}.resnets.{index}",
    decoder_attention="up_blocks.{order}.attentions.{index}",
    decoder_resample="up_blocks.{order}.upsamplers.0.conv",
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    last_norm="conv_norm_out",
    skip="conv_shortcut",
    attention=("group_norm", "to_q", "to_k", "to_v", "to_out.0"),
    is_linear=True,
)
TAMING = Layout(
    name="Taming Transformers",
    encoder_block="down.{level}.block.{index}",
    encoder_attention="down.{level}.attn.{index}",
    encoder_resample="down.{level}.downsample.conv",
    decoder_block="up.{level}.block.{index}",
    decoder_attention="up.{level}.attn.{index}",
    decoder_resample="up.{level}.upsample.conv",
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    last_norm="norm_out",
    skip="nin_shortcut",
    attention=("norm", "q", "k", "v", "proj_out"),
)
LLAMAGEN = replace(  # its layers have the names of Taming Transformers, its levels others
    TAMING,
    name="LlamaGen",
    encoder_block="conv_blocks.{level}.res.{index}",
    encoder_attention="conv_blocks.{level}.attn.{index}",
    encoder_resample="conv_blocks.{level}.downsample.conv",
    decoder_block="conv_blocks.{order}.res.{index}",
    decoder_attention="conv_blocks.{order}.attn.{index}",
    decoder_resample="conv_blocks.{order}.upsample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
)
LAYOUTS = (DIFFUSERS, TAMING, LLAMAGEN)

# Older files of diffusers; its own loader renames them too.
_OLD_ATTENTION = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(?:weight|bias)$)")
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def find_layout(names: Mapping[str, Any]) -> Layout | None:
    """Finds the library that gives weights such names; None if it is none of the three."""
    for layout in LAYOUTS:
        first = "encoder." + layout.encoder_block.format(level=0, order=0, index=0)
        if f"{first}.conv1.weight" in names:
            return layout
    return None


def rename_old(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the attention of older files of diffusers its later names."""
    return {
        _OLD_ATTENTION.sub(lambda found: _RENAMED[found[0]], name): tensor
        for name, tensor in tensors.items()
    }


def infer_settings(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """Infers from names and shapes what of `TokenizerSettings` they tell.

    Args:
        tensors: by the layout's names.
        layout: of the names.

    Returns:
        Plain values; those of the quantizer without what shapes don't tell.

    Raises:
        CheckpointError: a tensor is missing, or the network is another one.
    """

    def size(name: str, axis: int) -> int:
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) <= axis:
            raise CheckpointError(
                f"The weights of a VQGAN lack a part, by the names of {layout.name}: `{name}`. "
                "Copy the file again; a quantizer other than the nearest code of one codebook "
                "(Gumbel, residual, FSQ) is not read."
            )
        return shape[axis]

    def block(level: int, index: int) -> str:
        name = layout.encoder_block.format(level=level, order=level, index=index)
        return f"encoder.{name}.conv1.weight"

    depth = _count(lambda level: block(level, 0) in tensors)
    blocks = _count(lambda index: block(0, index) in tensors)
    colours = size("encoder.conv_in.weight", 1), size("decoder.conv_out.weight", 0)
    if colours != (3, 3):
        raise CheckpointError(
            f"A VQGAN of other than RGB pictures: it reads {colours[0]} channels and paints "
            f"{colours[1]}. Three were expected."
        )
    return {
        "network": "taming",
        "widths": [size(block(level, 0), 0) for level in range(depth)],
        "blocks": blocks,
        "attention": _infer_attention(tensors, layout, depth),
        "latent_width": size("quant_conv.weight", 1),
        "quantizer": {
            "name": "vq",
            "codebook_size": size(CODEBOOK, 0),
            "code_width": size(CODEBOOK, 1),
        },
    }


def from_layout(
    tensors: Mapping[str, Tensor], layout: Layout, tokenizer: VQAutoencoder
) -> dict[str, Tensor]:
    """Gives tensors our names, for `tokenizer.load_state_dict`.

    Args:
        tensors: by the layout's names, in any floating-point type.
        layout: of the names.
        tokenizer: of the settings that `infer_settings` found.

    Raises:
        CheckpointError: a tensor is missing, or there is one that the network has no place for.
    """
    pairs = dict(_pair_names(tokenizer, layout))
    known = {name for names in pairs.values() for name in names}
    missing = sorted(known - tensors.keys())
    foreign = sorted(name for name in tensors.keys() - known if not name.startswith(_UNUSED))
    if missing or foreign:
        what = f"lack `{missing[0]}`" if missing else f"have `{foreign[0]}`, of another network"
        raise CheckpointError(
            f"The weights are not those of a VQGAN, by the names of {layout.name}: they {what} "
            f"({len(missing)} missing, {len(foreign)} too many). A VQGAN without changes, of one "
            "codebook, was expected."
        )
    state = {}
    for own, names in pairs.items():
        try:
            joined = torch.cat([tensors[name].float() for name in names])
        except RuntimeError:
            shapes = ", ".join(str(tuple(tensors[name].shape)) for name in names)
            raise CheckpointError(
                f"Some weights of a VQGAN do not fit each other: `{names[0]}` and what is with it "
                f"have the shapes {shapes}. Copy the file again."
            ) from None
        is_linear = joined.ndim == 2 and names != (CODEBOOK,)
        state[own] = joined[:, :, None, None] if is_linear else joined
    size = len(state[f"{_OWN_CODEBOOK}vectors"])
    state[f"{_OWN_CODEBOOK}idle_images"] = torch.zeros(size, dtype=torch.int64)
    state[f"{_OWN_CODEBOOK}started"] = torch.tensor(True)
    return state


def to_layout(tokenizer: VQAutoencoder, layout: Layout) -> dict[str, Tensor]:
    """Gives the weights of a tokenizer of VQGAN's network a library's names.

    A codebook on the unit sphere is written as it is looked up. The codes of a latent stay: among
    vectors of one length the nearest is that of the smallest angle.

    Args:
        tokenizer: with network `taming` and one learned codebook, `upsampling` 0.
        layout: of the names.
    """
    state: dict[str, Tensor] = dict(tokenizer.state_dict())
    state[f"{_OWN_CODEBOOK}vectors"] = tokenizer.codebook[0]
    tensors = {}
    for own, names in _pair_names(tokenizer, layout):
        for name, tensor in zip(names, state[own].chunk(len(names)), strict=True):
            is_linear = layout.is_linear and ".attentions." in name and tensor.ndim == 4
            tensors[name] = tensor.flatten(1) if is_linear else tensor
    return tensors


def _infer_attention(names: Iterable[str], layout: Layout, depth: int) -> Attention:
    """Infers from names where the encoder attends.

    Raises:
        CheckpointError: it is elsewhere than the network can.
    """
    attention = f"encoder.{layout.encoder_attention}"
    middle = f"encoder.{layout.middle[1]}"
    lengths = {attention.count(".") + 1, middle.count(".") + 1}
    parts = {".".join(name.split(".", length)[:length]) for name in names for length in lengths}
    levels = [level for level in range(depth) if attention.format(level=level, index=0) in parts]
    in_middle = middle in parts
    if not levels:
        return "middle" if in_middle else "none"
    if levels == [depth - 1] and in_middle:
        return "coarsest"
    raise CheckpointError(
        f"A VQGAN attends elsewhere than it can here: at the levels {levels} of {depth}, counted "
        f"from the finest, {'and' if in_middle else 'not'} in the middle. Expected: at the "
        "coarsest level and in the middle, in the middle alone, or nowhere."
    )


def _count(is_there: Callable[[int], bool]) -> int:
    """Counts parts that are numbered from 0 without a gap."""
    return next((number for number in range(_MOST_PARTS) if not is_there(number)), _MOST_PARTS)


def _pair_names(tokenizer: VQAutoencoder, layout: Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields each weight's name, and the names of those that it is made of, one behind another."""
    yield f"{_OWN_CODEBOOK}vectors", (CODEBOOK,)
    for own, parts in _pair_layers(tokenizer, layout):
        for kind in ("weight", "bias"):
            yield f"{own}.{kind}", tuple(f"{part}.{kind}" for part in parts)


def _pair_layers(tokenizer: VQAutoencoder, layout: Layout) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields each layer's name, and those of the layers that it is made of."""
    yield "encoder.first", ("encoder.conv_in",)
    yield "encoder.last.0", ("encoder.conv_out",)
    yield "encoder.last.1", ("quant_conv",)
    yield "decoder.first.0", ("post_quant_conv",)
    yield "decoder.first.1", ("decoder.conv_in",)
    yield "decoder.last", ("decoder.conv_out",)
    for side, network in (("encoder", tokenizer.encoder), ("decoder", tokenizer.decoder)):
        with_weights = [
            (f"{side}.body.{number}", layer)
            for number, layer in enumerate(network.body)
            if any(True for _ in layer.parameters())
        ]
        parts = _list_parts(tokenizer.settings, layout, side)
        for (own, layer), part in zip(with_weights, parts, strict=True):
            part = f"{side}.{part}"
            if isinstance(layer, NormalizedBlock):
                for name in ("norm1", "conv1", "norm2", "conv2"):
                    yield f"{own}.{name}", (f"{part}.{name}",)
                if any(True for _ in layer.skip.parameters()):
                    yield f"{own}.skip", (f"{part}.{layout.skip}",)
            elif isinstance(layer, TamingAttention):
                norm, *query_key_value, out = (f"{part}.{name}" for name in layout.attention)
                yield f"{own}.norm", (norm,)
                yield f"{own}.query_key_value", tuple(query_key_value)
                yield f"{own}.out", (out,)
            else:
                yield own, (part,)


def _list_parts(settings: TokenizerSettings, layout: Layout, side: str) -> list[str]:
    """Lists the blocks, attentions, resamplings and the norm of a side, in the order of work."""
    is_encoder, depth = side == "encoder", len(settings.widths)
    block = layout.encoder_block if is_encoder else layout.decoder_block
    attention = layout.encoder_attention if is_encoder else layout.decoder_attention
    resample = layout.encoder_resample if is_encoder else layout.decoder_resample
    levels: list[str] = []
    for order in range(depth):
        level = order if is_encoder else depth - 1 - order
        for index in range(settings.blocks if is_encoder else settings.blocks + 1):
            numbers = {"level": level, "order": order, "index": index}
            levels.append(block.format(**numbers))
            if settings.attention == "coarsest" and level == depth - 1:
                levels.append(attention.format(**numbers))
        if order < depth - 1:
            levels.append(resample.format(level=level, order=order))
    before, between, after = layout.middle
    middle = [before, after] if settings.attention == "none" else [before, between, after]
    return (
        [*levels, *middle, layout.last_norm] if is_encoder else [*middle, *levels, layout.last_norm]
    )
