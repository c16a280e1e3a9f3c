"""Descriptions: the captions that a picture's own file holds.

    PNG                parameters (AUTOMATIC1111), prompt (ComfyUI), invokeai_metadata, Description
    JPEG, TIFF, WebP   XMP's dc:description, IPTC's caption, EXIF's ImageDescription, UserComment

Programs for photos (Lightroom, digiKam, darktable) and those that paint write them there. What
cameras write by themselves ("SONY DSC") is no caption.

Source: XMP specification part 1, "Dublin Core namespace"; IPTC-IIM 4.2, data set 2:120; EXIF 2.32;
AUTOMATIC1111's stable-diffusion-webui, "PNG info".
"""

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import IptcImagePlugin

from tessella.data.folders import is_image
from tessella.data.records import CaptionError, clean_captions
from tessella.data.text_encoding import TextError, decode_text
from tessella.errors import DataError
from tessella.images.formats import identify
from tessella.untrusted import parse_json

# Written by cameras and programs, whatever the picture shows.
_STOCK = re.compile(
    r".*digital (still )?camera.*|sony dsc|dcim.*|dsc\w*|.*camera pictures|hdr\w*|default|untitled|"
    r"screenshot|camera|binary comment|(created|edited|made) (with|by) .*|jpeg|image|photo|none|"
    r"charset=\w+.*",
    re.IGNORECASE | re.DOTALL,
)
# A phone's notes to itself: "filter: 0; jpegRotation: 0", JSON, XML.
_NOTES = re.compile(r"[{\[<]|\w+ ?: ?-?[\d.]+ ?;")
# What AUTOMATIC1111 and its relatives write after the prompt.
_PARAMETERS = re.compile(r"^(Negative prompt:|Steps: \d+, )", re.MULTILINE)
_IMAGE_DESCRIPTION, _XP_TITLE, _XP_COMMENT = 0x010E, 0x9C9B, 0x9C9C
_EXIF, _USER_COMMENT = 0x8769, 0x9286
_IPTC_CAPTION = (2, 120)
_MAX_CHARACTERS = 1_000_000


def cut_parameters(text: str) -> str | None:
    """Returns the prompt of a text of painting parameters; None if it is no such text."""
    found = _PARAMETERS.search(text)
    if found is None or re.search(r"^Steps: \d+, ", text, re.MULTILINE) is None:
        return None
    return " ".join(text[: found.start()].split())


def read_description(path: str) -> tuple[str, ...]:
    """Reads the caption that a picture's file holds; none if it has no usable one."""
    try:
        with Path(path).open("rb") as stream:
            for text in _texts(identify(stream)):
                prompt = cut_parameters(text)
                caption = clean_captions([text if prompt is None else prompt])
                if caption and _is_caption(caption[0]):
                    return caption
    # A picture that cannot be read is told when it is decoded.
    except (DataError, OSError, ValueError, SyntaxError, KeyError, TypeError):
        pass
    return ()


def read_xmp(content: bytes) -> tuple[str, ...]:
    """Reads the description in XMP, as in a sidecar; none if it has none.

    Raises:
        CaptionError: it is no text.
    """
    try:
        text = decode_text(content)[0]
    except TextError as error:
        raise CaptionError(str(error)) from None
    return clean_captions(filter(_is_caption, _xmp_descriptions(text)))


def _is_caption(text: str) -> bool:
    """Says whether a text is somebody's words: two at least, where they have spaces between."""
    text = text.strip()
    words = re.findall(r"[^\W\d_]{2,}", text)
    is_words = len(words) > 1 or any(len(word) > 3 and not word.isascii() for word in words)
    return is_words and not (_STOCK.fullmatch(text) or _NOTES.match(text) or is_image(text))


def _texts(image: Any) -> Iterator[str]:
    """Lists the texts in a picture's file that may be its caption, the likeliest first."""
    info = image.info
    for name in ("parameters", "Description", "Title"):
        if isinstance(info.get(name), str):
            yield info[name]
    yield from _painted(info)
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or ""
    yield from _xmp_descriptions(xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else xmp)
    iptc = IptcImagePlugin.getiptcinfo(image) or {}
    if isinstance(caption := iptc.get(_IPTC_CAPTION), bytes):
        yield _decode(caption)
    exif = image.getexif()
    yield _exif_text(exif.get(_IMAGE_DESCRIPTION))
    yield _user_comment(exif.get_ifd(_EXIF).get(_USER_COMMENT))
    for tag in (_XP_COMMENT, _XP_TITLE):  # Windows Explorer's
        value = exif.get(tag)
        content = bytes(value) if isinstance(value, bytes | tuple) else b""
        yield content.decode("utf-16-le", "replace").rstrip("\0")


def _painted(info: Mapping[str, Any]) -> Iterator[str]:
    """Lists the prompts of ComfyUI and InvokeAI."""
    for name, read in (("prompt", _comfy_prompt), ("invokeai_metadata", _invoke_prompt)):
        try:
            document = parse_json(info[name])
        except (KeyError, TypeError, ValueError):
            continue
        if isinstance(document, dict):
            yield read(document)


def _invoke_prompt(document: Mapping[str, Any]) -> str:
    prompt = document.get("positive_prompt")
    return prompt if isinstance(prompt, str) else ""


def _comfy_prompt(nodes: Mapping[str, Any]) -> str:
    """Follows the positive input of the samplers to its text; blank if there are several."""
    found = set()
    for node in nodes.values():
        inputs = node.get("inputs") if isinstance(node, dict) else None
        link = inputs.get("positive") if isinstance(inputs, dict) else None
        source = nodes.get(str(link[0])) if isinstance(link, list) and link else None
        text = source.get("inputs", {}).get("text") if isinstance(source, dict) else None
        if isinstance(text, str):
            found.add(text)
    return found.pop() if len(found) == 1 else ""


def _xmp_descriptions(text: str) -> Iterator[str]:
    """Lists what XMP says in dc:description: as an element of several languages, or short."""
    text = text[:_MAX_CHARACTERS]
    for element in re.findall(r"<dc:description[^>]*>(.*?)</dc:description>", text, re.DOTALL):
        items = re.findall(r"<rdf:li[^>]*>(.*?)</rdf:li>", element, re.DOTALL)
        yield html.unescape((items or [element])[0])
    for short in re.findall(r"\bdc:description=\"([^\"]*)\"", text):
        yield html.unescape(short)


def _exif_text(value: object) -> str:
    """Reads EXIF's text: Pillow takes each byte for a letter, and most programs write UTF-8."""
    if not isinstance(value, str):
        return ""
    try:
        return _decode(value.encode("latin-1"))
    except UnicodeEncodeError:
        return value


def _user_comment(value: object) -> str:
    """Reads EXIF's UserComment, whose first eight bytes name its encoding."""
    if not isinstance(value, bytes):
        return ""
    mark, content = value[:8].rstrip(b"\0"), value[8:]
    if mark == b"UNICODE":
        endian = "be" if content[:1] == b"\0" else "le"
        return content.decode(f"utf-16-{endian}", "replace").strip("\0")
    return _decode(content.rstrip(b"\0")) if mark in (b"ASCII", b"") else ""


def _decode(content: bytes) -> str:
    try:
        return decode_text(content.rstrip(b"\0"))[0]
    except TextError:
        return ""
