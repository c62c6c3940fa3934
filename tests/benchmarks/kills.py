"""A sweep whose driver is killed at random moments and resumed, and what is left of it.

    python -m tests.benchmarks.kills [--kills 1000] [--trials 2000]
    python -m tests.benchmarks.kills --ray [--minutes 10] [--trials 3000]

The trials are toys of up to 3 epochs, each with a checkpoint; the pruner and the sampler are the default ones.

Without ``--ray`` the driver is all of ``tune.sweep.driver`` except Ray: trials run in the driver's own process, an
epoch of each in turn. It is forked from a process that has imported everything, so that a second is enough for a kill.
A third of the kills falls between the fork and the first trial, while the study is read for example; the others fall up
to ``--within`` seconds after that. With ``--ray`` it is the whole driver in a new process with a new Ray, and all of
its processes are killed after 3 to 40 s, for ``--minutes``. After the last kill the sweep is resumed to its end.

After each kill the new lines of the study's journal are read, and at the end the study:

- a journal line that is torn is the last one, and no line that was complete changes;
- each trial is created once and ends once, each epoch is reported once, and in order;
- a trial's epochs all have the settings with which it began; no checkpoint is behind the study;
- the trials are exactly those of the budget, all of them ended;
- the folder holds no more files, and the journal no more bytes, than those of the same sweep that nothing killed,
  but for the lines of the kills (at most 2 KB for each).

The first violation ends it with exit code 1.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path

from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from tests.benchmarks.killed_driver import CHECKPOINT, CONCURRENT, NAME, TRAINED, drive_without_ray, write_settings
from tests.benchmarks.progress import INTERRUPTED
from tune.search.journal import STUDY_FILE
from tune.search.study import read_study

__all__ = ["JournalWatcher", "main"]

BYTES_PER_KILL = 2000  # of the journal: what a resumed driver writes about itself
INTERVAL = 50  # kills between two lines of progress


class JournalWatcher:
    """Reads a journal as it grows, and checks that nothing is done twice.

    Attributes:
        torn: how often the last line was incomplete.
        reported: epochs of each trial, by Optuna's id.
        ended: trials that have ended, by Optuna's id.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._size = file, 0
        self._digest = hashlib.sha256()
        self.torn = 0
        self.created = 0
        self.reported: dict[int, list[int]] = {}
        self.ended: set[int] = set()

    def read(self) -> None:
        """Read the complete lines that are new.

        Raises:
            AssertionError: something was done twice, or has changed.
        """
        if not self._file.exists():
            assert not self._size, "the journal is gone"
            return
        content = self._file.read_bytes()
        old = hashlib.sha256(content[: self._size]).digest()
        assert old == self._digest.digest(), "lines that were complete have changed"
        complete = content.rfind(b"\n") + 1
        self.torn += complete < len(content)
        for line in content[self._size : complete].splitlines():
            self._apply(json.loads(line))
        self._digest.update(content[self._size : complete])
        self._size = complete

    def _apply(self, log: dict[str, int]) -> None:
        operation = JournalOperation(log["op_code"])
        if operation == JournalOperation.CREATE_TRIAL:
            self.reported[self.created] = []
            self.created += 1
            return
        trial = log.get("trial_id", -1)
        if trial < 0:
            return
        assert trial not in self.ended, f"trial {trial}: {operation.name} after its end"
        if operation == JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE:
            assert log["step"] == len(self.reported[trial]) + 1, f"trial {trial}: epoch {log['step']} out of turn"
            self.reported[trial].append(log["step"])
        if operation == JournalOperation.SET_TRIAL_STATE_VALUES and TrialState(log["state"]).is_finished():
            self.ended.add(trial)


def check_trials(folder: Path) -> int:
    """Check the trials' folders against the study; return how many epochs were trained again after a kill."""
    again = 0
    for trial in read_study(folder).get_trials(deepcopy=False):
        own = folder / "trials" / str(trial.number)
        if not (own / TRAINED).exists():
            assert not trial.intermediate_values, f"trial {trial.number}: reported, but not trained"
            continue
        trained = [json.loads(line) for line in (own / TRAINED).read_text().splitlines()]
        rates = {rate for _, rate in trained}
        assert rates == {trial.params["train.learning_rate"]}, f"trial {trial.number}: trained with {rates}"
        epochs = Counter(epoch for epoch, _ in trained)
        checkpoint = json.loads((own / CHECKPOINT).read_text())["epoch"] if (own / CHECKPOINT).exists() else 0
        assert checkpoint >= len(trial.intermediate_values), f"trial {trial.number}: its checkpoint is behind the study"
        again += sum(count - 1 for count in epochs.values())
    return again


def check_end(folder: Path, watcher: JournalWatcher, budget: int) -> Counter[str]:
    """Check that the study holds exactly the budget; return the number of trials by state."""
    trials = read_study(folder).get_trials(deepcopy=False)
    assert [trial.number for trial in trials] == list(range(budget)), f"{len(trials)} trials, not {budget}"
    assert watcher.created == budget == len(watcher.ended), f"{watcher.created} created, {len(watcher.ended)} ended"
    states = Counter(trial.state.name.lower() for trial in trials)
    assert set(states) <= {"complete", "pruned"}, f"states {dict(states)}"
    return states


def files_of(folder: Path) -> list[Path]:
    """Return the files of a sweep, relative to its folder, with a # for each number of a trial."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return [Path(*("#" if part.isdecimal() else part for part in path.parts)) for path in found]


def fork_driver(folder: Path) -> tuple[int, int]:
    """Start the driver without Ray; return its process and a pipe that gets a byte when its trials begin."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    code = 1
    try:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        drive_without_ray(folder, lambda: os.close(writer) if os.write(writer, b"1") else None)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_to_end(folder: Path) -> resource.struct_rusage:
    """Drive the sweep without Ray until its budget is met."""
    pid, reader = fork_driver(folder)
    _, status, usage = os.wait4(pid, 0)
    os.close(reader)
    assert os.waitstatus_to_exitcode(status) == 0, f"the driver ended with {os.waitstatus_to_exitcode(status)}"
    return usage


