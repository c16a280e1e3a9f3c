"""Untrained models: everything but good pictures, in milliseconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tessella.model.folder import ModelConfig
from tessella.model.pipeline import TextToImage
from tessella.retrieval import ExampleMemory
from tessella.retrieval.examples import ExampleRow
from tessella.text import TextSettings, TextTokenizer
from tessella.text.vocabulary import CaptionSummary

CAPTIONS = [f"a {colour} star" for colour in ("red", "green", "blue")]


def describe_tokenizer(codes_per_position: int = 1, composition: str = "product") -> dict[str, Any]:
    """The image tokenizer of an untrained model; another one is its setting `tokenizer`."""
    quantizer: dict[str, Any] = {"codebook_size": 16, "code_width": 4}
    if codes_per_position > 1:
        quantizer |= {"codes_per_position": codes_per_position, "composition": composition}
    return {"patch": 2, "widths": (16, 16), "quantizer": quantizer}


def create_untrained(
    objective: str = "any_order",
    seed: int = 0,
    captions: Sequence[str] = CAPTIONS,
    **changes: Any,
) -> TextToImage:
    """A model whose every weight matters: 4 × 4 positions of 4 × 4 pixels."""
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(
        {
            "image_size": 16,
            "tokenizer": describe_tokenizer(),
            "transformer": {"width": 16, "depth": 2, "heads": 2},
            "objective": {"name": objective},
            "generation": {"steps": 3, "temperature": 1.0},
        }
        | changes
    )
    model = TextToImage.create(config, TextTokenizer.train(captions, TextSettings()))
    for network in (model.tokenizer, model.transformer):
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.5)
        network.eval().requires_grad_(False)
    return model.with_parts()  # the codebook may be computed from the weights


def create_with_examples(
    captions: Sequence[str], objective: str = "any_order", **changes: Any
) -> TextToImage:
    """A model that looks at two examples; its memory has random codes, one example a caption."""
    model = create_untrained(objective, captions=captions, neighbors=2, **changes)
    return model.with_parts(memory=create_memory(model, captions))


def create_memory(model: TextToImage, captions: Sequence[str], seed: int = 0) -> ExampleMemory:
    """Examples of drawn codes with a caption each; example i is `i.png`."""
    num_codes, size, _ = model.tokenizer.codebook.shape
    shape = (len(captions), num_codes, *model.config.grid)
    codes = np.random.default_rng(seed).integers(0, size, shape, dtype=np.uint16)
    rows = [ExampleRow(f"{number}.png", [caption]) for number, caption in enumerate(captions)]
    return ExampleMemory.build(codes, rows, model.tokenizer.hash_encoder())


def save_untrained(
    model: TextToImage,
    folder: Path,
    card: str = "# A card\n",
    captions: CaptionSummary | None = None,
) -> Path:
    """Saves it with one metric and one of its pictures; returns the folder."""
    num_codes = len(model.tokenizer.codebook)
    model.save(
        folder,
        card=card,
        metrics={"psnr": {"value": 1.5, "protocol": "by hand"}},
        samples=model.decode_codes(torch.zeros(1, num_codes, 16, dtype=torch.int64))[0],
        captions=captions,
    )
    return folder
