"""docs/cluster/slurm.sh on two simulated nodes: start, join, signals, requeue and stop."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.tune.cluster.shell_commands import FOLDER, parse_ray, run_nuanced, write_script


class Job:
    """The script on simulated nodes: each step is a process here, and each program logs how it was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.started: list[subprocess.Popen[str]] = []
        programs = folder / "bin"
        programs.mkdir()
        sleep = "/bin/sleep" if Path("/bin/sleep").exists() else "/usr/bin/sleep"
        log_call = (
            'echo "${SLURMD_NODENAME:--} $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $RAY_AUTH_MODE ${0##*/} $*"'
            f" >> {self.log}"
        )
        write_script(programs / "sleep", f"exec {sleep} 0.05")
        write_script(
            programs / "scontrol", f'echo "- - - scontrol $*" >> {self.log}; [ "$1" != show ] || printf "%s\\n" one two'
        )
        write_script(
            programs / "srun",
            "while [[ $1 == --* ]]; do [[ $1 != --nodelist=* ]] || export SLURMD_NODENAME=${1#*=}; shift; done\n"
            'export SLURM_CPUS_ON_NODE=8; exec "$@"',
        )
        write_script(
            programs / "ray",
            f"node={folder}/node-$SLURMD_NODENAME\n"
            f'[ "$1" = status ] || {log_call}\n'
            'case "$1" in\n'
            f"status) ls {folder} | sed -n 's/^node-/ 1 node_/p';;\n"
            f'start) [ "$SLURMD_NODENAME" != "$LATE" ] || exit 0; echo $$ > "$node"; exec {sleep} 60;;\n'
            'stop) if [ -f "$node" ]; then kill "$(cat "$node")"; rm "$node"; fi;;\n'
            "esac",
        )
        write_script(
            programs / "nuanced",
            f"{log_call}\ntrap 'rm -f {folder}/driver' EXIT\n"
            f"trap 'echo \"- - - SIGINT\" >> {self.log}; exit 130' INT\n"
            f'echo $$ > {folder}/driver\nwhile [ -n "$ENDLESS" ]; do {sleep} 0.05; done',
        )
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "BIN": str(programs),
            "SLURM_JOB_ID": "123",
            "SLURM_JOB_NODELIST": "one,two",
            "SLURM_SUBMIT_DIR": str(folder),
        }

    def start(self, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["bash", str(FOLDER / "slurm.sh"), "configs/cluster.yaml", "first"],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def kill(self) -> None:
        """Kill what a failed test has left."""
        for process in self.started:
            process.kill()
        for file in (*self.folder.glob("node-*"), *self.folder.glob("driver")):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def end(self, process: "subprocess.Popen[str]") -> str:
        """Wait for the end of the script; return what it has printed."""
        output, _ = process.communicate(timeout=30)
        assert not list(self.folder.glob("node-*")), "Ray was not stopped on all nodes"
        assert not list(self.folder.glob(".ray-*")), "the token is left"
        return output

    def logged(self) -> list[list[str]]:
        """Of each call: node, mode of the token's file, RAY_AUTH_MODE, program and arguments."""
        return [line.split() for line in self.log.read_text().splitlines()]

    def calls(self) -> list[str]:
        return [" ".join(line[3:5]) for line in self.logged()]


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    job = Job(tmp_path)
    yield job
    job.kill()


def test_ray_runs_on_all_nodes_for_the_duration_of_the_sweep(job: Job) -> None:
    process = job.start(RAY_AUTH_TOKEN="another")
    output = job.end(process)
    assert process.returncode == 0, output
    calls = job.calls()
    assert calls[:4] == ["scontrol show", "ray start", "ray start", "nuanced sweep"]
    assert sorted(calls[4:]) == ["ray stop", "ray stop"]
    _, head, worker, sweep, *stops = job.logged()
    assert (head[0], worker[0], {line[0] for line in stops}) == ("one", "two", {"one", "two"})
    for line in (head, worker, sweep):
        assert line[1:3] == ["600", "token"]
    params = parse_ray(head[4:]).params
    assert (params["head"], params["dashboard_host"], params["num_cpus"]) == (True, "127.0.0.1", 8)
    address = f"one:{params['port']}"
    assert parse_ray(worker[4:]).params["address"] == address
    assert params["block"]
    invocation = run_nuanced(*sweep[4:])
    assert invocation.config is not None
    assert (invocation.name, invocation.config.sweep.outputs, invocation.address) == ("first", "outputs", address)


def test_an_existing_sweep_is_resumed(job: Job) -> None:
    (job.folder / "outputs" / "first").mkdir(parents=True)
    (job.folder / "outputs" / "first" / "sweep.yaml").touch()
    job.end(job.start())
    [sweep] = [line for line in job.logged() if line[3] == "nuanced"]
    invocation = run_nuanced(*sweep[4:])
    assert (invocation.resume, invocation.config) == (Path("outputs/first"), None)


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_of_slurm_interrupts_the_sweep_which_writes_checkpoints(
    job: Job, number: signal.Signals, requeued: bool
) -> None:
    process = job.start(ENDLESS="1")
    deadline = time.monotonic() + 20
    while not (job.folder / "driver").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)  # as with --signal=B: to the script alone
    output = job.end(process)
    assert process.returncode == 130, output
    calls = job.calls()
    assert calls[calls.index("nuanced sweep") + 1 :][:1] == ["SIGINT"]
    assert calls.count("ray stop") == 2
    assert calls[-1] == ("scontrol requeue" if requeued else "ray stop")


def test_a_node_that_does_not_join_ends_the_job(job: Job) -> None:
    process = job.start(LATE="two", JOIN_SECONDS="3")
    output = job.end(process)
    assert process.returncode == 1
    assert re.search(r"after \d+ s 1 of 2 nodes have joined", output)
    assert "nuanced sweep" not in job.calls()


def test_the_script_has_the_options_that_it_relies_on() -> None:
    text = (FOLDER / "slurm.sh").read_text(encoding="utf-8")
    head = text[: text.index("\nset -euo pipefail")]
    assert all(line.startswith("#") for line in head.splitlines())  # sbatch reads no option after a command
    options = re.findall(r"^#SBATCH (\S+)$", head, re.MULTILINE)
    assert {"--requeue", "--signal=B:INT@120", "--exclusive", "--no-kill", "--open-mode=append"} <= set(options)
