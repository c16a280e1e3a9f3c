"""The two stages: how each reads a batch, what its network makes of it, how it is evaluated."""

from collections.abc import Mapping
from itertools import islice
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from tessella.data.cache import CaptionedImages
from tessella.evaluation.eval_images import can_read
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.images import make_sheet, to_float
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.objectives import Objective
from tessella.tokenizer import (
    AdversarialLoss,
    GeneratorLoss,
    ImageTokenizer,
    Reconstruction,
    ReconstructionLoss,
    ReconstructionLosses,
    ReconstructionLossSettings,
)
from tessella.tokenizer.codebook_health import describe_codebook_problem, plot_codebook_use
from tessella.training.loop import Companion, Evaluation, Stage, StepResult, TrainingSettings
from tessella.training.text_features import CaptionReader

_MAX_VALIDATION_IMAGES = 512
_VALIDATION_BATCH = 64
_SHEET_PICTURES = 16
_SHEET_COLUMNS = 8


class TokenizerTrainingSettings(TrainingSettings):
    """How the image tokenizer trains."""

    loss: ReconstructionLossSettings = ReconstructionLossSettings()
    """What a good reconstruction is."""
    learn: Literal["all", "decoder"] = "all"
    """What learns: `all`, or the `decoder` alone, for an encoder and a codebook that were learned
    before (`init_from`): their codes stay what they are."""
    recompute: bool = False
    """Keeps less of each step in memory and computes it again for the gradients (activation
    checkpointing): for larger pictures, networks or batches."""
    compile: bool = False
    """Compiles encoder and decoder with `torch.compile`: a slow start, then faster steps where a
    compiler for the device is installed."""

    @model_validator(mode="after")
    def _discriminator_has_its_time(self) -> "TokenizerTrainingSettings":
        adversarial = self.loss.adversarial
        begins = adversarial.start_images + adversarial.warmup_images
        if adversarial.weight and 0 < self.images <= begins:
            raise ValueError(
                f"the discriminator would count from {begins:,} images on, and training ends at "
                f"{self.images:,}. Lower loss.adversarial.start_images and .warmup_images, for "
                f"example to {self.images // 2} and {self.images // 20}"
            )
        return self

    @model_validator(mode="after")
    def _decoder_of_something(self) -> "TokenizerTrainingSettings":
        if self.learn == "decoder" and self.init_from is None:
            raise ValueError(
                "a decoder alone needs an encoder and a codebook that are learned. Set "
                "tokenizer_training.init_from to a model folder"
            )
        return self


class TransformerTrainingSettings(TrainingSettings):
    """How the transformer trains."""

    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    """Share of pictures that are learned with an empty prompt, which guidance needs."""
    flips: bool = False
    """Whether pictures are also learned mirrored. Not where captions say left and right, or
    pictures show writing."""
    crops: int = Field(0, ge=0, le=16)
    """Random crops of each picture (four fifths of its side and more) that are learned beside it,
    drawn once."""
    compile: bool = False
    """Compiles the transformer's layers with `torch.compile`: a slow start, then faster steps
    where a compiler for the device is installed."""


