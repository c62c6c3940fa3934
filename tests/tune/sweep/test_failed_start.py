"""A sweep or a run that fails before its first step: its name is free again, and nothing else is touched."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, DiskError, NuancedError, StoppedError, TrainingError
from tests.tune import toy
from tests.tune.conftest import MIXED
from tune.cluster.machines import Resources
from tune.cluster.ray_runtime import ClusterError
from tune.config.sweep_config import load_sweep_config
from tune.search.ledger import TrialLedger
from tune.sweep import trials
from tune.sweep.driver import resume_sweep, run_sweep
from tune.sweep.place import SweepPlace
from tune.sweep.single_run import train_single_run


class BrokenMachine:
    """A machine on which Ray does not start."""

    options = ""

    def __init__(self, fail: Callable[[], None]) -> None:
        self._fail = fail

    @contextmanager
    def joined(self) -> Iterator[None]:
        yield

    @contextmanager
    def started(self) -> Iterator[None]:
        self._fail()
        yield

    def resources(self) -> list[Resources]:
        return [Resources(cpus=2, gpus=0)]


def fail_with(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def settings_in(folder: Path, *overrides: str) -> Any:
    (folder / "toy.yaml").write_text(MIXED)
    places = [f"sweep.outputs={folder}/o", f"sweep.shared={folder}/s", f"sweep.storage=sqlite:///{folder}/studies.db"]
    return load_sweep_config(folder / "toy.yaml", [*places, "search.encoder.width=[64]", "sweep.trials=1", *overrides])


def failed(folder: Path, *overrides: str, fail: Callable[[], None] = lambda: None) -> BaseException:
    """Begin the sweep ``toy``, return its error, and check that it left nothing but what was there before."""
    other = optuna.create_study(storage=f"sqlite:///{folder}/studies.db", study_name="other", load_if_exists=True)
    (folder / "o" / "other").mkdir(parents=True, exist_ok=True)
    (folder / "s" / "other").mkdir(parents=True, exist_ok=True)
    services = toy.services(machines=BrokenMachine(fail))
    with pytest.raises((NuancedError, KeyboardInterrupt)) as caught:
        run_sweep(settings_in(folder, *overrides), name="toy", services=services)
    assert [path.name for path in (folder / "o").iterdir()] == ["other"]
    assert [path.name for path in (folder / "s").iterdir()] == ["other"]
    assert optuna.get_all_study_names(f"sqlite:///{folder}/studies.db") == [other.study_name]
    return caught.value


def test_the_same_command_works_when_the_fault_is_mended(ray_session: None, tmp_path: Path) -> None:
    refused = failed(tmp_path, "sweep.enqueue=[{encoder.width: 48}]")
    assert "sweep.enqueue[0]: encoder.width: 48: not one of [64]" in str(refused)
    assert isinstance(failed(tmp_path, fail=fail_with(ClusterError("Ray does not start"))), ClusterError)
    result = run_sweep(settings_in(tmp_path), name="toy", services=toy.services())
    assert (result.exit_code, len(result.status["trials"])) == (0, 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_ray_runs_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    assert isinstance(failed(tmp_path, fail=lambda: os.kill(os.getpid(), number)), KeyboardInterrupt)


def test_a_stop_before_the_first_trial_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_run_ray", lambda *sweep: os.kill(os.getpid(), signal.SIGINT))
    error = failed(tmp_path)
    assert isinstance(error, StoppedError) and error.exit_code == 130
    assert str(error) == "stopped before the first trial; nothing is kept"


def test_a_budget_that_is_met_and_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(TrialLedger, "has_budget", property(lambda ledger: False))
        assert "its budget is met" in str(failed(tmp_path))
    monkeypatch.setattr(trials, "mark", lambda *arguments: fail_with(OSError(28, "No space left on device"))())
    assert isinstance(failed(tmp_path), DiskError)


def test_what_another_sweep_began_is_kept(tmp_path: Path) -> None:
    with SweepPlace.new(settings_in(tmp_path).sweep, "toy") as place:
        place.open(settings_in(tmp_path), {})
        place.open_study(settings_in(tmp_path))
    broken = toy.services(machines=BrokenMachine(fail_with(ClusterError("Ray does not start"))))
    with pytest.raises(ClusterError):
        resume_sweep(place.folder, services=broken)
    assert (place.folder / "sweep.yaml").is_file()
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/studies.db") == ["toy"]


@pytest.mark.parametrize("begun", ["study", "folder", "shared folder"])
def test_a_new_sweep_that_has_a_trial_is_kept(tmp_path: Path, begun: str) -> None:
    config = settings_in(tmp_path)
    with pytest.raises(ClusterError), SweepPlace.new(config.sweep, "toy") as place:
        place.open(config, {})
        study = place.open_study(config)
        if begun == "study":
            study.ask()
        elif begun == "folder":
            (place.folder / "trials" / "0").mkdir(parents=True)
        else:
            place.storage.child("trials", "0").write("config.yaml", "")
        raise ClusterError("the cluster is gone")
    assert (place.folder / "sweep.yaml").is_file()
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path}/studies.db") == ["toy"]


def test_a_single_run_that_fails_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    def train(error: BaseException, steps: int) -> Any:
        def train(config: RunConfig, folder: Path, report: Any) -> None:
            for step in range(steps):
                report(step + 1, {"loss/total": 1.0})
            raise error

        return train

    for error in (ConfigError("no GPU"), KeyboardInterrupt(), RuntimeError("out of memory")):
        with pytest.raises(type(error)):
            train_single_run(RunConfig(), outputs=tmp_path, name="one", prepare=toy.prepare, train=train(error, 0))
        assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError):
        broken = train(TrainingError("loss is nan"), 1)
        train_single_run(RunConfig(), outputs=tmp_path, name="one", prepare=toy.prepare, train=broken)
    assert (tmp_path / "one" / "config.yaml").is_file()  # with the curves of its first step
