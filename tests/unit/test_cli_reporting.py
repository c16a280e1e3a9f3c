"""What commands print of what others wrote: nothing that a terminal would obey."""

from typing import Any

import pytest
from rich.table import Table

from tessella.cli.reporting import Result, create_console, print_result, report_errors
from tessella.errors import DataError

HOSTILE = "a\x1b]0;title\x07 \u202egnp.exe\ud800\x9b2J"
SHOWN = "a\\x1b]0;title\\x07 \\u202egnp.exe\\ud800\\x9b2J"


def test_text_and_cells_are_printed_without_their_controls(capsys: Any) -> None:
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    print_result(Result({}, [HOSTILE, table]), as_json=False)
    create_console(stderr=True).print(f"Hint: {HOSTILE}")
    captured = capsys.readouterr()
    assert captured.out.count(SHOWN) == 3
    assert captured.err == f"Hint: {SHOWN}\n"
    assert "\x1b]" not in captured.out


def test_an_error_is_printed_without_its_controls(capsys: Any) -> None:
    with pytest.raises(Exception, match="1"), report_errors(debug=False, if_interrupted=""):
        raise DataError(f"No picture: `{HOSTILE}`.")
    assert capsys.readouterr().err == f"Error: No picture: `{SHOWN}`.\n"


def test_json_is_plain_ascii(capsys: Any) -> None:
    print_result(Result({"caption": HOSTILE}, []), as_json=True)
    assert capsys.readouterr().out.isascii()
