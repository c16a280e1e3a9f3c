"""`tessella serve`: models in, an HTTP API and a page out."""

from collections.abc import Sequence
from typing import Annotated

import typer

from tessella.cli.llm_options import LlmOptions
from tessella.cli.option_groups import get_group
from tessella.cli.options import DEFAULT_MODEL, Config, Debug, Device, Set
from tessella.cli.reporting import told_errors
from tessella.cli.serving_options import ServingCommand, read_serving


class ServeCommand(ServingCommand):
    """The command, with the options of a server and of a language model."""

    @property
    def groups(self) -> Sequence[type]:
        """Those of a server, and the language model's."""
        return *super().groups, LlmOptions


def serve(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Model folders, run folders or names of bundled models, each as MODEL or "
            "NAME=MODEL. The first is the API's default.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    config: Config = None,
    set_: Set = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Serve models: OpenAI's image API at /v1, and the studio page at /.

    Any OpenAI client works with http://HOST:PORT/v1 as its base URL. POST /v1/posts writes its
    texts with a language model (--llm), else from templates. Ctrl-C or SIGTERM finishes the
    pictures that are being painted and refuses the rest.
    """
    with told_errors(debug, if_interrupted="Nothing was being served yet."):
        settings, keys = read_serving(context, config, set_)

        from tessella.serving.server import serve as serve_models

        llm = get_group(context, LlmOptions)
        serve_models(
            models or [DEFAULT_MODEL],
            settings,
            keys=keys,
            language_model=llm.open() if llm.llm else None,
            device=device,
            tell=lambda address: typer.echo(
                f"Serving at {address} (the page) and {address}/v1 (the API). Ctrl-C stops it."
            ),
        )
