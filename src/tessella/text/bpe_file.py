"""What the file of a text tokenizer may say, checked before it is built.

A `tokenizers` file describes a program: rules that replace text, split it and add to it, in any
number. Ones that double a text forty times, or try a pattern for hours, can be written in a line.
Ours uses a handful of rules, each once; others are not run.
"""

from typing import Any

_NORMALIZERS = {"NFKC", "Lowercase", "Replace", "Strip"}
_SPACES = ({"Regex": r"\s+"}, " ")  # what `Replace` may find, and put there
_MAX_TOKENS = 100_000  # of one caption; the transformer has a row for each


def find_fault(values: Any, special: tuple[str, ...]) -> str:
    """Finds what in a text tokenizer's file is not ours; "" if nothing.

    Args:
        values: the file's JSON.
        special: the tokens that are no text.
    """
    if not isinstance(values, dict):
        return "it is no JSON object"
    try:
        return _find_fault(values, special)
    except (KeyError, TypeError, AttributeError, ValueError):
        return "parts of it are not there"


def _find_fault(values: dict[str, Any], special: tuple[str, ...]) -> str:
    normalizer = values["normalizer"]
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    kinds = [step["type"] for step in steps]
    if not set(kinds) <= _NORMALIZERS or len(kinds) > len(set(kinds)):
        return f"it changes text by `{', '.join(kinds)[:100]}`"
    if any((s["pattern"], s["content"]) != _SPACES for s in steps if s["type"] == "Replace"):
        return "it replaces something other than white space"
    for part, kind in (("pre_tokenizer", "ByteLevel"), ("decoder", "ByteLevel"), ("model", "BPE")):
        if values[part]["type"] != kind:
            return f"its {part} is `{values[part]['type']}`, not {kind}"
    if values["model"].get("continuing_subword_prefix") or values["model"].get(
        "end_of_word_suffix"
    ):
        return "it marks the parts of words"
    template = values["post_processor"]
    if template["type"] != "TemplateProcessing" or len(template["single"]) != 3:
        return "it adds something other than begin and end"
    begin, text, end = template["single"]
    named = {begin["SpecialToken"]["id"], end["SpecialToken"]["id"]}
    # A name that is not there ends the library's thread when it adds the token.
    if text["Sequence"]["id"] != "A" or not named <= template["special_tokens"].keys():
        return "it adds something other than begin and end"
    if any(len(token["ids"]) != 1 for token in template["special_tokens"].values()):
        return "its begin or end is more than one token"
    added = tuple(token["content"] for token in values["added_tokens"])
    if added != special:
        return f"its special tokens are `{str(added)[:100]}`"
    if values["truncation"] is None:
        return "it does not say how long a caption may be"
    longest = values["truncation"]["max_length"]
    if not isinstance(longest, int) or not 3 <= longest <= _MAX_TOKENS:
        return f"a caption may have `{str(longest)[:20]}` tokens"
    return ""
