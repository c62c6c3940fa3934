"""The commands in docs/CLUSTER.md and docs/cluster, found in the files and checked by the programs themselves."""

import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from tune.cli.app import main
from tune.cluster.machines import JoinedCluster
from tune.config.sweep_config import SweepConfig
from tune.config.sweep_settings import SweepSettings
from tune.sweep.driver import SweepResult
from tune.sweep.services import SweepServices

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "docs" / "cluster"
GUIDE = ROOT / "docs" / "CLUSTER.md"


@dataclass
class Invocation:
    """What a ``nuanced`` command line asks for: a new sweep (``config``), or to resume one (``resume``), or neither."""

    machines: Any = None
    config: SweepConfig | None = None
    name: str | None = None
    resume: Path | None = None

    @property
    def address(self) -> str:
        assert isinstance(self.machines, JoinedCluster)
        return self.machines.address


def run_nuanced(*arguments: str) -> Invocation:
    """Run ``nuanced`` in the project's folder, with ``run_sweep``, ``resume_sweep`` and ``doctor`` replaced.

    Raises:
        ValueError: it fails.
    """
    seen = Invocation()
    result = SweepResult(Path("outputs/sweep"), {"best": {"number": 0}, "pareto": []}, [], interrupted=False)

    def run_sweep(config: SweepConfig, *, name: str, services: SweepServices | None = None) -> SweepResult:
        assert services is not None
        seen.config, seen.name, seen.machines = config, name, services.machines
        return result

    def resume_sweep(folder: Path, *, services: SweepServices, **options: Any) -> SweepResult:
        seen.resume, seen.machines = folder, services.machines
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr("tune.sweep.driver.run_sweep", run_sweep)
        patch.setattr("tune.sweep.driver.resume_sweep", resume_sweep)
        patch.setattr("tune.show.doctor.examine", lambda config: [])
        patch.setattr("tune.show.doctor.examine_nodes", lambda machines, config: [])
        patch.setattr(JoinedCluster, "joined", lambda self: nullcontext())
        patch.setattr(JoinedCluster, "resources", lambda self: [])
        try:
            code = main(list(arguments))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    if code:
        raise ValueError(f"nuanced {shlex.join(arguments)}: exit code {code}")
    return seen


def parse_ray(arguments: Sequence[str]) -> click.Context:
    """Parse the arguments of ``ray`` with Ray's own definitions, without running anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.scripts.scripts import cli

    command: click.Command = cli.commands[arguments[0]]
    return command.make_context(arguments[0], [*arguments[1:]])


def guide_calls(tool: str) -> list[list[str]]:
    """The arguments of each call of ``tool`` in the guide."""
    text = GUIDE.read_text(encoding="utf-8")
    return [call for line in shell_lines(text) for call in calls(line, tool) if call]


def shell_lines(text: str) -> list[str]:
    """The lines of a Markdown text's fenced blocks, continued ones joined, and its inline code."""
    fences = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return [*fences.replace("\\\n", " ").splitlines(), *inline]


def calls(line: str, tool: str) -> Iterator[list[str]]:
    """The arguments of each call of ``tool`` in a shell line, also of those within its quotes."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:  # an apostrophe of a sentence
        return
    found: list[str] | None = None
    for word in words:
        if found is None and word.rpartition("/")[2] == tool:
            found = []
        elif found is not None and re.fullmatch(r"[;&|<>()]+", word):
            yield found
            found = None
        elif found is not None:
            found.append(word)
        if " " in word:
            yield from calls(word, tool)
    if found is not None:
        yield found


def trials_per_node(sweep: SweepSettings, cpus: float, gpus: float) -> int:
    """How many trials fit on a node at the same time."""
    return int(min(cpus // sweep.cpus_per_trial, gpus // sweep.gpus))


def write_script(file: Path, body: str) -> None:
    """Write an executable shell script, which stands for a program."""
    file.write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
    file.chmod(0o755)
