"""What a new run takes over of another model.

--from MODEL         its settings, weights, words and pictures
--tokenizer MODEL    its image tokenizer as it is; only the transformer trains
"""

from pathlib import Path
from typing import Any

from tessella.config import merge, read_config
from tessella.model.find import find_model, find_tokenizer, pin
from tessella.model.folder import TOKENIZER_FILE, TrainedTokenizer, read_model_config
from tessella.model.published import describe_source, find_published
from tessella.runs import record
from tessella.text import load_text
from tessella.text.frozen import FrozenTextEncoder


def read_start(start_from: str) -> dict[str, Any]:
    """Reads the settings of a run that goes on from a model.

    They are those of the run that trained it, where `start_from` is a run's folder; otherwise those
    that a model folder knows, its sizes. Both stages begin with the model's weights. The encoder
    and the codebook stay as they are, so that all that the transformer knows of codes stays true.

    Args:
        start_from: a run's folder, a model folder, or the name of a bundled model, or hf:USER/NAME.

    Returns:
        Nested plain values of a `Recipe`.

    Raises:
        CheckpointError: there is no such model, or it cannot be read.
    """
    folder = find_model(start_from)
    config = read_model_config(folder).model_dump(mode="json")
    run = find_run(start_from)
    values: dict[str, Any] = read_config(run / record.RUN_FILE).get("recipe", {}) if run else {}
    # What was measured there may not hold here.
    values = {name: value for name, value in values.items() if name != "precision"}
    text_encoder = load_text(folder)
    encoder = text_encoder.name if isinstance(text_encoder, FrozenTextEncoder) else None
    sections = ("tokenizer", "transformer", "objective", "generation")
    stage = {"init_from": pin(start_from)}  # what is pushed later is another model
    return merge(
        values,
        {
            **{name: config[name] for name in sections},
            "data": {"image_size": config["image_size"]},
            "text": {"encoder": encoder},
            "retrieval": {"neighbors": config["neighbors"]},
            "tokenizer_training": {**stage, "learn": "decoder"},
            "transformer_training": stage,
        },
    )


def read_tokenizer(tokenizer: str) -> dict[str, Any]:
    """Reads the settings of a run that trains a transformer on a finished image tokenizer.

    Args:
        tokenizer: as for `ImageTokenizer.load`.

    Returns:
        Nested plain values of a `Recipe`: its settings, the size of its pictures, and that it stays
        as it is.

    Raises:
        CheckpointError: there is no such image tokenizer, or it cannot be read.
    """
    folder = find_tokenizer(tokenizer)
    config = TrainedTokenizer.load(folder, "cpu").config
    settings = config.tokenizer
    if settings.origin is None:
        weights = find_published(folder) or folder / TOKENIZER_FILE
        settings = settings.replace(**describe_source(weights))
    return {
        "data": {"image_size": config.image_size},
        "tokenizer": settings.model_dump(mode="json"),
        "tokenizer_training": {"init_from": pin(tokenizer, find_tokenizer), "images": 0},
    }


def find_run(start_from: str) -> Path | None:
    """Returns the folder of the run that trained the model; None if only the model is known."""
    folder = Path(start_from).expanduser()
    return folder if (folder / record.RUN_FILE).is_file() else None
