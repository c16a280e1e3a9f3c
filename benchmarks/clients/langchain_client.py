"""LangChain's wrapper of DALL-E, and its tool, which read addresses of pictures."""

import sys

from checks import PROMPT, attempt, expect, fetch, look
from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper


def main(base_url: str) -> None:
    """Tries every call."""
    for said in (
        {},
        {"model": "dall-e-3"},
        {"model": "dall-e-2", "n": 2},
        {"model": "dall-e-3", "size": "1024x1024", "quality": "hd"},
    ):
        attempt(f"DallEAPIWrapper({said}).run", lambda s=said: run(base_url, s))
    attempt("OpenAIDALLEImageGenerationTool.run", lambda: use_tool(base_url))


def make(base_url: str, said: dict) -> DallEAPIWrapper:
    """Makes the wrapper as its documentation does."""
    return DallEAPIWrapper(api_key="unused", base_url=base_url, **said)


def run(base_url: str, said: dict) -> None:
    """Paints; its answer is a text of addresses."""
    check(make(base_url, said).run(PROMPT), said.get("n", 1))


def use_tool(base_url: str) -> None:
    """Paints as an agent does."""
    check(OpenAIDALLEImageGenerationTool(api_wrapper=make(base_url, {})).run(PROMPT), 1)


def check(answer: str, count: int) -> None:
    """Fetches every address."""
    urls = answer.split()
    expect(len(urls) == count, answer)
    for url in urls:
        look(fetch(url), (1024, 1024))  # the wrapper's own size


if __name__ == "__main__":
    main(sys.argv[1])
