"""tune.cli.training: what the commands pass on, and what they print."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune.cli.app import main
from tune.cluster.machines import JoinedCluster, ThisMachine

logger = logging.getLogger("tune.sweep.driver")


class Recorder:
    """Stands in for a function that trains: keeps the arguments and returns a result."""

    def __init__(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code
        self.arguments: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, *arguments: Any, **options: Any) -> SimpleNamespace:
        self.arguments, self.options = arguments, options
        logger.info("an event")
        return SimpleNamespace(lines=["first line", "second line"], exit_code=self.exit_code)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "a.yaml"
    file.write_text("search: {encoder.depth: [1, 2]}\n")
    return file


@pytest.mark.parametrize("code", [0, 1, 130])
def test_sweep_passes_its_options_on_and_prints_the_report(
    code: int, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/of-a-test")
    run_sweep = Recorder(code)
    monkeypatch.setattr("tune.sweep.driver.run_sweep", run_sweep)
    options = ["--trials", "7", "--outputs=~/out", "--set", "train.epochs=3", "--set", "sweep.seed=5"]
    enqueued = ["--enqueue", "{encoder.depth: 1}", "--enqueue", "{encoder.depth: 2}"]
    assert main(["sweep", str(file), *options, *enqueued, "--name", "b c"]) == code
    (config,) = run_sweep.arguments
    sweep = config.sweep
    assert (sweep.trials, sweep.seed, config.run.train.epochs) == (7, 5, 3)
    assert str(sweep.outputs) == "/home/of-a-test/out"
    assert [dict(settings) for settings in sweep.enqueue] == [{"encoder.depth": 1}, {"encoder.depth": 2}]
    assert run_sweep.options["name"] == "b c"
    assert isinstance(run_sweep.options["services"].machines, ThisMachine)
    out, err = capsys.readouterr()
    assert out == "first line\nsecond line\n"
    assert err == "an event\n"


@pytest.mark.parametrize("option", [[], ["--retry-failed"]])
def test_a_resumed_sweep_may_run_failed_trials_again(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume_sweep = Recorder()
    monkeypatch.setattr("tune.sweep.driver.resume_sweep", resume_sweep)
    assert main(["sweep", "--resume", str(tmp_path), *option]) == 0
    assert resume_sweep.options["retry_failed"] is bool(option)


def test_a_new_sweep_has_no_failed_trials_to_run_again(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(file), "--retry-failed"]) == 2
    assert "--retry-failed: a new sweep has no failed trials; give --resume DIR" in capsys.readouterr().err


def test_hours_without_trials_leave_the_number_of_trials_open(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_sweep = Recorder()
    monkeypatch.setattr("tune.sweep.driver.run_sweep", run_sweep)
    assert main(["sweep", str(file), "--hours", "1.5", "--address", "10.0.0.1:6379", "--insecure"]) == 0
    (config,) = run_sweep.arguments
    assert (config.sweep.trials, config.sweep.hours) == (None, 1.5)
    assert run_sweep.options["name"] == "a"
    assert run_sweep.options["services"].machines == JoinedCluster("10.0.0.1:6379", insecure=True)


def test_a_sweep_is_resumed_with_the_options_as_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of-a-test")
    resume_sweep = Recorder()
    monkeypatch.setattr("tune.sweep.driver.resume_sweep", resume_sweep)
    assert main(["sweep", "--resume", "~/my sweep", "--trials", "30", "--set", "sweep.pruner=none"]) == 0
    assert resume_sweep.arguments == (Path("/home/of-a-test/my sweep"),)
    assert resume_sweep.options["overrides"] == ["sweep.pruner=none", "sweep.trials=30"]


def test_trials_and_outputs_are_checked_as_settings_of_the_sweep(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", str(file), "--trials", "0"]) == 2
    assert "sweep.trials: 0" in capsys.readouterr().err
    (tmp_path / "a").mkdir()
    assert main(["sweep", str(file), "--outputs", str(tmp_path)]) == 2
    assert f"{tmp_path / 'a'}: exists already" in capsys.readouterr().err


def test_train_passes_its_options_on_and_prints_what_to_do_next(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/of-a-test")
    train = Recorder()
    monkeypatch.setattr("tune.sweep.single_run.train_single_run", train)
    assert main(["train", str(file), "--set", "train.epochs=3", "--outputs=~/out"]) == 0
    (config,) = train.arguments
    assert config.train.epochs == 3
    assert train.options == {"outputs": Path("/home/of-a-test/out"), "name": "a"}
    assert capsys.readouterr().out == "first line\nsecond line\n"


def test_a_run_is_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    resume = Recorder()
    monkeypatch.setattr("tune.sweep.single_run.resume_single_run", resume)
    assert main(["train", "--resume", "a"]) == 0
    assert resume.arguments == (Path("a"), [])
