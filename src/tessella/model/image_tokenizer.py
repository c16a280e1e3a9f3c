"""ImageTokenizer: an image tokenizer by itself, without a transformer, for programs in Python.

pictures ⇄ codes; of a model, of `fit-tokenizer`'s run, or one that others have published.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessella.errors import GenerationError, ShapeError
from tessella.images import Pixels
from tessella.model.canvas import fit_images
from tessella.model.codec import decode_latent, encode_pixels
from tessella.model.find import DEFAULT_MODEL, find_tokenizer, name_model
from tessella.model.folder import TrainedTokenizer
from tessella.model.memory import check_out
from tessella.model.published import read_licence, write_published
from tessella.untrusted import to_code

_CARD = """\
---
library_name: tessella
license: {licence}
tags: [image-tokenizer, vector-quantization]
---

# The image tokenizer of `{name}`

Turns a {size}×{size} picture into {side}×{side} codes out of {codes}, and codes into a picture.

```python
import tessella

tokenizer = tessella.ImageTokenizer.load("path/to/this/folder")
codes = tokenizer.encode(pictures)
pictures = tokenizer.decode(codes)
```
{origin}"""
_ORIGIN = "\nIts weights come from: `{source}`.\n"
_WHOLE = {
    torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip


class ImageTokenizer(TrainedTokenizer):
    """A trained image tokenizer: pictures ⇄ codes.

        tokenizer = ImageTokenizer.load("scenes")
        codes = tokenizer.encode(pictures)  # (B, M, h, w) int64
        pictures = tokenizer.decode(codes)

    `tokenizer.tokenizer` is its network, a `VQAutoencoder`, on tensors.
    """

    def __repr__(self) -> str:
        codes, factor = self.codebook.shape, self.downsampling
        return (
            f"<ImageTokenizer: {factor}×{factor} pixels a position, {codes[0]} of {codes[1]:,} "
            f"codes there, for {self.config.image_size}×{self.config.image_size} pixels>"
        )

    @classmethod
    def load(cls, folder: Path | str = DEFAULT_MODEL, device: str = "auto") -> Self:
        """Loads an image tokenizer.

        Args:
            folder: a model folder, a run's, the name of a bundled model, hf:USER/NAME, what
                `tessella export --tokenizer-only` wrote, or a tokenizer that others have published:
                diffusers' `VQModel`, or safetensors of Taming Transformers or LlamaGen.
            device: auto, cpu, cuda or mps.

        Raises:
            CheckpointError: there is none, or it is damaged, a pickle or not read.
            ConfigError: the device is not there.
        """
        return super().load(find_tokenizer(folder), device)

    @property
    def downsampling(self) -> int:
        """Side of a position in pixels: sides of pictures are multiples of it."""
        return self.tokenizer.settings.downsampling

    @property
    def codebook(self) -> Tensor:
        """(M, K, C): the vectors of the codes."""
        return self.tokenizer.codebook

    def encode(
        self, images: Image.Image | Sequence[Image.Image] | Pixels, size: int | None = None
    ) -> Tensor:
        """Turns pictures into codes.

        Args:
            images: of any size, cropped to the square in the middle and resized; or pixels
                (B, H, W, 3) uint8, which are taken as they are.
            size: side of the squares, without pixels alone; that of the training unless given.

        Returns:
            (B, M, h, w) int64, on the tokenizer's device.

        Raises:
            GenerationError: there is no picture, or something else.
            ShapeError: a side is no multiple of the downsampling, or a size is given beside pixels.
        """
        if isinstance(images, np.ndarray):
            if size is not None:
                raise ShapeError(
                    f"Pixels are taken as they are: size `{size}`. Leave it out, or give pictures "
                    "of Pillow."
                )
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                raise ShapeError(
                    f"Pixels must be (B, H, W, 3) uint8: `{images.shape}` {images.dtype}. Give "
                    "pictures of Pillow, or np.stack the arrays."
                )
            if not len(images):
                raise GenerationError("There is no picture. Give at least one.")
            if not images.size:
                raise ShapeError(f"The pictures have no pixels: `{images.shape}`.")
            return encode_pixels(self.tokenizer, images)
        size = self.config.image_size if size is None else size
        if size < 1:
            raise ShapeError(f"The side of a picture is at least 1 pixel: size `{size}`.")
        pictures = [images] if isinstance(images, Image.Image) else images
        return encode_pixels(self.tokenizer, fit_images(pictures, size))

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Turns codes (B, M, h, w) of any type of whole numbers into pictures of h · w positions.

        Of residual codes the first few are enough.

        Raises:
            ShapeError: they have another shape, or are none of the codebook's.
        """
        num_codes, size, _ = self.codebook.shape
        if codes.ndim != 4 or codes.dtype not in _WHOLE or not codes.numel():
            raise ShapeError(
                f"Codes must be whole numbers (B, M, h, w): `{tuple(codes.shape)}` {codes.dtype}."
            )
        is_residual = self.tokenizer.settings.quantizer.composition == "residual"
        if codes.shape[1] > num_codes or (codes.shape[1] < num_codes and not is_residual):
            raise ShapeError(
                f"Codes must be (B, M, h, w), with M the number of codebooks, {num_codes}"
                f"{' or fewer' if is_residual else ''}: `{tuple(codes.shape)}`."
            )
        codes = codes.to(self.device, torch.int64)  # uint16 has no minimum
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= size:
            raise ShapeError(f"Codes must be from 0 to {size - 1}: `{low}` to `{high}`.")
        with torch.inference_mode():
            latent = self.tokenizer.quantizer.look_up(codes)
        pixels = decode_latent(self.tokenizer, latent, self.config.grid)
        return [Image.fromarray(one) for one in pixels]

    @classmethod
    def export(cls, folder_or_name: Path | str, out: Path, *, force: bool = False) -> str:
        """Writes the image tokenizer of a model, alone, as diffusers lays a network out.

        Args:
            folder_or_name: as for `load`.
            out: config.json, diffusion_pytorch_model.safetensors, a card and checksums go there.
            force: whether a folder that is there is replaced.

        Returns:
            The class that config.json names: `VQModel` of diffusers if that describes it.

        Raises:
            ConfigError: `out` is taken.
            CheckpointError: the tokenizer is damaged, or the copy cannot be written.
        """
        folder = find_tokenizer(folder_or_name)
        check_out(folder, out, force=force)
        loaded = cls.load(folder, "cpu")
        settings, size = loaded.tokenizer.settings, loaded.config.image_size
        licence = settings.licence or read_licence(folder)
        origin = _ORIGIN.format(source=to_code(settings.source)) if settings.source else ""
        card = _CARD.format(
            licence=json.dumps(licence or "unknown", ensure_ascii=False),
            name=to_code(name_model(folder)),
            size=size,
            side=size // loaded.downsampling,
            codes=f"{loaded.codebook.shape[1]:,}",
            origin=origin,
        )
        return write_published(loaded.tokenizer, size, out, card)