class TokenizerLearner(nn.Module):
    """The image tokenizer and its loss: pixels in, `StepResult` out."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        loss: ReconstructionLoss,
        critic: "Critic | None" = None,
        *,
        decoder_only: bool = False,
    ) -> None:
        """Takes the tokenizer that learns."""
        super().__init__()
        self.tokenizer = tokenizer
        self._loss = loss
        self._critic = critic
        self._decoder_only = decoder_only
        if decoder_only:
            tokenizer.encoder.requires_grad_(False)
            tokenizer.quantizer.requires_grad_(False)

    def train(self, mode: bool = True) -> "TokenizerLearner":
        """Switches to training; what is not to learn stays as it is in use."""
        super().train(mode)
        if self._decoder_only:
            self.tokenizer.encoder.eval()
            self.tokenizer.quantizer.eval()
        return self

    def forward(self, pixels: Tensor) -> StepResult:
        """Reconstructs (B, H, W, 3) uint8."""
        image = to_float(pixels)
        made = self.tokenizer(image)
        reconstruction = made.image.float()
        losses = self._loss(reconstruction, image)
        total = losses.total + made.quantized.loss
        size = self.tokenizer.settings.quantizer.codebook_size
        metrics = _measure_step(made, image, losses, size)
        if self._critic is not None and self.training:
            judged = self._critic.judge(reconstruction, image, losses, self.tokenizer.last_layer)
            if judged is not None:
                total = total + judged.loss
                metrics["adversarial_loss"] = judged.loss
                metrics["adaptive_weight"] = judged.adaptive_weight
        return StepResult(total, metrics)


def _measure_step(
    made: Reconstruction, image: Tensor, losses: ReconstructionLosses, codebook_size: int
) -> dict[str, Tensor]:
    """Gathers what a step is judged by, of its batch as one; evaluation is by image."""
    with torch.no_grad():
        # Pixels are in [-1, 1]: the peak is 2.
        psnr = 10 * torch.log10(4 / functional.mse_loss(made.image.float(), image))
        # Not `unique`: on CUDA it waits for the device.
        codes = made.quantized.codes.flatten()
        used = image.new_zeros(codebook_size).index_fill_(0, codes, 1).sum()
    metrics = {
        "reconstruction_loss": losses.total,
        "psnr": psnr,
        "codes_used": used,
    }
    if losses.perceptual is not None:
        metrics["perceptual_loss"] = losses.perceptual
    return metrics


class Critic(Companion):
    """The discriminator beside the tokenizer: judges in its step, learns after it."""

    def __init__(self, loss: AdversarialLoss) -> None:
        """Takes a discriminator that has learned nothing."""
        self._adversarial = loss
        self._images_seen = 0
        self._batch: tuple[Tensor, Tensor] | None = None

    def __deepcopy__(self, memo: object) -> "Critic":
        """Shares itself: the averaged tokenizer has no discriminator of its own."""
        return self

    @property
    def counts_from_images(self) -> int:
        """Images seen from which it counts in the tokenizer's loss."""
        settings = self._adversarial.settings
        return settings.start_images + settings.warmup_images

    def begin_step(self, images_seen: int) -> None:
        """Is told where training stands."""
        self._images_seen = images_seen

    def judge(
        self,
        reconstruction: Tensor,
        image: Tensor,
        losses: ReconstructionLosses,
        last_layer: Tensor,
    ) -> GeneratorLoss | None:
        """Says what a batch is worth, once that counts, and keeps it to learn from."""
        if self._adversarial.is_learning(self._images_seen):
            self._batch = reconstruction.detach(), image
        if not self._adversarial.is_counting(self._images_seen):
            return None
        return self._adversarial.compute_generator_loss(reconstruction, losses.total, last_layer)

    def finish_step(self) -> Mapping[str, Tensor]:
        """Lets the discriminator learn from the batch that it judged."""
        if self._batch is None:
            return {}
        reconstruction, image = self._batch
        self._batch = None
        return self._adversarial.step(reconstruction, image)

    def note_validation(self, metrics: Mapping[str, float]) -> str | None:
        """Counts half when reconstructions get worse."""
        error = 10 ** (-metrics["psnr"] / 10)
        share = self._adversarial.note_validation(error)
        if share is None:
            return None
        return (
            f"Reconstructions got worse ({metrics['psnr']:.2f} dB) since the discriminator counts: "
            f"its weight is now {share:g} of tokenizer_training.loss.adversarial.weight."
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the discriminator and its optimizer."""
        return self._adversarial.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to a discriminator as it was."""
        self._adversarial.load_state_dict(state)


class TokenizerStage(Stage[TokenizerLearner]):
    """Stage 1: pixels → codes → pixels."""

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        settings: TokenizerTrainingSettings,
        data: Mapping[str, CaptionedImages],
        device: torch.device,
        seed: int = 0,
    ) -> None:
        """Takes the tokenizer and both sides of the data; none kept out: measures on training.

        Raises:
            ConfigError: weights that the loss needs are not to be found.
        """
        critic = None
        if settings.loss.adversarial.weight:
            size = data["train"].image_size
            critic = Critic(AdversarialLoss(settings.loss.adversarial, size, device, seed))
        self.companion = critic
        self.network = TokenizerLearner(
            tokenizer,
            ReconstructionLoss(settings.loss),
            critic,
            decoder_only=settings.learn == "decoder",
        )
        tokenizer.set_recompute(settings.recompute)
        if settings.compile:
            # Not the quantizer, whose work depends on what was chosen; not the last layer, for
            # which the discriminator asks gradients of its own.
            self.compiled = [tokenizer.encoder.body, tokenizer.decoder.body]
        self.num_images = len(data["train"])
        self._train = data["train"]
        self._validation = data["validation"] if len(data["validation"]) else self._train

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the convolutions inside encoder and decoder that learn."""
        matrices = self.network.tokenizer.hidden_matrices()
        return [matrix for matrix in matrices if matrix.requires_grad]

    def load_batch(
        self, indices: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Reads pixels (B, H, W, 3) uint8."""
        return (torch.from_numpy(self._train.pixels(indices)),)

    def evaluate(
        self, average: TokenizerLearner, device: torch.device, images_seen: int
    ) -> Evaluation:
        """Measures reconstructions and the codebook's use.

        The sheet has originals above what became of them.
        """
        count = min(_MAX_VALIDATION_IMAGES, len(self._validation))
        pixels = self._validation.pixels(np.arange(count))
        measured = evaluate_reconstructions(average.tokenizer, pixels)
        # Whole rows only, so that each picture stands under its original.
        whole_rows = count // _SHEET_COLUMNS * _SHEET_COLUMNS or count
        rows = []
        for start in range(0, min(_SHEET_PICTURES, whole_rows), _SHEET_COLUMNS):
            chosen = slice(start, start + _SHEET_COLUMNS)
            rows += [pixels[chosen], measured.pixels[chosen]]
        sheet = make_sheet(np.concatenate(rows), columns=min(_SHEET_COLUMNS, count))
        health, settings = measured.health, average.tokenizer.settings.quantizer
        problem = describe_codebook_problem(health, settings, images_seen)
        return Evaluation(
            metrics=measured.metrics(),
            pictures={"samples": sheet, "codebook": plot_codebook_use(health)},
            warnings=[problem] if problem else [],
        )


