"""Image tokenizers of the peers of `quality_per_minute.py`: 64×64 pixels to 8×8 codes and back.

Theory: published networks with the same stages, narrower and with a block a level, so that one core
takes some tens of pictures a second; 1,024 codes, as many as short trainings can use. All learn by
squared error of the pixels. [quality_peers.py](quality_peers.py) names the sources.

Output contract: none; `quality_per_minute.py` prints and stores the results.
"""

import abc
from typing import Any

import torch
from diffusers import VQModel
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from torch.nn import functional
from vector_quantize_pytorch import VectorQuantize

SIDE = 8  # positions along each edge of a picture
POSITIONS = SIDE * SIDE
CODEBOOK_SIZE = 1024


class Tokenizer(nn.Module, abc.ABC):
    """Pictures (B, 3, H, W) in [-1, 1] to codes (B, positions) and back."""

    @abc.abstractmethod
    def compute_loss(self, image: Tensor, progress: float) -> Tensor:
        """Computes the loss of a batch at some progress in [0, 1)."""

    @abc.abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        """Chooses codes."""

    @abc.abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Makes pictures of codes."""


class LlamaGenTokenizer(Tokenizer):
    """LlamaGen's VQ-8, an eighth as wide and with one block a level."""

    def __init__(self) -> None:
        super().__init__()
        widths, latent, code = (16, 32, 32, 64), 64, 8
        levels = len(widths) - 1
        shared: dict[str, Any] = {"block_out_channels": widths, "norm_num_groups": 8}
        self.encoder = Encoder(
            out_channels=latent,
            down_block_types=("DownEncoderBlock2D",) * levels + ("AttnDownEncoderBlock2D",),
            layers_per_block=1,
            double_z=False,
            **shared,
        )
        self.before = nn.Conv2d(latent, code, 1)
        self.quantizer = VectorQuantize(
            code,
            CODEBOOK_SIZE,
            decay=0.99,
            kmeans_init=True,
            use_cosine_sim=True,
            threshold_ema_dead_code=1,
            commitment_weight=0.25,
            rotation_trick=False,
            accept_image_fmap=True,
        )
        self.after = nn.Conv2d(code, latent, 1)
        self.decoder = Decoder(
            in_channels=latent,
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * levels,
            layers_per_block=1,
            **shared,
        )

    def compute_loss(self, image: Tensor, progress: float) -> Tensor:
        quantized, _, commitment = self.quantizer(self.before(self.encoder(image)).float())
        made = self.decoder(self.after(quantized))
        loss: Tensor = functional.mse_loss(made.float(), image) + commitment.sum()
        return loss

    def encode(self, image: Tensor) -> Tensor:
        codes: Tensor = self.quantizer(self.before(self.encoder(image)))[1]
        return codes.flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        quantized = self.quantizer.get_codes_from_indices(codes.view(-1, SIDE, SIDE))
        made: Tensor = self.decoder(self.after(quantized))
        return made


class AmusedTokenizer(Tokenizer):
    """aMUSEd's `VQModel`, an eighth as wide, with a level less and one block a level."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 32, 64)
        self.code_width = 16
        self.network: Any = VQModel(  # type: ignore[no-untyped-call]
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            layers_per_block=1,
            latent_channels=self.code_width,
            num_vq_embeddings=CODEBOOK_SIZE,
            norm_num_groups=8,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        )

    def compute_loss(self, image: Tensor, progress: float) -> Tensor:
        latent = self.network.encode(image).latents
        made = self.network.decode(latent.float())
        loss: Tensor = functional.mse_loss(made.sample.float(), image) + made.commit_loss.mean()
        return loss

    def encode(self, image: Tensor) -> Tensor:
        latent = self.network.encode(image).latents
        codes: Tensor = self.network.quantize(latent)[2][2]
        return codes.view(len(image), -1)

    def decode(self, codes: Tensor) -> Tensor:
        shape = (len(codes), SIDE, SIDE, self.code_width)
        made: Tensor = self.network.decode(codes, force_not_quantize=True, shape=shape).sample
        return made


class DiscreteVae(Tokenizer):
    """DALLE-pytorch's dVAE with a quarter of its width: every code is a softmax while it learns."""

    def __init__(self) -> None:
        super().__init__()
        width, code, levels, blocks = 64, 128, 3, 2
        down = [
            layer
            for level in range(levels)
            for layer in (nn.Conv2d(width if level else 3, width, 4, 2, 1), nn.ReLU())
        ]
        up = [
            layer
            for _ in range(levels)
            for layer in (nn.ConvTranspose2d(width, width, 4, 2, 1), nn.ReLU())
        ]
        self.encoder = nn.Sequential(
            *down,
            *(ResidualBlock(width) for _ in range(blocks)),
            nn.Conv2d(width, CODEBOOK_SIZE, 1),
        )
        self.codebook = nn.Embedding(CODEBOOK_SIZE, code)
        self.decoder = nn.Sequential(
            nn.Conv2d(code, width, 1),
            *(ResidualBlock(width) for _ in range(blocks)),
            *up,
            nn.Conv2d(width, 3, 1),
        )

    def compute_loss(self, image: Tensor, progress: float) -> Tensor:
        temperature = 16.0**-progress
        logits = self.encoder(image).float()
        soft = functional.gumbel_softmax(logits, tau=temperature, dim=1)
        mixed = torch.einsum("bkhw,kc->bchw", soft, self.codebook.weight)
        return functional.mse_loss(self.decoder(mixed).float(), image)

    def encode(self, image: Tensor) -> Tensor:
        codes: Tensor = self.encoder(image).argmax(1)
        return codes.flatten(1)

    def decode(self, codes: Tensor) -> Tensor:
        mixed = self.codebook(codes.view(-1, SIDE, SIDE)).permute(0, 3, 1, 2)
        made: Tensor = self.decoder(mixed)
        return made


class ResidualBlock(nn.Module):
    """A residual block of the dVAE."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        changed: Tensor = self.layers(hidden)
        return hidden + changed
