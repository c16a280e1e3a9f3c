"""Published weights of VQGAN's network: by three libraries' names and by ours, one network."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tessella.errors import CheckpointError
from tessella.tokenizer import TokenizerSettings, VQAutoencoder
from tessella.tokenizer.layouts import (
    DIFFUSERS,
    LAYOUTS,
    LLAMAGEN,
    TAMING,
    Layout,
    find_layout,
    from_layout,
    infer_settings,
    rename_old,
    to_layout,
)
from vq_models import create_vq_model, decode_by, encode_by

every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
every_attention = pytest.mark.parametrize("attention", ["coarsest", "middle", "none"])

# As the published programs build a network of two levels, one block each and attention at the
# coarsest: the layers of the encoder, without those that all three name alike.
TAMING_ENCODER = {
    "down.0.block.0": "block", "down.0.downsample.conv": "plain", "down.1.block.0": "wider",
    "down.1.attn.0": "attention", "mid.block_1": "block", "mid.attn_1": "attention",
    "mid.block_2": "block", "norm_out": "plain",
}  # fmt: skip
TAMING_DECODER = {
    "mid.block_1": "block", "mid.attn_1": "attention", "mid.block_2": "block",
    "up.1.block.0": "block", "up.1.attn.0": "attention", "up.1.block.1": "block",
    "up.1.attn.1": "attention", "up.1.upsample.conv": "plain", "up.0.block.0": "wider",
    "up.0.block.1": "block", "norm_out": "plain",
}  # fmt: skip
LLAMAGEN_ENCODER = {
    "conv_blocks.0.res.0": "block", "conv_blocks.0.downsample.conv": "plain",
    "conv_blocks.1.res.0": "wider", "conv_blocks.1.attn.0": "attention", "mid.0": "block",
    "mid.1": "attention", "mid.2": "block", "norm_out": "plain",
}  # fmt: skip
LLAMAGEN_DECODER = {
    "mid.0": "block", "mid.1": "attention", "mid.2": "block", "conv_blocks.0.res.0": "block",
    "conv_blocks.0.attn.0": "attention", "conv_blocks.0.res.1": "block",
    "conv_blocks.0.attn.1": "attention", "conv_blocks.0.upsample.conv": "plain",
    "conv_blocks.1.res.0": "wider", "conv_blocks.1.res.1": "block", "norm_out": "plain",
}  # fmt: skip
PARTS = {
    "plain": [""],
    "block": [".norm1", ".conv1", ".norm2", ".conv2"],
    "wider": [".norm1", ".conv1", ".norm2", ".conv2", ".nin_shortcut"],
    "attention": [".norm", ".q", ".k", ".v", ".proj_out"],
}


def list_names(encoder: dict[str, str], decoder: dict[str, str]) -> set[str]:
    layers = ["quant_conv", "post_quant_conv"]
    for side, parts in (("encoder", encoder), ("decoder", decoder)):
        layers += [f"{side}.conv_in", f"{side}.conv_out"]
        layers += [f"{side}.{name}{part}" for name, kind in parts.items() for part in PARTS[kind]]
    kinds = ("weight", "bias")
    return {f"{layer}.{kind}" for layer in layers for kind in kinds} | {"quantize.embedding.weight"}


def read(tensors: dict[str, Tensor], layout: Layout, **quantizer: bool) -> VQAutoencoder:
    values = infer_settings(tensors, layout)
    values["quantizer"] |= {"normalize": False} | quantizer
    tokenizer = VQAutoencoder(TokenizerSettings.model_validate(values)).eval()
    tokenizer.load_state_dict(from_layout(tensors, layout, tokenizer))
    return tokenizer.requires_grad_(False)


def test_the_names_are_scanned_once_however_many_levels_there_are() -> None:
    passes = 0

    class Counted(dict[str, Tensor]):
        def __iter__(self) -> Iterator[str]:
            nonlocal passes
            passes += 1
            return super().__iter__()

    infer_settings(Counted(create_vq_model("coarsest").state_dict()), DIFFUSERS)
    assert passes == 1


@every_attention
def test_it_is_the_network_of_diffusers(attention: str) -> None:
    theirs = create_vq_model(attention)
    assert find_layout(theirs.state_dict()) is DIFFUSERS
    ours = read(theirs.state_dict(), DIFFUSERS)
    assert ours.settings.attention == attention
    image = torch.rand(2, 3, 16, 12) * 2 - 1
    codes = encode_by(theirs, image)
    assert len(codes.unique()) > 2
    assert torch.equal(ours.encode(image), codes)
    expected = decode_by(theirs, codes)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours.decode(codes), expected.clamp(-1, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "encoder", "decoder"),
    [(TAMING, TAMING_ENCODER, TAMING_DECODER), (LLAMAGEN, LLAMAGEN_ENCODER, LLAMAGEN_DECODER)],
    ids=["taming", "llamagen"],
)
def test_the_names_of_the_published_programs(
    layout: Layout, encoder: dict[str, str], decoder: dict[str, str]
) -> None:
    tokenizer = read(create_vq_model("coarsest").state_dict(), DIFFUSERS)
    assert to_layout(tokenizer, layout).keys() == list_names(encoder, decoder)


@every_layout
@every_attention
def test_there_and_back(layout: Layout, attention: str) -> None:
    tokenizer = read(create_vq_model(attention).state_dict(), DIFFUSERS)
    tensors = to_layout(tokenizer, layout)
    assert find_layout(tensors) is layout
    # What training alone needs stands in published files too.
    tensors |= {"loss.discriminator.main.0.weight": torch.ones(1)}
    again = read(tensors, layout)
    assert again.settings == tokenizer.settings
    for name, weights in tokenizer.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name


def test_a_codebook_on_the_sphere_gives_the_same_codes_as_plain_vectors() -> None:
    """LlamaGen's; diffusers has none. Codes and pictures are the same."""
    theirs = create_vq_model()
    sphere = read(theirs.state_dict(), DIFFUSERS, normalize=True)
    tensors = to_layout(sphere, DIFFUSERS)
    vectors = theirs.quantize.embedding.weight
    written = tensors["quantize.embedding.weight"]
    torch.testing.assert_close(written, functional.normalize(vectors, dim=-1))
    plain = read(tensors, DIFFUSERS)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    codes = sphere.encode(image)
    assert torch.equal(plain.encode(image), codes)
    assert not torch.equal(read(theirs.state_dict(), DIFFUSERS).encode(image), codes)
    torch.testing.assert_close(plain.decode(codes), sphere.decode(codes))


