"""Text as it is on disks: read right, or refused."""

from pathlib import Path

import pytest

from tessella.data.text_encoding import TextError, decode_text, describe_encoding, find_encoding

TEXT = "„Ein Käse“ – größer, straße, señor, déjà vu…\n"


@pytest.mark.parametrize(
    ("encoding", "told"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16"),
        ("utf-16-be", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("cp1252", "CP1252"),
    ],
)
def test_western_text(encoding: str, told: str | None, tmp_path: Path) -> None:
    text, found = decode_text(TEXT.encode(encoding))
    assert text == TEXT and describe_encoding(found) == told
    path = tmp_path / "text"
    path.write_bytes((TEXT * 100).encode(encoding))
    assert path.read_text(encoding=find_encoding(path)) == TEXT * 100


@pytest.mark.parametrize("mark", ["utf-16", "utf-8-sig"])
def test_marked_text_of_any_script(mark: str) -> None:
    assert decode_text("猫 и собака 🐙".encode(mark))[0] == "猫 и собака 🐙"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("рыжая собака", "cp1251"),
        ("рыжая собака", "koi8-r"),
        ("一只红色的狗", "gbk"),
        ("赤い犬がいる", "shift-jis"),
        ("κόκκινος σκύλος", "iso8859-7"),
    ],
)
def test_other_scripts_without_a_mark_are_not_guessed(text: str, encoding: str) -> None:
    with pytest.raises(TextError, match=r"not UTF-8 \(byte \d\), and not CP1252 either"):
        decode_text(text.encode(encoding))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\xef\xbb\xbf\xff"])
def test_a_mark_that_is_not_kept(content: bytes) -> None:
    with pytest.raises(TextError, match=r"not UTF-(8|16)$"):
        decode_text(content)


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n\x00\x01abc\xff", b"a\x81", b"\xff", b"abc\xe9\x01"]
)
def test_what_is_no_text(content: bytes) -> None:
    with pytest.raises(TextError):
        decode_text(content)
