"""The two stages: how each reads a batch, what its network makes of it, how it is evaluated."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tessella.data.cache import CaptionedImages
from tessella.evaluation.reconstruction import evaluate_reconstructions
from tessella.images import make_sheet, to_float
from tessella.objectives import Objective
from tessella.pipeline import TextToImage
from tessella.text import TextTokenizer
from tessella.tokenizer import (
    ImageTokenizer,
    ReconstructionLossSettings,
    compute_reconstruction_loss,
)
from tessella.training.loop import Evaluation, Stage, StepResult, TrainingSettings
from tessella.transformer import Transformer

_MAX_VALIDATION_IMAGES = 512
_VALIDATION_BATCH = 64
_SHEET_PICTURES = 16
_SHEET_COLUMNS = 8


class TokenizerTrainingSettings(TrainingSettings):
    """How the image tokenizer trains."""

    loss: ReconstructionLossSettings = ReconstructionLossSettings()
    """What a good reconstruction is."""


class TransformerTrainingSettings(TrainingSettings):
    """How the transformer trains."""

    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    """Share of pictures that are learned with an empty prompt, which guidance needs."""


class TokenizerLearner(nn.Module):
    """The image tokenizer and its loss: pixels in, `StepResult` out."""

    def __init__(self, tokenizer: ImageTokenizer, loss: ReconstructionLossSettings) -> None:
        """Takes the tokenizer that learns."""
        super().__init__()
        self.tokenizer = tokenizer
        self._loss = loss

    def forward(self, pixels: Tensor) -> StepResult:
        """Reconstructs (B, H, W, 3) uint8."""
        image = to_float(pixels)
        made = self.tokenizer(image)
        reconstruction = made.image.float()
        loss = compute_reconstruction_loss(reconstruction, image, self._loss)
        with torch.no_grad():
            # Pixels are in [-1, 1]: the peak is 2. Of the batch as one; evaluation is by image.
            psnr = 10 * torch.log10(4 / functional.mse_loss(reconstruction, image))
            used = made.quantized.codes.unique().numel()
        metrics = {
            "reconstruction_loss": loss,
            "psnr": psnr,
            "codes_used": torch.tensor(float(used), device=loss.device),
        }
        return StepResult(loss + made.quantized.loss, metrics)


class TokenizerStage(Stage[TokenizerLearner]):
    """Stage 1: pixels → codes → pixels."""

    name = "tokenizer"

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        loss: ReconstructionLossSettings,
        data: Mapping[str, CaptionedImages],
    ) -> None:
        """Takes the tokenizer and both sides of the data; none kept out: measures on training."""
        self.network = TokenizerLearner(tokenizer, loss)
        self.num_images = len(data["train"])
        self._train = data["train"]
        self._validation = data["validation"] if len(data["validation"]) else self._train

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Lists the convolutions inside encoder and decoder."""
        return self.network.tokenizer.hidden_matrices()

    def load_batch(
        self, indices: npt.NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[Tensor, ...]:
        """Reads pixels (B, H, W, 3) uint8."""
        return (torch.from_numpy(self._train.pixels(indices)),)

    def evaluate(self, average: TokenizerLearner, device: torch.device) -> Evaluation:
        """Measures reconstructions; the sheet has originals above what became of them."""
        count = min(_MAX_VALIDATION_IMAGES, len(self._validation))
        pixels = self._validation.pixels(np.arange(count))
        measured = evaluate_reconstructions(average.tokenizer, pixels, device)
        # Whole rows only, so that each picture stands under its original.
        whole_rows = count // _SHEET_COLUMNS * _SHEET_COLUMNS or count
        rows = []
        for start in range(0, min(_SHEET_PICTURES, whole_rows), _SHEET_COLUMNS):
            chosen = slice(start, start + _SHEET_COLUMNS)
            rows += [pixels[chosen], measured.pixels[chosen]]
        sheet = make_sheet(np.concatenate(rows), columns=min(_SHEET_COLUMNS, count))
        return Evaluation(measured.metrics(), sheet)


class TransformerLearner(nn.Module):
    """The transformer under an objective: text tokens and codes in, `StepResult` out."""

    codebook: Tensor

    def __init__(self, transformer: Transformer, objective: Objective, codebook: Tensor) -> None:
        """Takes the transformer that learns and the codebook that does not."""
        super().__init__()
        self.transformer = transformer
        self._objective = objective
        self.register_buffer("codebook", codebook.detach().clone(), persistent=False)

    def forward(self, text_tokens: Tensor, codes: Tensor) -> StepResult:
        """Scores text tokens (B, T) and codes (B, h, w)."""
        scored = self._objective.compute_loss(self.transformer, self.codebook, text_tokens, codes)
        return StepResult(scored.loss, {"accuracy": scored.accuracy})


class TransformerStage(Stage[TransformerLearner]):
    """Stage 2: captions → codes."""

    name = "transformer"

    def __init__(
        self,
        model: TextToImage,
        settings: TransformerTrainingSettings,
        data: Mapping[str, CaptionedImages],
        codes: Mapping[str, npt.NDArray[np.uint16]],
    ) -> None:
        """Takes the model whose transformer learns, and images and codes of each side."""
        self.network = TransformerLearner(
            model.transformer, model.objective, model.tokenizer.codebook
        )
        self.num_images = len(data["train"])
        self._model = model
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
        return self._batch(captions, self._codes["train"][indices])

    def evaluate(self, average: TransformerLearner, device: torch.device) -> Evaluation:
        """Scores held-out images with their first captions; paints some of those captions."""
        data, codes = self._data[self._held], self._codes[self._held]
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
        painter = self._model.with_transformer(average.transformer)
        prompts = captions[:_SHEET_PICTURES]
        pixels = painter.paint(prompts, seeds=range(len(prompts))).pixels
        sheet = make_sheet(pixels, columns=_SHEET_COLUMNS // 2, labels=prompts, scale=2)
        return Evaluation(totals, sheet)

    def _batch(self, captions: list[str], codes: npt.NDArray[np.uint16]) -> tuple[Tensor, ...]:
        text: TextTokenizer = self._model.text_tokenizer
        tokens = text.encode_training(captions).text_tokens
        return tokens, torch.from_numpy(codes.astype(np.int64))
