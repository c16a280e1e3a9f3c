"""What a person types: `tessella COMMAND …`.

Each file holds the commands of one stage of the data's way. `options.py` holds the options that
they share, `command.py` what all commands do alike, and `reporting.py` how they print and end.
Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from typing import Annotated

import typer

from tessella.cli import examples, generate
from tessella.cli.command import Command, take
from tessella.cli.data import doctor
from tessella.cli.evaluation import EvaluationRequest, evaluate
from tessella.cli.painting import PaintingCommand
from tessella.cli.post import PostCommand, post
from tessella.cli.probe import ProbeRequest, probe
from tessella.cli.push import PushCommand, push
from tessella.cli.reconstruct import ReconstructOptions, reconstruct
from tessella.cli.report import ReportOptions, report
from tessella.cli.reporting import ProcessEnd
from tessella.cli.scoring import ScoreOptions, score
from tessella.cli.serving import ServeCommand, StudioCommand, serve, studio
from tessella.cli.training import FitCommand, TrainingCommand, fit, fit_tokenizer, fit_transformer

app = typer.Typer(
    name="tessella",
    help="Trains a text-to-image model on your own captioned images, and paints from it.",
    epilog="First steps: tessella generate 'a large red star on a navy background'",
    add_completion=False,
    no_args_is_help=True,
    # Plain text: rich would take a third of the time in which `--help` has to answer.
    rich_markup_mode=None,
    # reporting.py reports errors; `--debug` shows Python's own traceback.
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
app.command(cls=Command)(doctor)
app.command(cls=FitCommand)(fit)
app.command(cls=TrainingCommand)(fit_tokenizer)
app.command(cls=TrainingCommand)(fit_transformer)
app.command(cls=take(generate.GenerateOptions, base=PaintingCommand))(generate.generate)
app.command(cls=take(generate.EditOptions, base=PaintingCommand))(generate.edit)
app.command(cls=take(generate.VaryOptions, base=PaintingCommand))(generate.vary)
app.command(cls=take(ScoreOptions))(score)
app.command(cls=PostCommand)(post)
app.command(cls=take(ReconstructOptions))(reconstruct)
app.command(cls=take(ProbeRequest))(probe)
app.command(cls=take(EvaluationRequest))(evaluate)
app.add_typer(examples.app, name="examples")
app.command(cls=Command)(examples.export)
app.command(cls=PushCommand)(push)
app.command(cls=take(ReportOptions))(report)
app.command(cls=ServeCommand)(serve)
app.command(cls=StudioCommand)(studio)


def _show_version(is_set: bool) -> None:
    if is_set:
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
    """Runs the command line and exits with its status."""
    try:
        app()
    except ProcessEnd as end:
        end.leave()
