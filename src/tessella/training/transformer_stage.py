"""Stage 2: captions → codes. Its batches and how it is measured; the loss is the objective's."""

from collections.abc import Mapping, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import send_to_device
from pydantic import Field

from tessella.data.cache import CaptionedImages
from tessella.evaluation.eval_images import can_read
from tessella.model.pipeline import TextToImage
from tessella.model.request import enumerate_requests
from tessella.objectives import Objective
from tessella.sheets import make_sheet
from tessella.training.codes import Codes, find_mirrored
from tessella.training.neighbors import ExampleReader
from tessella.training.stage import Batch, Evaluation, Stage, TrainingSettings
from tessella.training.text_features import CaptionReader
from tessella.transformer import Transformer

_MAX_VALIDATION_IMAGES = 512
_VALIDATION_BATCH = 64
_SHEET_PICTURES = 16
_SHEET_COLUMNS = 4


class TransformerTrainingSettings(TrainingSettings):
    """How the transformer trains."""

    caption_dropout: float = Field(0.1, ge=0.0, le=1.0)
    """Fraction of pictures that are learned with an empty prompt, which guidance needs."""
    first_caption_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """Fraction of pictures that are learned with their first caption; the others draw one of all
    theirs. For titles that are followed by keywords, where prompts will be like the titles."""
    flips: bool = False
    """Whether pictures are also learned mirrored: twice the pictures, where a long training on few
    of them would learn them by heart. Their captions then begin with `mirrored,`, so that writing,
    and what captions say of left and right, is painted the right way round without it."""
    crops: int = Field(0, ge=0, le=16)
    """Random crops of each picture (four fifths of its side or more), drawn once, that are learned
    beside it."""


def caption_mirrored(caption: str) -> str:
    """Captions a mirrored picture. At the front, where no length cuts it off.

    Source: augmentations that the model is told of do not leak into what it makes,
    arXiv:2206.00364, appendix F.2.
    """
    return f"mirrored, {caption}"


class TransformerStage(Stage[Transformer]):
    """Stage 2: captions → codes.

    Args:
        model: its transformer learns; its tokenizer is trained.
        settings: of the training.
        data: images of each side; if none are held out, training images are scored.
        codes: (passes, N, M, h, w) of each side; a batch draws each image's codes from one pass.
        captions: reads captions faster than the model's own text encoder.
        examples: reads what each picture looks at; None where the model has no examples.
    """

    name = "transformer"

    def __init__(
        self,
        model: TextToImage,
        settings: TransformerTrainingSettings,
        data: Mapping[str, CaptionedImages],
        codes: Mapping[str, Codes],
        captions: CaptionReader | None = None,
        examples: ExampleReader | None = None,
    ) -> None:
        self.network = model.transformer
        self.hidden_matrices = self.network.hidden_matrices()
        self.loss_module = model.objective
        for parameter in model.objective.list_unused():
            parameter.requires_grad_(False)
        self.network.set_recompute(settings.recompute)
        if settings.compile:
            self.compiled = [*model.transformer.self_decoder, *model.transformer.cross_decoder]
        self.num_images = len(data["train"])
        self._model = model
        self._captions = captions or model.text_tokenizer
        self._examples = examples
        self._caption_dropout = settings.caption_dropout
        self._first_caption_fraction = settings.first_caption_fraction
        self._flips = settings.flips
        self._data = data
        self._codes = codes
        self._validation_side = "validation" if len(data["validation"]) else "train"

    def load_batch(
        self, indices: npt.NDArray[np.int64], rngs: Sequence[np.random.Generator]
    ) -> Batch:
        """Reads text (B, T) of one caption each, some dropped, codes (B, M, h, w) and examples."""
        captions, choices = [], []
        for index, rng in zip(indices, rngs, strict=True):
            texts = self._data["train"].captions(int(index))
            is_first = rng.random() < self._first_caption_fraction
            choices.append(0 if is_first else int(rng.integers(len(texts))))
            is_dropped = rng.random() < self._caption_dropout
            captions.append("" if is_dropped else texts[choices[-1]])
        codes = self._codes["train"]
        passes = np.array([rng.integers(len(codes)) for rng in rngs])
        mirrored = find_mirrored(passes, len(codes), flips=self._flips).tolist()
        prompts = [
            caption_mirrored(caption) if is_mirrored and caption else caption
            for caption, is_mirrored in zip(captions, mirrored, strict=True)
        ]
        batch = self._batch(prompts, codes[passes, indices])
        if self._examples is None:
            return batch
        keeps_prompt = np.array([bool(caption) for caption in captions])
        return (*batch, self._examples.draw(indices, choices, passes, keeps_prompt, rngs))

    def evaluate(self, average: Transformer, device: torch.device, images_seen: int) -> Evaluation:
        """Scores held-out images with their first captions; paints captions that fit whole."""
        side = self._validation_side
        count = min(_MAX_VALIDATION_IMAGES, len(self._data[side]))
        captions = [self._data[side].captions(index)[0] for index in range(count)]
        model = self._model.with_parts(transformer=average).to(device)
        metrics = self._score(model.objective.eval(), captions, self._codes[side][0], device)
        readable = (caption for caption in captions if can_read(self._model, caption))
        prompts = list(islice(readable, _SHEET_PICTURES)) or [""]
        pixels = model.generate_images(enumerate_requests(prompts)).pixels
        sheet = make_sheet(pixels, columns=_SHEET_COLUMNS, labels=prompts, scale=2)
        return Evaluation(metrics, {"samples": sheet})

    @torch.inference_mode()
    def _score(
        self, objective: Objective, captions: list[str], codes: Codes, device: torch.device
    ) -> dict[str, float]:
        """Computes the mean loss and metrics over the first images, one per caption."""
        means: dict[str, float] = {}
        torch.manual_seed(0)  # the same orders at every evaluation; each step has its own seed
        for start in range(0, len(captions), _VALIDATION_BATCH):
            part = captions[start : start + _VALIDATION_BATCH]
            batch = self._batch(part, codes[start : start + len(part)])
            if self._examples is not None:
                indices = np.arange(start, start + len(part))
                side = self._validation_side
                batch += (self._examples.read_best(side, indices, [0] * len(part)),)
            result = objective(*send_to_device(batch, device))
            for name, value in {"loss": result.loss, **result.metrics}.items():
                weight = len(part) / len(captions)
                means[name] = means.get(name, 0.0) + weight * value.item()
        return means

    def _batch(self, captions: list[str], codes: Codes) -> Batch:
        text = self._captions.encode_training(captions).text_tokens
        return text, torch.from_numpy(codes.astype(np.int64))
