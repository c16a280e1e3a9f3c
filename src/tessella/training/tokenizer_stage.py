"""Stage 1: pixels → codes → pixels. Its batches, its loss, how it is measured."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from tessella.batch import average_over_batch, sum_over_batch
from tessella.data.cache import CaptionedImages
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.images import Pixels, to_float
from tessella.sheets import make_sheet
from tessella.tokenizer import VQAutoencoder, number_codes
from tessella.tokenizer.adversarial import AdversarialLoss
from tessella.tokenizer.codebook_health import describe_codebook_problem, plot_codebook_use
from tessella.tokenizer.losses import ReconstructionLoss, ReconstructionLossSettings
from tessella.training.checkpoint import flatten_optimizer, restore_optimizer, section
from tessella.training.schedule import order_streamed
from tessella.training.stage import Evaluation, Stage, StepLoss, TrainingSettings

_MAX_VALIDATION_IMAGES = 512
_SHEET_PICTURES = 16
_SHEET_COLUMNS = 8


class TokenizerTrainingSettings(TrainingSettings):
    """How the image tokenizer trains."""

    loss: ReconstructionLossSettings = ReconstructionLossSettings()
    """The loss that reconstructions are trained by."""
    learn: Literal["all", "decoder"] = "all"
    """What learns: `all`, or the `decoder` alone, behind the encoder and codebook of another model
    (`init_from`): their codes stay as they are."""

    @model_validator(mode="after")
    def _discriminator_gets_to_count(self) -> Self:
        adversarial = self.loss.adversarial
        start = adversarial.counts_from_images
        if adversarial.weight and 0 < self.images <= start:
            raise ValueError(
                f"the discriminator would count from {start:,} images on, and training ends at "
                f"{self.images:,}. Lower loss.adversarial.start_images and .warmup_images, for "
                f"example to {self.images // 2} and {self.images // 20}"
            )
        return self

    @model_validator(mode="after")
    def _decoder_has_an_encoder(self) -> Self:
        if self.learn == "decoder" and self.init_from is None:
            raise ValueError(
                "a decoder alone needs a trained encoder and codebook. Set "
                "tokenizer_training.init_from to a model folder"
            )
        return self


class TokenizerLoss(nn.Module):
    """The image tokenizer and its loss: pixels (B, H, W, 3) uint8 → `StepLoss`.

    Args:
        tokenizer: the network that learns.
        settings: which losses, and which of its parts learn.
        adversarial: the discriminator, if there is one. Not a module: it trains by itself.
    """

    def __init__(
        self,
        tokenizer: VQAutoencoder,
        settings: TokenizerTrainingSettings,
        adversarial: AdversarialLoss | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._reconstruction_loss = ReconstructionLoss(settings.loss)
        self._adversarial = adversarial
        self._frozen: list[nn.Module] = []
        if settings.learn == "decoder":
            # Not the quantizer around its parts, which drops the tails of residual codes: the
            # decoder has to paint from the first ones alone, too.
            self._frozen = [tokenizer.encoder, tokenizer.quantizer.parts]
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Switches to training; parts that do not learn stay in eval mode."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, pixels: Tensor) -> StepLoss:
        """Reconstructs a batch and computes the loss."""
        image = to_float(pixels)
        output = self.tokenizer(image)
        reconstruction = output.image.float()
        losses = self._reconstruction_loss(reconstruction, image)
        total = losses.total + output.quantized.loss
        # Metrics of the batch as a whole; evaluation is by image.
        metrics = {"reconstruction_loss": losses.total}
        with torch.no_grad():
            error = functional.mse_loss(reconstruction, image)
            # Pixels are in [-1, 1]: the peak is 2.
            metrics["psnr"] = 10 * torch.log10(4 / average_over_batch(error))
            # Not `unique`: on CUDA it waits for the device.
            codes, size = output.quantized.codes, self.tokenizer.settings.quantizer.codebook_size
            used = image.new_zeros(codes.shape[1] * size)
            used.index_fill_(0, number_codes(codes, size).flatten(), 1)
            metrics["codes_used"] = (sum_over_batch(used) > 0).sum()
        if losses.perceptual is not None:
            metrics["perceptual_loss"] = losses.perceptual
        if self._adversarial is not None and self.training:
            generator = self._adversarial.judge(
                reconstruction, image, losses.total, self.tokenizer.last_layer
            )
            if generator:
                total = total + generator["adversarial_loss"]
                metrics |= generator
        return StepLoss(total, metrics)


class TokenizerStage(Stage[VQAutoencoder]):
    """Stage 1: pixels → codes → pixels.

    Args:
        tokenizer: the network that learns.
        settings: of the training.
        data: images of each side; if none are held out, training images are measured.
        device: where it trains.
        seed: of the discriminator's weights.

    Raises:
        ConfigError: weights that the loss needs cannot be found, or the pictures are too small
            for the discriminator.
    """

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: VQAutoencoder,
        settings: TokenizerTrainingSettings,
        data: Mapping[str, CaptionedImages],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self._adversarial: AdversarialLoss | None = None
        adversarial = settings.loss.adversarial
        if adversarial.weight:
            size = data["train"].image_size
            self._adversarial = AdversarialLoss(adversarial, size, device, seed)
            self.steady_from_images = adversarial.counts_from_images
        self.network = tokenizer
        self.hidden_matrices = tokenizer.hidden_matrices()
        self.replicated = [tokenizer.quantizer]  # it changes its codebook while a step runs
        self.loss_module = TokenizerLoss(tokenizer, settings, self._adversarial)
        tokenizer.set_recompute(settings.recompute)
        if settings.compile:
            # Not the quantizer, whose work depends on its input; not the last layer, for which
            # the discriminator computes gradients of its own.
            self.compiled = [tokenizer.encoder.body, tokenizer.decoder.body]
        self.num_images = len(data["train"])
        self._train = data["train"]
        self.is_streamed = self._train.is_streamed
        self._validation = data["validation"] if len(data["validation"]) else self._train

    def order(self, seed: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """Returns which images the run sees: shard by shard where pixels are not kept."""
        if not self.is_streamed:
            return super().order(seed, start, count)
        return order_streamed(self._train.unit_ends, seed, start, count)

    def load_batch(
        self, indices: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensor, ...]:
        """Reads pixels (B, H, W, 3) uint8."""
        return (torch.from_numpy(self._train.pixels(indices)),)

    def evaluate(
        self, average: VQAutoencoder, device: torch.device, images_seen: int
    ) -> Evaluation:
        """Measures reconstructions and the codebook's use; the sheet has originals above them."""
        count = min(_MAX_VALIDATION_IMAGES, len(self._validation))
        pixels = self._validation.pixels(np.arange(count))
        measured = evaluate_reconstructions(average, pixels)
        health = measured.health
        problem = describe_codebook_problem(health, average.settings.quantizer, images_seen)
        return Evaluation(
            metrics=measured.metrics(),
            pictures={
                "samples": _make_pairs_sheet(pixels, measured.pixels),
                "codebook": plot_codebook_use(health),
            },
            warnings=[problem] if problem else [],
        )

    def before_step(self, images_seen: int) -> None:
        """Tells the discriminator the progress."""
        if self._adversarial is not None:
            self._adversarial.before_step(images_seen)

    def after_step(self) -> Mapping[str, Tensor]:
        """Trains the discriminator."""
        return {} if self._adversarial is None else self._adversarial.after_step()

    def note_validation(self, metrics: Mapping[str, float]) -> str | None:
        """Halves the discriminator's weight when reconstructions get worse."""
        if self._adversarial is None:
            return None
        psnr = metrics["psnr"]
        scale = self._adversarial.note_validation(10 ** (-psnr / 10))
        if scale is None:
            return None
        return (
            f"Reconstructions got worse ({psnr:.2f} dB) since the discriminator counts: "
            f"its weight is now {scale:g} of tokenizer_training.loss.adversarial.weight."
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the discriminator and its optimizer's state."""
        if self._adversarial is None:
            return {}
        optimizer = flatten_optimizer(self._adversarial.optimizer)
        named = {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
        return self._adversarial.state_dict() | named

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores the discriminator and its optimizer's state."""
        if self._adversarial is not None:
            self._adversarial.load_state_dict(state)
            restore_optimizer(self._adversarial.optimizer, section(state, "optimizer"))


def _make_pairs_sheet(originals: Pixels, reconstructions: Pixels) -> Pixels:
    """Draws the first originals in rows, each above its reconstruction."""
    columns = min(_SHEET_COLUMNS, len(originals))
    # Whole rows only, so that each picture stands under its original.
    rows = min(_SHEET_PICTURES, len(originals)) // columns
    sides = [
        side[: rows * columns].reshape(rows, columns, *side.shape[1:])
        for side in (originals, reconstructions)
    ]
    pictures = np.stack(sides, axis=1).reshape(-1, *originals.shape[1:])
    return make_sheet(pictures, columns)
