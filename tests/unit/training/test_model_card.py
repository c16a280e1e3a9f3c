"""The model card says what the run was, and nothing else."""

import ast
import re

import yaml

from tessella.training.model_card import write_card
from tessella.training.recipe import resolve_recipe


def card(
    *words: str, preset: str = "small", licence: str | None = "CC0-1.0", **changes: object
) -> str:
    facts = {
        "sources": ["stickers", "scenes:100"],
        "counts": {
            "images": 12345,
            "captions": 23456,
            "train": 11728,
            "validation": 617,
            "skipped": {"broken": 3, "empty": 4},
        },
        "sample_captions": ["an octopus", 'a "quoted" fish\'s fin'],
        "metrics": {
            "reconstruction_psnr": {"value": 28.76543, "protocol": "dB, first 512 images"},
            "codes_used": {"value": 509, "protocol": "of 512"},
        },
        "parameters": {"tokenizer": 1_234_567, "transformer": 9_876_543},
        "seed": 42,
    }
    recipe = resolve_recipe(
        preset,
        None,
        [
            "tokenizer_training.images=280000",
            "transformer_training.images=1230000",
            *words,
            *([f"data.licence={licence}"] if licence else []),
        ],
    )
    return write_card(recipe, facts | changes)


def test_several_codes_at_a_position_are_told() -> None:
    text = card("tokenizer.quantizer.codes_per_position=2")
    said = " pictures from a prompt: 2 codes at each of 16×16 positions, each out of 512."
    assert f"{said}\n" in text
    assert text.startswith("---\n")
    assert card().startswith("---\n")


def test_the_facts_are_there() -> None:
    text = card()
    for fact in (
        "128×128 pictures",
        "16×16 codes out of 512",
        "`stickers`, `scenes:100`",
        "12,345 with 23,456 captions",
        "11,728 for training, 617 held out, 7 skipped",
        "Licence of the data: CC0-1.0",
        "1.23 M parameters, 280,000 images seen",
        "- Its loss: 1 pixel MSE\n",
        "objective `any_order`, 9.88 M parameters, 1,230,000 images seen",
        "Seed: 42",
        "| reconstruction_psnr | 28.77 | dB, first 512 images |",
        "## Measured\n\n- Its codes give a picture back with colours off by 3.6% of the way from ",
        "| codes_used | 509 | of 512 |",
        "- `an octopus`",
        "samples.png",
    ):
        assert fact in text, fact


def test_numbers_of_training_pictures_are_called_so_in_the_first_line() -> None:
    counts = {"images": 1, "captions": 1, "train": 1, "validation": 0, "skipped": {}}
    title, _, first, *_ = card(counts=counts).partition("# A tessella")[2].split("\n")
    assert title == " model"
    assert first.startswith("**Its numbers and samples are of training pictures: none were held")
    assert "training pictures: none" not in card()
    assert "![Samples: held-out captions" in card()


def test_how_the_tokenizer_came_to_what_it_knows() -> None:
    loss = "tokenizer_training.loss"
    text = card(
        f"{loss}.perceptual.layers={{conv1=0.05,layer2=0.1}}",
        f"{loss}.adversarial.weight=0.2",
        "tokenizer_training.learn=decoder",
        "tokenizer_training.init_from=runs/first",
    )
    assert "its decoder alone, 280,000 images seen after those of `first`" in text
    assert (
        "loss: 1 pixel MSE, 0.05 ResNet-18 conv1, 0.1 ResNet-18 layer2, 0.2 discriminator" in text
    )
    palette = card(preset="palette")
    assert "its colours chosen by k-means" in palette
    assert "loss" not in palette


def test_what_it_cannot_do_is_said() -> None:
    text = card()
    for limit in (
        "It paints 128×128 pictures. Larger ones,",
        "Words that were in no caption mean nothing to it.\n",
        "It cannot write",
        "trained on 11,728 pictures and may come close to some of them: how often was not",
    ):
        assert limit in text, limit
    copies = {"copy_rate": {"value": 0.03125, "protocol": "of 64"}}
    text = card("text.encoder=clip-vit-base-patch32", metrics=copies)
    assert "close to some of them: the measured copy rate is 3.1%." in text
    assert "mean nothing to it, beyond what its text encoder knows of them." in text


