"""``nuanced report``: a sweep as one HTML file to look at and to listen to."""

from pathlib import Path
from typing import Annotated

import typer

from tune.cli.common.options import SweepFolder, expand_home

__all__ = ["report"]


def report(
    folder: SweepFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            callback=expand_home,
            show_default=False,
            help="HTML file to write (default: report.html in DIR).",
        ),
    ] = None,
) -> None:
    """Write a sweep's results, curves and sounds as one HTML file.

    It works while the sweep runs, and the file needs no network.

    Examples:
      nuanced report outputs/quickstart
      nuanced report outputs/quickstart -o quickstart.html
    """
    from tune.analysis.report import write_report

    file = write_report(folder, out)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB; open it in a browser")
