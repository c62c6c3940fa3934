"""tune.show.evaluation_tables: the tables of given reports, in the terminal and in a model card."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nuanced_core.errors import DiskError
from tune.show.evaluation_tables import markdown, tables, write_card

PREDICTORS = ["mean", "nearest", "ridge", "encoder", "oracle"]
CONDITIONS = ["snr20", "snr10", "telephone", "room"]
MEASURES = ("stft", "style_cosine", "skill", "f0_semitones", "duration_error", "energy_correlation")


def _row(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {key: v for name in MEASURES for key, v in ((name, value), (f"{name}_ci", [low, high]))}


@pytest.fixture
def report() -> dict[str, Any]:
    """A report on the test split with distinct values for each predictor and condition."""
    degraded = {
        condition: {
            name: {"style_cosine": 0.75 + i, "style_cosine_ci": [0.7, 0.8], "loss": 0.05, "loss_ci": [0.04, 0.08]}
            for i, name in enumerate(PREDICTORS[1:4])
        }
        for condition in CONDITIONS
    }
    return {
        "model": "models/a",
        "rows": {name: _row(0.12345 + i, 0.1 + i, 0.2 + i) for i, name in enumerate(PREDICTORS)},
        "gains": {name: _row(0.25 + i, 0.125, 0.5) for i, name in enumerate(("nearest", "ridge"))},
        "voices": ["x"] * 9,
        "sentences": 3,
        "robustness": degraded,
    }


def _printed(report: dict[str, Any]) -> list[str]:
    console = Console(width=160, record=True, file=StringIO())
    console.print(*tables(report), sep="\n")
    return console.export_text().splitlines()


def _cells(lines: list[str], label: str) -> list[str]:
    """The cells of the last line that starts with a label."""
    line = [line for line in lines if line.strip("│ ┃").startswith(label)][-1]
    return [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")][1:]


def test_table_has_each_value_with_half_its_interval_in_its_unit(report: dict[str, Any]) -> None:
    report["rows"]["oracle"] |= {"skill": 1.0, "skill_ci": [None, None], "energy_correlation": None}
    del report["gains"], report["robustness"]
    lines = _printed(report)
    assert lines[0].strip() == "models/a: 9 test voices, 3 sentences each"
    (header,) = [line for line in lines if "oracle" in line]
    assert header.replace("┃", " ").split() == PREDICTORS
    assert _cells(lines, "mel-STFT loss")[:2] == ["0.123 ±0.050", "1.123 ±0.050"]
    assert _cells(lines, "skill")[4] == "1.000"
    assert _cells(lines, "energy")[4] == "–"
    assert _cells(lines, "length error, %")[0] == "12.3 ±5.0"
    assert not [line for line in lines if "speaker identity" in line or "degraded" in line or "baseline" in line]


def test_table_of_gains_has_differences_with_their_intervals(report: dict[str, Any]) -> None:
    lines = _printed(report)
    assert any("encoder minus baseline, paired by voice" in line for line in lines)
    assert _cells(lines, "mel-STFT loss") == ["0.250 [0.125, 0.500]", "1.250 [0.125, 0.500]"]
    assert _cells(lines, "length error, %") == ["25.0 [12.5, 50.0]", "125.0 [12.5, 50.0]"]
    del report["gains"]["ridge"]["stft"]  # measured for one baseline only
    assert len(_cells(_printed(report), "mel-STFT loss")) == len(PREDICTORS)


def test_table_of_degraded_clips_has_the_cosine_and_its_loss(report: dict[str, Any]) -> None:
    for condition in CONDITIONS:
        expected = [f"{value:.3f} ±0.050, lost 0.050 ±0.020" for value in (0.75, 1.75, 2.75)]
        assert _cells(_printed(report), condition) == expected


def test_table_of_recordings_has_a_line_for_each_and_one_for_all() -> None:
    identity = {"mean": 0.0, "nearest": -0.125, "ridge": None, "encoder": 0.5}
    report = {
        "model": "a",
        "rows": {name: {"identity": 0.25, "identity_ci": [0.125, 0.375]} for name in PREDICTORS[:-1]},
        "clips": [{"file": f"{n}.wav", "distance": 3.14159 * n, "identity": identity} for n in (1, 2)],
        "skipped": [],
    }
    lines = _printed(report)
    assert not any("skipped" in line for line in lines)
    assert _cells(lines, "1.wav") == ["3.1", "0.00", "-0.12", "–", "0.50"]
    assert _cells(lines, "2.wav")[0] == "6.3"
    assert _cells(lines, "all") == ["", *["0.25 ±0.12"] * 4]
    report["skipped"] = [{"file": "3.wav", "reason": "is silent; record it again"}]
    lines = _printed(report)
    assert _cells(lines, "2.wav")[0] == "6.3"
    assert _cells(lines, "3.wav") == ["is silent; record it again"]
    assert any("skipped: 1 of 3 recordings" in line for line in lines)


def test_markdown_has_the_cells_of_the_printed_tables(report: dict[str, Any]) -> None:
    text = markdown(report)
    assert text.startswith("9 test voices, 3 sentences each; ± is half the width of a 95 % interval.\n\n")
    parts = text.split("\n\n")[1:]
    heads = [part.splitlines()[:2] for part in parts]
    assert heads == [
        ["| | mean | nearest | ridge | encoder | oracle |", "|---|---:|---:|---:|---:|---:|"],
        ["| encoder minus baseline, paired by voice | nearest | ridge |", "|---|---:|---:|"],
        [
            "| style cosine of degraded clips, and loss against clean clips | nearest | ridge | encoder |",
            "|---|---:|---:|---:|",
        ],
    ]
    labels = ("mel-STFT loss", "style cosine", "skill", "F0 error", "energy", "length error")
    for part, rows in zip(parts, (len(labels), len(labels), len(CONDITIONS)), strict=True):
        lines = [line.strip("| ").split(" | ") for line in part.splitlines()[2:]]
        assert len(lines) == rows
        for label, *cells in lines:
            printed = [line for line in _printed(report) if line.strip("│ ┃").startswith(label)]
            assert any(_cells([line], label) == cells for line in printed), label
    del report["robustness"]
    assert markdown(report) == "\n\n".join(text.split("\n\n")[:3]) + "\n"


def test_write_card_replaces_its_own_section_and_keeps_the_rest(tmp_path: Path, report: dict[str, Any]) -> None:
    card = tmp_path / "README.md"
    card.write_text("# mine\n\nA card.\n")
    for _ in range(2):
        write_card(tmp_path, report)
    section = "## On the test split (`nuanced evaluate`)"
    assert card.read_text() == f"# mine\n\nA card.\n\n{section}\n\n{markdown(report)}"
    assert json.loads((tmp_path / "evaluation.json").read_text()) == report


def test_write_card_makes_a_missing_card_and_raises_for_a_missing_folder(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    write_card(model, report)
    assert (model / "README.md").read_text().startswith("# mine\n\n## On the test split")
    with pytest.raises(DiskError, match=r"nowhere: cannot be written: No such file"):
        write_card(tmp_path / "nowhere", report)
