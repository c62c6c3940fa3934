"""``nuanced board``: TensorBoard for a sweep or a run."""

from pathlib import Path
from typing import Annotated

import typer

from tune.cli.common.options import expand_home

__all__ = ["board"]


def board(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", callback=expand_home, help="Folder of a sweep, or of a single run.")
    ],
    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on; 0.0.0.0 lets others in, without a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="PORT", help="Port to listen on; 0: any free one.")] = 6006,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """Show curves, sounds and pictures in TensorBoard, also while trials run.

    Examples:
      nuanced board outputs/quickstart
      nuanced board outputs/quickstart --port 6007 --open
    """
    from tune.show.board import serve_board

    serve_board(folder, host, port, open_browser=open_browser)
