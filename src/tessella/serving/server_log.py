"""How the server's log is written: a line of JSON a record, without anything that a client sent.

The access log's lines are made in `access_log.py`. Whatever else is logged, by tessella, uvicorn or
asyncio, passes through here. The message of an unforeseen error may quote anything, a prompt or a
body too: of those that clients cannot have written it is kept, of the others only the kind and
where it was raised.
"""

import contextlib
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator

from tessella.serving.access_log import ACCESS_LOG
from tessella.serving.api_errors import is_out_of_memory

_OWN = "tessella"
_MAX_FRAMES = 30
# asyncio and uvicorn name what they handle: objects, with all that these hold.
_OBJECTS = re.compile(r"[\n<(].*", re.DOTALL)
_HIDDEN = "left out; --log-prompts shows it"


class PrivateFormatter(logging.Formatter):
    """Writes a record as a line of JSON.

    Args:
        shows_prompts: whether what clients send may stand in it.
    """

    def __init__(self, *, shows_prompts: bool = False) -> None:
        super().__init__()
        self._shows_prompts = shows_prompts

    def format(self, record: logging.LogRecord) -> str:
        """Writes the line."""
        message = record.getMessage()
        if record.name == ACCESS_LOG:  # is one already
            return message
        is_own = record.name.partition(".")[0] == _OWN
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "source": record.name,
            "message": message if is_own or self._shows_prompts else _OBJECTS.sub("", message),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["errors"] = [self._describe(error) for error in _list_chain(record.exc_info[1])]
        return json.dumps(line)

    def _describe(self, error: BaseException) -> dict[str, object]:
        """Says of which kind an error is, and where it was raised."""
        frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
        kept = str(error) if self._shows_prompts else _keep_message(error)
        return {
            "kind": type(error).__name__,
            "message": _HIDDEN if kept is None else kept,
            "frames": [f"{one.filename}:{one.lineno} {one.name}" for one in frames],
        }


def _list_chain(error: BaseException) -> Iterator[BaseException]:
    """Lists an error and those that led to it, the first one first."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    yield from reversed(seen)


def _keep_message(error: BaseException) -> str | None:
    """Returns an error's message if only the system can have written it."""
    if isinstance(error, OSError):
        return error.strerror or ""
    if is_out_of_memory(error) or type(error).__module__.partition(".")[0] == "torch":
        return str(error)
    return None


@contextlib.contextmanager
def log_to_stderr(*, shows_prompts: bool = False) -> Iterator[None]:
    """Writes whatever is logged to stderr, as long as a block takes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrivateFormatter(shows_prompts=shows_prompts))
    root, access = logging.getLogger(), logging.getLogger(ACCESS_LOG)
    before = access.level
    root.addHandler(handler)
    access.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        access.setLevel(before)
