"""The options of commands that ask a language model."""

from typing import Annotated

import typer

Llm = Annotated[
    str | None,
    typer.Option(
        "--llm",
        metavar="NAME",
        help="The language model, as its server calls it.",
        show_default=False,
    ),
]
LlmBaseUrl = Annotated[
    str | None,
    typer.Option(
        "--llm-base-url",
        metavar="URL",
        help="Of a server that speaks OpenAI's chat completions.",
        show_default="OPENAI_BASE_URL, else OpenAI's own",
    ),
]
LlmKeyEnv = Annotated[
    str,
    typer.Option(
        "--llm-key-env",
        metavar="NAME",
        help="The environment variable that holds that server's key.",
    ),
]
LlmTimeoutSeconds = Annotated[
    float,
    typer.Option(
        "--llm-timeout-seconds",
        metavar="NUMBER",
        help="How long each try to ask may take.",
        min=0.1,
        max=3600,
    ),
]
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
DEFAULT_TIMEOUT_SECONDS = 60.0
