"""The card's header as the hub reads it."""

import pytest
import yaml
from huggingface_hub import ModelCard

from tessella.errors import CheckpointError, ConfigError
from tessella.hub import HubAddress
from tessella.model.hub_card import LICENCES, complete_card

ADDRESS = HubAddress("ann/stars", "v1")
BODY = '\n# Stars\n\nmodel = tessella.load("path/to/this/folder")\n\n---\nIt paints \\1 and "é".\n'
METRICS = {
    "psnr": {"value": 28.5, "protocol": "dB, mean over 4"},
    "copy_rate": {"value": float("nan"), "protocol": "of 4"},
}
WIDGET = [("a red: star", "widget/1.png"), ("- 'é'\t#", "widget/2.png")]


def complete(header: str = "license: mit", licence: str | None = None) -> tuple[str, str]:
    text = f"---\n{header}\n---\n{BODY}"
    return complete_card(text, ADDRESS, licence=licence, metrics=METRICS, widget=WIDGET)


def read(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_header_is_complete_and_the_text_stays() -> None:
    text, licence = complete()
    assert licence == "mit"
    assert text.split("\n---\n", 1)[1] == BODY.replace("path/to/this/folder", "hf:ann/stars@v1")
    assert read(text) == {
        "license": "mit",
        "library_name": "tessella",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "vector-quantization"],
        "widget": [
            {"text": "a red: star", "output": {"url": "widget/1.png"}},
            {"text": "- 'é'\t#", "output": {"url": "widget/2.png"}},
        ],
        "model-index": read(text)["model-index"],
    }


def test_the_measures_are_read_by_the_hubs_own_code() -> None:
    data = ModelCard(complete()[0]).data
    [result] = data.eval_results
    assert data.model_name == "stars"
    assert (result.metric_type, result.metric_value) == ("psnr", 28.5)
    assert result.metric_name == "psnr (dB, mean over 4)"
    assert result.task_type == "text-to-image"


def test_what_its_author_wrote_stays() -> None:
    text, _ = complete("license: mit\nlanguage: de\ntags:\n- a\nlibrary_name: ours")
    header = read(text)
    assert header["language"] == "de"
    assert header["tags"] == ["a", "text-to-image", "vector-quantization"]
    assert header["library_name"] == "ours"


def test_a_complete_card_is_completed_to_itself() -> None:
    text, _ = complete()
    again, _ = complete_card(text, ADDRESS, licence=None, metrics=METRICS, widget=WIDGET)
    assert again == text


@pytest.mark.parametrize(
    ("header", "given", "named"),
    [
        ("license: Apache-2.0", None, {"license": "apache-2.0"}),
        ("license: CC BY 4.0", None, {"license": "cc-by-4.0"}),
        ("license: mit", "CC0-1.0", {"license": "cc0-1.0"}),
        ("license: other", "unknown", {"license": "unknown"}),
        ("license: 'My: own (2)'", None, {"license": "other", "license_name": "my-own-2"}),
        (
            "license: other\nlicense_name: ours",
            None,
            {"license": "other", "license_name": "ours"},
        ),
    ],
)
def test_a_licence_has_the_hubs_name(header: str, given: str | None, named: dict) -> None:
    text, licence = complete(header, given)
    found = read(text)
    assert {name: found[name] for name in found if name.startswith("license")} == named
    assert licence == named.get("license_name", named["license"])
    assert all(name == name.lower() for name in LICENCES)


@pytest.mark.parametrize("header", ["license: other", "tags: [a]", ""])
def test_without_a_licence_nothing_is_pushed(header: str) -> None:
    with pytest.raises(ConfigError, match=r"names no licence.* --licence cc-by-4\.0; --licence un"):
        complete(header)


def test_a_card_without_header_gets_one() -> None:
    text, _ = complete_card("# Stars\n", ADDRESS, licence="mit", metrics={}, widget=[])
    assert text.endswith("\n---\n# Stars\n")
    assert "widget" not in read(text)
    assert "model-index" not in read(text)


@pytest.mark.parametrize("header", ["a: b: c", "- a", "license: [", "license: !!python/object:x 1"])
def test_a_damaged_header_is_said(header: str) -> None:
    with pytest.raises(CheckpointError, match=r"header is damaged: .* Fix the header of READ"):
        complete(header)
