"""Platforms: how characters count."""

import time
from typing import get_args

import pytest

from tessella.posts.platforms import PLATFORMS, PlatformName


@pytest.mark.parametrize(
    ("platform", "text", "count"),
    [
        ("instagram", "bread", 5),
        ("instagram", "https://example.org/a/long/address", 34),
        ("x", "bread", 5),
        ("x", "caf\u00e9", 4),
        ("x", "cafe\u0301", 4),  # the same letter in two signs
        ("x", "\N{BREAD}", 2),
        ("x", "\u30d1\u30f3", 4),  # Japanese
        ("x", "\u201cbread\u201d \u2013", 9),
        ("x", "see https://example.org/a/long/address/indeed now", 4 + 23 + 4),
        ("x", "see https://e.org", 4 + 23),
        ("x", "e.org", 23),  # X makes a link of it
        ("x", "wonderful.cinnamon.buns.bakery", 30),  # perhaps a link, perhaps none: the longer
        ("x", "...e.org", 8),  # a link begins a word
        ("x", "3.50 a loaf, e.g. rye", 21),
        ("mastodon", "see https://example.org/a/long/address/indeed", 4 + 23),
        ("mastodon", "\N{BREAD}", 1),
        ("threads", "a\N{BREAD}", 1 + 4),
        ("threads", "\u2764\ufe0f", 3 + 3),  # a red heart
        ("threads", "caf\u00e9 \u30d1\u30f3 \u2013", 9),  # letters are no emoji
        ("bluesky", "see https://example.org", 23),
    ],
)
def test_characters_count_as_on_the_platform(platform: str, text: str, count: int) -> None:
    assert PLATFORMS[platform].count_characters(text) == count


# A language model's answer of 16,000 times "a." took seconds, in which nobody else was heard.
@pytest.mark.parametrize("name", PLATFORMS)
@pytest.mark.parametrize("text", ["a.", "a", "a-", "https://", "a b.c/", "\N{BREAD}"])
def test_huge_texts_are_counted_quickly(name: str, text: str) -> None:
    for length in (4 * PLATFORMS[name].max_characters, 70_000):
        huge = (text * 70_000)[: min(length, 70_000)]
        started = time.process_time()
        count = PLATFORMS[name].count_characters(huge)
        assert time.process_time() - started < 0.1
        assert length < 70_000 or count > PLATFORMS[name].max_characters


def test_every_platform_says_its_limits() -> None:
    assert {name: (p.max_characters, p.max_hashtags) for name, p in PLATFORMS.items()} == {
        "instagram": (2200, 5),
        "facebook": (63206, 3),
        "x": (280, 2),
        "linkedin": (3000, 5),
        "threads": (500, 1),
        "bluesky": (300, 3),
        "mastodon": (500, 5),
        "pinterest": (500, 5),
        "tiktok": (2200, 5),
    }
    assert tuple(PLATFORMS) == get_args(PlatformName)
    assert all(name == platform.name for name, platform in PLATFORMS.items())
