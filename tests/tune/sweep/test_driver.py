"""tune.sweep.driver: whole sweeps of a toy objective on a real Ray, seen through study, folder and result."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.errors import AudioError, ConfigError, DiskError
from nuanced_core.training.preparation import prepare
from tests.tune import toy
from tests.tune.conftest import MIXED, sweep
from tune.analysis.loaded import load_sweep as read_back
from tune.analysis.report import write_report
from tune.cluster import disk
from tune.config.sweep_config import load_sweep_config
from tune.config.sweep_settings import SweepSettings
from tune.search.journal import StudyJournal
from tune.search.study import open_study
from tune.show.status import status
from tune.sweep.driver import SweepResult, resume_sweep, run_sweep

Swept = tuple[SweepResult, list[str]]

ERRORS = {
    toy.TRAINING_ERROR: "step 17: loss/stft is nan; lower train.learning_rate",
    toy.NAN: "epoch 2: val/loss is nan",
    toy.CRASH: "ValueError: two lines of a reason",
    toy.KILLED: "its process died: Worker unexpectedly exits",
}


def trials(result: SweepResult) -> list[dict]:  # type: ignore[type-arg]
    return result.status["trials"]


def config_of(result: SweepResult, number: int) -> RunConfig:
    file = result.folder / "trials" / str(number) / "config.yaml"
    return validate(RunConfig, yaml.safe_load(file.read_text()), str(file))


def test_the_budget_is_met_exactly_whatever_happens_to_trials(mixed: Swept) -> None:
    result, _ = mixed
    assert [trial["number"] for trial in trials(result)] == list(range(9))
    assert result.status["state"] == "finished"
    assert (result.interrupted, result.exit_code) == (False, 0)


def test_a_failed_trial_carries_its_reason_and_stops_nobody_else(mixed: Swept) -> None:
    result, _ = mixed
    widths = Counter(trial["params"]["encoder.width"] for trial in trials(result))
    assert set(widths) == {64, *ERRORS}  # else this test looks at too little: choose another seed
    for trial in trials(result):
        width = trial["params"]["encoder.width"]
        if width == 64:
            assert (trial["state"], trial["error"], trial["epochs"]) == ("complete", None, 4)
        else:
            assert (trial["state"], trial["value"], trial["epochs"]) == ("failed", None, 1)
            assert trial["error"].startswith(ERRORS[width])
            assert "\n" not in trial["error"]


def test_a_complete_trial_s_value_is_its_best_epoch_s(mixed: Swept) -> None:
    result, _ = mixed
    study = open_study(result.folder, SweepSettings())
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert complete
    for trial in complete:
        config = config_of(result, trial.number)
        losses = {epoch: toy.expected_loss(config, epoch) for epoch in (1, 2, 3, 4)}
        assert trial.intermediate_values == pytest.approx(losses)
        assert trial.value == pytest.approx(losses[3])
        assert trial.user_attrs["best_epoch"] == 3
        assert trial.user_attrs["metrics"]["val/skill"] == pytest.approx(1 - losses[3])
        assert trial.user_attrs["metrics"]["baseline/loss"] == 1.0


def test_patience_ends_a_trial_as_complete_with_its_best_epoch_s_value(ray_session: None, tmp_path: Path) -> None:
    fixed = [f"search.encoder.width=[{toy.RISING}]", "sweep.trials=1", "train.epochs=9", "train.patience=2"]
    result, _ = sweep(MIXED, tmp_path, *fixed)
    (trial,) = trials(result)
    assert (trial["state"], trial["epochs"]) == ("complete", 3)
    assert trial["value"] == pytest.approx(toy.expected_loss(config_of(result, 0), 1))


def test_a_trial_s_folder_holds_the_settings_that_the_study_suggested(mixed: Swept) -> None:
    result, _ = mixed
    for trial in trials(result):
        config = config_of(result, trial["number"])
        voices = trial["params"]["data.voices"]
        assert config.encoder.width == trial["params"]["encoder.width"]
        assert config.train.learning_rate == trial["params"]["train.learning_rate"]
        assert config.data.voices == (voices if isinstance(voices, str) else tuple(voices))
        assert config.train.epochs == 4


def test_processes_are_used_again_unless_they_broke(mixed: Swept, pruned: Swept) -> None:
    for result, broken in ((pruned[0], 0), (mixed[0], None)):
        folders = [result.folder / "trials" / str(trial["number"]) for trial in trials(result)]
        starts = [json.loads((folder / "start.json").read_text()) for folder in folders]
        if broken is None:
            broken = sum(t["params"]["encoder.width"] in (toy.CRASH, toy.KILLED) for t in trials(result))
        # A broken trial ends three processes: its first one may have run other trials, its second one is not noted.
        assert len({start["pid"] for start in starts}) <= 2 + 2 * broken
        for pid, count in Counter(start["pid"] for start in starts).items():
            assert sorted(s["nth"] for s in starts if s["pid"] == pid) == list(range(1, count + 1))


def test_runs_are_closed_before_the_next_begins(pruned: Swept) -> None:
    result, _ = pruned
    assert all((result.folder / "trials" / str(t["number"]) / "closed").exists() for t in trials(result))


def test_an_unexpected_error_leaves_its_traceback_in_the_folder(mixed: Swept) -> None:
    result, _ = mixed
    number = next(t["number"] for t in trials(result) if t["params"]["encoder.width"] == toy.CRASH)
    text = (result.folder / "trials" / str(number) / "error.txt").read_text()
    assert text.startswith("ValueError: two lines of a reason\n\nTraceback")
    assert "_go_wrong" in text


def test_the_study_s_pruner_stops_poor_trials(pruned: Swept) -> None:
    result, _ = pruned
    states = Counter(trial["state"] for trial in trials(result))
    assert set(states) == {"complete", "pruned"}
    study = open_study(result.folder, SweepSettings())
    # Halving by three: at each rung that a trial was stopped at, some trial had done better.
    for trial in study.trials:
        if trial.state == TrialState.PRUNED:
            rung = trial.last_step
            assert rung in (1, 3)
            reached = [t.intermediate_values[rung] for t in study.trials if rung in t.intermediate_values]
            assert trial.value == trial.intermediate_values[rung]
            assert trial.value > min(reached)
    best = result.status["best"]
    assert best["value"] == min(t["value"] for t in trials(result) if t["state"] == "complete")


def test_the_sweep_s_file_says_what_was_run_and_can_be_run_again(mixed: Swept) -> None:
    result, _ = mixed
    again = load_sweep_config(result.folder / "sweep.yaml")
    assert again.run.train.epochs == 4
    assert again.search.names == ["train.learning_rate", "encoder.width", "data.voices"]
    assert again.sweep.trials == 9
    record = yaml.safe_load((result.folder / "sweep.yaml").read_text())["record"]
    assert record["models"] == toy.ToyPrepared().hashes()
    assert record["versions"]["optuna"][0].isdigit()


def test_nothing_but_what_is_useful_is_left(mixed: Swept) -> None:
    result, _ = mixed
    assert {path.name for path in result.folder.iterdir()} == {"sweep.yaml", "study.journal", "driver.lock", "trials"}
    assert {path.name for path in result.folder.parent.iterdir()} == {"toy", "toy.yaml"}


def test_a_line_is_said_when_a_trial_starts_at_each_epoch_and_at_its_end(pruned: Swept) -> None:
    result, lines = pruned
    for trial in trials(result):
        own = [line for line in lines if line.startswith(f"trial {trial['number']} ") and " waits for " not in line]
        assert own[0].startswith(f"trial {trial['number']} starts: learning_rate=")
        epochs = [line for line in own if f"trial {trial['number']} epoch" in line]
        assert len(epochs) == trial["epochs"]
        assert trial["state"] in own[-1]
        assert len(own) == len(epochs) + 2


def refused(folder: Path, *overrides: str, name: str = "toy") -> Exception:
    """The error of a sweep that must be refused before it prepares or writes anything."""
    file = folder / "toy.yaml"
    file.write_text(MIXED)
    before = sorted(folder.rglob("*"))

    def prepare(configs: Sequence[RunConfig]) -> list[toy.ToyPrepared]:
        raise AssertionError("prepared a sweep that cannot be run")

    config = load_sweep_config(file, [f"sweep.outputs={folder}", *overrides])
    with pytest.raises((ConfigError, DiskError)) as caught:
        run_sweep(config, name=name, services=toy.services(prepare=prepare))
    assert sorted(folder.rglob("*")) == before
    return caught.value


def test_an_existing_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    assert "exists already; give another --name" in str(refused(tmp_path))


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_s_is_refused(tmp_path: Path, name: str) -> None:
    assert "not the name of a folder" in str(refused(tmp_path, name=name))


def test_a_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    assert "toy\\udcff': holds bytes that are not UTF-8" in str(refused(tmp_path, name="toy\udcff"))


@pytest.mark.parametrize("override", ["sweep.cpus_per_trial=4000", "sweep.gpus_per_trial=900"])
def test_more_than_the_machine_has_is_refused(tmp_path: Path, override: str) -> None:
    error = refused(tmp_path, override)
    assert override.replace("=", ": ") in str(error)
    assert "lower it with --set" in str(error)


def test_a_full_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 10 * 2**20)
    error = refused(tmp_path)
    assert isinstance(error, DiskError)
    assert "0.0 GiB are free" in str(error)


def test_ctrl_c_lets_trials_go_on_another_day_and_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(MIXED)
    script = f"""
