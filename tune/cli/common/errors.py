"""The errors that end a command, as they are printed: without passwords, and usage errors of Typer as one line."""

import sys
import traceback
from typing import Any

import typer

from tune.config.secrets import masked

__all__ = ["print_error", "print_traceback_with_secrets", "usage_message"]


def print_error(message: str) -> None:
    """Print the one line of an error that the user can fix on stderr."""
    print(masked(f"nuanced: error: {message}"), file=sys.stderr)


def print_traceback_with_secrets(error: Exception) -> bool:
    """Print the traceback of an unexpected error on stderr if it holds passwords, which are masked.

    Returns:
        whether it was printed; if not, Python may print it.
    """
    text = "".join(traceback.format_exception(error))
    if masked(text) == text:
        return False
    print(masked(text), file=sys.stderr, end="")
    return True


def usage_message(error: typer.TyperException) -> str:
    """Return the command, what is wrong with its arguments, and the nearest right name or where to find help.

    The classes of these exceptions are private in Typer; ``ctx`` and ``possibilities`` are attributes of some.
    """
    context = getattr(error, "ctx", None)
    nearest = getattr(error, "possibilities", None)
    if nearest:
        message = f"{error.message}; did you mean {nearest[0]}?"
    else:
        message = _message(error).replace(". Did you mean", "; did you mean")
        if context is not None and not message.endswith("?"):
            message = f"{message.rstrip('.')}; see: {context.command_path} --help"
    message = message[:1].lower() + message[1:]
    return message if context is None or context.parent is None else f"{context.info_name}: {message}"


def _message(error: typer.TyperException) -> str:
    """Return Typer's message in one line, with the value that it leaves out where Pydantic refused it."""
    refused: Any = getattr(error.__cause__, "errors", None)
    if refused is not None:
        error.message = f"{refused()[0]['input']!r}: {error.message}"
    return " ".join(error.format_message().split())
