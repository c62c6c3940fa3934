"""``nuanced doctor``: whether this machine, or a cluster, can run a sweep."""

from pathlib import Path
from typing import Annotated

import typer

from tune.cli.common.options import Address, Insecure, expand_home, machines

__all__ = ["doctor"]


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", callback=expand_home, help="The sweep to run (default: the default settings)."),
    ] = None,
    address: Address = None,
    insecure: Insecure = False,
) -> None:
    """Check whether this machine has what a sweep needs.

    Examples:
      nuanced doctor
      nuanced doctor --config configs/cluster.yaml --address auto
    """
    from tune.config.sweep_config import load
    from tune.show.doctor import examine, examine_nodes

    settings = None if config is None else load(config)
    sweep_machines = machines(address, insecure)
    if address is None:
        findings = examine(settings)
    else:
        with sweep_machines.joined():
            findings = examine_nodes(sweep_machines.resources(), settings)
    for finding in findings:
        print(f"{finding.name:18} {finding.value}")
    problems = [finding for finding in findings if finding.problem]
    for finding in problems:
        print(f"problem: {finding.name}: {finding.problem}")
    print("a sweep could not run" if problems else "a sweep can run")
    raise typer.Exit(1 if problems else 0)
