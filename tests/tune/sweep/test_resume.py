"""tune.sweep.driver: sweeps that are killed, stopped, extended and driven by two at once, on a real Ray."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuanced_core.errors import ConfigError, DiskError
from tests.tune import toy
from tests.tune.conftest import MIXED, logged, sweep
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import repair_journal
from tune.search.study import open_study
from tune.sweep.driver import SweepResult, resume_sweep

ROOT = str(Path(__file__).parents[3])


def resume(folder: Path, *overrides: str) -> tuple[SweepResult, list[str]]:
    with logged() as lines:
        result = resume_sweep(folder / "toy", overrides=overrides, services=toy.services())
    return result, [*lines, *result.lines]


def driver(folder: Path, *overrides: str, resumed: bool = False) -> "subprocess.Popen[bytes]":
    """The toy sweep as a process group of its own."""
    (folder / "toy.yaml").write_text(MIXED)
    call = (
        f"resume_sweep(Path({str(folder / 'toy')!r}), overrides=[], services=toy.services())"
        if resumed
        else f"run_sweep(load_sweep_config(Path({str(folder / 'toy.yaml')!r}), "
        f"{[*overrides, f'sweep.outputs={folder}']!r}), "
        'name="toy", services=toy.services())'
    )
    script = f"""
import sys
from pathlib import Path
from tests.tune import toy
from tune.config.sweep_config import load_sweep_config
from tune.sweep.driver import resume_sweep, run_sweep
result = {call}
print(*result.lines, sep="\\n")
sys.exit(result.exit_code)
"""
    environment = {**os.environ, "PYTHONPATH": ROOT, "RAY_enable_worker_prestart": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, start_new_session=True
    )


def wait_for(path: Path, process: "subprocess.Popen[bytes]", seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < until:
        assert process.poll() is None, "the driver ended first"
        time.sleep(0.05)
    assert path.exists()


def killed(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@pytest.mark.parametrize("after", [4.1])  # the next test kills at random moments
def test_a_sweep_whose_driver_was_killed_goes_on_and_meets_its_budget_exactly(
    ray_session: None, tmp_path: Path, after: float
) -> None:
    fixed = [f"search.encoder.width=[64, {toy.SLOW}]", "sweep.trials=5", "train.epochs=3", "sweep.seed=1"]
    process = driver(tmp_path, *fixed)
    wait_for(tmp_path / "toy" / "trials" / "1" / "start.json", process)
    time.sleep(after)
    killed(process)
    before = {trial.number: trial for trial in open_study(tmp_path / "toy", SweepSettings()).trials}
    assert any(trial.state == TrialState.RUNNING for trial in before.values())

    result, lines = resume(tmp_path)
    assert result.exit_code == 0 and result.status["state"] == "finished"
    assert any("taken over from a driver that no longer runs" in line for line in lines)
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    assert [trial.number for trial in trials] == list(range(5))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    for trial in trials:
        old = before.get(trial.number)
        if old is not None:
            assert trial.params == old.params
            assert old.intermediate_values.items() <= trial.intermediate_values.items()
            if old.state == TrialState.COMPLETE:
                assert trial == old
        assert sorted(trial.intermediate_values) == [1, 2, 3]
        events = EventAccumulator(str(tmp_path / "toy" / "trials" / str(trial.number))).Reload()
        assert [event.step for event in events.Scalars("val/loss")] == [10, 20, 30]


def test_a_sweep_that_is_killed_at_random_moments_again_and_again_is_whole_at_its_end(
    ray_session: None, tmp_path: Path
) -> None:
    moments = random.Random()
    fixed = [f"search.encoder.width=[{toy.SLOW}, {toy.KILLED_ONCE}, 64]", "sweep.trials=6", "train.epochs=3"]
    process = driver(tmp_path, *fixed)
    wait_for(tmp_path / "toy" / "driver.lock", process)
    ended: dict[int, FrozenTrial] = {}
    waited = []
    for _ in range(2):
        waited.append(moments.uniform(3, 12))  # from before Ray is up to the middle of a trial
        time.sleep(waited[-1])
        killed(process)
        repair_journal(tmp_path / "toy")
        trials = open_study(tmp_path / "toy", SweepSettings(), create=True).trials
        ended |= {trial.number: trial for trial in trials if trial.state.is_finished() and trial.number not in ended}
        process = driver(tmp_path, resumed=True)
    killed(process)
    with suppress(ConfigError):  # it was done before the last moment came
        resume(tmp_path)
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    moment = f"killed after {waited}"
    assert [trial.number for trial in trials] == list(range(6)), moment
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}, moment
    for trial in trials:
        assert trial == ended.get(trial.number, trial), moment
        assert sorted(trial.intermediate_values) == [1, 2, 3], moment
        events = EventAccumulator(str(tmp_path / "toy" / "trials" / str(trial.number))).Reload()
        assert [event.step for event in events.Scalars("val/loss")] == [10, 20, 30], moment


def test_ctrl_c_twice_stops_at_once_and_the_sweep_can_go_on(ray_session: None, tmp_path: Path) -> None:
    process = driver(tmp_path, f"search.encoder.width=[{toy.SLOW}]", "sweep.trials=2", "train.epochs=1")
    try:
        wait_for(tmp_path / "toy" / "trials" / "0" / "start.json", process)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0].decode()
    finally:
        process.kill()
    assert process.returncode == 130
    assert "resume with: nuanced sweep --resume" in output
    result, _ = resume(tmp_path)
    assert [trial["state"] for trial in result.status["trials"]] == ["complete", "complete"]


def test_a_second_driver_is_refused_with_the_first_one_s_name(tmp_path: Path, ray_session: None) -> None:
    process = driver(tmp_path, f"search.encoder.width=[{toy.SLOW}]")
    try:
        wait_for(tmp_path / "toy" / "trials" / "0" / "start.json", process)
        with pytest.raises(ConfigError, match=rf"process {process.pid} on .* is at work here already"):
            resume(tmp_path)
    finally:
        killed(process)


def test_a_finished_sweep_is_extended_and_a_changed_space_taken_where_it_can_be(
    ray_session: None, tmp_path: Path
) -> None:
    first, _ = sweep(MIXED, tmp_path, "search.encoder.width=[64]", "sweep.trials=2")
    with pytest.raises(ConfigError, match=r"its budget is met \(2 trials\); ask for more with --trials N"):
        resume(tmp_path)
    with pytest.raises(ConfigError, match=r"search\.encoder\.width: was \[64\], would be \[64, 128\]"):
        resume(tmp_path, "sweep.trials=4", "search.encoder.width=[64, 128]")
    with pytest.raises(ConfigError, match=r"data\.val_voices: was .*trials could not be compared"):
        resume(tmp_path, "sweep.trials=4", "data.val_voices=[af_sky]")
    with pytest.raises(ConfigError, match=r"sweep\.shared: was None, would be .*/elsewhere: unfinished"):
        resume(tmp_path, "sweep.trials=4", "sweep.shared=elsewhere")
    widened = ["sweep.trials=4", "search.train.learning_rate.low=1.0e-6", "search.encoder.depth=[1, 2]"]
    result, _ = resume(tmp_path, *widened)
    assert [trial["number"] for trial in result.status["trials"]] == [0, 1, 2, 3]
    assert result.status["trials"][:2] == first.status["trials"]
    assert all("encoder.depth" in trial["params"] for trial in result.status["trials"][2:])
    rates = [trial["params"]["train.learning_rate"] for trial in result.status["trials"]]
    assert len(set(rates)) == 4
    again, _ = resume(tmp_path, "sweep.trials=5")  # what was changed stays so
    assert "encoder.depth" in again.status["trials"][4]["params"]


def test_enqueued_settings_and_the_best_of_another_sweep_come_first(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, _ = sweep(MIXED, tmp_path / "a", "search.encoder.width=[64]", "sweep.trials=4")
    best = first.status["best"]["params"]
    asked = ["search.encoder.width=[64, 32]", "sweep.trials=2", f"sweep.warm_start={tmp_path / 'a' / 'toy'}"]
    result, _ = sweep(MIXED, tmp_path / "b", *asked, "sweep.warm_start_trials=1", "sweep.enqueue=[{encoder.width: 32}]")
    assert result.status["trials"][0]["params"]["encoder.width"] == 32
    assert result.status["trials"][1]["params"] == best
    with pytest.raises(ConfigError, match=r"sweep\.enqueue\[0\]: encoder\.width: 48: not one of \[64, 32\]"):
        resume(tmp_path / "b", "sweep.trials=3", "sweep.enqueue=[{encoder.width: 48}]")
    again, _ = resume(tmp_path / "b", "sweep.trials=3")  # what was refused was not written down
    assert len(again.status["trials"]) == 3


def test_a_trial_whose_process_is_killed_goes_on_from_its_checkpoint(ray_session: None, tmp_path: Path) -> None:
    result, lines = sweep(MIXED, tmp_path, f"search.encoder.width=[{toy.KILLED_ONCE}]", "sweep.trials=1")
    (trial,) = result.status["trials"]
    assert (trial["error"], trial["state"], trial["epochs"]) == (None, "complete", 4)
    assert any("its process died; it continues from its last checkpoint" in line for line in lines)
    starts = json.loads((result.folder / "trials" / "0" / "start.json").read_text())
    assert starts["nth"] == 1  # of a new process


def test_a_full_disk_stops_the_sweep_cleanly_and_it_can_go_on(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=r"no space left; then: nuanced sweep --resume"):
        sweep(MIXED, tmp_path, f"search.encoder.width=[{toy.DISK_FULL}]", "sweep.trials=3")
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    assert {trial.state for trial in trials} == {TrialState.RUNNING}
    assert not (tmp_path / "toy" / "stop").exists()


def test_several_objectives_have_a_pareto_front(ray_session: None, tmp_path: Path) -> None:
    objectives = ["sweep.objectives=[val/stft, val/skill]".replace("val/skill", "val/style"), "sweep.sampler=tpe"]
    result, lines = sweep(MIXED, tmp_path, *objectives, "search.encoder.width=[64]", "sweep.trials=4")
    front = result.status["pareto"]
    best = min(trial["value"] for trial in result.status["trials"])
    # The toy's two terms are equal, so that one trial is better than all in both.
    assert [set(trial["values"]) for trial in front] == [{"val/stft", "val/style"}]
    assert front[0]["values"]["val/stft"] == pytest.approx(best / 2)
    assert front[0]["number"] == result.status["best"]["number"]
    assert "Pareto front: no other trial is better in all of these" in lines


def test_a_clock_that_jumps_loses_nothing(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's clock alone; curves of a run that goes on elsewhere are a test of tune.loggers.tensorboard."""
    real, begun = time.time, time.monotonic()
    jumps = (0, -86_400, 7 * 86_400, 0, 3_600)  # in seconds, one a second
    monkeypatch.setattr(time, "time", lambda: real() + jumps[int(time.monotonic() - begun) % len(jumps)])
    asked = [f"search.encoder.width=[64, {toy.SLOW}]", "sweep.trials=3", "train.epochs=3", "sweep.hours=1"]
    result, _ = sweep(MIXED, tmp_path, *asked)
    assert result.exit_code == 0 and time.monotonic() - begun > len(jumps)
    trials = open_study(tmp_path / "toy", SweepSettings()).trials
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(3)]
    assert all(sorted(trial.intermediate_values) == [1, 2, 3] for trial in trials)
    with pytest.raises(ConfigError, match=r"its budget is met \(3 trials"):
        resume(tmp_path)