import sys
from pathlib import Path
from tests.tune import toy
from tune.config.sweep_config import load_sweep_config
from tune.show.status import status
from tune.sweep.driver import run_sweep
overrides = ["search.encoder.width=[{toy.SLOW}]", {str(f"sweep.outputs={tmp_path}")!r}]
config = load_sweep_config(Path({str(tmp_path / "toy.yaml")!r}), overrides)
result = run_sweep(config, name="toy", services=toy.services())
print(*result.lines, sep="\\n")
sys.exit(result.exit_code)
"""
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root, "RAY_enable_worker_prestart": "0"}
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
    )
    try:
        started = tmp_path / "toy" / "trials" / "0" / "start.json"
        until = time.monotonic() + 60
        while not started.exists() and time.monotonic() < until and driver.poll() is None:
            time.sleep(0.1)
        worker = json.loads(started.read_text())["pid"]
        driver.send_signal(signal.SIGINT)
        output = driver.communicate(timeout=40)[0].decode()
    finally:
        driver.kill()
    assert driver.returncode == 130, output
    study = open_study(tmp_path / "toy", SweepSettings())
    assert {trial.state for trial in study.trials} == {TrialState.RUNNING}  # they will be resumed
    assert f"stopped; resume with: nuanced sweep --resume {tmp_path / 'toy'}" in output
    assert study.user_attrs["state"] == "interrupted"
    until = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def test_a_database_holds_several_sweeps_but_a_name_once(ray_session: None, tmp_path: Path) -> None:
    fixed = [f"sweep.storage=sqlite:///{tmp_path}/studies.db", "search.encoder.width=[64]", "sweep.trials=1"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, _ = sweep(MIXED, tmp_path / "a", *fixed)
    with pytest.raises(ConfigError, match=r"studies\.db: holds a study 'toy' already; take another sweep\.study_name"):
        sweep(MIXED, tmp_path / "b", *fixed)
    assert not (tmp_path / "b" / "toy").exists()
    second, _ = sweep(MIXED, tmp_path / "b", *fixed, "sweep.study_name=other")
    assert len(first.status["trials"]) == len(second.status["trials"]) == 1
    assert not (second.folder / "study.journal").exists()


def test_a_setting_under_a_condition_is_tried_where_the_condition_holds(ray_session: None, tmp_path: Path) -> None:
    pooling = "search.encoder.pooling=[mean, queries]"
    heads = "search.encoder.heads={choices: [1, 2, 4], when: {encoder.pooling: [queries]}}"
    fixed = ["search.encoder.width=[64]", "sweep.trials=8", "sweep.sampler=tpe", "train.epochs=2"]
    result, _ = sweep(MIXED, tmp_path, pooling, heads, *fixed)
    found = trials(result)
    assert {trial["params"]["encoder.pooling"] for trial in found} == {"mean", "queries"}
    for trial in found:
        config = config_of(result, trial["number"])
        assert ("encoder.heads" in trial["params"]) == (config.encoder.pooling == "queries")
        assert config.encoder.heads == trial["params"].get("encoder.heads", RunConfig().encoder.heads)


def test_a_resumed_sweep_reads_its_settings_once_and_opens_its_study_once(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = ["search.encoder.width=[64]", "sweep.trials=1", "train.epochs=1"]
    first, _ = sweep(MIXED, tmp_path, *fixed)
    read: list[str] = []
    opened: list[str] = []
    read_text, open_journal = Path.read_text, StudyJournal.__init__

    def counted_read(self: Path, *arguments: str | None, **options: str | None) -> str:
        read.append(self.name)
        return read_text(self, *arguments, **options)

    def counted_open(self: StudyJournal, file: str) -> None:
        opened.append(file)
        open_journal(self, file)

    monkeypatch.setattr(Path, "read_text", counted_read)
    monkeypatch.setattr(StudyJournal, "__init__", counted_open)
    result = resume_sweep(first.folder, overrides=["sweep.trials=2"], services=toy.services())
    assert len(result.status["trials"]) == 2
    assert read.count("sweep.yaml") == 1
    assert opened == [str(first.folder / "study.journal")]


def test_a_sweep_is_not_resumed_without_its_people(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "readers").mkdir()
    people = f"data.people={tmp_path / 'readers'}"
    first, _ = sweep(MIXED, tmp_path, people, "search.encoder.width=[64]", "sweep.trials=1", "train.epochs=1")
    (tmp_path / "readers").rmdir()
    with pytest.raises(AudioError, match=r"data\.people: .*readers: no such folder") as raised:
        resume_sweep(first.folder, overrides=["sweep.trials=2"], services=toy.services(prepare=prepare))
    assert "\n" not in str(raised.value)
    assert len(status(first.folder)["trials"]) == 1


def test_sweeps_of_all_endings_are_read_back(mixed: Swept, pruned: Swept) -> None:
    found = read_back(mixed[0].folder)
    assert set(found.trials()["state"]) == {"complete", "failed"}
    assert "oracle" in found.baselines().index
    assert {"history", "curves"} <= set(found.figures)
    stopped = read_back(pruned[0].folder)
    assert "stopped by the pruner" in [trace.name for trace in stopped.figures["curves"].data]
    assert len(stopped.curves(["val/loss"])) == stopped.trials()["epochs"].sum()


def test_sweeps_of_all_endings_have_a_report(mixed: Swept, pruned: Swept, tmp_path: Path) -> None:
    for (result, _), text in ((mixed, "lower train.learning_rate"), (pruned, "pruned")):
        assert text in write_report(result.folder, tmp_path / "report.html").read_text(encoding="utf-8")
