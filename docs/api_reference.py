"""Writes docs/reference/api.md from the OpenAPI document of `tessella serve`.

Each operation: method and address, summary, parameters and fields of the body with type,
range and description, the fields of its answer, and the errors that it alone may answer. A field
inside another one is written `usage.total_tokens`, one of each member of a list `data[].seed`.
An operation without a summary, or a field of a request without a description, is an error.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

_INTRODUCTION = """\
The HTTP API of `tessella serve`; `/v1/run` exists only where `tessella studio` shows a run. \
[How to use it](../how-to/serve.md), with examples. \
Limits are those of a server's [settings](settings.md#serve), shown here with their defaults. A \
running server lists its own, and the patterns that texts have to match, at `/openapi.json`.

In a request, null is the same as leaving a field out; a field that is not in these tables is \
refused. Every request for pictures takes the settings of [`generation`](settings.md#generation)."""

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "length ≥ {}",
    "maxLength": "length ≤ {}",
    "maxItems": "members ≤ {}",
}
_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "object",
    "null": "null",
}


class UndocumentedApiError(Exception):
    """The document lacks a description."""


def api_page(document: Schema, generated: str) -> str:
    """Writes the page of the API.

    Args:
        document: OpenAPI 3.1.
        generated: a line that says where the page comes from.

    Raises:
        UndocumentedApiError: a summary or a description is missing; names all of them.
    """
    operations = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    if missing := [fault for name, one in operations for fault in _faults(name, one, document)]:
        raise UndocumentedApiError(
            f"Without a description: {', '.join(missing)}. Write a summary or a docstring."
        )
    shared = _shared_errors([operation for _, operation in operations])
    parts = ["# HTTP API", generated, _INTRODUCTION]
    headings: dict[str, str] = {}
    for name, operation in operations:
        parts += _operation(name, operation, document, shared, headings)
    parts += [
        "## Errors",
        "Every operation may answer these, with an error object as the body.",
        _table(("status", "when"), [(str(status), when) for status, when in shared.items()]),
    ]
    if errors := _error_schemas(operations, document):
        parts.append(_answer_fields(errors[0], document))
    return "\n\n".join(parts) + "\n"


def _faults(name: str, operation: Schema, document: Schema) -> Iterator[str]:
    if not operation.get("summary"):
        yield f"`{name}`"
    for _, schema in _bodies(operation):
        for field, value in _resolve(schema, document).get("properties", {}).items():
            if not value.get("description"):
                yield f"`{name} {field}`"


def _shared_errors(operations: Sequence[Schema]) -> dict[str, str]:
    """The errors that all operations may answer: status, and when."""
    first, *others = [_errors(operation) for operation in operations]
    return {status: when for status, when in first.items() if all(status in one for one in others)}


def _errors(operation: Schema) -> dict[str, str]:
    return {
        status: answer["description"]
        for status, answer in operation["responses"].items()
        if status >= "400"
    }


def _error_schemas(operations: Sequence[tuple[str, Schema]], document: Schema) -> list[Schema]:
    """The schemas of the first operation's errors."""
    answers = [a for status, a in operations[0][1]["responses"].items() if status >= "400"]
    return [
        _resolve(content["schema"], document)
        for answer in answers
        for content in answer.get("content", {}).values()
    ]


def _operation(
    name: str,
    operation: Schema,
    document: Schema,
    shared: Mapping[str, str],
    headings: dict[str, str],
) -> Iterator[str]:
    """Writes the paragraphs of one operation.

    Args:
        name: method and address.
        operation: its part of the document.
        document: where references lead.
        shared: errors of all operations.
        headings: of each table of answers that is on the page already; gets this one's.
    """
    yield f"## {name}"
    yield f"{_one_line(operation['summary'])}."
    if parameters := operation.get("parameters"):
        rows = [
            (
                f"`{one['name']}`",
                one["in"],
                _type_words(one["schema"], document, "null"),
                "yes" if one.get("required") else "",
                ", ".join(_bounds(one["schema"])),
                _one_line(one.get("description")),
            )
            for one in parameters
        ]
        yield _table(("parameter", "in", "type", "required", "range", "description"), rows)
    for kind, schema in _bodies(operation):
        yield f"Body, `{kind}`:"
        yield _body_fields(_resolve(schema, document), document)
    for status, answer in operation["responses"].items():
        if status < "400":
            yield from _answer(status, answer, document, name, headings)
    special = {status: when for status, when in _errors(operation).items() if status not in shared}
    if special:
        yield "Errors beside [those of all](#errors):"
        yield _table(("status", "when"), list(special.items()))


