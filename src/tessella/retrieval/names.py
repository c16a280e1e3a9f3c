"""What an example is called: where it came from, without the folders that are nobody's business.

    /home/anna/pics/cats/a.png of the source /home/anna/pics  →  pics/cats/a.png

The first part is the source, by which examples can be taken away again.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def shorten_names(names: Iterable[str], sources: Sequence[str]) -> Iterator[str]:
    """Shortens the names of pictures to begin with the last part of their source.

    Args:
        names: of records, with the path as the user wrote it.
        sources: that they came from, as the user wrote them. A table stands for its folder.

    Yields:
        A name for each; of a picture of no source, its file with its folder.
    """
    roots = sorted(map(_find_root, sources), key=len, reverse=True)
    for name in names:
        # File names that are not UTF-8 keep their odd bytes as escapes.
        path = _absolute(name.encode(errors="backslashreplace").decode())
        own_folder = path.rpartition(os.sep)[0]
        root = next((root for root in roots if path.startswith(root + os.sep)), own_folder)
        yield path[len(root.rpartition(os.sep)[0]) :].replace(os.sep, "/").lstrip("/")


def _find_root(source: str) -> str:
    path = Path(source).expanduser()
    is_table = path.is_file() and path.suffix.lower() != ".tar"
    return _absolute(path.parent if is_table else path)


def _absolute(path: str | Path) -> str:
    """Makes a path absolute; links stay, and `..` goes."""
    return os.path.abspath(path)  # noqa: PTH100 - Path is ten times slower
