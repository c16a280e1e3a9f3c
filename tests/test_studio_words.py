"""What the server says as people would say it, on the studio's page."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from served import serve_app
from studio_page import load_once, open_studio
from tessella.serving.app import create_app
from tessella.serving.settings import ServeSettings

MESSAGES = {
    "`steps` is wrong: `'70'`. Input should be less than or equal to 64.": (
        "Steps: “70” does not fit. At most 64."
    ),
    "`best_of` is wrong: `'0'`. Input should be greater than or equal to 1.": (
        "Best of: “0” does not fit. At least 1."
    ),
    "`seed` is wrong: `'x'`. Input should be a valid integer, unable to parse string.": (
        "Seed: “x” does not fit. It takes a whole number."
    ),
    "`prompt` is wrong: `''`. It must not be blank.": (
        "Prompt: “” does not fit. It must not be blank."
    ),
    "No effect: `negative_prompt`. It works by guidance, which is off: guidance_scale is 1. Give "
    "one above 1.": "No effect: Negative prompt. It works by guidance, which is off: Guidance is "
    "1. Give one above 1.",
    "The prompt is longer than the model reads. It was cut to: `a red_star`.": (
        "The prompt is longer than the model reads. It was cut to: “a red_star”."
    ),
    # What a person wrote stays as it is, also where a field has that name.
    "Not in the model's vocabulary: `zeppelin`, `n`, `red_star`.": (
        "Not in the model's vocabulary: “zeppelin”, “n”, “red_star”."
    ),
    "`image`: This is no picture.": "The picture: This is no picture.",
    "`references[1]`: This is no picture.": "References: This is no picture.",
    "too large; the limit is `serve.max_upload_pixels`": (
        "Too large; the limit is max upload pixels"
    ),
}
NUMBERS = {
    (
        "retrieval_by_pmi",
        0.53,
        "share of 64 pictures; first of 25, chance 0.04; x",
    ): (
        "Matches its prompt, by the model itself",
        "53\N{NO-BREAK SPACE}%, luck 4\N{NO-BREAK SPACE}%",
    ),
    ("codes_used", 1946, "of 2048, the first 200 validation images"): (
        "Codes in use",
        "1,946 of 2048",
    ),
    ("painted_fid_squeezenet", 12.3456, "x"): (
        "Distance from real pictures (FID, squeezenet)",
        "12.35",
    ),
    ("without_examples_loss_held_out", 3.71, "x"): (
        "Loss on pictures it has not seen, without examples",
        "3.71",
    ),
    ("some_new_number", 0.25, "x"): ("Some new number", "0.25"),
}


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    with serve_app(create_app(load_once("scenes"), ServeSettings())) as address:
        made = open_studio(browser, address, "desktop")
        yield made
        made.context.close()


def test_messages_have_no_backticks_and_no_names_of_fields(page: Page) -> None:
    said = page.evaluate(
        """async (messages) => {
          const { inWords } = await import("/studio/words.js");
          return messages.map(inWords);
        }""",
        list(MESSAGES),
    )
    assert dict(zip(MESSAGES, said, strict=True)) == MESSAGES


def test_numbers_are_named_and_beside_what_luck_gives(page: Page) -> None:
    said = page.evaluate(
        """async (metrics) => {
          const { nameMetric, writeValue } = await import("/studio/metrics.js");
          return metrics.map(([name, value, protocol]) =>
            [nameMetric(name), writeValue(name, {value, protocol})]);
        }""",
        [list(metric) for metric in NUMBERS],
    )
    assert [tuple(pair) for pair in said] == list(NUMBERS.values())


def test_a_protocol_names_other_numbers_in_words(page: Page) -> None:
    said = page.evaluate(
        """async () => (await import("/studio/metrics.js"))
          .describeProtocol("loss_held_out minus loss_train")"""
    )
    assert said == "“Loss on pictures it has not seen” minus “Loss on pictures of its training”"
