"""Tables of the reports of ``nuanced evaluate``, for the terminal and for a model card."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from nuanced_core.errors import DiskError
from nuanced_core.evaluation.people_report import BEST_STOCK, ROWS
from nuanced_core.evaluation.predictors import AUDIO_PREDICTORS
from nuanced_core.evaluation.test_split import COMPARED_BASELINES, PREDICTORS
from nuanced_core.hearing.augmentation import DEGRADATIONS

__all__ = ["markdown", "tables", "write_card"]

# Written cards have these headings; the text up to the next heading is replaced.
_CARD_SECTION = "## On the test split (`nuanced evaluate`)"
_PEOPLE_SECTION = "## On people (`nuanced evaluate --people`)"
_PEOPLE_KEY = "people"  # of evaluation.json; the other keys are of the test split
_UNWRITTEN = ("speakers", "skipped")  # who was recorded is nobody's business

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
# Measures of people, as above.
PEOPLE_MEASURES = {
    "f0_semitones": ("F0 error, semitones", 2, 1),
    "f0_semitones_median": ("  median", 2, 1),
    "rate_error": ("rate error, %", 1, 100),
    "word_errors": ("word errors, %", 1, 100),
    "dnsmos": ("DNSMOS, up", 2, 1),
}
JUDGE_LABELS = {"campplus": "identity, CAM++", "resemblyzer": "identity, Resemblyzer", "dvector": "identity, d-vector"}
ROW_LABELS = {BEST_STOCK: "best stock"}
MARKS = {
    "trained": ("*", "its embeddings were in a loss"),
    "heard": ("†", "its embedding of the recording is an input"),
    "selected": ("‡", "its scores chose the model"),
}
ABOVE_STOCK_TITLE = "people for whom it is above the best stock voice, %"
DEGRADED_TITLE = "the encoder's identity from degraded recordings"
ROBUSTNESS_TITLE = "style cosine of degraded clips, and loss against clean clips"


_RIGHT = {*PREDICTORS, *ROWS, *ROW_LABELS.values(), *DEGRADATIONS, "distance"}  # columns of numbers


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a report on the test split, on people or on recordings; ± is half the width of a 95 %
    interval."""
    if "speakers" in report:
        people = [_table(*part) for part in _people_parts(report)]
        people[0].caption, people[0].caption_justify = _marks_line(report), "left"
        used = sum(len({one["heard"], *one["compared"]}) for one in report["speakers"])
        return [*people, *([_skipped_table(report, used)] if report["skipped"] else [])]
    if "clips" in report:
        return [
            _recordings_table(report),
            *([_skipped_table(report, len(report["clips"]))] if report["skipped"] else []),
        ]
    found = [_predictors_table(report)]
    if "gains" in report:
        found.append(_gains_table(report))
    if "robustness" in report:
        found.append(_robustness_table(report))
    return found


def write_card(model: Path, report: Mapping[str, Any]) -> None:
    """Write a report on the test split or on people into a model's folder: ``evaluation.json``, and tables in its card.

    Each replaces what was written of the same kind before, and leaves the other. Of people, averages alone are written.

    Raises:
        DiskError: the folder cannot be written.
    """
    card, data = model / "README.md", model / "evaluation.json"
    of_people = "speakers" in report
    try:
        text = card.read_text(encoding="utf-8") if card.is_file() else f"# {model.name}\n"
        section, body = (_PEOPLE_SECTION, people_markdown(report)) if of_people else (_CARD_SECTION, markdown(report))
        written = json.loads(data.read_text(encoding="utf-8")) if data.is_file() else {}
        if of_people:
            shown = {key: value for key, value in report.items() if key not in _UNWRITTEN}
            shown |= {"count": len(report["speakers"]), "people": Path(report["people"]).name}
            content = {**written, _PEOPLE_KEY: shown}
        else:
            content = {**report, **({_PEOPLE_KEY: written[_PEOPLE_KEY]} if _PEOPLE_KEY in written else {})}
        card.write_text(_with_section(text, section, body), encoding="utf-8")
        data.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except json.JSONDecodeError as error:
        raise DiskError(f"{data}: is not JSON ({error}); remove it") from None
    except OSError as error:
        raise DiskError(f"{model}: cannot be written: {error.strerror}") from None


def _with_section(text: str, heading: str, body: str) -> str:
    """Return a card with a section's body replaced, or with the section at its end."""
    before, found, rest = text.partition(heading)
    _, next_heading, after = rest.partition("\n## ")
    written = f"{before.rstrip()}\n\n{heading}\n\n{body}"
    return f"{written}{next_heading}{after}" if found and next_heading else written


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


def people_markdown(report: Mapping[str, Any]) -> str:
    """Return the tables of a report on people as Markdown, without single people."""
    parts = _people_parts(report)
    found = [f"{parts[0][0].partition(': ')[2]}; ± is half the width of a 95 % interval."]
    for number, (title, columns, rows) in enumerate(parts):
        found.append(_markdown_table(title if number else "", columns[1:], rows))
    return "\n\n".join([*found, _marks_line(report)]) + "\n"


def _people_parts(report: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], list[tuple[str, list[str]]]]]:
    """Return title, columns and rows of each table of a report on people."""
    labels = {judge: JUDGE_LABELS.get(judge, f"identity, {judge}") for judge in report["judges"]}
    split = "" if report["split"] == "all" else f"{report['split']} "
    people = f"{len(report['speakers'])} {split}people"
    rows = report["rows"]
    columns = ("", *(ROW_LABELS.get(row, row) for row in rows))
    cells = [
        (label, [_cell(rows[row], f"identity_{judge}", 2) + _marks(report, row, judge) for row in rows])
        for judge, label in labels.items()
    ]
    for name, (label, digits, factor) in PEOPLE_MEASURES.items():
        if name in rows["encoder"]:
            cells.append(
                (label, [_cell(rows[row], name, digits, factor) if name in rows[row] else "–" for row in rows])
            )
    seconds = report["seconds"]
    cells.append(("seconds", [_number(seconds.get(row), 1) for row in rows]))
    found = [(f"{report['model']}: {people}, each heard once", columns, cells)]
    above = report["above_best_stock"]
    shares = [(label, [_cell(above[row], judge, 0, 100) for row in above]) for judge, label in labels.items()]
    found.append((ABOVE_STOCK_TITLE, ("", *above), shares))
    if degraded := report["degraded"]:
        lost = [
            (label, [_cell(degraded[condition], f"identity_{judge}", 2) for condition in degraded])
            for judge, label in labels.items()
        ]
        found.append((DEGRADED_TITLE, ("", *degraded), lost))
    return found


def _marks(report: Mapping[str, Any], row: str, judge: str) -> str:
    return "".join(MARKS[mark][0] for mark in report["marks"].get(row, {}).get(judge, ()))


def _marks_line(report: Mapping[str, Any]) -> str:
    """Return what the marks of judges mean."""
    return "A judge is not independent: " + "; ".join(f"{sign} {meaning}" for sign, meaning in MARKS.values()) + "."


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


def _skipped_table(report: Mapping[str, Any], used: int) -> Table:
    title = f"skipped: {len(report['skipped'])} of {len(report['skipped']) + used} recordings"
    return _table(title, ("recording", "reason"), [(clip["file"], [clip["reason"]]) for clip in report["skipped"]])


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in _RIGHT else "left")
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
