"""The template writer: posts without a language model, from the business's own sentences.

The same request gives the same posts. A label is a sample caption, or has the form of one, with
a word that the description shares with the training captions.
"""

import random
import re
from collections.abc import Sequence

from tessella.posts.image_language import ImageLanguage
from tessella.posts.post import Post, clean_hashtags, cut, cut_alt_text, fit_text
from tessella.posts.request import PostRequest
from tessella.posts.writer import PostWriter

# {said} is a sentence of the description, {business} the name.
_TEMPLATES = {
    "warm": (
        "{said} We would love to see you at {business}.",
        "A warm hello from {business}! {said}",
        "{said} Made with care, by all of us at {business}.",
        "Come as you are, leave with a smile. {said} Yours, {business}",
        "Know somebody who would like this? Bring them along. {said} Your {business}",
    ),
    "playful": (
        "Guess what? {said} See you at {business}!",
        "Psst … {said} You did not hear it from {business}.",
        "{business} here, with good news: {said}",
        "Some people count sheep. We at {business} count the hours until you come by. {said}",
        "Warning: may cause happiness. {said} With love from {business}",
    ),
    "professional": (
        "{business}: {said}",
        "{said} Talk to us at {business}.",
        "What you can rely on at {business}: {said}",
        "{said} {business} is at your service.",
        "{said} Find out more from {business}.",
    ),
    "bold": (
        "{said} That is {business}.",
        "No detours. {said} {business}.",
        "This is {business}. {said}",
        "{said} Only at {business}.",
        "Why wait? {said} {business}.",
    ),
}
TONES = tuple(_TEMPLATES)

_NOT_SHARED = (
    "the description has no other word that the image model knows: the picture is of a sample "
    "caption"
)
_MAX_SAID_CHARACTERS = 180
# A point inside of a number ends no sentence; a Chinese or Japanese one needs no blank.
_SENTENCE = re.compile(r".+?(?:[.!?…]+(?=\s|$)|[\u3002\uff01\uff1f]+|$)", re.MULTILINE)


class OfflineWriter(PostWriter):
    """Writes posts from templates.

    Args:
        language: of the image model.
    """

    def __init__(self, language: ImageLanguage) -> None:
        self._language = language

    def write_some(
        self, request: PostRequest, count: int, earlier: Sequence[Post]
    ) -> Sequence[Post]:
        """Writes a few posts; a tone without templates gets those of the first one."""
        tone: str = request.tone
        repairs: tuple[str, ...] = ()
        if tone not in _TEMPLATES:
            tone = TONES[0]
            repairs = (f"there are no templates for the tone `{request.tone}`: it is {tone}",)
        rng = random.Random(request.seed)
        templates = rng.sample(_TEMPLATES[tone], len(_TEMPLATES[tone]))
        said = _split_sentences(request.about)
        labels = self._choose_labels(request, said, len(earlier) + count, rng)
        hashtags = self._choose_hashtags(request)
        posts = []
        for number in range(len(earlier), len(earlier) + count):
            label, is_shared = labels[number]
            text = templates[number % len(templates)].format(
                said=said[number % len(said)], business=request.business
            )
            label = self._language.repair(label, request.about)
            posts.append(
                Post(
                    text=fit_text(text, hashtags, request.platform),
                    hashtags=hashtags,
                    alt_text=cut_alt_text(f"A small generated picture: {label}."),
                    label=label,
                    repairs=repairs if is_shared else (*repairs, _NOT_SHARED),
                )
            )
        return posts

    def _choose_labels(
        self, request: PostRequest, said: Sequence[str], count: int, rng: random.Random
    ) -> list[tuple[str, bool]]:
        """Chooses labels: of a word that the post says, of others, of whatever can be painted.

        Returns:
            Each with whether it is of a word that the description shares with the captions.
        """
        language = self._language
        # A letter alone, of a name, is no subject; a Chinese sign is one.
        words = language.find_words(f"{request.about} {request.business}")
        left = [word for word in words if len(word) > 1 or not word.isascii()]
        others = list(language.examples or language.words) or ["picture"]
        rng.shuffle(others)
        others.sort(key=lambda label: len(label.split()))  # the shortest are of plain things
        labels: list[tuple[str, bool]] = []
        for number in range(count):
            sentence = said[number % len(said)]
            own = [word for word in language.find_words(sentence) if word in left]
            for word in dict.fromkeys([*own, *left]):
                left.remove(word)
                label = language.frame(word, sentence, rng)
                if (label, True) not in labels:
                    labels.append((label, True))
                    break
            else:
                labels.append((others[number % len(others)], False))
        return labels

    def _choose_hashtags(self, request: PostRequest) -> tuple[str, ...]:
        """Takes the name, and the words of the description that the image model knows too."""
        name = "".join(word[:1].upper() + word[1:] for word in request.business.split())
        words = self._language.find_words(request.about)
        return clean_hashtags([name, *(w for w in words if w.isalpha())], request.platform)


def _split_sentences(about: str) -> list[str]:
    """Lists the sentences of a description, each a whole one with a capital and an end."""
    sentences = [" ".join(found.split()) for found in _SENTENCE.findall(about)]
    said = []
    for sentence in filter(None, sentences):
        whole = cut(sentence[:1].upper() + sentence[1:], _MAX_SAID_CHARACTERS)
        said.append(whole if re.search(r"\W$", whole) else f"{whole}.")
    return said
