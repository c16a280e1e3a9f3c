"""Sidecars: caption files that are named after their picture.

    dog.jpg   dog.txt, dog.caption, dog.cap, dog.tags, dog.json, dog.xmp, or dog.jpg.txt

They lie beside the picture, and have its name without the suffix; the same name in another folder
is another picture's. Names that differ only in letters' case or their composition (macOS) pair
where no name is exactly right.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessella.data import records
from tessella.data.descriptions import cut_parameters, read_xmp
from tessella.data.folders import (
    SIDECAR_SUFFIXES,
    Listing,
    is_sidecar,
    list_images,
    stem_of,
    suffix_of,
)
from tessella.data.names import normalise
from tessella.data.text_encoding import TextError, decode_text, describe_encoding

# Lines of numbers are boxes of objects (YOLO), not captions.
# Besides the picture's name: dog.caption.txt, dog_prompt.txt, Google's
# dog.jpg.supplemental-metadata.json, which it may cut off.
_ENDS = re.compile(
    r"(\.su[a-z-]*|[._-](captions?|prompts?|tags|text|desc(ription)?))$", re.IGNORECASE
)
_BOXES = re.compile(r"(\s*\d+(\s+-?\d+(\.\d+)?(e-?\d+)?){4,}\s*(\n|$))+")


@dataclass(frozen=True, slots=True)
class FoundCaptions:
    """The captions of a picture, and where they were read."""

    captions: tuple[str, ...]
    origin: str
    group: str | None = None  # value of the `split_by` field of a .json


class Sidecars:
    """The pictures of one folder with their sidecars."""

    def __init__(self, listing: Listing) -> None:
        texts: dict[str, list[str]] = {}
        for name in filter(is_sidecar, listing.files):
            texts.setdefault(stem_of(name), []).append(name)
        self.images = list_images(listing)
        self._of = {
            image: texts.get(image, []) + texts.get(stem_of(image), []) for image in self.images
        }
        used = {name for names in self._of.values() for name in names}
        loose: dict[str, list[str]] = {}
        for stem, names in texts.items():
            if not used.issuperset(names):
                for one in dict.fromkeys((stem, _ENDS.sub("", stem))):
                    loose.setdefault(normalise(one), []).extend(names)
        if loose:
            self._pair_loosely(loose)
            used.update(name for names in self._of.values() for name in names)
        self.orphans = [name for name in listing.files if is_sidecar(name) and name not in used]

    def _pair_loosely(self, loose: dict[str, list[str]]) -> None:
        for image, names in self._of.items():
            if not names:
                for stem in (image, stem_of(image)):
                    names += loose.get(normalise(stem), [])

    def of(self, image: str) -> list[str]:
        """Returns the names of a picture's sidecars, the likeliest caption first."""
        return sorted(self._of[image], key=lambda name: SIDECAR_SUFFIXES.index(suffix_of(name)))


def read_sidecars(
    paths: Sequence[str],
    place: str,
    split_by: str | None = None,
    caption_column: str | None = None,
) -> FoundCaptions | None:
    """Reads the first of a picture's sidecars that has a caption.

    Args:
        paths: the likeliest first.
        place: where they lie, for the origin: "beside each picture".
        split_by: the field of a .json that becomes the group.
        caption_column: the field of a .json with the captions, if it is named.

    Returns:
        The captions; None if there is no sidecar, or none with a caption.

    Raises:
        CaptionError: none has a caption, and one cannot be used.
    """
    problem: records.CaptionError | None = None
    for path in paths:
        try:
            if found := _read(path, place, split_by, caption_column):
                return found
        except (OSError, records.CaptionError) as error:
            problem = problem or records.CaptionError(str(error))
    if problem is not None:
        raise problem
    return None


def _read(
    path: str, place: str, split_by: str | None, caption_column: str | None
) -> FoundCaptions | None:
    if caption_column is not None and suffix_of(path) != ".json":
        return None
    with Path(path).open("rb") as file:
        content = file.read(records.MAX_CAPTION_BYTES + 1)
    suffix, group = suffix_of(path), None
    if suffix == ".json":
        fields = records.fields_from_json(content)
        names = records.CAPTION_FIELDS if caption_column is None else (caption_column,)
        captions = records.captions_from_fields(fields, names)
        group = records.group_from_fields(fields, split_by)
    elif suffix == ".xmp":
        captions = read_xmp(content)
    else:
        captions = _read_lines(content, suffix)
    if not captions:
        return None
    encoding = describe_encoding(decode_text(content)[1])
    note = f", read as {encoding}" if encoding else ""
    return FoundCaptions(captions, f"captions from the {suffix} {place}{note}", group)


def _read_lines(content: bytes, suffix: str) -> tuple[str, ...]:
    captions = records.captions_from_text(content)
    try:
        text = decode_text(content)[0]
    except TextError as error:  # pragma: no cover - the line above has decoded it
        raise records.CaptionError(str(error)) from None
    if _BOXES.fullmatch(text):
        raise records.CaptionError("it holds numbers (boxes of objects?), no caption")
    if (prompt := cut_parameters(text)) is not None:
        return records.clean_captions([prompt])
    # One tag a line, or all of them on one: either way they are one caption.
    return records.clean_captions([", ".join(captions)]) if suffix == ".tags" else captions


def list_pairs(sidecars: Sidecars) -> Iterator[tuple[str, list[str]]]:
    """Lists the pictures of a folder with their sidecars' names."""
    for image in sidecars.images:
        yield image, sidecars.of(image)
