"""``nuanced serve``: OpenAI's speech API and a page on which a clip becomes a voice."""

from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.errors import ConfigError
from tune.cli.common.options import Source, expand_home

__all__ = ["serve"]


def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", callback=expand_home, help="Folder of the encoder.")] = Path(
        "models/default"
    ),
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on; one that others can reach needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", min=0, help="Port to listen on; 0: any free one.")] = 8880,
    token: Annotated[
        str | None,
        typer.Option(metavar="env:NAME", help="Environment variable with the token that clients must send."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name by which clients call the server; may be repeated."),
    ] = None,
    source: Source = "auto",
) -> None:
    """Serve OpenAI's speech API, and a page that makes a voice of a clip.

    Examples:
      nuanced serve
      nuanced serve --host 0.0.0.0 --token env:NUANCED_TOKEN
    """
    from tune.config.secrets import from_environment, is_variable

    if token is not None and not is_variable(token):
        raise ConfigError("--token: give env:NAME, since other users see the arguments of a command")
    secret = None if token is None else from_environment(token, "--token")

    from nuanced_core.serving.server import serve as run

    run(model, host, port, token=secret, names=tuple(allow_host or ()), source=source)
