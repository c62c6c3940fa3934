"""``nuanced evaluate``: an exported encoder on the test split or on recordings, and the tables that show it."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from nuanced_core.config.settings import Models
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet, resolve_device
from nuanced_core.errors import ConfigError, DiskError
from nuanced_core.evaluation.comparison import Embed, Pitch
from nuanced_core.evaluation.identity import SpeakerEncoder
from nuanced_core.evaluation.pitch import CrepePitch
from nuanced_core.evaluation.predictors import HEARING_PREDICTORS, StylePredictors
from nuanced_core.evaluation.recordings import evaluate_recordings, recordings_in
from nuanced_core.evaluation.test_split import BEATEN, ROWS, evaluate, load_export
from nuanced_core.weights.store import cache_dir

__all__ = ["evaluate_clips", "evaluate_test_split", "tables", "write_card"]

logger = logging.getLogger(__name__)


_CARD_SECTION = "## On the test split (`nuanced evaluate`)"

# name: what people read, digits, factor
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


def evaluate_test_split(
    model: Path, *, source: str, sentences: int, identity: bool | None, robustness: bool
) -> dict[str, Any]:
    """The report on the test split (see ``nuanced_core.evaluation.test_split.evaluate``).

    ``identity`` None measures what needs the extra ``eval`` if that is installed, True insists on it.

    Raises:
        NuancedError: a model, a voice or the extra is missing, or the encoder saw the test split.
    """
    encoder, run = load_export(model)
    embed, pitch = _extras(identity)
    dataset = _dataset(encoder.config.whisper, source)
    report = evaluate(encoder, run, dataset, sentences=sentences, embed=embed, pitch=pitch, robustness=robustness)
    return {"model": str(model), **report}


def evaluate_clips(model: Path, clips: Path, *, source: str) -> dict[str, Any]:
    """The report on a folder of recordings (see ``nuanced_core.evaluation.recordings.evaluate_recordings``).

    Raises:
        NuancedError: a model or the extra ``eval`` is missing, or a recording cannot be used.
    """
    encoder, run = load_export(model)
    files, embed = recordings_in(clips), SpeakerEncoder()
    dataset = _dataset(encoder.config.whisper, source)
    rows = StylePredictors(encoder, run, dataset)
    return {"model": str(model), **evaluate_recordings(rows, dataset, files, embed)}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """What people look at of either report; ± is half the width of the interval of 95 %."""
    if "clips" in report:
        return [_recordings_table(report)]
    found = [_rows_table(report)]
    if "gains" in report:
        found.append(_gains_table(report))
    if "robustness" in report:
        found.append(_robustness_table(report))
    return found


def write_card(model: Path, report: Mapping[str, Any]) -> None:
    """Put the report on the test split into the model's folder: ``evaluation.json``, and a table in its card.

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
    """The tables of a report on the test split as Markdown."""
    rows, found = report["rows"], []
    head = f"{len(report['voices'])} test voices, {report['sentences']} sentences each; ± is half an interval of 95 %."
    lines = [f"| | {' | '.join(ROWS)} |", f"|---|{'---:|' * len(ROWS)}"]
    for name, (shown, digits, factor) in MEASURES.items():
        if name in rows["encoder"]:
            cells = " | ".join(_cell(rows[row], name, digits, factor) for row in ROWS)
            lines.append(f"| {shown.strip()} | {cells} |")
    found.append("\n".join([head, "", *lines]))
    lines = [f"| encoder less another row, paired by voice | {' | '.join(BEATEN)} |", f"|---|{'---:|' * len(BEATEN)}"]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in _gain_cells(report)]
    found.append("\n".join(lines))
    if "robustness" in report:
        lines = [
            f"| style cosine, clip degraded | {' | '.join(HEARING_PREDICTORS)} |",
            f"|---|{'---:|' * len(HEARING_PREDICTORS)}",
        ]
        for kind, of_rows in report["robustness"].items():
            lost = (
                f"{_cell(of_rows[r], 'style_cosine', 3)}, lost {_cell(of_rows[r], 'loss', 3)}"
                for r in HEARING_PREDICTORS
            )
            lines.append(f"| {kind} | {' | '.join(lost)} |")
        found.append("\n".join(lines))
    return "\n\n".join(found) + "\n"


def _extras(identity: bool | None) -> tuple[Embed | None, Pitch | None]:
    if identity is False:
        return None, None
    try:
        return SpeakerEncoder(), CrepePitch()
    except ConfigError as error:
        if identity:
            raise
        logger.warning("left out: %s", error)
        return None, None


def _dataset(whisper: str, source: str) -> Dataset:
    return Dataset(ModelSet.fetch(Models(whisper=whisper, source=source), resolve_device("auto")), cache_dir())


def _rows_table(report: Mapping[str, Any]) -> Table:
    rows, count = report["rows"], len(report["voices"])
    title = f"{report['model']}: {count} test voices, {report['sentences']} sentences each"
    table = _table(title, "", *ROWS)
    for name, (shown, digits, factor) in MEASURES.items():
        if name in rows["encoder"]:
            table.add_row(shown, *(_cell(rows[row], name, digits, factor) for row in ROWS))
    return table


def _gains_table(report: Mapping[str, Any]) -> Table:
    table = _table("the encoder's measure less that of another row, paired by voice", "", *BEATEN)
    for name, cells in _gain_cells(report):
        table.add_row(name, *cells)
    return table


def _gain_cells(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Of each measure of the gains its name and its value beside each row, with the interval itself."""
    for name in MEASURES:
        of_rows = [report["gains"][row] for row in BEATEN]
        if all(name in gains for gains in of_rows):
            shown, digits, factor = MEASURES[name]
            yield shown.strip(), [_interval(gains, name, digits, factor) for gains in of_rows]


def _interval(row: Mapping[str, Any], name: str, digits: int, factor: float) -> str:
    value, (low, high) = row[name], row[f"{name}_ci"]
    shown = [_number(number, digits, factor) for number in (value, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _robustness_table(report: Mapping[str, Any]) -> Table:
    table = _table("style cosine when the clip is degraded, and what is lost", "", *HEARING_PREDICTORS)
    for kind, rows in report["robustness"].items():
        cells = [f"{_cell(rows[r], 'style_cosine', 3)}, lost {_cell(rows[r], 'loss', 3)}" for r in HEARING_PREDICTORS]
        table.add_row(kind, *cells)
    return table


def _recordings_table(report: Mapping[str, Any]) -> Table:
    rows = report["rows"]
    table = _table(f"{report['model']}: speaker identity on recordings", "recording", "distance", *rows)
    for clip in report["clips"]:
        table.add_row(clip["file"], f"{clip['distance']:.1f}", *(_number(clip["identity"][r], 2) for r in rows))
    table.add_section()
    table.add_row("all", "", *(_cell(row, "identity", 2) for row in rows.values()))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in ROWS or column == "distance" else "left")
    return table


def _cell(row: Mapping[str, Any], name: str, digits: int, factor: float = 1) -> str:
    value, (low, high) = row[name], row[f"{name}_ci"]
    if value is None or low is None:
        return _number(value, digits, factor)
    return f"{_number(value, digits, factor)} ±{_number((high - low) / 2, digits, factor)}"


def _number(value: float | None, digits: int, factor: float = 1) -> str:
    return "–" if value is None else f"{value * factor:.{digits}f}"
