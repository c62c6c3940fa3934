"""``nuanced export``: a trained encoder as a folder that can be loaded."""

from pathlib import Path
from typing import Annotated

import typer

from tune.cli.common.options import expand_home

__all__ = ["export"]


def export(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", callback=expand_home, show_default=False, help="Folder of a sweep, or of one run."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", callback=expand_home, help="Folder to create.")],
    trial: Annotated[int | None, typer.Option(metavar="N", help="This trial instead of the best.")] = None,
) -> None:
    """Export a sweep's best encoder as a folder that can be loaded.

    Examples:
      nuanced export outputs/quickstart -o models/quickstart
      nuanced export outputs/quickstart -o models/third --trial 3
    """
    from tune.trial.checkpoints import best_checkpoint

    chosen = best_checkpoint(folder, trial)

    from nuanced_core.encoder.export import export_encoder

    export_encoder(chosen.file, out, chosen.facts)
    print(f"{out}: the encoder of {chosen.file}")
