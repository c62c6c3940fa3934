"""``nuanced sweep``: run a sweep, or resume one."""

from pathlib import Path
from typing import Annotated

import typer

from nuanced_core.errors import ConfigError
from nuanced_core.progress import stderr_console
from tune.cli.common.options import (
    Address,
    ConfigFile,
    Insecure,
    Name,
    Outputs,
    Overrides,
    Temp,
    check_new_or_resumed,
    expand_home,
    machines,
)

__all__ = ["sweep"]


def sweep(
    config: ConfigFile = None,
    name: Name = None,
    outputs: Outputs = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="DIR", callback=expand_home, help="Resume the sweep in this folder, or extend it."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(metavar="N", help="Budget in trials, including those that a resumed sweep has.")
    ] = None,
    hours: Annotated[float | None, typer.Option(metavar="H", help="Budget in hours: no trial starts later.")] = None,
    enqueue: Annotated[
        list[str] | None,
        typer.Option(metavar="SETTINGS", help="Try these first, as {name: value, ...}; may be repeated."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: run the settings of failed trials again.")
    ] = False,
    warm_start: Annotated[
        str | None,
        typer.Option(metavar="DIR", callback=expand_home, help="Try the best settings of another sweep first."),
    ] = None,
    address: Address = None,
    insecure: Insecure = False,
    temp: Temp = None,
) -> None:
    """Run many trials, each chosen from the results of those before it.

    Examples:
      nuanced sweep configs/quickstart.yaml --trials 20
      nuanced sweep --resume outputs/quickstart --hours 8
    """
    check_new_or_resumed(config, resume, name=name, outputs=outputs)
    if retry_failed and resume is None:
        raise ConfigError("--retry-failed: a new sweep has no failed trials; give --resume DIR, or leave it out")

    from tune.config.sweep_config import as_override, load_sweep_config

    options = {"trials": trials, "hours": hours, "outputs": outputs, "warm_start": warm_start}
    given = list(overrides or [])
    given += [as_override(f"sweep.{key}", value) for key, value in options.items() if value is not None]
    if hours is not None and trials is None:
        given.append(as_override("sweep.trials", None))  # no limit but the hours
    if enqueue:
        given.append(f"sweep.enqueue=[{', '.join(enqueue)}]")
    settings = None if config is None else load_sweep_config(config, given)

    from tune.sweep.driver import SweepServices, resume_sweep, run_sweep

    services = SweepServices(console=stderr_console(), machines=machines(address, insecure, temp))
    if config is not None and settings is not None:
        result = run_sweep(settings, name=name or config.stem, services=services)
    else:
        assert resume is not None
        result = resume_sweep(resume, overrides=given, retry_failed=retry_failed, services=services)
    print(*result.lines, sep="\n")
    raise typer.Exit(result.exit_code)
