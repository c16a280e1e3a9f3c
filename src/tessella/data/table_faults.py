"""Table faults: says why a table is not read, and what to do.

It names no picture that is there, but holds addresses, pictures written as text (Base64), or their
pixels as numbers.
"""

import re
from itertools import islice
from pathlib import Path
from typing import Any

from tessella.data.table_rows import Layout, list_layouts, without_header
from tessella.data.tables import name_of_picture
from tessella.errors import DataError

_SAMPLE = 20
_ADDRESS = re.compile(r"\s*(https?|s3|gs|hf)://", re.IGNORECASE)
# The beginnings of JPEG, PNG, GIF, WebP and of addresses that hold data, in Base64.
_BASE64 = re.compile(r"\s*(data:image/|/9j/|iVBORw0KGgo|R0lGOD|UklGR)")


def explain_table(path: Path) -> str:
    """Says what a table holds instead of names of pictures; blank if it cannot be read.

    Returns:
        Sentences with a space at the end.
    """
    try:
        layouts = list_layouts(path)
        if not layouts:
            return ""
        layout = layouts[0]
        if any(_ADDRESS.match(column) for column in layout.columns):
            layout = without_header(layout)
        return _explain(path, layout)
    except DataError:
        return ""


def _explain(path: Path, layout: Layout) -> str:
    rows = [row.fields for row in islice(layout.rows(), _SAMPLE) if row.error is None]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if len(columns) > 10 and all(_is_number(row.get(columns[-1])) for row in rows):
        return (
            f"{path.name} holds numbers, {len(columns)} a row: if they are pixels, write the "
            "pictures as PNG files, with a .txt of captions beside each. "
        )
    for column in columns:
        values = [name_of_picture(row.get(column)) or "" for row in rows]
        if any(map(_ADDRESS.match, values)):
            return (
                f"{path.name} holds addresses of pictures in column {column}, not pictures, and "
                "none of their names is there: download them with img2dataset first. "
            )
        if any(map(_BASE64.match, values)):
            return (
                f"{path.name} holds pictures as text (base64) in column {column}: write each "
                "into a file, and its name into the table. "
            )
    return f"No picture that {path.name} names is there; its columns: {', '.join(columns[:10])}. "


def _is_number(value: Any) -> bool:
    return re.fullmatch(r"-?[\d.]+", str(value).strip()) is not None
