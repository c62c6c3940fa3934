"""Tables of the reports of ``nuanced evaluate``, for the terminal and for a model card."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from nuanced_core.errors import DiskError
from nuanced_core.evaluation.predictors import AUDIO_PREDICTORS
from nuanced_core.evaluation.test_split import COMPARED_BASELINES, PREDICTORS

__all__ = ["markdown", "tables", "write_card"]

# Written cards have this heading; what follows it is replaced.
_CARD_SECTION = "## On the test split (`nuanced evaluate`)"

# name in the report → label (up, down: which way is better), digits, factor
MEASURES = {
    "stft": ("mel-STFT loss, down", 3, 1),
    "style_cosine": ("style cosine, up", 3, 1),
    "timbre_cosine": ("  timbre half", 3, 1),
    "prosody_cosine": ("  prosody half", 3, 1),
    "skill": ("skill, up", 3, 1),
    "identity": ("speaker identity, up", 2, 1),
    "f0_semitones": ("F0 error, semitones", 2, 1),
    "f0_crepe_semitones": ("  of the sound (CREPE)", 2, 1),
    "f0_spread_correlation": ("F0 spread, correlation", 2, 1),
    "energy_correlation": ("energy, correlation", 3, 1),
    "duration_error": ("length error, %", 1, 100),
}
PAIRED_TITLE = "encoder minus baseline, paired by voice"
ROBUSTNESS_TITLE = "style cosine of degraded clips, and loss against clean clips"


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a report on the test split or on recordings; ± is half the width of a 95 % interval."""
    if "clips" in report:
        return [_recordings_table(report), *([_skipped_table(report)] if report["skipped"] else [])]
    found = [_predictors_table(report)]
    if "gains" in report:
        found.append(_gains_table(report))
    if "robustness" in report:
        found.append(_robustness_table(report))
    return found


def write_card(model: Path, report: Mapping[str, Any]) -> None:
    """Write a report on the test split into a model's folder: as ``evaluation.json``, and as tables in its card.

    Raises:
        DiskError: the folder cannot be written.
    """
    card = model / "README.md"
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {model.name}\n"
        text = text.partition(_CARD_SECTION)[0].rstrip()
        card.write_text(f"{text}\n\n{_CARD_SECTION}\n\n{markdown(report)}", encoding="utf-8")
        (model / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DiskError(f"{model}: cannot be written: {error.strerror}") from None


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables of a report on the test split as Markdown."""
    voices, sentences = len(report["voices"]), report["sentences"]
    head = f"{voices} test voices, {sentences} sentences each; ± is half the width of a 95 % interval."
    found = [
        head,
        _markdown_table("", PREDICTORS, _measure_cells(report)),
        _markdown_table(PAIRED_TITLE, COMPARED_BASELINES, _gain_cells(report)),
    ]
    if "robustness" in report:
        found.append(_markdown_table(ROBUSTNESS_TITLE, AUDIO_PREDICTORS, _robustness_cells(report)))
    return "\n\n".join(found) + "\n"


def _markdown_table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    head = f"| {title} |" if title else "| |"
    lines = [f"{head} {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    return "\n".join(lines + [f"| {label.strip()} | {' | '.join(cells)} |" for label, cells in rows])


def _predictors_table(report: Mapping[str, Any]) -> Table:
    title = f"{report['model']}: {len(report['voices'])} test voices, {report['sentences']} sentences each"
    return _table(title, ("", *PREDICTORS), _measure_cells(report))


def _gains_table(report: Mapping[str, Any]) -> Table:
    return _table(PAIRED_TITLE, ("", *COMPARED_BASELINES), _gain_cells(report))


def _robustness_table(report: Mapping[str, Any]) -> Table:
    return _table(ROBUSTNESS_TITLE, ("", *AUDIO_PREDICTORS), _robustness_cells(report))


def _recordings_table(report: Mapping[str, Any]) -> Table:
    predictors = report["rows"]
    rows = [
        (clip["file"], [f"{clip['distance']:.1f}", *(_number(clip["identity"][name], 2) for name in predictors)])
        for clip in report["clips"]
    ]
    title = f"{report['model']}: speaker identity on recordings"
    table = _table(title, ("recording", "distance", *predictors), rows)
    table.add_section()
    table.add_row("all", "", *(_cell(measures, "identity", 2) for measures in predictors.values()))
    return table


def _skipped_table(report: Mapping[str, Any]) -> Table:
    title = f"skipped: {len(report['skipped'])} of {len(report['skipped']) + len(report['clips'])} recordings"
    return _table(title, ("recording", "reason"), [(clip["file"], [clip["reason"]]) for clip in report["skipped"]])


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in PREDICTORS or column == "distance" else "left")
    for label, cells in rows:
        table.add_row(label, *cells)
    return table


def _measure_cells(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the label of each measure and its value for each predictor."""
    predictors = report["rows"]
    for name, (label, digits, factor) in MEASURES.items():
        if name in predictors["encoder"]:
            yield label, [_cell(predictors[predictor], name, digits, factor) for predictor in PREDICTORS]


def _gain_cells(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the label of each measure and the encoder's difference from each baseline, with the interval's ends."""
    differences = [report["gains"][baseline] for baseline in COMPARED_BASELINES]
    for name, (label, digits, factor) in MEASURES.items():
        if all(name in difference for difference in differences):
            yield label.strip(), [_interval_cell(difference, name, digits, factor) for difference in differences]


def _robustness_cells(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each condition and the style cosine of each audio predictor, with the loss against clean clips."""
    for condition, predictors in report["robustness"].items():
        chosen = [predictors[name] for name in AUDIO_PREDICTORS]
        yield condition, [f"{_cell(p, 'style_cosine', 3)}, lost {_cell(p, 'loss', 3)}" for p in chosen]


def _interval_cell(measures: Mapping[str, Any], name: str, digits: int, factor: float) -> str:
    value, (low, high) = measures[name], measures[f"{name}_ci"]
    shown = [_number(number, digits, factor) for number in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _cell(measures: Mapping[str, Any], name: str, digits: int, factor: float = 1) -> str:
    value, (low, high) = measures[name], measures[f"{name}_ci"]
    if value is None or low is None:
        return _number(value, digits, factor)
    return f"{_number(value, digits, factor)} ±{_number((high - low) / 2, digits, factor)}"


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "–" if value is None else f"{value * factor:.{digits}f}"
