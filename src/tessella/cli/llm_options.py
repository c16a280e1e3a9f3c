"""The options of commands that ask a language model."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tessella.posts.language_model import LanguageModel

DEFAULT_KEY_ENV = "OPENAI_API_KEY"
DEFAULT_TIMEOUT_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class LlmOptions:
    """Which language model to ask, and how."""

    llm: Annotated[str | None, typer.Option(metavar="NAME")] = None
    """The language model's name on its server."""
    llm_base_url: Annotated[
        str | None, typer.Option(metavar="URL", show_default="OPENAI_BASE_URL, else OpenAI's own")
    ] = None
    """A server that speaks OpenAI's chat completions."""
    llm_key_env: Annotated[str, typer.Option(metavar="NAME")] = DEFAULT_KEY_ENV
    """The environment variable that holds that server's key."""
    llm_timeout_seconds: Annotated[float, typer.Option(metavar="NUMBER", min=0.1, max=3600)] = (
        DEFAULT_TIMEOUT_SECONDS
    )
    """How long each attempt may take."""

    def open(self) -> "LanguageModel":
        """Opens the language model: `--llm`, else the one that OPENAI_MODEL names.

        Raises:
            ConfigError: a name, a key or a package is missing.
        """
        from tessella.posts.language_model import LanguageModel

        return LanguageModel.open(
            self.llm,
            base_url=self.llm_base_url,
            key_variable=self.llm_key_env,
            timeout_seconds=self.llm_timeout_seconds,
        )