def test_a_caption_is_code_and_nothing_else() -> None:
    """A card is shown by hubs, which follow its links and pictures."""
    evil = "a `b` <img src=x>\n# Title\x1b[2J [c](https://d.example) <!-- /examples -->"
    lines = card(sample_captions=[evil]).splitlines()
    shown = "a 'b' <img src=x> # Title\\x1b[2J [c](https://d.example) <!-- /examples -->"
    assert f"- `{shown}`" in lines
    assert not any(line.startswith("# Title") for line in lines)


# Where no caption could be read whole, the sheet shows the empty prompt, which nobody can ask for.
def test_no_caption_makes_no_list() -> None:
    text = card(sample_captions=[""])
    assert "captions like these" not in text
    assert "- \n" not in text
    assert "model.generate('a prompt', seed=7)" in text


def test_the_pictures_inside_are_told_in_a_part_that_can_be_cut_out() -> None:
    metrics = {
        "reconstruction_psnr": {"value": 28.76543, "protocol": "dB"},
        "reconstruction_ssim": {"value": 0.9127, "protocol": "window"},
        "neighbor_copy_rate": {"value": 0.061, "protocol": "of 64"},
        "neighbor_copy_rate_real": {"value": 0.05, "protocol": "of 64"},
    }
    text = card("retrieval.neighbors=3", examples=11728, metrics=metrics)
    lines = text.splitlines()
    start, end = (lines.index(f"<!-- {mark} -->") for mark in ("examples", "/examples"))
    inside, outside = "\n".join(lines[start:end]), "\n".join(lines[:start] + lines[end + 1 :])
    for fact in (
        "11,728 of the training pictures are inside this folder, as codes with captions",
        "beside at most 3 of them. They come from `stickers`, `scenes:100`. Whoever",
        "as any picture: PSNR 28.8 dB, SSIM 0.91 ([Measured](#measured)).",
        "`tessella export MODEL --out FOLDER --without-examples`",
        "`tessella examples remove`",
        "6.1% is as good as a copy of an example; so are 5.0% of the real pictures",
    ):
        assert fact in inside, fact
    assert "inside" not in outside
    # What is left is the card of a model without them.
    assert outside.split() == card("retrieval.neighbors=3", metrics=metrics).split()


def test_what_was_not_measured_of_the_pictures_inside_is_not_told() -> None:
    text = card("retrieval.neighbors=3", examples=5, metrics={})
    assert "Whoever has the folder can decode them.\n" in text
    assert "copy of an example" not in text


def test_the_header_is_what_model_hubs_read() -> None:
    _, header, _ = card().split("---\n", 2)
    assert header.splitlines() == [
        "library_name: tessella",
        "pipeline_tag: text-to-image",
        'license: "CC0-1.0"',
    ]


def test_the_hub_is_told_what_came_from_it() -> None:
    sources = ["/home/ann/pics", "hf:ann/pics@v1:train", "hf:ann/pics:test", "hf:bob/more"]
    text = card(sources=sources, licence="MIT: mostly")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["datasets"] == ["ann/pics", "bob/more"]
    assert header["license"] == "MIT: mostly"
    assert "- Sources: `pics`, `hf:ann/pics@v1:train`, `hf:ann/pics:test`, `hf:bob/more`\n" in text


def test_a_licence_that_is_not_given_is_said_to_be_not_given() -> None:
    text = card(licence=None)
    assert 'license: "other"' in text
    assert "Licence of the data: not given (set data.licence)" in text


def test_the_example_is_python_whatever_the_caption() -> None:
    for captions in (['it\'s "so" \\ odd'], ["a cat"], []):
        [code] = re.findall(r"```python\n(.*?)```", card(sample_captions=captions), re.DOTALL)
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        generate = next(c for c in calls if getattr(c.func, "attr", "") == "generate")
        assert ast.literal_eval(generate.args[0]) == (captions or ["a prompt"])[0]
