"""tune.cli.results: which checkpoint is exported, and how an evaluation is called and printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from nuanced_core.errors import NuancedError
from nuanced_core.training.run import BEST
from tests.tune.search.test_ledger import ledger, result
from tune.cli.app import main
from tune.trial.checkpoints import best_checkpoint


@pytest.fixture
def two_trials(tmp_path: Path) -> Path:
    """A sweep of two complete trials, the second the better one."""
    book = ledger(tmp_path)
    for number, loss in enumerate((0.5, 0.25)):
        book.ask()
        book.report(number, result(1, loss))
        book.end(number)
        file = tmp_path / "trials" / str(number) / BEST
        file.parent.mkdir(parents=True)
        file.touch()
    return tmp_path


def test_the_best_trial_s_checkpoint_is_selected_unless_another_is_named(two_trials: Path) -> None:
    best = best_checkpoint(two_trials)
    assert best.file == two_trials / "trials" / "1" / BEST
    assert best.facts == {"sweep": two_trials.name, "trial": 1, "val/loss": 0.25, "val/skill": -0.25}
    assert best_checkpoint(two_trials, 0).file == two_trials / "trials" / "0" / BEST
    with pytest.raises(NuancedError, match="no trial 2; it has 2, numbered from 0"):
        best_checkpoint(two_trials, 2)


def test_a_single_run_s_folder_has_one_checkpoint(tmp_path: Path) -> None:
    (tmp_path / BEST).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / BEST).touch()
    assert best_checkpoint(tmp_path).file == tmp_path / BEST
    with pytest.raises(NuancedError, match="one run, not a sweep"):
        best_checkpoint(tmp_path, 0)


@pytest.mark.parametrize(("option", "number"), [([], 1), (["--trial", "0"], 0)])
def test_export_writes_the_selected_checkpoint(
    option: list[str],
    number: int,
    two_trials: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", "/home/of-a-test")
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr("nuanced_core.export.folder.export_encoder", lambda *arguments, **_: calls.append(arguments))
    assert main(["export", str(two_trials), "--out=~/model", *option]) == 0
    file = two_trials / "trials" / str(number) / BEST
    assert [call[:2] for call in calls] == [(file, Path("/home/of-a-test/model"))]
    assert calls[0][2]["trial"] == number
    assert capsys.readouterr().out == f"/home/of-a-test/model: the encoder of {file}\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], {"sentences": 3, "identity": None, "robustness": True, "source": "auto"}),
        (["--no-degraded", "--identity", "--sentences", "1"], {"sentences": 1, "identity": True, "robustness": False}),
        (["--degraded", "--no-identity", "--source", "hub"], {"identity": False, "robustness": True, "source": "hub"}),
    ],
)
def test_evaluate_passes_its_options_on(
    given: list[str],
    expected: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {}

    def evaluated(model: Path, **others: Any) -> dict[str, Any]:
        options.update(others, model=model)
        return {"model": str(model)}

    monkeypatch.setattr("nuanced_core.evaluation.test_split.evaluate_test_split", evaluated)
    assert main(["evaluate", "--json", *given]) == 0
    assert options.items() >= {**expected, "model": Path("models/default")}.items()
    assert json.loads(capsys.readouterr().out) == {"model": "models/default"}


def test_evaluate_measures_recordings_and_prints_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", "/home/of-a-test")
    calls: list[tuple[Path, Path, str]] = []

    def evaluated(model: Path, clips: Path, *, source: str) -> dict[str, Any]:
        calls.append((model, clips, source))
        return {}

    monkeypatch.setattr("nuanced_core.evaluation.recordings.evaluate_clips", evaluated)
    monkeypatch.setattr("tune.show.evaluation_tables.tables", lambda report: iter(["a table", "another"]))
    assert main(["evaluate", "~/model", "--clips=~/clips"]) == 0
    assert calls == [(Path("/home/of-a-test/model"), Path("/home/of-a-test/clips"), "auto")]
    assert capsys.readouterr().out == "a table\nanother\n"


def test_evaluate_writes_the_card_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"model": "m"}
    written: list[tuple[Path, dict[str, Any]]] = []
    monkeypatch.setattr("nuanced_core.evaluation.test_split.evaluate_test_split", lambda model, **options: report)
    monkeypatch.setattr("tune.show.evaluation_tables.write_card", lambda *arguments: written.append(arguments))
    assert main(["evaluate", "m", "--json"]) == 0
    assert written == []
    assert main(["evaluate", "m", "--json", "--card"]) == 0
    assert written == [(Path("m"), report)]
