"""A business's description: its language, its sentences, and the words that a picture could show.

Whatever else stands in a description, addresses, numbers, abbreviations, the marks of a list,
verbs, is read by people and shown by no picture.
"""

import functools
import re
import tomllib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# A point inside a number does not end a sentence; a Chinese or Japanese one needs no blank.
_SENTENCE = re.compile(r".+?(?:[.!?…]+(?=\s|$)|[\u3002\uff01\uff1f]+|$)", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]*[-–—*•·‣▪◦]+[ \t]+", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*\(?(?:\d{1,3}|[A-Za-z])[.)][ \t]+", re.MULTILINE)
# Web and mail addresses, handles, and whatever has a digit in it.
_ADDRESS = re.compile(
    r"(?:https?://|www\.)\S+|[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?<!\w)[@#][\w.-]+"
    r"|(?<![\w.-])(?:[\w-]+\.)+(?:[a-z]{2,}\b)(?:/\S*)?|\S*\d\S*",
    re.IGNORECASE,
)
_STREET = re.compile(
    r"\b\d+[a-z]?,? (?:[^\W\d_][\w'’.-]* ){0,3}"
    r"(?:street|st|road|rd|avenue|ave|lane|square|drive|way|court|boulevard|blvd|place|row|hill)\b\.?"
    r"|\b\d+[a-z]?,? (?:rue|avenue|boulevard|place|quai|chemin|allée|impasse)\b[^,.\n]*"
    r"|\b(?:calle|avenida|plaza|paseo|c/) ?[^,.\n\d]*,? ?\d+"
    r"|\b[\w.-]* ?(?:straße|strasse|str\.|weg|platz|gasse|allee|ufer|ring|damm) \d+[a-z]?",
    re.IGNORECASE,
)
# z. B., e.g., U.S.
_DOTTED = re.compile(r"\b[^\W\d_]{1,2}\. ?[^\W\d_]{1,2}\.|\b[^\W\d_](?:\.[^\W\d_])+\b")
_ABBREVIATION_TEXT = """
abs approx apt av ave bd blvd bzw ca cia co corp dept dir dr dra est etc evtl excl ext fax fig ggf
hr hrs inc incl inkl jr km lic ltd max min mio mlle mme mr mrs ms mt nr núm pl prof rd resp sr sra
srta st str tel tlf uvm usw vgl vol vs zzgl
"""
_ABBREVIATIONS = frozenset(_ABBREVIATION_TEXT.split())
# A first sign's name in Unicode begins with its script.
_SCRIPTS = {
    "CJK": "Chinese or Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "DEVANAGARI": "Hindi",
    "THAI": "Thai",
}


@dataclass(frozen=True)
class Language:
    """A language, as `languages.toml` describes it."""

    code: str
    name: str
    words: frozenset[str]  # small ones, which make up most of any text
    verbs: frozenset[str] = frozenset()
    before_verbs: frozenset[str] = frozenset()
    stemmer: str | None = None
    nouns_are_capitalized: bool = False

    @classmethod
    def load(cls, code: str, table: Mapping[str, Any]) -> "Language":
        """Reads a table of the file."""
        sets = {
            name: frozenset(str(table.get(name, "")).split())
            for name in ("words", "verbs", "before_verbs")
        }
        return cls(code=code, **{**table, **sets})

    def find_stem(self, word: str) -> str:
        """Returns a word without its ending; the word itself in a language without a stemmer."""
        return _create_stemmer(self.stemmer)(word) if self.stemmer else word


_TABLES = tomllib.loads(Path(__file__).with_name("languages.toml").read_text(encoding="utf-8"))
LANGUAGES = {code: Language.load(code, table) for code, table in _TABLES.items()}
ENGLISH = LANGUAGES["en"]


@functools.cache
def _create_stemmer(name: str) -> Callable[[str], str]:
    from snowballstemmer import stemmer

    return functools.lru_cache(maxsize=1 << 14)(stemmer(name).stemWord)


