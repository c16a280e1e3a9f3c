"""What a person types: `tessella COMMAND …`.

One file holds the commands of one part of the data's way; `options.py` the options that they
share, `reporting.py` what all of them say and how they end. Nothing heavy is imported before a
command runs, so that `--help` answers at once.
"""

from typing import Annotated

import typer

from tessella.cli.data import doctor
from tessella.cli.editing import edit, vary
from tessella.cli.evaluation import evaluate
from tessella.cli.generate import generate
from tessella.cli.post import post
from tessella.cli.probe import probe
from tessella.cli.reconstruct import reconstruct
from tessella.cli.report import report
from tessella.cli.scoring import score
from tessella.cli.serve import serve
from tessella.cli.studio import studio
from tessella.cli.training import fit, fit_tokenizer, fit_transformer

app = typer.Typer(
    name="tessella",
    help="Trains a text-to-image model on your own captioned images, and paints from it.",
    epilog="First steps: tessella generate 'a large red star on a navy background'",
    add_completion=False,
    no_args_is_help=True,
    # Plain text: rich would take a third of the time in which `--help` has to answer.
    rich_markup_mode=None,
    # Errors are told by reporting.py; `--debug` shows Python's own traceback.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command()(doctor)
app.command()(fit)
app.command("fit-tokenizer")(fit_tokenizer)
app.command("fit-transformer")(fit_transformer)
app.command()(generate)
app.command()(edit)
app.command()(vary)
app.command()(score)
app.command()(post)
app.command()(reconstruct)
app.command()(probe)
app.command()(evaluate)
app.command()(report)
app.command()(serve)
app.command()(studio)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"tessella {metadata.version('tessella')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line and ends the process with its exit status."""
    app()