def test_half_precision_is_read_as_fp32() -> None:
    tensors = {name: one.half() for name, one in create_vq_model().state_dict().items()}
    tokenizer = read(tensors, DIFFUSERS)
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}


def test_older_names_of_attention() -> None:
    tensors = create_vq_model("coarsest").state_dict()
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for name, tensor in tensors.items():
        for later, before in new.items():
            name = name.replace(f".{later}.", f".{before}.")
        older[name] = tensor
    assert older.keys() != tensors.keys()
    assert rename_old(older).keys() == tensors.keys()


def test_what_is_another_network_is_refused() -> None:
    tensors = create_vq_model("coarsest").state_dict()
    tokenizer = read(tensors, DIFFUSERS)
    assert find_layout({"model.layers.0.weight": tensors["quant_conv.weight"]}) is None

    with pytest.raises(CheckpointError, match=r"they have `extra\.weight`, of another network"):
        from_layout({**tensors, "extra.weight": torch.ones(1)}, DIFFUSERS, tokenizer)
    rest = {name: one for name, one in tensors.items() if name != "decoder.conv_norm_out.bias"}
    with pytest.raises(CheckpointError, match=r"lack `decoder\.conv_norm_out\.bias` \(1 missing"):
        from_layout(rest, DIFFUSERS, tokenizer)

    uneven = {**tensors, "encoder.mid_block.attentions.0.to_q.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"do not fit each other: .*\(1,\), \(64, 64\)"):
        from_layout(uneven, DIFFUSERS, tokenizer)

    gumbel = {name: one for name, one in tensors.items() if "quantize" not in name}
    with pytest.raises(CheckpointError, match=r"lack a part, .*`quantize\.embedding\.weight`.*Gum"):
        infer_settings(gumbel | {"quantize.proj.weight": torch.ones(40, 5, 1, 1)}, DIFFUSERS)

    finer = {**tensors, "encoder.down_blocks.0.attentions.0.to_q.weight": torch.ones(32, 32)}
    with pytest.raises(CheckpointError, match=r"attends elsewhere .*levels \[0, 1\] of 2"):
        infer_settings(finer, DIFFUSERS)
    gray = {**tensors, "encoder.conv_in.weight": torch.ones(32, 1, 3, 3)}
    with pytest.raises(CheckpointError, match=r"other than RGB pictures: it reads 1 channels"):
        infer_settings(gray, DIFFUSERS)
