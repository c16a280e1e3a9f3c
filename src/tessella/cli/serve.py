"""`tessella serve`: models in, an HTTP API and a page out."""

from typing import Annotated

import typer

from tessella.cli.llm_options import (
    DEFAULT_KEY_ENV,
    DEFAULT_TIMEOUT_SECONDS,
    Llm,
    LlmBaseUrl,
    LlmKeyEnv,
    LlmTimeoutSeconds,
)
from tessella.cli.options import DEFAULT_MODEL, Config, Debug, Device, Set
from tessella.cli.reporting import told_errors
from tessella.cli.serving_options import (
    AllowedHost,
    ApiKeysFile,
    Host,
    Insecure,
    Port,
    read_keys,
    read_serving,
)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Model folders, run folders or names of bundled models, each as MODEL or "
            "NAME=MODEL. The first is the default of the API.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    host: Host = None,
    port: Port = None,
    api_keys: ApiKeysFile = None,
    insecure: Insecure = False,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="A web page's origin, such as https://example.org, whose scripts may call the "
            "API. May be repeated.",
            show_default=False,
        ),
    ] = None,
    allowed_host: AllowedHost = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where clients reach the server, if a proxy stands before it.",
            show_default=False,
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Write prompts into the access log.")
    ] = False,
    llm: Llm = None,
    llm_base_url: LlmBaseUrl = None,
    llm_key_env: LlmKeyEnv = DEFAULT_KEY_ENV,
    llm_timeout_seconds: LlmTimeoutSeconds = DEFAULT_TIMEOUT_SECONDS,
    config: Config = None,
    set_: Set = None,
    device: Device = "auto",
    debug: Debug = False,
) -> None:
    """Serve models: OpenAI's image API below /v1, and the studio page at /.

    With --llm a language model writes the texts of POST /v1/posts, else templates do. Any OpenAI
    client works with http://HOST:PORT/v1 as its base URL. Ctrl-C or SIGTERM finishes what is being
    painted and refuses the rest.
    """
    with told_errors(debug, if_interrupted="Nothing was being served yet."):
        settings = read_serving(
            config,
            set_ or (),
            host=host,
            port=port,
            allow_origins=allow_origin,
            allowed_hosts=allowed_host,
            public_url=public_url,
            log_prompts=log_prompts or None,
        )
        keys = read_keys(api_keys, settings, insecure=insecure)

        from tessella.posts.language_model import LanguageModel
        from tessella.serving.server import serve as serve_models

        language_model = None
        if llm:
            language_model = LanguageModel.open(
                llm,
                base_url=llm_base_url,
                key_variable=llm_key_env,
                timeout_seconds=llm_timeout_seconds,
            )
        serve_models(
            models or [DEFAULT_MODEL],
            settings,
            keys=keys,
            language_model=language_model,
            device=device,
            tell=lambda address: typer.echo(
                f"Serving at {address} (the page) and {address}/v1 (the API). Ctrl-C ends it."
            ),
        )
