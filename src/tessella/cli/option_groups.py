"""Options that several commands share, declared once: a dataclass whose fields typer reads.

A subclass of `GroupedCommand` names the groups (`app.command(cls=…)`); the command's function takes
the context and gets a group's values by `get_group(context, Group)`.
"""

import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

G = TypeVar("G")


class GroupedCommand(TyperCommand):
    """A command that takes the options of some groups after its own parameters."""

    @property
    def groups(self) -> Sequence[type]:
        """The groups; read when the command runs or shows its help, not before."""
        raise NotImplementedError

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


def get_group(context: typer.Context, group: type[G]) -> G:
    """Returns the values of a group's options in the command that is running."""
    values: G = context.obj[group]
    return values


@functools.cache
def _read_group(group: type) -> Any:
    """Lets typer read a dataclass as it reads a function; its callback creates the dataclass."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(group)
    return typer.main.get_command(app)
