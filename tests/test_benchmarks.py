"""What benchmarks share (``tests/benchmarks/progress.py``), and searches on recorded curves (``search.py``)."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError
from tests.benchmarks import progress, search
from tests.benchmarks.progress import HEARTBEAT, Bench, benchmark
from tests.benchmarks.search import SAMPLERS, NearestDraws, Recorded, recorded_trials
from tune.config.sweep_settings import SweepSettings

ROOT = Path(__file__).parents[1]
SLEEPER = """
import time
from tests.benchmarks.progress import benchmark
with benchmark() as bench:
    bench.add("first", {"seconds": 1.5})
    for item in bench.each("second", range(3)):
        time.sleep(60)
"""


class Clock:
    """A stand-in for the module ``time`` whose time passes only on request."""

    def __init__(self) -> None:
        self.now = 100.0  # seconds

    def monotonic(self) -> float:
        return self.now


def interrupted(*command: str) -> tuple[int, str, str]:
    """Send SIGINT to a Python process after its first line on stderr; return its exit code, stdout and stderr."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, output, first + errors


def test_ctrl_c_prints_what_was_finished_and_exits_with_130() -> None:
    code, output, errors = interrupted("-c", SLEEPER)
    assert code == 130
    assert "Traceback" not in errors
    lines = [line.split() for line in output.splitlines()]
    at = next(n for n, line in enumerate(lines) if line[0] == "partial:")
    assert lines[:at] == [["seconds"], ["first", "1.5"]]
    assert lines[at + 1 :] == [["seconds"], ["first", "1.5"]]


@pytest.mark.slow
def test_ctrl_c_in_a_benchmark_that_waits_for_its_first_process() -> None:
    code, output, errors = interrupted("-m", "tests.benchmarks.sweep", "--part", "scale", "--sizes", "4")
    assert code == 130
    assert "Traceback" not in errors
    assert "nothing was finished" in output


def test_rows_are_printed_as_soon_as_they_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    with benchmark() as bench:
        bench.add("one", {"a": 0.12345, "b": 2})
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["a", "b"], ["one", "0.123", "2"]]
        bench.add("two", {"a": 1.0, "b": 3})  # the same columns: their names are not printed again
        assert capsys.readouterr().out.split() == ["two", "1", "3"]
        bench.add("loss", 2.5)
        assert capsys.readouterr().out.split() == ["loss", "2.5"]
        bench.summary = lambda: [f"{len(bench.rows)} rows"]
    assert capsys.readouterr().out == "3 rows\n"


def test_json_has_all_rows_and_stdout_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with benchmark(as_json=True) as bench:
        bench.add("one", {"a": 0.12345})
        bench.add("loss", 2.5)
    assert json.loads(capsys.readouterr().out) == {"one": {"a": 0.12345}, "loss": 2.5}


def test_json_of_an_interrupted_benchmark_has_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, benchmark(as_json=True) as bench:
        bench.add("loss", 2.5)
        raise KeyboardInterrupt
    assert caught.value.code == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"loss": 2.5}
    assert "partial: interrupted" in captured.err


def test_what_is_done_is_said_again_with_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    bench = Bench()
    for item in bench.each("rendering", range(4)):
        if item == 2:
            bench.beat()  # a line has just been printed
            clock.now += 2 * HEARTBEAT
            bench.beat()
            bench.beat()
    bench.doing("other work")
    clock.now += HEARTBEAT
    bench.beat()
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    expected = f"rendering: 2 of 4, {2 * HEARTBEAT:.0f} s, about {2 * HEARTBEAT:.0f} s left"
    assert lines == ["rendering", expected, "other work", f"other work: {HEARTBEAT:.0f} s"]


def test_an_error_of_the_user_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, benchmark():
        raise ConfigError("no such voice")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such voice\n"


def test_recorded_trials_are_those_of_the_space_and_complete() -> None:
    space, recorded = recorded_trials()
    assert len(recorded) >= 200
    assert len({json.dumps(trial.params) for trial in recorded}) == len(recorded)
    assert len({len(trial.curve) for trial in recorded}) == 1
    assert all(math.isfinite(value) and value > 0 for trial in recorded for value in trial.curve)
    for trial in recorded:
        space.as_stored(trial.params, "table")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_draws_each_recorded_trial_once(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    space, recorded = recorded_trials()
    monkeypatch.setattr(search, "recorded_trials", lambda: (space, recorded[:40]))
    epochs = len(recorded[0].curve)
    assert search.search(sampler, "none", 0, target=0.0, at_once=2) == math.inf
    worst = max(trial.value for trial in recorded[:40])
    assert search.search(sampler, "none", 0, target=worst, at_once=1) == epochs
    best = min(trial.value for trial in recorded[:40])
    found = search.search(sampler, "none", 0, target=best, at_once=1)
    assert found <= 40 * epochs and found % epochs == 0


def test_the_nearest_recorded_trial_is_drawn_and_its_settings_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    space, recorded = recorded_trials()
    near, far = recorded[:2]
    draws = NearestDraws(space, SweepSettings(), [far, near])
    monkeypatch.setattr(type(space), "suggest", lambda self, draft: dict(near.params))
    assert draws._draw(None, 0) == near.params
    assert draws.latest is near and draws.left == [far]
    assert draws._draw(None, 1) == far.params


def test_a_pruned_trial_costs_the_epochs_that_it_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    space, recorded = recorded_trials()
    good, poor = (1.0, 0.9, 0.8, 0.7, 0.6), (2.0, 2.0, 2.0, 2.0, 2.0)
    trials = [Recorded(trial.params, good if n == 15 else poor) for n, trial in enumerate(recorded[:30])]
    monkeypatch.setattr(search, "recorded_trials", lambda: (space, trials))
    whole = search.search("random", "none", 3, target=0.6, at_once=1)
    # Halving keeps a trial that is as good as the best so far, so that equal ones are not stopped.
    assert search.search("random", "median", 3, target=0.6, at_once=1) == whole
    trials[:] = [Recorded(t.params, tuple(v + n / 100 for v in t.curve)) for n, t in enumerate(trials)]
    assert 5 <= search.search("random", "halving", 3, target=0.8, at_once=1) < whole
