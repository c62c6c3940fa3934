"""Usage errors that Typer finds, such as an unknown option, as one line."""

from typing import Any

import typer

__all__ = ["usage_message"]


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
