"""What a painted picture says of itself: its prompt, its seed, and what it was painted beside.

request ─▶ plain values for `--json`, `prompts.jsonl` and answers ─▶ the texts of a PNG

The same command writes the same texts, so that a picture stays the same byte for byte.

Source: the keywords are those of the PNG specification (W3C, section 11.3.3.2); JSON in Comment is
how NovelAI's pictures carry theirs.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

from tessella.images import read_png_texts
from tessella.model.request import ImageRequest
from tessella.retrieval import Example
from tessella.retrieval.index import split_stems
from tessella.text.base import to_utf8
from tessella.text.vocabulary import strip_marks
from tessella.untrusted import parse_json


def describe_examples(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Lists examples as plain values, in their order; the index of a reference is None."""
    return [{"name": one.name, "caption": one.caption, "index": one.index} for one in examples]


def describe_request(request: ImageRequest) -> dict[str, Any]:
    """Lists as plain values what is one picture's own: prompt, seed and examples."""
    return {
        "prompt": request.prompt,
        "seed": request.seed,
        "examples": describe_examples(request.examples or ()),
    }


def find_unexplained(words: Iterable[str], examples: Sequence[Example]) -> list[str]:
    """Lists the words of a prompt that no caption of what it was painted beside has."""
    captions = [one.caption for one in examples]
    seen = {stem for caption in captions for stem in split_stems(caption)}

    def is_seen(word: str) -> bool:
        stems = split_stems(word)
        # A sign has no stem.
        return seen.issuperset(stems) if stems else any(word in strip_marks(c) for c in captions)

    return [word for word in words if not is_seen(word)]


def create_png_texts(
    pictures: Sequence[Mapping[str, Any]], made_with: Mapping[str, Any]
) -> dict[str, str]:
    """Creates the texts of a PNG: its prompts for people, everything for programs.

    Pictures are published: of a model and of references only the names are told, not the folders.

    Args:
        pictures: from `describe_request`; several share a sheet.
        made_with: what they have in common, as plain values. `model` is as the user named it.

    Returns:
        Description: each prompt on a line. Comment: JSON; the values of a single picture stand
        beside those of `made_with`, those of several in `pictures`. Software: tessella's version.
    """
    hidden = [{**picture, "examples": _hide_folders(picture["examples"])} for picture in pictures]
    own: Mapping[str, Any] = hidden[0] if len(hidden) == 1 else {"pictures": hidden}
    common = {**made_with, "model": PurePath(made_with["model"]).name}
    prompts = dict.fromkeys(picture["prompt"] for picture in pictures if picture["prompt"].strip())
    return {
        "Software": f"tessella {metadata.version('tessella')}",
        **({"Description": to_utf8("\n".join(prompts))} if prompts else {}),
        "Comment": json.dumps({**own, **common}),
    }


def read_examples(path: Path) -> list[dict[str, Any]]:
    """Reads off a PNG what it was painted beside; nothing if it does not say."""
    try:
        examples = parse_json(read_png_texts(path)["Comment"])["examples"]
    except (KeyError, ValueError, TypeError):
        return []
    return [one for one in examples if isinstance(one, dict)] if isinstance(examples, list) else []


def _hide_folders(examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**one, "name": PurePath(one["name"]).name} if one["index"] is None else dict(one)
        for one in examples
    ]
