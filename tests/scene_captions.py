"""Captions of drawn scenes, read by rules that are written apart from the package's."""

import re


def canonize(paraphrase: str) -> str:
    """Turns every wording into the canonical one, of any set of scenes."""
    for pattern, canonical in (
        (r"\bbig\b", "large"),
        (r"\b(little|tiny)\b", "small"),
        (r"\bstripy\b", "striped"),
        (r"\bspotted\b", "dotted"),
        (r"\bside by side\b", "in a row"),
        (r"\b2\b", "two"),
        (r"\b3\b", "three"),
        (r"\b4\b", "four"),
        (r"\bto the (left|right) of\b", r"\1 of"),
        (r"\bover\b", "above"),
        (r"\b(under|beneath)\b", "below"),
        (r" on (\w+)$", r" on a \1 background"),
    ):
        paraphrase = re.sub(pattern, canonical, paraphrase)
    return paraphrase
