"""Text encoders of `transformers`, tiny and random, in folders as `save_pretrained` writes them."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "star", "cat", "car")
WIDTH, LONGEST = 16, 10


def write_tokenizer(folder: Path) -> None:
    """One token a word, begun by [CLS] and ended by [SEP]."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    # As published encoders do; what reads prompts must not follow it.
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=512,
    )
    wrapped.save_pretrained(folder)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        max_position_embeddings=LONGEST,
    )
    BertModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("encoders") / "tiny-clip"
    torch.manual_seed(0)
    size = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": WIDTH,
    }
    words = {"vocab_size": len(WORDS), "max_position_embeddings": LONGEST, "eos_token_id": 3}
    config = CLIPConfig(
        text_config={**size, **words, "bos_token_id": 2, "pad_token_id": 0},
        vision_config={**size, "image_size": 8, "patch_size": 4},
        projection_dim=WIDTH,
    )
    CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder
