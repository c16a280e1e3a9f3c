"""A language model as a writer: its instructions, and the checks and repairs of its posts.

The business's own words are data. They reach the language model as JSON between marks that they
cannot contain, and its answers are used as plain text only, never as file names or HTML.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel

from tessella.posts.deadline import Deadline
from tessella.posts.errors import LanguageModelError
from tessella.posts.image_language import ImageLanguage
from tessella.posts.language_model import LanguageModel, Message
from tessella.posts.post import MAX_ALT_CHARACTERS, Post, compose, cut
from tessella.posts.request import PostRequest, clean_line, clean_text
from tessella.posts.writer import PostWriter

_MAX_EXAMPLES = 40
_MAX_WORDS = 1_500
_MAX_EARLIER_CHARACTERS = 120
# Limits on an answer before those of the platform.
_MAX_TEXT_CHARACTERS = 70_000
_MAX_LABEL_CHARACTERS = 1_000
_MAX_HASHTAGS = 100


def _clean_post_text(text: str) -> str:
    text = clean_text(text[:_MAX_TEXT_CHARACTERS])
    if not text:
        raise ValueError("it is blank")
    return text


class _Draft(BaseModel, extra="forbid"):
    """A post as the language model writes it, without hidden characters and absurd lengths."""

    text: Annotated[str, AfterValidator(_clean_post_text)]
    hashtags: Annotated[list[str], AfterValidator(lambda tags: tags[:_MAX_HASHTAGS])]
    alt_text: Annotated[str, AfterValidator(lambda s: clean_line(s[:_MAX_TEXT_CHARACTERS]))]
    label: Annotated[str, AfterValidator(lambda s: clean_line(s[:_MAX_LABEL_CHARACTERS]))]


class _Drafts(BaseModel, extra="forbid"):
    """The language model's answer."""

    posts: list[_Draft]


class ModelWriter(PostWriter):
    """Writes posts with a language model.

    Args:
        language_model: writes the drafts.
        language: of the image model.
        deadline: after which the language model is not asked any more.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        language: ImageLanguage,
        deadline: Deadline | None = None,
    ) -> None:
        self.language_model = language_model.name
        self._language_model = language_model
        self._language = language
        self._deadline = deadline

    def write_batch(
        self, request: PostRequest, count: int, earlier: Sequence[Post]
    ) -> Sequence[Post]:
        """Writes a few posts.

        A post that breaks a limit is requested once more, and then repaired here.

        Raises:
            LanguageModelError: the language model gave no usable answer.
        """
        messages = build_messages(request, self._language, count, earlier)
        drafts = self._ask(messages, count)
        fitted = [self._repair(draft, request) for draft in drafts]
        posts, problems = [post for post, _ in fitted], [problem for _, problem in fitted]
        if not any(problems):
            return posts
        notes = []
        try:
            drafts = self._ask(_request_revision(messages, drafts, problems), count)
        except LanguageModelError:
            notes = ["the new answer was not usable"]
        for index, problem in enumerate(problems):
            if problem:  # good posts stay as they were
                post, _ = self._repair(drafts[index], request)
                repairs = (f"asked again: {problem}", *notes, *post.repairs)
                posts[index] = replace(post, repairs=repairs)
        return posts

    def _ask(self, messages: Sequence[Message], count: int) -> list[_Draft]:
        """Asks for a number of posts; drops any more, and does not accept fewer.

        Raises:
            LanguageModelError: the language model gave no usable answer.
        """

        def check(answer: _Drafts) -> str | None:
            got = len(answer.posts)
            return f"it has {got} posts instead of {count}" if got < count else None

        answer = self._language_model.ask(messages, _Drafts, check, deadline=self._deadline)
        return answer.posts[:count]

    def _repair(self, draft: _Draft, request: PostRequest) -> tuple[Post, str]:
        """Makes a post that keeps to every limit.

        Returns:
            The post, and the limits that the draft broke, in words; "" if none.
        """
        platform, problems, repairs = request.platform, [], []
        label, problem = draft.label, self._language.describe_problem(draft.label)
        if problem:
            label = self._language.repair(label, draft.text)
            problems.append(problem)
            repairs.append(f"{problem}; `{cut(draft.label, 80)}` became `{label}`")
        post = Post.fit(draft.text, draft.hashtags, draft.alt_text, label, platform)
        if post.text != draft.text:
            count = platform.count_characters(compose(draft.text, post.hashtags))
            problems.append(
                f"text and hashtags have {count:,} characters, at most "
                f"{platform.max_characters:,} are allowed"
            )
            repairs.append(f"the text was cut to {platform.max_characters:,} characters")
        return replace(post, repairs=tuple(repairs)), "; ".join(problems)


def build_messages(
    request: PostRequest, language: ImageLanguage, count: int, earlier: Sequence[Post]
) -> list[Message]:
    """Builds the chat that asks a language model for posts.

    Args:
        request: the business and its wishes.
        language: of the image model.
        count: number of posts.
        earlier: the posts that exist already.
    """
    platform = request.platform
    business = {"name": request.business, "about": request.about, "tone": request.tone}
    # Without a "<" the data cannot close its mark.
    data = json.dumps(business, ensure_ascii=False).replace("<", "\\u003c")
    parts = [
        f"<business>{data}</business>",
        f"Write {count} different post{'s' if count > 1 else ''} for {platform.name}, in the tone "
        f"that the business asks for: {platform.manner}. At most {platform.max_characters:,} "
        f"characters including the hashtags, at most {platform.max_hashtags} hashtags, alt_text at "
        f"most {MAX_ALT_CHARACTERS} characters.",
    ]
    if earlier:
        texts = [cut(post.text, _MAX_EARLIER_CHARACTERS) for post in earlier]
        parts.append(f"These posts exist already; write different ones:\n{json.dumps(texts)}")
    if language.examples:
        step = max(1, len(language.examples) // _MAX_EXAMPLES)
        examples = language.examples[::step][:_MAX_EXAMPLES]
        parts.append("Sample captions of the image model:\n" + "\n".join(examples))
    words = dict.fromkeys([*language.find_words(request.about), *language.words])
    if words:
        parts.append("Words that the image model knows:\n" + " ".join([*words][:_MAX_WORDS]))
    parts.append(
        "Answer with one JSON object: "
        '{"posts": [{"text": "…", "hashtags": ["…"], "alt_text": "…", "label": "…"}]}'
    )
    instructions = Path(__file__).with_name("instructions.txt").read_text(encoding="utf-8")
    return [
        {"role": "system", "content": instructions},
        {"role": "user", "content": "\n\n".join(parts)},
    ]


def _request_revision(
    messages: Sequence[Message], drafts: Sequence[_Draft], problems: Sequence[str]
) -> list[Message]:
    """Continues a chat: asks for the same posts without their problems."""
    answer = json.dumps({"posts": [draft.model_dump() for draft in drafts]})
    lines = [
        f"Post {number}: {problem}." for number, problem in enumerate(problems, start=1) if problem
    ]
    return [
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "\n".join(["Write all posts again and fix these:", *lines])},
    ]
