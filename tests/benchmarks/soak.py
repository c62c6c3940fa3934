"""A sweep with the real models whose workers, driver and node are killed at random, and what is left of it at its end.

    python -m tests.benchmarks.soak CONFIG FOLDER [--set KEY=VALUE …] [--minutes 60] [--gap 60] [--seed 0]
        [--suspend 90] [--full-disk]

The sweep runs in FOLDER, again and again with ``nuanced sweep --resume``, until its budget is met. About every
``--gap`` seconds of the first ``--minutes`` something happens to it:

- ``worker``, ``driver``, ``node``: a trial's process, the driver or Ray's raylet is killed with SIGKILL;
- ``suspend``: the driver or a worker stands still for ``--suspend`` seconds (SIGSTOP);
- ``disk``: with ``--full-disk``, the file system of FOLDER, which should be small and its own, is full for 20 s.

Printed: each event, and at the end what was lost or done twice, and the growth of memory and of the sweep's folder.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.benchmarks.driver_probe import resident_mb
from tests.benchmarks.progress import INTERRUPTED
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import STUDY_FILE
from tune.search.study import open_study
from tune.sweep.signals import interrupt_on_signal

MARK = "NUANCED_SOAK"  # an environment variable that all processes of the sweep inherit
NAME = "soak"
DRIVER = "import sys; from tune.cli.app import main; sys.exit(main(sys.argv[1:]))"
FULL_SECONDS = 20
SAMPLE_SECONDS = 5
MOST_FAILED_STARTS = 3
KEPT_FREE = 1 << 20  # bytes that a full disk has left: some writes begin and fail in the middle


class Soak:
    """The sweep, and what happens to it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.folder = given, given.folder / NAME
        self.draw = random.Random(given.seed)
        self.mark = f"{os.getpid()}-{time.time_ns()}"
        self.log = given.folder / "driver.log"
        self.events: Counter[str] = Counter()
        self.starts = 0
        self.exits: Counter[int] = Counter()
        self.memory: list[tuple[float, float, float]] = []  # hours, GiB of the driver, GiB of all processes
        self.begun = time.monotonic()

    def run(self) -> None:
        """Run the sweep to its end, whatever happens to it."""
        kinds: dict[str, Callable[[], None]] = {
            "worker": self._kill_worker,
            "driver": self._kill_driver,
            "node": self._kill_node,
            "suspend": self._suspend,
        }
        if self.given.full_disk:
            kinds["disk"] = self._fill_disk
        driver, until = self._start(), self._next()
        while driver.poll() != 0:
            if driver.poll() is not None:
                self.exits[driver.returncode] += 1
                if not (self.folder / STUDY_FILE).exists() and self.starts > MOST_FAILED_STARTS:
                    sys.exit(f"the sweep does not start: {self.log}")
                self._wait_for_orphans()
                driver = self._start()
            if time.monotonic() > until and (self.folder / STUDY_FILE).exists():
                kind = self.draw.choice([*kinds, "worker"])  # most of all, workers
                self.events[kind] += 1
                self._say(kind)
                kinds[kind]()
                until = self._next()
            self._sample(driver.pid)
            time.sleep(SAMPLE_SECONDS)

    def end(self) -> None:
        """Kill all processes of the sweep."""
        self._kill(self._processes())

    def _next(self) -> float:
        if time.monotonic() - self.begun > 60 * self.given.minutes:
            return float("inf")
        return time.monotonic() + self.draw.expovariate(1 / self.given.gap)

    def _start(self) -> "subprocess.Popen[bytes]":
        self.starts += 1
        new = ["sweep", self.given.config, "--name", NAME]
        new += [part for text in (*self.given.set, f"sweep.outputs={self.given.folder}") for part in ("--set", text)]
        arguments = ["sweep", "--resume", str(self.folder)] if (self.folder / "sweep.yaml").exists() else new
        environment = {**os.environ, MARK: self.mark}
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", DRIVER, *arguments]
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _processes(self, text: str = "") -> list[int]:
        return [pid for pid, command in _commands(f"{MARK}={self.mark}") if text in command]

    def _kill(self, pids: list[int], number: int = signal.SIGKILL) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _kill_worker(self) -> None:
        self._kill(self.draw.sample(workers := self._workers(), min(1, len(workers))))

    def _kill_driver(self) -> None:
        self._kill(self._processes(DRIVER))

    def _kill_node(self) -> None:
        self._kill(self._processes("raylet/raylet"))

    def _suspend(self) -> None:
        pids = self.draw.choice([self._processes(DRIVER), self._workers()])
        self._kill(pids, signal.SIGSTOP)
        time.sleep(self.given.suspend)
        self._kill(pids, signal.SIGCONT)

    def _fill_disk(self) -> None:
        filler = self.given.folder / "filler"
        until = time.monotonic() + FULL_SECONDS
        try:
            with filler.open("wb", buffering=0) as file:
                while time.monotonic() < until:
                    free = os.statvfs(filler).f_bavail * os.statvfs(filler).f_frsize
                    with suppress(OSError):
                        if free > KEPT_FREE:
                            os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free - KEPT_FREE)
                    time.sleep(0.2)
        finally:
            filler.unlink(missing_ok=True)

    def _workers(self) -> list[int]:
        return self._processes("ray::") or self._processes("default_worker.py")

    def _wait_for_orphans(self) -> None:
        until = time.monotonic() + 30  # Ray's processes end by themselves when their driver has gone
        while self._processes("ray") and time.monotonic() < until:
            time.sleep(0.5)

    def _sample(self, driver: int) -> None:
        hours = (time.monotonic() - self.begun) / 3600
        self.memory.append((hours, _resident_gb(driver), sum(map(_resident_gb, self._processes()))))

    def _say(self, kind: str) -> None:
        minutes = (time.monotonic() - self.begun) / 60
        size = sum(_size(file) for file in self.folder.rglob("*")) / 1e6
        begun = len([*self.folder.glob("trials/[0-9]*")])
        print(f"{minutes:6.1f} min: {kind}; {begun} trials have begun, {size:.0f} MB", file=sys.stderr, flush=True)

    def report(self) -> int:
        """Print the table; return how many things were lost or done twice."""
        trials = open_study(self.folder, SweepSettings()).trials
        states = Counter(trial.state.name for trial in trials)
        epochs = max((len(trial.intermediate_values) for trial in trials), default=0)
        numbers_twice = len(trials) - len({trial.number for trial in trials})
        lost, twice = 0, 0
        for trial in trials:
            if not trial.state.is_finished():  # after Ctrl-C
                continue
            steps = _steps(self.folder / "trials" / str(trial.number))
            lost += sorted(trial.intermediate_values) != [*range(1, epochs + 1)] or len(set(steps)) != epochs
            twice += len(steps) != len(set(steps)) or steps != sorted(steps)
        third = max(1, len(self.memory) // 3)
        rows = {
            "events": ", ".join(f"{count} {kind}" for kind, count in self.events.items()),
            "starts of the driver": self.starts,
            "exit codes of drivers that ended early": dict(self.exits),
            "hours": round((time.monotonic() - self.begun) / 3600, 2),
            "trials": dict(states),
            "finished trials of which an epoch is missing": lost,
            "finished trials that show an epoch twice": twice,
            "trial numbers used twice": numbers_twice,
            "driver, GiB: largest in the first and last third": _largest(self.memory, third, 1),
            "all processes, GiB: largest in the first and last third": _largest(self.memory, third, 2),
            "folder, MB": round(sum(_size(file) for file in self.folder.rglob("*")) / 1e6),
        }
        for name, value in rows.items():
            print(f"| {name} | {value} |")
        return lost + twice + numbers_twice + sum(states.values()) - states["COMPLETE"]


def _commands(mark: str) -> Iterator[tuple[int, str]]:
    """Yield the processes that have ``mark`` in their environment, with their command lines."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes():
                    yield int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def _steps(folder: Path) -> list[int]:
    reader = EventAccumulator(str(folder)).Reload()
    return [event.step for event in reader.Scalars("val/loss")] if "val/loss" in reader.Tags()["scalars"] else []


def _resident_gb(process: int) -> float:
    try:
        return resident_mb(process) / 1024
    except (OSError, IndexError):  # it has ended
        return 0.0


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _largest(samples: list[tuple[float, float, float]], third: int, column: int) -> str:
    first, last = ([sample[column] for sample in part] for part in (samples[:third], samples[-third:]))
    return f"{max(first):.2f}, {max(last):.2f}"


def main() -> int:
    """Run the sweep of the command line and what happens to it; return 1 if something was lost or done twice."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--minutes", type=float, default=60, help="after which nothing more happens to the sweep")
    parser.add_argument("--gap", type=float, default=60, help="mean seconds between two events")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suspend", type=float, default=90, help="seconds that a suspended process stands still")
    parser.add_argument("--full-disk", action="store_true")
    soak = Soak(parser.parse_args())
    soak.given.folder = soak.given.folder.absolute()
    soak.given.folder.mkdir(parents=True, exist_ok=True)
    try:
        with interrupt_on_signal():
            soak.run()
    except KeyboardInterrupt:
        soak.end()
        if not (soak.folder / STUDY_FILE).exists():
            print("partial: interrupted before the sweep began")
        else:
            print("partial: interrupted; so far:", flush=True)
            soak.report()
        return INTERRUPTED
    return 1 if soak.report() else 0


if __name__ == "__main__":
    sys.exit(main())
