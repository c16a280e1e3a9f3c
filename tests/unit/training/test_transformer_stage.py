"""Stage 2: which batches it reads, how it is evaluated."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tessella.config import build
from tessella.data.cache import CaptionedImages
from tessella.errors import ConfigError
from tessella.model.folder import ModelConfig
from tessella.model.pipeline import TextToImage
from tessella.text import TextSettings, TextTokenizer
from tessella.training import transformer_stage
from tessella.training.ema import create_average
from tessella.training.schedule import create_image_generators
from tessella.training.transformer_stage import TransformerStage, TransformerTrainingSettings
from tessella.transformer import Examples

Data = Mapping[str, CaptionedImages]

CPU = torch.device("cpu")
INDICES = np.array([3, 0, 7, 3])


def create(
    data: Data, objective: str = "any_order", num_codes: int = 1, **changes: object
) -> TransformerStage:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {
            "image_size": 16,
            "tokenizer": {
                "patch": 2,
                "widths": (16, 32),
                "quantizer": {
                    "codebook_size": 16,
                    "code_width": 4,
                    "codes_per_position": num_codes,
                },
            },
            "transformer": {"width": 16, "depth": 2, "heads": 2},
            "objective": {"name": objective},
            "generation": {"steps": 2},
        }
    )
    text = TextTokenizer.train(data["train"].all_captions(), TextSettings())
    rng = np.random.default_rng(0)
    codes = {
        side: rng.integers(16, size=(3, len(images), num_codes, *config.grid)).astype(np.uint16)
        for side, images in data.items()
    }
    settings = TransformerTrainingSettings().replace(**changes)
    return TransformerStage(TextToImage.create(config, text), settings, data, codes)


def without_validation(data: Data) -> Data:
    class Nothing:
        def __len__(self) -> int:
            return 0

    return {"train": data["train"], "validation": Nothing()}  # type: ignore[dict-item]


@pytest.mark.parametrize("num_codes", [1, 2])
def test_a_transformer_batch_is_a_caption_and_the_codes_of_each_image(
    num_codes: int, scenes: Data
) -> None:
    stage = create(scenes, num_codes=num_codes, caption_dropout=0.0)
    tokens, codes = stage.load_batch(INDICES, create_image_generators(0, 0, len(INDICES)))
    assert codes.dtype == torch.int64
    assert codes.shape == (4, num_codes, 4, 4)
    every = stage._codes["train"][:, INDICES]  # (passes, B, M, h, w)
    from_pass = (every == codes.numpy()).all((2, 3, 4))
    assert from_pass.any(0).all()
    text = stage._model.text_tokenizer
    for caption, index in zip(text.decode(tokens), INDICES, strict=True):
        assert caption in scenes["train"].captions(int(index))


def test_every_caption_has_its_turn(scenes: Data) -> None:
    stage = create(scenes, caption_dropout=0.0)
    choices = set(scenes["train"].captions(0))
    assert len(choices) > 2
    rngs = create_image_generators(0, 0, 200)
    tokens, _ = stage.load_batch(np.zeros(200, dtype=np.int64), rngs)
    assert set(stage._model.text_tokenizer.decode(tokens)) == choices


@pytest.mark.parametrize(("fraction", "low", "high"), [(0.5, 201, 320), (1.0, 400, 400)])
def test_the_first_caption_may_have_more_turns(
    scenes: Data, fraction: float, low: int, high: int
) -> None:
    stage = create(scenes, caption_dropout=0.0, first_caption_fraction=fraction)
    tokens, _ = stage.load_batch(np.zeros(400, dtype=np.int64), create_image_generators(0, 0, 400))
    first = scenes["train"].captions(0)[0]
    assert low <= stage._model.text_tokenizer.decode(tokens).count(first) <= high


@pytest.mark.parametrize(
    ("fraction", "low", "high"), [(0.0, 0, 0), (0.25, 60, 140), (1.0, 400, 400)]
)
def test_some_captions_are_dropped(scenes: Data, fraction: float, low: int, high: int) -> None:
    stage = create(scenes, caption_dropout=fraction)
    tokens, _ = stage.load_batch(np.arange(400) % 20, create_image_generators(0, 0, 400))
    dropped = stage._model.text_tokenizer.decode(tokens).count("")
    assert low <= dropped <= high


def test_captions_of_mirrored_pictures_say_so(scenes: Data) -> None:
    """Of two passes, as they are and mirrored; the codes tell which it is."""
    stage = create(scenes, caption_dropout=0.3, flips=True)
    codes = np.zeros((2, *stage._codes["train"].shape[1:]), np.uint16)
    codes[1] = 1
    stage._codes = {"train": codes}
    indices = np.arange(200) % 20
    tokens, drawn = stage.load_batch(indices, create_image_generators(0, 0, len(indices)))
    texts = stage._model.text_tokenizer.decode(tokens)
    is_mirrored = drawn.flatten(1)[:, 0].bool().tolist()
    assert 60 < sum(is_mirrored) < 140
    for text, mirrored, index in zip(texts, is_mirrored, indices, strict=True):
        captions = scenes["train"].captions(int(index))
        expected = [f"mirrored, {caption}" for caption in captions] if mirrored else captions
        assert text in ["", *expected]
    assert 30 < texts.count("") < 90


def test_a_batch_follows_from_its_random_numbers(scenes: Data) -> None:
    stage = create(scenes, caption_dropout=0.5)
    first, again, other = (
        stage.load_batch(INDICES, create_image_generators(seed, 0, len(INDICES)))[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_a_score_does_not_depend_on_chance_or_portions(
    scenes: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders are drawn in scoring: the same ones each time, else two scores could not be compared.

    With `latent_mse`, which draws nothing, also the portions that it is scored in do not matter.
    """
    stage = create(scenes)
    average = create_average(stage.network)
    torch.manual_seed(5)
    first = stage.evaluate(average, CPU, 0)
    again = stage.evaluate(average, CPU, 0)
    assert first.metrics == again.metrics
    assert np.array_equal(first.pictures["samples"], again.pictures["samples"])

    for name in ("loss", "accuracy"):
        assert name in first.metrics
    stage = create(scenes, "latent_mse")
    average = create_average(stage.network)
    whole = stage.evaluate(average, CPU, 0).metrics
    monkeypatch.setattr(transformer_stage, "_VALIDATION_BATCH", 3)
    assert len(scenes["validation"]) % 3
    assert stage.evaluate(average, CPU, 0).metrics == pytest.approx(whole, rel=1e-4)


