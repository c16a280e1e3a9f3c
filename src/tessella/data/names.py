"""What the names of folders and files say: a split, a class, repeats, or nothing.

    train, val2017, test          a side of the split
    10_sks dog                    ten repeats of "sks dog" (kohya's layout)
    images, photos, data, 00012   nothing

Source: the splits' names are those of Hugging Face datasets, "Structure your repository"; the
repeats are those of kohya's sd-scripts, "DreamBooth, class+identifier".
"""

import calendar
import re
import unicodedata
from collections.abc import Sequence

from tessella.data.records import Side

_TRAIN = {"train", "training", "trainval", "restval"}
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation"}
_HELD_OUT |= {"minival", "testdev", "holdout"}

PICTURE_WORDS = frozenset({
    "data", "dataset", "datasets", "file", "files", "image", "images", "img", "imgs", "picture",
    "pictures", "pic", "pics", "photo", "photos", "jpg", "jpgs", "jpeg", "png", "pngs", "webp",
    "input", "inputs", "raw", "all", "media", "jpegimages", "dcim", "album", "albums",
})  # fmt: skip
# The best word first: where a picture has a text in several folders, the first is read.
TEXT_WORDS = (
    "captions", "caption", "texts", "text", "txt", "prompts", "prompt", "descriptions",
    "description", "desc", "tags", "tag", "annotations", "annotation", "anns", "metadata", "meta",
    "json", "labels", "label", "class", "classes",
)  # fmt: skip
_SAYS_NOTHING = PICTURE_WORDS | set(TEXT_WORDS) | {"split", "splits", "folder", "untitled", "misc"}

_REPEATS = re.compile(r"([1-9]\d*)_(.*\S.*)")
_NUMBER = re.compile(r"(\d+[._]|0\d*[ -])(?=.*[^\W\d_])")  # 10_dog, 001.Albatross, 01-cats
_WORDNET_ID = re.compile(r"n\d{8}")
# Midjourney's and others' names end in a UUID, or in a number in brackets.
_PICTURE_ID = re.compile(r"[_-]?[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}(_\d+)?$", re.IGNORECASE)
_WORDNET_START = re.compile(r"n\d{8}[-_ ]+(?=.*[^\W\d_])")  # n02085620-Chihuahua
# 100APPLE, 101_PANA: what cameras call their folders (JEITA CP-3461).
_CAMERA_FOLDER = re.compile(r"[1-9]\d\d[A-Z_\d]{5}")
_MONTHS = {name.lower() for name in (*calendar.month_name[1:], *calendar.month_abbr[1:])}
_SET_PHRASES = re.compile(
    r"(google photos|camera roll|camera uploads|screenshots?|new folder( \d+)?|"
    r"(my|saved) pictures|photos from \d{4}|(txt|img)2img (images|grids)|downloads?)"
)


def normalise(name: str) -> str:
    """Returns a name as it compares where only letters' case or their composition differ."""
    return unicodedata.normalize("NFC", name).casefold()


def side_of_name(name: str) -> Side | None:
    """Returns the side of the split that a folder's name says: train, val2017, Test set."""
    word = re.sub(
        r"([\s_.-]*(set|split|data|images|imgs))?([\s_.-]*(19|20)\d\d)?$", "", name.lower()
    )
    word = word.strip(" _.-")
    return "train" if word in _TRAIN else "validation" if word in _HELD_OUT else None


def side_of_folders(folders: Sequence[str]) -> Side | None:
    """Returns the side that the outermost folder with a split's name says."""
    return next((side for folder in folders if (side := side_of_name(folder))), None)


def side_of_file(stem: str) -> Side | None:
    """Returns the side that a table's name says: train, captions_val2017, test-00000-of-00002."""
    words = re.split(r"[\W_]+", re.sub(r"((19|20)\d\d|-\d{5}-of-\d{5})$", "", stem.lower()))
    sides = {side for word in words if (side := side_of_name(word))}
    return sides.pop() if len(sides) == 1 else None


def side_of_value(value: object) -> Side | None:
    """Returns the side that a `split` column says."""
    return side_of_name(value) if isinstance(value, str) else None


def split_repeats(name: str) -> tuple[int, str] | None:
    """Splits a folder's name in kohya's layout: `10_sks dog` is 10 times "sks dog"."""
    found = _REPEATS.fullmatch(name)
    return (int(found[1]), found[2]) if found else None


def has_repeats(folders: Sequence[str]) -> bool:
    """Says whether the numbers before folders' names are repeats, as opposed to indices of classes.

    Numbers that count the folders (1_apple, 2_pear, 3_plum) or begin with zero are indices.
    """
    names = set(folders)
    if any(re.match(r"0\d*[_.]", name) for name in names):
        return False
    numbers = sorted(found[0] for name in names if (found := split_repeats(name)))
    counts = len(numbers) >= 3 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return bool(numbers) and not counts


def read_file_name(stem: str) -> str:
    """Returns the words in a file's name without its suffix; blank if it has none.

    "user_a_red_fox_0c4e….png" of Midjourney is "a red fox" too: the user's name goes first, the
    number of the picture last.
    """
    without = _PICTURE_ID.sub("", stem)
    words = re.sub(r"[_+]|(?<=[^\W\d])-(?=[^\W\d])", " ", without).split()
    if without != stem:
        words = words[1:]
    while words and not any(map(str.isalpha, words[-1])):
        words.pop()
    return " ".join(words)


def reads_like_caption(stem: str) -> bool:
    """Says whether a file's name may be a caption: three words and more, of letters."""
    words = [word for word in read_file_name(stem).split() if word.isalpha()]
    return len(words) >= 3


def class_caption(folders: Sequence[str]) -> str:
    """Returns what the names of a picture's folders say of it; blank if they say nothing.

    Args:
        folders: from the outermost to the one that holds the picture. The innermost one that says
            something counts: `cats/images` is "cats".
    """
    for folder in reversed(folders):
        if _CAMERA_FOLDER.fullmatch(folder):
            continue
        number = _NUMBER.match(folder) or _WORDNET_START.match(folder)
        words = folder[number.end() :] if number else folder
        words = " ".join(re.sub(r"[_-]", " ", words).split())
        if words and not _says_nothing(words):
            return words
    return ""


def is_wordnet_id(name: str) -> bool:
    """Says whether a folder is called by the number of what it shows, as ImageNet's are."""
    return _WORDNET_ID.fullmatch(name) is not None


def _says_nothing(words: str) -> bool:
    """Says whether words are a split's, a kind of file's, or the number of a part."""
    parts = words.lower().split()
    if all(part in _SAYS_NOTHING or side_of_name(part) for part in parts):
        return True
    if _SET_PHRASES.fullmatch(words.lower()) or (len(parts) > 1 and _is_date(parts)):
        return True
    # One or two digits are a class of digits; more, or zeros in front, number the folder.
    if len(parts) == 1 and parts[0].isdigit():
        return len(parts[0]) > 2 or (len(parts[0]) > 1 and parts[0].startswith("0"))
    return side_of_name(words) is not None or _WORDNET_ID.fullmatch(words.lower()) is not None


def _is_date(parts: Sequence[str]) -> bool:
    """Says whether words are numbers and months: 2023 05 01, May 1, 2023."""
    words = [part.strip(",.") for part in parts]
    numbers = [word for word in words if word.isdigit()]
    months = [word for word in words if word in _MONTHS]
    return bool(numbers) and len(numbers) + len(months) == len(words)
