"""``nuanced dashboard``: a sweep's study in a browser."""

from typing import Annotated

import typer

from tune.cli.common.options import SweepFolder

__all__ = ["dashboard"]


def dashboard(
    folder: SweepFolder,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port on this machine.")] = 8080,
) -> None:
    """Show a sweep's study in a browser, also while it runs.

    Examples:
      nuanced dashboard outputs/quickstart
      nuanced dashboard outputs/quickstart --port 8081
    """
    from tune.show.dashboard import serve

    serve(folder, port)