def test_the_average_is_scored_and_painted_with_not_the_network(scenes: Data) -> None:
    stage = create(scenes)
    average = create_average(stage.network)
    before = stage.evaluate(average, CPU, 0)
    with torch.no_grad():
        for parameter in stage.network.parameters():
            parameter.zero_()
    after = stage.evaluate(average, CPU, 0)
    assert after.metrics == before.metrics
    assert np.array_equal(after.pictures["samples"], before.pictures["samples"])


# Training cuts captions that are too long; painting refuses them. An evaluation painted the whole
# ones, so that a run with long captions died there, each time it was called again.
@pytest.mark.parametrize("some_are_short", [True, False])
def test_captions_that_are_too_long_are_scored_but_not_painted(
    scenes: Data, some_are_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = create(scenes)
    text = stage._model.text_tokenizer
    captions = [scenes["validation"].captions(i)[0] for i in range(len(scenes["validation"]))]
    lengths = [len(text.tokens(caption)) for caption in captions]  # type: ignore[attr-defined]
    text.max_tokens = min(lengths) if some_are_short else 4
    readable = [c for c, length in zip(captions, lengths, strict=True) if length == min(lengths)]
    assert 0 < len(readable) < len(captions)
    painted = []
    generate = TextToImage.generate_images

    def watch(self: TextToImage, requests: list[Any], **options: Any) -> Any:
        painted.extend(request.prompt for request in requests)
        return generate(self, requests, **options)

    monkeypatch.setattr(TextToImage, "generate_images", watch)
    made = stage.evaluate(create_average(stage.network), CPU, 0)
    assert painted == (readable if some_are_short else [""])
    assert made.metrics["loss"] > 0
    assert made.pictures["samples"].ndim == 3


def test_without_validation_the_training_images_are_scored(scenes: Data) -> None:
    stage = create(without_validation(scenes), "latent_mse")
    average = create_average(stage.network)
    count = len(scenes["train"])
    captions = [scenes["train"].captions(index)[0] for index in range(count)]
    text = stage._model.text_tokenizer.encode(captions)
    codes = torch.from_numpy(stage._codes["train"][0].astype(np.int64))
    expected = stage.loss_module.eval()(text, codes).loss.item()
    assert stage.evaluate(average, CPU, 0).metrics["loss"] == pytest.approx(expected, rel=1e-4)


def test_what_is_compiled(scenes: Data) -> None:
    stage = create(scenes, compile=True)
    assert stage.compiled == [*stage.network.self_decoder, *stage.network.cross_decoder]
    assert not create(scenes).compiled


def test_layers_that_are_computed_again_learn_the_same(scenes: Data) -> None:
    """Dropout draws the same mask the second time."""

    def learn(*, recompute: bool) -> tuple[int, dict[str, torch.Tensor]]:
        stage = create(scenes, recompute=recompute)
        for module in stage.loss_module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        runs: list[nn.Module] = []
        for layer in (*stage.network.self_decoder, *stage.network.cross_decoder):
            layer.mlp_in.register_forward_hook(lambda module, *_: runs.append(module))
        torch.manual_seed(1)
        rngs = [np.random.default_rng(number) for number in range(4)]
        stage.loss_module.train()(*stage.load_batch(np.arange(4), rngs)).loss.backward()
        named = stage.network.named_parameters()
        return len(runs), {name: one.grad for name, one in named if one.grad is not None}

    (once, expected), (twice, gradients) = learn(recompute=False), learn(recompute=True)
    assert twice == 2 * once
    torch.testing.assert_close(gradients, expected)


def test_what_is_compiled_is_not_sharded() -> None:
    with pytest.raises(ConfigError, match=r"cannot gather its weights.*sharding=none"):
        build(TransformerTrainingSettings, {"compile": True, "sharding": "full"})


# With examples.


class Examined:
    """Reads examples whose codes say what was asked; each call is noted."""

    def __init__(self, text: TextTokenizer, num_codes: int) -> None:
        self._text, self._num_codes = text, num_codes
        self.calls: list[tuple[Any, ...]] = []

    def _read(self, indices: np.ndarray, choices: Sequence[int]) -> Examples:
        codes = np.stack([(indices + choices) % 16, np.full_like(indices, -1)], 1)
        text = self._text.encode_training(["a star"] * 2 * len(indices)).text_tokens
        grid = torch.from_numpy(codes)[..., None, None].expand(-1, -1, 16, self._num_codes)
        return Examples(grid, text.view(len(indices), 2, -1))

    def draw(
        self,
        indices: np.ndarray,
        choices: Sequence[int],
        passes: np.ndarray,
        keeps_prompt: np.ndarray,
        rng: np.random.Generator,
    ) -> Examples:
        self.calls.append((indices, choices, passes, keeps_prompt))
        return self._read(indices, choices)

    def read_best(self, side: str, indices: np.ndarray, choices: Sequence[int]) -> Examples:
        self.calls.append((side, indices.tolist(), list(choices)))
        return self._read(indices, choices)


def create_looking(
    data: Data, objective: str = "any_order", num_codes: int = 1, **changes: object
) -> tuple[TransformerStage, Examined]:
    """A stage whose model looks at two examples."""
    plain = create(data, objective, num_codes, **changes)
    config = plain._model.config.replace(neighbors=2)
    text: Any = plain._model.text_tokenizer
    torch.manual_seed(0)
    model, examined = TextToImage.create(config, text), Examined(text, num_codes)
    assert model.transformer.example_encoder is not None
    settings = TransformerTrainingSettings().replace(**changes)
    reader: Any = examined
    return TransformerStage(model, settings, data, plain._codes, examples=reader), examined


def test_the_examples_are_those_of_the_batch(scenes: Data) -> None:
    """Of the same pictures, captions and passes; a dropped prompt is told."""
    stage, examined = create_looking(scenes, caption_dropout=0.5)
    indices = np.arange(20)
    tokens, codes, examples = stage.load_batch(indices, create_image_generators(0, 0, len(indices)))
    [(asked, choices, passes, keeps_prompt)] = examined.calls
    assert np.array_equal(asked, indices)
    assert np.array_equal(stage._codes["train"][passes, indices], codes.numpy())
    assert 0 < keeps_prompt.sum() < 20
    read = stage._model.text_tokenizer.decode(tokens)
    for index, choice, keeps, caption in zip(indices, choices, keeps_prompt, read, strict=True):
        assert caption == (scenes["train"].captions(int(index))[choice] if keeps else "")
    assert isinstance(examples, Examples)
    # What they are does not change what else is in the batch.
    other, same_codes = create(scenes, caption_dropout=0.5).load_batch(
        indices, create_image_generators(0, 0, len(indices))
    )
    assert torch.equal(other, tokens)
    assert torch.equal(same_codes, codes)


@pytest.mark.parametrize("num_codes", [1, 2])
def test_a_batch_with_examples_is_learned_from(num_codes: int, scenes: Data) -> None:
    stage, _ = create_looking(scenes, num_codes=num_codes)
    result = stage.loss_module.train()(
        *stage.load_batch(INDICES, create_image_generators(0, 0, len(INDICES)))
    )
    result.loss.backward()
    encoder = stage.network.example_encoder
    assert encoder is not None
    assert encoder.mix_out.weight.grad is not None
    without = create(scenes, num_codes=num_codes)
    assert len(stage.hidden_matrices) == len(without.hidden_matrices) + 6


@pytest.mark.parametrize("side", ["validation", "train"])
def test_it_is_scored_with_the_best_examples(
    side: str, scenes: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of each picture's first caption, in portions, and they count."""
    monkeypatch.setattr(transformer_stage, "_VALIDATION_BATCH", 3)
    data = scenes if side == "validation" else without_validation(scenes)
    stage, examined = create_looking(data, "latent_mse")
    for layer in (*stage.network.self_decoder, *stage.network.cross_decoder):
        for matrix in (layer.attention_out, layer.mlp_out):  # fresh ones change nothing
            torch.nn.init.normal_(matrix.weight, std=0.5)
    average = create_average(stage.network)
    scored = stage.evaluate(average, CPU, 0).metrics["loss"]
    count = len(data[side])
    indices = [index for call in examined.calls for index in call[1]]
    assert indices == list(range(count))
    assert {call[0] for call in examined.calls} == {side}
    assert {choice for call in examined.calls for choice in call[2]} == {0}

    captions = [data[side].captions(index)[0] for index in range(count)]
    text = stage._model.text_tokenizer.encode(captions)
    codes = torch.from_numpy(stage._codes[side][0].astype(np.int64))
    objective = stage.loss_module.eval()
    examples = examined._read(np.arange(count), [0] * count)
    assert scored == pytest.approx(objective(text, codes, examples).loss.item(), rel=1e-4)
    assert scored != pytest.approx(objective(text, codes).loss.item(), rel=1e-4)


@pytest.mark.parametrize(("looks", "num_codes"), [(False, 1), (True, 1), (True, 2)])
def test_it_learns_in_mixed_precision(looks: bool, num_codes: int, scenes: Data) -> None:
    """As on CUDA: what autocast hands from layer to layer in bfloat16 must fit together."""
    kind: dict[str, Any] = {"num_codes": num_codes}
    stage = create_looking(scenes, **kind)[0] if looks else create(scenes, **kind)
    loss_module = stage.loss_module.train()
    batch = stage.load_batch(INDICES, create_image_generators(0, 0, len(INDICES)))
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss_module(*batch)
    assert result.loss.dtype == torch.float32
    torch.manual_seed(0)
    exact = loss_module(*batch)
    assert result.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
    result.loss.backward()
    learning = [p for p in stage.network.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for p in learning)
    assert sum(p.grad is not None for p in learning) > len(learning) / 2
