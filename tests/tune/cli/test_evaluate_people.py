"""The command `nuanced evaluate --people`: what it passes on, its tables and card, and its usage errors."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nuanced_core.evaluation import people
from nuanced_core.evaluation.people import PeopleSettings
from nuanced_core.evaluation.people_report import PersonResult, people_report
from nuanced_core.judges.panel import Sound
from nuanced_core.refinement.refine import RefineSettings
from tune.cli.app import main


def _report() -> dict[str, Any]:
    """A report on three people, made by the real statistics."""
    generator = torch.Generator().manual_seed(0)

    def sound() -> Sound:
        names = ("campplus", "dvector")
        embeddings = {name: torch.nn.functional.normalize(torch.rand(8, generator=generator), dim=0) for name in names}
        return Sound(embeddings, f0=7.0, rate=10.0, word_errors=0.02, dnsmos=3.25)

    results = [
        PersonResult(
            speaker=f"person{i}",
            heard_file=f"person{i}/1.wav",
            compared_files=(f"person{i}/2.wav",),
            heard=sound(),
            rate=11.0,
            compared=(sound(),),
            rows={row: sound() for row in ("mean", "nearest", "ridge", "encoder", "refined")},
            degraded={"room": sound()},
            seconds={"encoder": 0.25, "refined": 31.5},
        )
        for i in range(3)
    ]
    return {
        "model": "a",
        **people_report(results, {"af_heart": sound()}),
        "marks": {"encoder": {"campplus": ["trained", "heard"]}},
        "people": "/somewhere/people",
        "split": "test",
        "texts": ["One.", "Two."],
        "whisper": "tiny.en",
        "skipped": [{"speaker": "person9", "file": "person9/1.wav", "reason": "is silent"}],
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """Replace the evaluation by a fixed report; gives what it was called with."""
    found: list[SimpleNamespace] = []

    def evaluate(model: Path, folder: Path, settings: PeopleSettings, *, source: str) -> dict[str, Any]:
        found.append(SimpleNamespace(model=model, folder=folder, settings=settings, source=source))
        return _report()

    monkeypatch.setattr(people, "evaluate_people", evaluate)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return found


def test_options_reach_the_evaluation(calls: list[SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "a", "--people", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["people"] == "/somewhere/people"
    assert calls[0].settings == PeopleSettings()
    assert (calls[0].model, calls[0].folder, calls[0].source) == (Path("a"), Path("b"), "auto")
    options = "--refine 7 --inversion --no-degraded --split validation --limit 3 --samples out --source hub"
    assert main(["evaluate", "a", "--people", "b", *options.split()]) == 0
    assert calls[1].settings == PeopleSettings("validation", 3, 7, True, False, Path("out"))
    assert calls[1].source == "hub"
    assert main(["evaluate", "a", "--people", "b", "--split", "all"]) == 0
    assert calls[2].settings == PeopleSettings("all")
    assert main(["evaluate", "a", "--people", "b", "--refine", "7", "--refine-by", "campplus"]) == 0
    assert calls[3].settings.refinement == RefineSettings(steps=7, speaker_encoders=("campplus",))


def test_tables_have_all_rows_judges_and_marks(
    calls: list[SimpleNamespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "a", "--people", "b"]) == 0
    out = capsys.readouterr().out
    report = _report()
    assert "a: 3 test people, each heard once" in out
    for text in ("best stock", "refined", "identity, CAM++", "identity, d-vector", "F0 error, semitones", "room"):
        assert text in out
    line = next(line for line in out.splitlines() if "identity, CAM++" in line)
    encoder = report["rows"]["encoder"]["identity_campplus"]
    marked = [cell.strip() for cell in line.split("│") if "*†" in cell]
    assert len(marked) == 1 and marked[0].startswith(f"{encoder:.2f} ±")
    seconds = next(line for line in out.splitlines() if line.strip("│ ").startswith("seconds"))
    assert "0.2" in seconds and "31.5" in seconds
    assert "* its embeddings were in a loss" in out and "word errors, %" in out and "2.0 ±0.0" in out
    assert "skipped: 1 of 7 recordings" in out and "person9/1.wav" in out


def test_card_keeps_both_parts_and_names_nobody(
    calls: list[SimpleNamespace], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "a"
    model.mkdir()
    (model / "README.md").write_text("# a\n\nText.\n\n## On the test split (`nuanced evaluate`)\n\nTable.\n")
    (model / "evaluation.json").write_text('{"rows": {}}')
    for _ in range(2):
        assert main(["evaluate", "a", "--people", "b", "--card"]) == 0
    card = (model / "README.md").read_text()
    assert card.startswith("# a\n\nText.\n\n## On the test split (`nuanced evaluate`)\n\nTable.\n\n## On people")
    assert card.count("## On people") == 1 and "| identity, CAM++ |" in card and "a judge" not in card.split("##")[0]
    written = json.loads((model / "evaluation.json").read_text())
    assert written["rows"] == {} and written["people"]["count"] == 3
    assert written["people"]["rows"] == _report()["rows"] and written["people"]["people"] == "people"
    for text in (card, json.dumps(written)):
        assert "person1" not in text and "/somewhere" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--people p --clips c", "--people, --clips: give one of them"),
        ("--people p --sentences 3", "--sentences: concerns the test split; leave it out with --people"),
        ("--people p --no-identity", "--identity: concerns the test split; leave it out with --people"),
        ("--people p --split train", "--split: 'train': choose test, validation, or all"),
        ("--refine 5", "--refine: concerns --people; give that too, or leave it out"),
        ("--people p --refine-by campplus", "--refine-by: says how --refine STEPS refines; give that too"),
        ("--people p --refine 5 --refine-by dvector", "--refine-by: 'dvector': choose from campplus, resemblyzer"),
        ("--refine-by campplus", "--refine-by: concerns --people"),
        ("--inversion", "--inversion: concerns --people"),
        ("--split test", "--split: concerns --people"),
        ("--clips c --limit 3", "--limit: concerns --people; leave it out with --clips"),
        ("--clips c --samples s", "--samples: concerns --people; leave it out with --clips"),
        ("--people p --refine 0", "evaluate: invalid value for '--refine'"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    options: str, message: str, calls: list[SimpleNamespace], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "a", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"nuanced: error: {message}") and err.count("\n") == 1
    assert calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--people nowhere", "nowhere/config.json: no such file"),
        ("--people nowhere --limit 1", "limit: 1: people are compared with each other; take at least 2"),
        ("--people nowhere --samples full", "samples: full: exists and is not an empty folder"),
    ],
)
def test_errors_of_the_evaluation_are_one_line(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.wav").touch()
    assert main(["evaluate", "nowhere", *options.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
