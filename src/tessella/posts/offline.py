"""The template writer: posts without a language model, from the business's own sentences.

The same request always gives the same posts. A label is a sample caption of the image model, or a
caption like one, with a word that the description shares with the training captions.
"""

import itertools
import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tessella.posts.image_language import ImageLanguage
from tessella.posts.post import Post, cut
from tessella.posts.request import PostRequest
from tessella.posts.writer import PostWriter

_TEMPLATES: dict[str, list[str]] = tomllib.loads(
    Path(__file__).with_name("templates.toml").read_text(encoding="utf-8")
)
TONES = tuple(_TEMPLATES)

_NOT_SHARED = (
    "the image model knows no other word of the description: the picture shows one of its sample "
    "captions"
)
_MAX_SENTENCE_CHARACTERS = 180
# A point inside a number does not end a sentence; a Chinese or Japanese one needs no blank.
_SENTENCE = re.compile(r".+?(?:[.!?…]+(?=\s|$)|[\u3002\uff01\uff1f]+|$)", re.MULTILINE)


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
        tone = request.tone if request.tone in _TEMPLATES else TONES[0]
        repairs: tuple[str, ...] = ()
        if tone != request.tone:
            repairs = (f"no templates exist for the tone `{request.tone}`: the post is {tone}",)
        rng = random.Random(request.seed)
        templates = rng.sample(_TEMPLATES[tone], len(_TEMPLATES[tone]))
        sentences = _split_sentences(request.about)
        name = "".join(word[:1].upper() + word[1:] for word in request.business.split())
        hashtags = [name, *filter(str.isalpha, self._language.find_words(request.about))]
        labels = self._draw_labels(request, sentences, rng)
        posts = []
        for number in range(len(earlier) + count):
            caption, is_shared = next(labels)
            text = templates[number % len(templates)].format(
                sentence=sentences[number % len(sentences)], business=request.business
            )
            label = self._language.repair(caption, request.about)
            post = Post.fit(text, hashtags, "", label, request.platform)
            posts.append(replace(post, repairs=repairs if is_shared else (*repairs, _NOT_SHARED)))
        return posts[len(earlier) :]

    def _draw_labels(
        self, request: PostRequest, sentences: Sequence[str], rng: random.Random
    ) -> Iterator[tuple[str, bool]]:
        """Draws labels without end: of a word of the post, of the description, of any caption.

        Yields:
            A label, and whether it has a word that the description shares with the captions.
        """
        language = self._language
        # A single letter, of a name, is not a subject; a Chinese character is one.
        words = language.find_words(f"{request.about} {request.business}")
        unused = [word for word in words if len(word) > 1 or not word.isascii()]
        others = list(language.examples or language.words) or ["picture"]
        rng.shuffle(others)
        others.sort(key=lambda label: len(label.split()))  # the shortest show plain things
        drawn = set()
        for number in itertools.count():
            sentence = sentences[number % len(sentences)]
            in_sentence = [word for word in language.find_words(sentence) if word in unused]
            for word in dict.fromkeys([*in_sentence, *unused]):
                unused.remove(word)
                label = language.frame(word, sentence, rng)
                if label not in drawn:
                    drawn.add(label)
                    yield label, True
                    break
            else:
                yield others[number % len(others)], False


def _split_sentences(about: str) -> list[str]:
    """Splits a description into whole sentences, each with a capital and an end."""
    sentences = []
    for match in _SENTENCE.findall(about):
        if sentence := " ".join(match.split()):
            whole = cut(sentence[:1].upper() + sentence[1:], _MAX_SENTENCE_CHARACTERS)
            sentences.append(whole if re.search(r"\W$", whole) else f"{whole}.")
    return sentences
