"""Features of captions on disk: what stage 2 reads instead of asking the encoder at each step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from tessella.text import TextSettings, TextTokenizer
from tessella.text.frozen import FrozenTextEncoder
from tessella.training import text_features
from tessella.training.text_features import TextFeatures, describe_cut, prepare_captions

CAPTIONS = ["a star", "a red star on a cat", "cat", "a star", "a red cat"]
WORDS = ("<begin>", "<end>", "a", "red", "star", "on", "cat")


class Output:
    def __init__(self, features: Tensor) -> None:
        self.last_hidden_state = features


class Network(nn.Module):
    """Features of a token: its embedding, and the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 3)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Output:
        assert attention_mask.all()
        self.batches.append(tuple(input_ids.shape))
        made = self.embedding(input_ids)
        return Output(made + made.mean(1, keepdim=True))


def create() -> tuple[FrozenTextEncoder, Network]:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 0), ("<end>", 1)]
    )
    torch.manual_seed(0)
    network = Network()
    encoder = FrozenTextEncoder("tiny", tokenizer, network, max_tokens=5)
    network.batches.clear()
    return encoder, network


def test_captions_are_read_once_and_without_padding(tmp_path: Path) -> None:
    encoder, network = create()
    done: list[tuple[int, int]] = []
    path = tmp_path / "text" / "features.npy"
    reader = prepare_captions(encoder, CAPTIONS, path, progress=lambda *at: done.append(at))
    assert isinstance(reader, TextFeatures)
    # "", "cat", "a star", and two of five tokens, of which one is cut.
    assert network.batches == [(1, 2), (1, 3), (1, 4), (2, 5)]
    assert done == [(1, 5), (2, 5), (3, 5), (5, 5)]
    asked = ["a red star on a cat", "", "a star", "a star"]
    made = reader.encode_training(asked)
    assert len(network.batches) == 4
    expected = encoder.encode_training(asked)
    assert made.num_truncated == expected.num_truncated == 1
    assert made.text_tokens.dtype == torch.float32
    assert torch.allclose(made.text_tokens, expected.text_tokens, atol=2e-3)  # 2 bytes a feature
    assert made.text_tokens[1, 2:].eq(0).all()


def test_a_file_is_used_again_until_something_changes(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    prepare_captions(create()[0], CAPTIONS, path)
    encoder, network = create()
    prepare_captions(encoder, CAPTIONS, path)
    assert not network.batches
    prepare_captions(encoder, CAPTIONS[:3], path)
    assert len(network.batches) == 4
    with torch.no_grad():
        network.embedding.weight[0] += 1
    reader = prepare_captions(encoder, CAPTIONS[:3], path)
    assert len(network.batches) == 8
    assert torch.allclose(
        reader.encode_training(["cat"]).text_tokens,
        torch.from_numpy(encoder.read([(0, 6, 1)])),
        atol=4e-3,
    )


def test_a_file_without_its_note_is_made_again(tmp_path: Path) -> None:
    """A run was killed between the file and its note."""
    encoder, network = create()
    prepare_captions(encoder, CAPTIONS, tmp_path / "features.npy")
    (tmp_path / "features.json").unlink()
    network.batches.clear()
    prepare_captions(encoder, CAPTIONS, tmp_path / "features.npy")
    assert len(network.batches) == 4


def test_tokens_need_no_file(tmp_path: Path) -> None:
    own = TextTokenizer.train(CAPTIONS, TextSettings())
    assert prepare_captions(own, CAPTIONS, tmp_path / "features.npy") is own
    assert not list(tmp_path.iterdir())


def test_a_caption_that_was_not_prepared_is_no_silent_zero(tmp_path: Path) -> None:
    reader = prepare_captions(create()[0], CAPTIONS, tmp_path / "features.npy")
    with pytest.raises(KeyError):
        reader.encode_training(["on a star"])


class Images:
    """Two captions a picture, as far as they are looked at."""

    def __len__(self) -> int:
        return 4

    def captions(self, index: int) -> list[str]:
        return [CAPTIONS[index], CAPTIONS[index + 1]]


# Training cut captions without a word.
def test_captions_that_are_cut_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: Any = Images()
    encoder, _ = create()
    reader = prepare_captions(encoder, CAPTIONS, tmp_path / "features.npy")
    said = describe_cut(reader, images, encoder.max_tokens)
    assert said is not None
    assert said.startswith("Captions: 2 of 8 checked have more than 5 tokens (text.max_tokens).")
    assert describe_cut(encoder, images, encoder.max_tokens) == said
    words = TextTokenizer.train(CAPTIONS, TextSettings())
    assert describe_cut(words, images, words.max_tokens) is None
    monkeypatch.setattr(text_features, "_SAMPLE", 3)
    assert " of 6 checked" in (describe_cut(reader, images, 5) or "")
