"""The model card as the Hugging Face hub reads it: its header of YAML says what is shown.

    model card ─ licence, tags, widget, model-index ─▶ the same text below a complete header

What the card's author wrote into the header stays, but for what comes from the model's files: its
measures, and the pictures beside the prompts.

Source: the hub's documentation, "Model Cards" and "Widgets"; the list of licences is its
"Licenses".
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tessella.errors import CheckpointError, ConfigError, first_line
from tessella.hub import HubAddress, import_client

PICTURES_FOLDER = "widget"
"""Of a repository: what the hub shows beside prompts. No part of the model."""

_TASK = "text-to-image"
_TAGS = (_TASK, "vector-quantization")
_MEASURED_ON = "captioned images like those of the training"
_LOAD = re.compile(r'^(model = tessella\.load\()".*"\)$', re.MULTILINE)

# fmt: off
LICENCES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "openrail++", "afl-3.0", "artistic-2.0",
    "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc",
    "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0",
    "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl",
    "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research", "lppl-1.3c",
    "ms-pl", "mpl-2.0", "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense",
    "zlib", "pddl", "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license",
    "unknown",
})
# fmt: on
"""Those that the hub knows by name."""


def complete_card(
    text: str,
    address: HubAddress,
    *,
    licence: str | None,
    metrics: Mapping[str, Any],
    widget: Sequence[tuple[str, str]],
) -> tuple[str, str]:
    """Completes a model card's header, and names the repository where the card loads the model.

    Args:
        text: of the card.
        address: where the model goes.
        licence: goes before that of the card; None is that of the card.
        metrics: as in metrics.json.
        widget: captions, and the names of the pictures that the model paints for them.

    Returns:
        The card, and the name of the licence.

    Raises:
        ConfigError: no licence is known.
        CheckpointError: the card's header is damaged.
    """
    import_client("`tessella push`", ConfigError)
    from huggingface_hub import RepoCard

    try:
        card = RepoCard(text, ignore_metadata_errors=True)
    except Exception as error:  # of two libraries, for whatever may stand in YAML
        raise CheckpointError(
            f"The model card's header is damaged: {first_line(error)}. Lines of YAML between two "
            "lines of `---` were expected. Fix the header of README.md in the model folder."
        ) from error
    named, header = _choose_licence(licence, card.data.to_dict()), card.data
    for name in ("license", "license_name"):
        header.pop(name, None)
    for name, value in ({"library_name": "tessella", "pipeline_tag": _TASK} | named).items():
        if header.get(name) is None:
            header[name] = value
    tags = header.get("tags")
    header["tags"] = list(dict.fromkeys([*(tags if isinstance(tags, list) else ()), *_TAGS]))
    if widget:
        header["widget"] = [
            {"text": caption, "output": {"url": picture}} for caption, picture in widget
        ]
    if index := create_model_index(address.name, metrics):
        header["model-index"] = index
    card.text = _LOAD.sub(lambda found: f'{found[1]}"{address}")', card.text)
    return str(card), named.get("license_name", named["license"])


def create_model_index(name: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Lists a model's measures in the form of Papers with Code, which the hub shows.

    Those that could not be measured are left out.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type="imagefolder",
            dataset_name=_MEASURED_ON,
            metric_type=metric,
            metric_value=values["value"],
            metric_name=f"{metric} ({values['protocol']})",
        )
        for metric, values in metrics.items()
        if isinstance(values.get("value"), int | float) and math.isfinite(values["value"])
    ]
    return eval_results_to_model_index(name, results) if results else []


def _choose_licence(licence: str | None, header: Mapping[str, Any]) -> dict[str, str]:
    """Returns the header's fields of the licence, by the names that the hub knows.

    Raises:
        ConfigError: there is none.
    """
    given = str(licence or header.get("license") or "").strip().lower()
    if given == "other":  # the card of a model whose data has none
        given = str(header.get("license_name") or "").strip().lower()
    if not given:
        raise ConfigError(
            "The model's card names no licence, so that nobody may use the model: give the licence "
            "of model and pictures, for example --licence cc-by-4.0; --licence unknown pushes "
            "without one."
        )
    name = re.sub(r"[^a-z0-9.+]+", "-", given).strip("-")
    if name in LICENCES:
        return {"license": name}
    return {"license": "other", "license_name": name}
