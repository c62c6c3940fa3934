"""The ``nuanced`` application: its commands in the panels of the help, the global options, and the exit codes."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.errors import NuancedError
from nuanced_core.machine_limits import limit_threads
from tune.cli.common.command import Application, GlobalOptionsCommand
from tune.cli.common.errors import print_error, print_traceback_with_secrets, usage_message
from tune.cli.common.options import expand_home
from tune.cli.inspection.board import board
from tune.cli.inspection.dashboard import dashboard
from tune.cli.inspection.doctor import doctor
from tune.cli.inspection.status import status
from tune.cli.results.evaluate import evaluate
from tune.cli.results.export import export
from tune.cli.results.report import report
from tune.cli.storage.cache import cache
from tune.cli.storage.weights import weights
from tune.cli.training.sweep import sweep
from tune.cli.training.train import train
from tune.cli.use.convert import convert
from tune.cli.use.mix import mix
from tune.cli.use.reply import reply
from tune.cli.use.serve import serve
from tune.cli.use.speak import speak
from tune.cli.use.voice import voice

__all__ = ["main"]

_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Training": (sweep, train),
    "Inspection": (status, board, dashboard, doctor),
    "Results": (report, export, evaluate),
    "Use": (voice, mix, speak, convert, reply, serve),
    "Storage": (weights, cache),
}
_UNEXPECTED_ERROR = 1  # as Python exits after a traceback
_USAGE_ERROR = 2
_INTERRUPTED = 130  # 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error that the user can fix is one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    limit_threads()
    try:
        command = typer.main.get_command(_application())
        code = command.main(arguments, prog_name="nuanced", standalone_mode=False)
    except NuancedError as error:
        print_error(str(error))
        return error.exit_code
    except typer.TyperException as error:
        print_error(usage_message(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except SystemExit as stop:  # Typer's way to end after it printed a completion
        code = stop.code
    except Exception as error:
        if not print_traceback_with_secrets(error):
            raise
        code = _UNEXPECTED_ERROR
    return code if isinstance(code, int) else 0


def _application() -> typer.Typer:
    app = typer.Typer(
        cls=Application,
        invoke_without_command=True,
        callback=_global_options,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for panel, commands in _PANELS.items():
        for command in commands:
            app.command(cls=GlobalOptionsCommand, rich_help_panel=panel)(command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"nuanced {version('nuanced-speech')}")
        raise typer.Exit()


def _global_options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", rich_help_panel="Log", help="Show warnings and errors only, besides results.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", rich_help_panel="Log", help="Show debug messages and logger names.")
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", callback=expand_home, rich_help_panel="Log", help="Append all messages to a file."
        ),
    ] = None,
) -> None:
    """Search for style encoders that let Kokoro speak the way a person spoke.

    Examples:
      nuanced doctor
      nuanced sweep configs/quickstart.yaml --trials 20
    """
    # GlobalOptionsCommand reads quiet, verbose and log_file.
    if context.invoked_subcommand is None:
        context.get_help()  # prints it
        raise typer.Exit(_USAGE_ERROR)
