"""What all commands do alike: share options, print a result, and turn an error into a status.

Options form groups: dataclasses whose fields typer
reads, and whose docstrings are the help, as with settings. A command names its groups by
`app.command(cls=take(Group, …))`; its function takes the context, gets a group's values by
`get_group(context, Group)`, and returns a `Result`.
"""

import ast
import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from tessella.cli.reporting import create_console, print_result, report_errors

if TYPE_CHECKING:
    from rich.console import Console

G = TypeVar("G")


@dataclass(frozen=True)
class JsonOptions:
    """How to print the result."""

    as_json: Annotated[bool, typer.Option("--json")] = False
    """Print one JSON object to stdout, everything else to stderr."""


@dataclass(frozen=True)
class DebugOptions:
    """How to report an error."""

    debug: Annotated[bool, typer.Option("--debug")] = False
    """Show the full traceback of an error."""


class Command(TyperCommand):
    """A command that takes the options of some groups after its own parameters."""

    groups: tuple[Callable[..., Any], ...] = (JsonOptions, DebugOptions)
    """Dataclasses, or functions that create one when the command runs or shows its help."""

    if_interrupted = "Nothing was written."
    """What Ctrl-C leaves behind."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Lists the parameters: the command's own, those of its groups, `--help`."""
        params = super().get_params(ctx)
        num_own = len(self.params)
        shared = [param for group in self.groups for param in _read_group(group).params]
        return [*params[:num_own], *shared, *params[num_own:]]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the words, and takes the groups' values out of what the function gets."""
        rest = super().parse_args(ctx, args)
        ctx.obj = {}
        for group in self.groups:
            command = _read_group(group)
            values = {param.name: ctx.params.pop(param.name) for param in command.params}
            ctx.obj[group] = command.callback(**values)
        return rest

    def invoke(self, ctx: Any) -> None:
        """Runs the command, prints its result if it returns one, and reports errors."""
        with report_errors(ctx.obj[DebugOptions].debug, if_interrupted=self.if_interrupted):
            result = super().invoke(ctx)
            if result is not None:
                print_result(result, ctx.obj[JsonOptions].as_json)


def take(*groups: Callable[..., Any], base: type[Command] = Command) -> type[Command]:
    """Creates a kind of command that takes the options of more groups, before those of its base."""
    return type(base.__name__, (base,), {"groups": (*groups, *base.groups)})


def get_group(context: typer.Context, group: Callable[..., G]) -> G:
    """Returns the values of a group's options in the command that is running."""
    values: G = context.obj[group]
    return values


def get_console(context: typer.Context) -> "Console":
    """Returns where a command says how far it is: stdout, or stderr if stdout is for JSON."""
    return create_console(stderr=get_group(context, JsonOptions).as_json)


@functools.cache
def _read_group(group: Callable[..., Any]) -> Any:
    """Lets typer read a dataclass as it reads a function; its callback creates the dataclass."""
    options = group if isinstance(group, type) else group()
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(options)
    command: Any = typer.main.get_command(app)
    for param in command.params:
        param.help = param.help or _read_docstrings(options).get(param.name)
    return command


@functools.cache
def _read_docstrings(options: type) -> dict[str, str]:
    """Returns the docstring below each field of a class, on one line."""
    definition: Any = ast.parse(inspect.getsource(options)).body[0]
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
