"""Annotations: JSON documents about pictures, as rows of a table.

    [{"file_name": …, "text": …}, …]                         rows
    {"images": […], "annotations": [{"caption": …}, …]}      COCO's captions
    {"images": […], "annotations": [{"category_id": …}, …]}  COCO's instances: names as keywords
    {"images": [{"filename": …, "sentences": […]}, …]}       Karpathy's splits
    {"0001.jpg": "a caption", …}, {"0001.jpg": {…}, …}       by name, as kohya's tools write it
    {"file_name": […], "text": […]}                          by column, as pandas writes it
    {"messages": […], "images": ["0001.jpg"]}                a chat: the answers are captions
    {"image": …, "prefix": …, "suffix": …}, "query", "response"     question and answer
    {"data": {"image": …}, "annotations": [{"result": […]}]} Label Studio's export

Source: COCO, "Data format", https://cocodataset.org/#format-data; A. Karpathy, "Deep
Visual-Semantic Alignments", whose dataset.json became a usual form of Flickr8k, Flickr30k and COCO.
"""

from collections import defaultdict
from collections.abc import Hashable
from typing import Any, TypeAlias

from tessella.data.records import CAPTION_FIELDS

Fields: TypeAlias = dict[str, Any]


def rows_of_document(document: Any) -> tuple[list[Any], str]:
    """Returns the rows of a JSON document, and what kind of annotations it is ("" for none).

    Rows that are no objects are kept, to be reported; a document of another form has no rows.
    """
    if isinstance(document, list):
        return document, ""
    if not isinstance(document, dict):
        return [], ""
    images, annotations = _objects(document.get("images")), _objects(document.get("annotations"))
    if images and any("image_id" in one for one in annotations):
        return _coco_rows(images, annotations, _objects(document.get("categories")))
    if images and any("sentences" in image for image in images):
        return [_karpathy_row(image) for image in images], "Karpathy's captions"
    if columns := _columns(document):
        return columns, ""
    lists = [value for value in document.values() if _objects(value)]
    if lists:
        return max(lists, key=len), ""
    return [_row_by_name(name, value) for name, value in document.items()], ""


def complete_row(fields: Fields) -> Fields:
    """Adds `caption` to a row that has it as the answer to a question, or as an annotator's."""
    if {"caption", "captions", "text"} & set(fields):
        return fields
    for question, answer in (("prefix", "suffix"), ("query", "response")):
        if question in fields and isinstance(fields.get(answer), str):
            return {**fields, "caption": fields[answer]}
    if messages := _objects(fields.get("messages")):
        return _chat_row(fields, messages)
    data, results = fields.get("data"), _objects(fields.get("annotations"))
    if isinstance(data, dict) and any("result" in one for one in results):
        values = (one.get("value") for result in results for one in _objects(result.get("result")))
        texts = (
            text
            for value in values
            if isinstance(value, dict)
            for name in ("text", "choices")
            for text in _list(value.get(name))
        )
        return {**data, "caption": [text for text in texts if isinstance(text, str)]}
    return fields


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _chat_row(fields: Fields, messages: list[Fields]) -> Fields:
    """Reads a chat: what the assistant says is the caption; pictures may lie in a message."""
    answers, images = [], []
    for message in messages:
        for part in _list(message.get("content")):
            known = part if isinstance(part, dict) else {"text": part}
            if message.get("role") == "assistant" and isinstance(known.get("text"), str):
                answers.append(known["text"])
            if isinstance(known.get("image"), str):
                images.append(known["image"])
    return (
        ({} if "images" in fields or not images else {"images": images})
        | fields
        | {"caption": answers}
    )


def _objects(value: Any) -> list[Fields]:
    """Returns a list of objects; an empty one if the value is something else."""
    is_list = isinstance(value, list) and all(isinstance(one, dict) for one in value)
    return value if is_list else []


def _coco_rows(
    images: list[Fields], annotations: list[Fields], categories: list[Fields]
) -> tuple[list[Any], str]:
    """Joins COCO's images with their captions, or with the names of what is in them."""
    names = {_key(one, "id"): str(one.get("name", "")) for one in categories}
    captions: defaultdict[Any, list[str]] = defaultdict(list)
    keywords: defaultdict[Any, dict[str, None]] = defaultdict(dict)
    for one in annotations:
        if "caption" in one:
            captions[_key(one, "image_id")].append(one["caption"])
        elif name := names.get(_key(one, "category_id")):
            keywords[_key(one, "image_id")][name] = None
    if captions:
        rows = [_coco_row(image, captions=captions.get(_key(image, "id"), [])) for image in images]
        return rows, "COCO's captions"
    rows = [_coco_row(image, keywords=[*keywords.get(_key(image, "id"), {})]) for image in images]
    return rows, "COCO's instances, their names as keywords"


def _key(one: Fields, name: str) -> Any:
    """Returns a number or a text that others are joined by; lists and objects count as texts."""
    value = one.get(name)
    return value if isinstance(value, Hashable) else str(value)


def _coco_row(image: Fields, **captions: list[str]) -> Fields:
    return {"file_name": image.get("file_name"), **captions}


def _karpathy_row(image: Fields) -> Fields:
    folder, name = image.get("filepath"), image.get("filename")
    captions = image.get("sentences")
    path = f"{folder}/{name}" if folder and isinstance(name, str) else name
    return {"file_name": path, "captions": captions, "split": image.get("split")}


def _columns(document: Fields) -> list[Fields]:
    """Turns columns into rows; an empty list if the document has none."""
    if not set(document) & set(CAPTION_FIELDS):
        return []
    columns = {}
    for name, value in document.items():
        # pandas numbers the rows: {"text": {"0": "a dog", …}}.
        columns[name] = list(value.values()) if isinstance(value, dict) else value
    if not all(isinstance(value, list) for value in columns.values()):
        return []
    if len({len(value) for value in columns.values()}) != 1:
        return []
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _row_by_name(name: str, value: Any) -> Fields:
    if isinstance(value, dict):
        return {**value, "file_name": name}
    return {"file_name": name, "captions": value}
