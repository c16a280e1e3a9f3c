"""Which prompt a picture ranks first: by hand, by chance, and by a tiny CLIP."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tessella.errors import ConfigError
from tessella.evaluation.retrieval import Clip, measure_retrieval


def test_the_own_prompt_must_be_above_all_others() -> None:
    """The first is above, the second is not, the third is level, which is not above."""
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [1.0, 0.0, 1.0]])
    found = measure_retrieval(scores, torch.tensor([0, 1, 2]), "by hand")
    assert found.value == pytest.approx(1 / 3)
    assert found.protocol == (
        "share of 3 pictures whose own prompt is first of 3, chance 0.333; by hand"
    )


def test_several_pictures_may_have_one_prompt() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.4], [0.9, 0.8]])
    assert measure_retrieval(scores, torch.tensor([0, 0, 0]), "").value == pytest.approx(2 / 3)


def test_scores_that_are_no_numbers_find_nothing() -> None:
    assert measure_retrieval(torch.full((2, 2), torch.nan), torch.tensor([0, 1]), "").value == 0


def test_of_many_prompts_each_picture_is_given_a_hundred() -> None:
    """Its own prompt is second of 200: the first is among 99 drawn of 199 in about half."""
    scores = -torch.arange(200.0).expand(400, -1)
    found = measure_retrieval(scores, torch.ones(400, dtype=torch.int64), "")
    assert "first of 100, chance 0.01;" in found.protocol
    assert found.value == pytest.approx(1 - 99 / 199, abs=0.1)
    assert found == measure_retrieval(scores, torch.ones(400, dtype=torch.int64), "")


def test_chance_is_what_blind_scores_have() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3000, 20, generator=generator)
    found = measure_retrieval(scores, torch.arange(3000) % 20, "")
    assert found.value == pytest.approx(1 / 20, abs=0.02)


PROMPTS = ["a red square", "blue", "a large green ring on white", "red red red"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of two layers with random weights, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "<end>", "<start>", *sorted({w for p in PROMPTS for w in p.split()})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<end>", 1), ("<start>", 2)]
    )
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", bos_token="<start>"
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    text = {"vocab_size": len(words), "max_position_embeddings": 7, "eos_token_id": 1}
    text |= {"bos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**size, **heads, **text},
        vision_config={**size, **heads, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_clip_scores_as_transformers_does(clip_folder: Path) -> None:
    """Pictures of the network's own size, so that only scaling and mean are left to do."""
    import transformers

    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    clip = Clip(str(clip_folder))
    assert clip.name == "tiny-clip"
    scores = clip.score(pixels, PROMPTS)

    network = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip_folder)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    image = torch.from_numpy(((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    expected = []
    with torch.inference_mode():
        for prompt in PROMPTS:
            tokens = tokenizer([prompt], truncation=True, max_length=7, return_tensors="pt")
            made = network(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=image,
            )
            expected.append(made.logits_per_image[:, 0] / network.logit_scale.exp())
    torch.testing.assert_close(scores, torch.stack(expected, 1), atol=1e-5, rtol=1e-4)


def test_pictures_of_another_size_are_resized(clip_folder: Path) -> None:
    flat = np.full((1, 20, 20, 3), (200, 30, 90), dtype=np.uint8)
    clip = Clip(str(clip_folder))
    large = np.full((1, 32, 32, 3), (200, 30, 90), dtype=np.uint8)
    torch.testing.assert_close(clip.score(flat, PROMPTS), clip.score(large, PROMPTS))


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=r"Cannot load a CLIP: `.*nothing`; .* Name a folder of"):
        Clip(str(tmp_path / "nothing"))


def test_a_clip_that_lacks_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """transformers draws missing weights at random, and half a CLIP once ranked by them."""
    folder = tmp_path / "half"
    shutil.copytree(clip_folder, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    message = r"Cannot load a CLIP: `.*half`; its weights lack `visual_projection\.weight`\. Name a"
    with pytest.raises(ConfigError, match=message):
        Clip(str(folder))


def test_pickled_and_damaged_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    """Pickles can run anything; a truncated file once ended in a traceback."""
    folder = tmp_path / "mine"
    shutil.copytree(clip_folder, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"Cannot load a CLIP: `.*mine`"):
        Clip(str(folder))
    pickled = folder / "pytorch_model.bin"
    torch.save(load_file(clip_folder / file.name), pickled)  # noqa: TID251 - it is not loaded
    file.unlink()
    with pytest.raises(ConfigError, match=r"Cannot load a CLIP: `.*mine`"):
        Clip(str(folder))


def test_without_transformers_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"CLIP `mine` needs .* 'tessella\[text\]'"):
        Clip("mine")