def _bodies(operation: Schema) -> Iterator[tuple[str, Schema]]:
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield kind, content["schema"]


def _body_fields(schema: Schema, document: Schema) -> str:
    """Writes the table of a body's fields, the required ones first."""
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            _type_words(field, document, "null"),
            "yes" if name in required else "",
            ", ".join(_bounds(field)),
            _one_line(field["description"]),
        )
        for name, field in schema["properties"].items()
    ]
    rows.sort(key=lambda row: not row[2])
    return _table(("field", "type", "required", "range", "description"), rows)


def _answer(
    status: str, answer: Schema, document: Schema, name: str, headings: dict[str, str]
) -> Iterator[str]:
    """Writes the fields of a success; arguments as in `_operation`."""
    kinds = answer.get("content", {})
    description = _one_line(answer["description"]).rstrip(".")
    # FastAPI's text where there is none.
    words = "" if description == "Successful Response" else f": {description}"
    shown = " or ".join(f"`{kind}`" for kind in kinds)
    yield f"Answer {status}{', ' if shown else ''}{shown}{words}."
    for content in kinds.values():
        table = _answer_fields(_resolve(content.get("schema", {}), document), document)
        if table in headings:
            anchor = re.sub(r"[^\w\- ]", "", headings[table].lower()).replace(" ", "-")
            yield f"Its fields are those of [{headings[table]}](#{anchor})."
        elif table:
            headings[table] = name
            yield table


def _answer_fields(schema: Schema, document: Schema) -> str:
    """Writes the table of an answer's fields; "" when it has none."""
    rows = list(_walk(schema, document, ""))
    if any(row[2] for row in rows):
        return _table(("field", "type", "description"), rows)
    return _table(("field", "type"), [row[:2] for row in rows]) if rows else ""


def _walk(schema: Schema, document: Schema, prefix: str) -> Iterator[tuple[str, str, str]]:
    """Lists the fields of a schema and of those inside it: dotted name, type, description."""
    for name, field in schema.get("properties", {}).items():
        inner, dotted = _resolve(_without_null(field), document), f"{prefix}{name}"
        while inner.get("type") == "array" and "items" in inner:
            inner, dotted = _resolve(inner["items"], document), f"{dotted}[]"
        if "properties" in inner:
            yield from _walk(inner, document, f"{dotted}.")
            continue
        words = _type_words(field, document)
        yield f"`{prefix}{name}`", words, _one_line(field.get("description"))


def _resolve(schema: Schema, document: Schema) -> Schema:
    """Follows a reference inside the document."""
    while "$ref" in schema:
        target: Any = document
        for key in schema["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        schema = target
    return schema


def _without_null(schema: Schema) -> Schema:
    """What an optional holds when it is not null, or blank in a form."""
    kinds = [kind for kind in schema.get("anyOf", ()) if not _is_nothing(kind)]
    return kinds[0] if len(kinds) == 1 else schema


def _is_nothing(kind: Schema) -> bool:
    return kind.get("type") == "null" or kind.get("maxLength") == 0


def _type_words(schema: Schema, document: Schema, left_out: str = "") -> str:
    """Puts a type into words.

    Args:
        schema: of the value.
        document: where references lead.
        left_out: a type to leave out.
    """
    schema = _resolve(schema, document)
    if "anyOf" in schema:
        kinds = [
            kind
            for kind in schema["anyOf"]
            if kind.get("type") != left_out and kind.get("maxLength") != 0
        ]
        return " or ".join(_type_words(kind, document) for kind in kinds)
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return "one of " + ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("format") == "binary":
        return "file"
    if schema.get("type") == "array":
        if members := schema.get("prefixItems"):
            return f"[{', '.join(_type_words(member, document) for member in members)}]"
        return f"list of {_type_words(schema.get('items', {}), document)}"
    return _TYPES.get(schema.get("type", ""), "anything")


def _bounds(schema: Schema) -> list[str]:
    """Lists the bounds of a number or a text."""
    schema = _without_null(schema)
    return [
        words.format(f"{schema[name]:.12g}" if schema[name] < 1e12 else f"{schema[name]:.0f}")
        for name, words in _BOUNDS.items()
        if name in schema
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a table without the columns that are empty."""
    used = [at for at, name in enumerate(head) if any(row[at] for row in rows)]
    lines = [[head[at] for at in used], ["---"] * len(used)]
    lines += [[row[at].replace("|", "\\|") for at in used] for row in rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return text.replace("| " + " | ".join(["---"] * len(used)) + " |", "|" + "---|" * len(used))


def _one_line(text: str | None) -> str:
    """Joins the lines of a docstring."""
    return " ".join((text or "").split())
