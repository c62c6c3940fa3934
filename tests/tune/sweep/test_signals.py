"""tune.sweep.signals: commands in a real terminal that is closed while they run."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.tune import toy
from tests.tune.conftest import MIXED
from tune.config.sweep_settings import SweepSettings
from tune.search.study import open_study
from tune.sweep.driver import resume_sweep
from tune.sweep.signals import interrupt_on_signal, stop_on_signal
from tune.sweep.single_run import resume_single_run

ROOT = str(Path(__file__).parents[3])
# Runs a command of ``nuanced`` with the toy's run, as the leader of the session of the terminal that is its stdin.
SCRIPT = """
import fcntl, functools, signal, sys, termios
import tune.sweep.driver, tune.sweep.single_run
from tests.tune import toy
from tests.tune.sweep.test_signals import train_toy
from tune.cli.app import main
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
driver, single = tune.sweep.driver, tune.sweep.single_run
driver.SweepServices = functools.partial(driver.SweepServices, start_run=toy.start_run, prepare=toy.prepare)
single.train_single_run = functools.partial(single.train_single_run, prepare=toy.prepare, train=train_toy)
sys.exit(main(sys.argv[2:]))
"""


def train_toy(config: object, folder: Path, report: object) -> None:
    run = toy.start_run(config, folder, report)  # type: ignore[arg-type]
    while not run.finished:
        run.run_epoch()


def close_the_terminal_of(command: str, arguments: list[str], started: Path, *, hangup: str = "handled") -> int:
    """Run a command until the file ``started`` exists, close its terminal, and return its exit code."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"\x28\x00\x78\x00" + b"\0" * 4)  # 40 lines, or the table has no room
    environment = {**os.environ, "PYTHONPATH": ROOT, "RAY_enable_worker_prestart": "0", "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, hangup, command, *arguments],
        cwd=ROOT,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    os.set_blocking(master, False)
    shown = b""
    try:
        until = time.monotonic() + 180
        while not started.exists():
            assert process.poll() is None and time.monotonic() < until, shown.decode(errors="replace")
            with suppress(BlockingIOError, OSError):
                shown += os.read(master, 65536)
            time.sleep(0.05)
        os.close(master)  # the kernel sends SIGHUP to the leader of the session
        os.killpg(process.pid, signal.SIGHUP)  # a shell sends it to the whole group, Ray's processes included
        return process.wait(timeout=120)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def steps_taken(folder: Path) -> list[str]:
    return (folder / "steps").read_text().splitlines()


def write_config(folder: Path, epochs: int) -> str:
    slow = MIXED.replace("encoder.width: [64,", f"encoder.width: [{toy.SLOW}] #").replace(
        "epochs: 4", f"epochs: {epochs}"
    )
    (folder / "toy.yaml").write_text(slow)
    return str(folder / "toy.yaml")


ALL_STEPS = [f"{epoch} {step}" for epoch in (1, 2) for step in range(30)]


def test_a_sweep_whose_terminal_is_closed_writes_a_checkpoint_between_two_steps_and_goes_on_from_it(
    ray_session: None, tmp_path: Path
) -> None:
    trial = tmp_path / "toy" / "trials" / "0"
    log = tmp_path / "log"
    arguments = [write_config(tmp_path, 2), f"--outputs={tmp_path}", "--trials=1", f"--log-file={log}"]
    assert close_the_terminal_of("sweep", arguments, trial / "steps") == 130
    assert "stopping: the trials write their checkpoints" in log.read_text()
    assert "Error" not in log.read_text()
    study = open_study(tmp_path / "toy", SweepSettings())
    assert (study.user_attrs["state"], [t.state for t in study.trials]) == ("interrupted", [TrialState.RUNNING])
    before = steps_taken(trial)
    assert json.loads((trial / "checkpoint.json").read_text())["step"] == len(before) < 30
    assert resume_sweep(tmp_path / "toy", services=toy.services()).exit_code == 0
    assert steps_taken(trial) == ALL_STEPS


def test_a_sweep_that_ignores_the_hangup_goes_on_without_its_terminal(tmp_path: Path) -> None:
    arguments = [write_config(tmp_path, 1), f"--outputs={tmp_path}", "--trials=1", f"--log-file={tmp_path / 'log'}"]
    started = tmp_path / "toy" / "trials" / "0" / "steps"
    assert close_the_terminal_of("sweep", arguments, started, hangup="nohup") == 0
    (trial,) = open_study(tmp_path / "toy", SweepSettings()).trials
    assert trial.state == TrialState.COMPLETE
    assert "Error" not in (tmp_path / "log").read_text()


def test_a_single_run_whose_terminal_is_closed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(f"encoder: {{width: {toy.SLOW}}}\ntrain: {{epochs: 2}}\n")
    arguments = [str(tmp_path / "toy.yaml"), f"--outputs={tmp_path}", f"--log-file={tmp_path / 'log'}"]
    folder = tmp_path / "toy"
    assert close_the_terminal_of("train", arguments, folder / "steps") == 130
    assert "resume with: nuanced train --resume" in (tmp_path / "log").read_text()
    before = len(steps_taken(folder))
    assert json.loads((folder / "checkpoint.json").read_text())["step"] == before < 30
    resume_single_run(folder, prepare=toy.prepare, train=train_toy)
    assert steps_taken(folder) == ALL_STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_for_a_stop_and_a_later_one_stops_at_once(number: signal.Signals) -> None:
    asked: list[bool] = []
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), stop_on_signal(lambda: asked.append(True)):
        os.kill(os.getpid(), number)
        assert asked == [True]
        os.kill(os.getpid(), signal.SIGHUP)  # the shell sends it after the kernel
        os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [True] and signal.getsignal(number) == before
    with interrupt_on_signal():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        if number == signal.SIGHUP:
            os.kill(os.getpid(), number)  # the shell's one does not interrupt the clean-up


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal(lambda: pytest.fail("stopped")), interrupt_on_signal():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