def find_language(text: str) -> Language | None:
    """Finds the language of a text by its small words, or its script.

    Returns:
        A language; without small words, one of a script alone; None if nothing tells it.
    """
    scripts = Counter(
        script
        for sign in text
        if sign.isalpha() and (script := _SCRIPTS.get(unicodedata.name(sign, "").split()[0]))
    )
    words = [word.lower() for word in _WORD.findall(remove_addresses(text))]
    if scripts.total() > sum(map(len, words)) / 3:
        name = (
            _SCRIPTS["HIRAGANA"] if _SCRIPTS["HIRAGANA"] in scripts else scripts.most_common()[0][0]
        )
        return Language("", name, frozenset())
    # l'équipe, d'Or: what stands before an apostrophe is a small word too.
    pieces = [piece for word in words for piece in re.split("['’]", word)]
    counts = {
        code: sum(piece in language.words or piece in language.verbs for piece in pieces)
        for code, language in LANGUAGES.items()
    }
    ranked = sorted(counts, key=lambda code: -counts[code])
    best, second = ranked[:2]
    if counts[best] == 0 or counts[best] == counts[second]:
        return None
    return LANGUAGES[best]


def remove_addresses(text: str) -> str:
    """Removes what has no words of a language: addresses, numbers."""
    return _ADDRESS.sub(" ", _STREET.sub(" ", text))


def split_sentences(text: str) -> list[str]:
    """Splits a text into whole sentences, each with a capital and an end; a list's marks go."""
    text = _BULLET.sub("", text)
    if len(_NUMBERED.findall(text)) > 1:
        text = _NUMBERED.sub("", text)
    sentences: list[str] = []
    pending = ""
    for match in _SENTENCE.finditer(text):
        piece = " ".join(match[0].split())
        if not piece:
            continue
        pending = f"{pending} {piece}" if pending else piece
        is_at_line_end = match.end() == len(text) or text[match.end()] == "\n"
        if is_at_line_end or not _ends_in_abbreviation(pending):
            sentences.append(pending)
            pending = ""
    if pending:
        sentences.append(pending)
    return [
        one[:1].upper() + one[1:] + ("" if re.search(r"\W$", one) else ".") for one in sentences
    ]


def _ends_in_abbreviation(text: str) -> bool:
    """Says whether the point at the end of a text is one of an abbreviation, or of an ordinal."""
    last = re.search(r"([^\s.]+)\.$", text)
    if last is None:
        return False
    word = last[1].lower()
    return word in _ABBREVIATIONS or len(word) == 1 or (word.isdecimal() and len(word) < 3)


def list_picture_words(text: str, language: Language | None) -> list[str]:
    """Lists the words of a text that a picture could show, as they stand there, in order.

    Args:
        text: of a description.
        language: of the text, if it is known.
    """
    text = _BULLET.sub("", text)
    if len(_NUMBERED.findall(text)) > 1:
        text = _NUMBERED.sub("", text)
    text = _DOTTED.sub(" ", remove_addresses(text))
    return [word for sentence in split_sentences(text) for word in _list_nouns(sentence, language)]


def _list_nouns(sentence: str, language: Language | None) -> Iterator[str]:
    words = _WORD.findall(sentence)
    small = language.words if language else ENGLISH.words
    for number, word in enumerate(words):
        lower = word.lower()
        is_letter = len(word) == 1 and word.isascii()
        if is_letter or lower in small or lower in _ABBREVIATIONS:
            continue
        if language is not None and lower in language.verbs:
            continue
        if language is not None and _is_verb_by_place(words, number, language):
            continue
        yield word


def _is_verb_by_place(words: Sequence[str], number: int, language: Language) -> bool:
    """Says whether the place of a word makes it a verb: after `we`, before `your`; or its case."""
    word = words[number]
    if language.nouns_are_capitalized:
        return not word[:1].isupper()
    before = words[number - 1].lower() if number else ""
    after = words[number + 1].lower() if number + 1 < len(words) else ""
    # Book your table, call us: an order.
    is_order = number == 0 and after in ("us", "our", "your", "the", "a", "an", "it", "now", "me")
    return before in language.before_verbs or (language is ENGLISH and is_order)
