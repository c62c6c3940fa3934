"""The classes of all commands and of the application: where options are accepted, and how a command's output ends."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tune.cli.common.logs import LogOptions, log_output

__all__ = ["Application", "GlobalOptionsCommand"]

_BROKEN_PIPE = 141  # 128 + SIGPIPE
_GLOBAL_OPTIONS = ("quiet", "verbose", "log_file")


class Application(TyperGroup):
    """The group of all commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the global options."""
        return _without_flag_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the global options."""
        with _named_in_errors(ctx):
            return super().parse_args(ctx, args)


class GlobalOptionsCommand(TyperCommand):
    """A command that also accepts ``--quiet``, ``--verbose`` and ``--log-file``, unless it has an option of that name.

    The definitions of these options are those of the application's callback.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's own parameters, then the global options."""
        own = super().get_params(ctx)
        shared = [] if ctx.parent is None else ctx.parent.command.params
        names = {parameter.name for parameter in own}
        inherited = [p for p in shared if p.name in _GLOBAL_OPTIONS and p.name not in names]
        return _without_flag_types([*own, *inherited])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command."""
        with _named_in_errors(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command with its log output set up; a closed stdout ends it with exit code 141."""
        before: dict[str, Any] = {} if ctx.parent is None else ctx.parent.params
        own = {parameter.name for parameter in self.params}
        after = {name: ctx.params.pop(name) for name in _GLOBAL_OPTIONS if name not in own and name in ctx.params}
        values: dict[str, Any] = {name: after.get(name) or before.get(name) for name in _GLOBAL_OPTIONS}
        options = LogOptions(bool(values["quiet"]), bool(values["verbose"]), values["log_file"])
        try:
            with log_output(options):
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except BrokenPipeError:
            # Python would complain again when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(_BROKEN_PIPE) from None


@contextmanager
def _named_in_errors(context: Any) -> Iterator[None]:
    """Give usage errors the context of the command where Typer leaves it out."""
    try:
        yield
    except typer.TyperException as error:
        if getattr(error, "ctx", None) is None:
            error.ctx = context  # type: ignore[attr-defined]
        raise


def _without_flag_types(parameters: list[Any]) -> list[Any]:
    """Remove ``<bool>`` from the help of options that take no value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters
