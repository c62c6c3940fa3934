"""``nuanced train``: train one run, or resume one."""

from pathlib import Path
from typing import Annotated

import typer

from tune.cli.common.options import ConfigFile, Name, Outputs, Overrides, check_new_or_resumed, expand_home

__all__ = ["train"]


def train(
    config: ConfigFile = None,
    name: Name = None,
    outputs: Outputs = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", callback=expand_home, help="Resume the run in this folder.")
    ] = None,
) -> None:
    """Train one encoder with the settings as they are.

    Examples:
      nuanced train configs/style_alone.yaml --set train.epochs=3
      nuanced train --resume outputs/default
    """
    check_new_or_resumed(config, resume, name=name, outputs=outputs)

    from tune.config.sweep_config import load_run

    settings = None if config is None else load_run(config, overrides or [])

    from tune.sweep.single_run import resume_single_run, train_single_run

    if config is not None and settings is not None:
        result = train_single_run(settings, outputs=Path(outputs or "outputs"), name=name or config.stem)
    else:
        assert resume is not None
        result = resume_single_run(resume, overrides or [])
    for line in result.lines:
        print(line)