class TransformerStage(Stage[Objective]):
    """Stage 2: captions → codes."""

    name = "transformer"

    def __init__(
        self,
        model: TextToImage,
        settings: TransformerTrainingSettings,
        data: Mapping[str, CaptionedImages],
        codes: Mapping[str, npt.NDArray[np.uint16]],
        captions: CaptionReader | None = None,
    ) -> None:
        """Takes the model whose transformer learns, and images and codes of each side.

        Args:
            model: the tokenizer is trained.
            settings: of the training.
            data: images of each side.
            codes: (passes, N, h, w) of each side; one pass is drawn each time.
            captions: reads them quicker than the model's own text encoder.
        """
        self.network = model.objective
        if settings.compile:
            self.compiled = [*model.transformer.self_decoder, *model.transformer.cross_decoder]
        self.num_images = len(data["train"])
        self._model = model
        self._captions = captions or model.text_tokenizer
        self._caption_dropout = settings.caption_dropout
        self._data = data
        self._codes = codes
        self._held = "validation" if len(data["validation"]) else "train"

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the matrices inside the transformer's layers."""
        return self.network.transformer.hidden_matrices()

    def load_batch(
        self, indices: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Reads text tokens (B, T) of one caption each, some dropped, and codes (B, h, w)."""
        captions = []
        for index in indices:
            choices = self._data["train"].captions(int(index))
            caption = choices[rng.integers(len(choices))]
            captions.append("" if rng.random() < self._caption_dropout else caption)
        codes = self._codes["train"]
        return self._batch(captions, codes[rng.integers(len(codes), size=len(indices)), indices])

    def evaluate(self, average: Objective, device: torch.device, images_seen: int) -> Evaluation:
        """Scores held-out images with their first captions; paints those that can be read whole."""
        data, codes = self._data[self._held], self._codes[self._held][0]
        count = min(_MAX_VALIDATION_IMAGES, len(data))
        captions = [data.captions(index)[0] for index in range(count)]
        totals: dict[str, float] = {}
        torch.manual_seed(0)  # the same orders at every evaluation; each step has its own seed
        with torch.inference_mode():
            for start in range(0, count, _VALIDATION_BATCH):
                chosen = slice(start, min(start + _VALIDATION_BATCH, count))
                batch = self._batch(captions[chosen], codes[chosen])
                result = average(*(tensor.to(device) for tensor in batch))
                for name, value in {"loss": result.loss, **result.metrics}.items():
                    share = len(batch[0]) / count
                    totals[name] = totals.get(name, 0.0) + share * value.item()
        model = self._model.with_parts(transformer=average.transformer)
        readable = (caption for caption in captions if can_read(self._model, caption))
        prompts = list(islice(readable, _SHEET_PICTURES)) or [""]
        pixels = model.generate_images(enumerate_requests(prompts)).pixels
        sheet = make_sheet(pixels, columns=_SHEET_COLUMNS // 2, labels=prompts, scale=2)
        return Evaluation(totals, {"samples": sheet})

    def _batch(self, captions: list[str], codes: npt.NDArray[np.uint16]) -> tuple[Tensor, ...]:
        text = self._captions.encode_training(captions).text_tokens
        return text, torch.from_numpy(codes.astype(np.int64))
