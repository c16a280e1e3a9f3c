"""Image tokenizers of diffusers, written by diffusers itself: tiny ones, of drawn weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel
from torch import nn

WIDTHS = (32, 64)


def create_vq_model(attention: str = "middle", seed: int = 0, **changes: Any) -> VQModel:
    """A network of 2 × 2 pixels a code and 40 codes, in which every weight matters."""
    torch.manual_seed(seed)
    down, up = ["DownEncoderBlock2D"] * len(WIDTHS), ["UpDecoderBlock2D"] * len(WIDTHS)
    if attention == "coarsest":
        down[-1], up[0] = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
    settings = {
        "block_out_channels": WIDTHS,
        "layers_per_block": 1,
        "down_block_types": down,
        "up_block_types": up,
        "latent_channels": 12,
        "vq_embed_dim": 5,
        "num_vq_embeddings": 40,
        "mid_block_add_attention": attention != "none",
        "lookup_from_codebook": True,
    }
    model = VQModel(**settings | changes).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def save_vq_model(folder: Path, *args: Any, **changes: Any) -> VQModel:
    """Writes one as `save_pretrained` does."""
    model = create_vq_model(*args, **changes)
    model.save_pretrained(folder)
    return model


def encode_by(model: VQModel, image: torch.Tensor) -> torch.Tensor:
    """Their codes (B, 1, h, w)."""
    latent = model.encode(image).latents
    _, _, (_, _, codes) = model.quantize(latent)
    return codes.view(len(image), 1, *latent.shape[2:])


def decode_by(model: VQModel, codes: torch.Tensor) -> torch.Tensor:
    """Their picture of codes, as aMUSEd's pipeline decodes."""
    width = model.quantize.embedding.weight.shape[1]
    shape = (len(codes), *codes.shape[2:], width)
    decoded: torch.Tensor = model.decode(codes[:, 0], force_not_quantize=True, shape=shape).sample
    return decoded
