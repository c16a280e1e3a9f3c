"""The template writer: posts without a language model, from the business's own sentences.

Its templates are in the language of the description; in one without templates the sentences stand
alone, and the post says so.

The same request always gives the same posts. A label is a sample caption of the image model, or a
caption like one, with a word that the description shares with the training captions.
"""

import itertools
import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessella.posts.description import LANGUAGES, Language, find_language, split_sentences
from tessella.posts.image_language import ImageLanguage
from tessella.posts.post import Post, cut
from tessella.posts.request import PostRequest
from tessella.posts.writer import PostWriter

_TEMPLATES: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("templates.toml").read_text(encoding="utf-8")
)
TONES = tuple(name for name in _TEMPLATES["en"] if name != "alt_text")
_NO_TEMPLATES = {"alt_text": ""} | {tone: ["{sentence} {business}"] for tone in TONES}

_NOT_SHARED = (
    "the image model knows no other word of the description: the picture shows one of its sample "
    "captions"
)
_MAX_SENTENCE_CHARACTERS = 180


class OfflineWriter(PostWriter):
    """Writes posts from templates.

    Args:
        language: of the image model.
    """

    def __init__(self, language: ImageLanguage) -> None:
        self._language = language

    def write_batch(
        self, request: PostRequest, count: int, earlier: Sequence[Post]
    ) -> Sequence[Post]:
        """Writes a few posts; a tone without templates gets those of the first one."""
        language = find_language(request.about)
        tone, table, repairs = _choose_templates(request, language)
        rng = random.Random(request.seed)
        templates = rng.sample(table[tone], len(table[tone]))
        sentences = [cut(one, _MAX_SENTENCE_CHARACTERS) for one in split_sentences(request.about)]
        name = "".join(word[:1].upper() + word[1:] for word in request.business.split())
        shared = self._language.find_words(request.about, language)
        hashtags = [name, *filter(str.isalpha, shared)]
        labels = self._draw_labels(request, sentences, language, rng)
        not_shared = _NOT_SHARED
        if language and language.name != self._language.language.name:
            not_shared += (
                f"; its captions are {self._language.language.name}, the description is "
                f"{language.name}"
            )
        posts = []
        for number in range(len(earlier) + count):
            caption, is_shared = next(labels)
            text = templates[number % len(templates)].format(
                sentence=sentences[number % len(sentences)], business=request.business
            )
            label = self._language.repair(caption, request.about)
            alt_text = table["alt_text"].format(label=label)
            post = Post.fit(text, hashtags, alt_text, label, request.platform)
            posts.append(replace(post, repairs=repairs if is_shared else (*repairs, not_shared)))
        return posts[len(earlier) :]

    def _draw_labels(
        self,
        request: PostRequest,
        sentences: Sequence[str],
        written: Language | None,
        rng: random.Random,
    ) -> Iterator[tuple[str, bool]]:
        """Draws labels without end: of a word of the post, of the description, of any caption.

        Yields:
            A label, and whether it has a word that the description shares with the captions.
        """
        language = self._language
        # A single letter, of a name, is not a subject; a Chinese character is one.
        words = language.find_words(f"{request.about}\n{request.business}", written)
        unused = [word for word in words if len(word) > 1 or not word.isascii()]
        others = list(language.examples or language.words) or ["picture"]
        rng.shuffle(others)
        others.sort(key=lambda label: len(label.split()))  # the shortest show plain things
        drawn = set()
        for number in itertools.count():
            sentence = sentences[number % len(sentences)]
            in_sentence = [
                word for word in language.find_words(sentence, written) if word in unused
            ]
            for word in dict.fromkeys([*in_sentence, *unused]):
                unused.remove(word)
                label = language.frame(word, sentence, rng)
                if label not in drawn:
                    drawn.add(label)
                    yield label, True
                    break
            else:
                yield others[number % len(others)], False


def _choose_templates(
    request: PostRequest, language: Language | None
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Chooses tone and templates.

    Returns:
        The tone, the templates of the language, and what is to be told about both.
    """
    told = []
    tone = request.tone if request.tone in TONES else TONES[0]
    if tone != request.tone:
        told.append(f"no templates exist for the tone `{request.tone}`: the post is {tone}")
    if language is None:
        told.append("the language of the description is not plain: the templates are English")
        return tone, _TEMPLATES["en"], tuple(told)
    if language.code not in _TEMPLATES:
        names = ", ".join(LANGUAGES[code].name for code in _TEMPLATES)
        told.append(
            f"no templates exist for the language of the description, {language.name}, but for "
            f"{names}: the post is a sentence of the description"
        )
    return tone, _TEMPLATES.get(language.code, _NO_TEMPLATES), tuple(told)