def kill_once(folder: Path, moments: random.Random, start: float, within: float) -> tuple[str, float, float]:
    """Drive the sweep until a random moment; return the part of it, the seconds of the start, and the MiB at most."""
    began = time.monotonic()
    pid, reader = fork_driver(folder)
    if moments.random() < 1 / 3:
        part = "start"
        time.sleep(moments.uniform(0, start))
    else:
        part = "trials"
        os.read(reader, 1)  # returns nothing if the driver ended
        start = time.monotonic() - began
        time.sleep(moments.uniform(0, within))
    os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(reader)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the driver ended with {code}"
    return part if code else "met", start, usage.ru_maxrss / 1024


def run_with_ray(folder: Path, seconds: float | None = None) -> bool:
    """Run the whole driver to its end, or kill it after some seconds; return whether it was killed."""
    command, log = [sys.executable, "-m", "tests.benchmarks.killed_driver", str(folder)], folder / "driver.log"
    with log.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    code = child.poll()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert code in (None, 0), f"the driver ended with {code}: {log.read_text()[-3000:]}"
    return code is None


def killed_without_ray(folder: Path, kills: int, trials: int, within: float, seed: int) -> None:
    """Kill the driver without Ray, resume it, and print and check the outcome."""
    moments, watcher, start = random.Random(seed), JournalWatcher(folder / NAME / STUDY_FILE), 1.0
    parts: Counter[str] = Counter()
    memory: list[float] = []
    began = time.monotonic()
    for n in range(1, kills + 1):
        part, start, most = kill_once(folder, moments, start, within)
        watcher.read()
        if part == "met":
            print(f"the budget was met after {n - 1} kills; ask for more --trials", flush=True)
            break
        parts[part] += 1
        memory.append(most)
        if n % INTERVAL == 0:
            size = (folder / NAME / STUDY_FILE).stat().st_size / 2**20
            print(
                f"{n} kills ({parts['start']} before the first trial), {time.monotonic() - began:.0f} s: "
                f"{watcher.created} trials, {len(watcher.ended)} ended, {watcher.torn} torn lines; "
                f"start {start:.2f} s, journal {size:.2f} MiB, driver at most {max(memory[-INTERVAL:]):.0f} MiB",
                flush=True,
            )
    if part != "met":
        run_to_end(folder)
    watcher.read()
    states, again = check_end(folder / NAME, watcher, trials), check_trials(folder / NAME)
    print(f"{trials} trials: {dict(states)}; {again} epochs trained again (at most {CONCURRENT} a kill)", flush=True)
    check_files(folder, sum(parts.values()), trials)


def check_files(folder: Path, kills: int, trials: int) -> None:
    """Compare the files with those of the same sweep that is not killed."""
    other = folder / "unkilled"
    other.mkdir()
    write_settings(other, trials)
    run_to_end(other)
    found, expected = (Counter(map(str, files_of(place / NAME))) for place in (folder, other))
    extra = {name: count for name, count in (found - expected).items() if count > 0}
    sizes = [(place / NAME / STUDY_FILE).stat().st_size for place in (folder, other)]
    per_kill = (sizes[0] - sizes[1]) / max(1, kills)
    print(
        f"files: {sum(found.values())}, without kills {sum(expected.values())}; beyond those: {extra or 'none'}\n"
        f"journal: {sizes[0]} bytes, without kills {sizes[1]}: {per_kill:.0f} a kill",
        flush=True,
    )
    assert not set(extra) - set(expected), f"files that no sweep leaves: {sorted(set(extra) - set(expected))}"
    assert per_kill < BYTES_PER_KILL


def killed_with_ray(folder: Path, minutes: float, trials: int, seed: int) -> None:
    """Kill the whole driver for some minutes, resume it, and print and check the outcome."""
    moments, watcher = random.Random(seed), JournalWatcher(folder / NAME / STUDY_FILE)
    until, kills = time.monotonic() + 60 * minutes, 0
    # A driver whose budget is met, whether it was killed after that or not, is not resumed: it would refuse.
    while len(watcher.ended) < trials:
        kills += run_with_ray(folder, moments.uniform(3, 40) if time.monotonic() < until else None)
        watcher.read()
        print(f"{kills} kills: {watcher.created} trials, {len(watcher.ended)} ended, {watcher.torn} torn", flush=True)
    states, again = check_end(folder / NAME, watcher, trials), check_trials(folder / NAME)
    print(f"{kills} kills, {trials} trials: {dict(states)}; {again} epochs trained again; nothing lost or twice")


def main() -> None:
    """Kill, resume and check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--trials", type=int, help="budget of the sweep (default 2000, with --ray 3000)")
    parser.add_argument("--within", type=float, default=0.2, help="seconds after the first trial, of the latest kill")
    parser.add_argument("--ray", action="store_true", help="the whole driver, with Ray")
    parser.add_argument("--minutes", type=float, default=10, help="with --ray: for how long")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    trials = arguments.trials or (3000 if arguments.ray else 2000)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_settings(folder, trials)
        try:
            if arguments.ray:
                killed_with_ray(folder, arguments.minutes, trials, arguments.seed)
            else:
                killed_without_ray(folder, arguments.kills, trials, arguments.within, arguments.seed)
        except AssertionError as error:
            sys.exit(f"violated: {error}")
        except KeyboardInterrupt:
            print("partial: interrupted; nothing was violated so far", flush=True)
            sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
