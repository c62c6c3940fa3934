"""Statistics of an evaluation of people: who sounds like whom, by which judge, and which judge is not independent.

Dimensions: V people, W stock voices, E speaker embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder.style_encoder import StyleEncoderConfig
from nuanced_core.evaluation import metrics
from nuanced_core.evaluation.metrics import Estimate, as_json, estimate
from nuanced_core.evaluation.predictors import PICKED_BY
from nuanced_core.judges.panel import Sound

__all__ = ["BEST_STOCK", "ROWS", "Mark", "PersonResult", "judge_marks", "people_report"]

# What is compared, in the order of a table; "refined" and "inversion" on request.
ROWS = ("mean", "nearest", "ridge", "encoder", "refined", "inversion")
BEST_STOCK = "best_stock"  # the stock voice that a judge itself finds the most similar: it has identities alone
MEASURED_ABOVE_STOCK = ("encoder", "refined")
# How a judge is not independent: its embeddings were in a loss, its embedding of the recording is an input, or its
# scores chose the model among others.
Mark = Literal["trained", "heard", "selected"]
Statistics = Mapping[str, tuple[Callable[..., Any], Any]]
SEMITONES = 12


@dataclass(frozen=True, eq=False)
class PersonResult:
    """What the judges say of a person, and of what was spoken in that person's voice."""

    speaker: str
    heard_file: str
    compared_files: tuple[str, ...]  # the same as the heard one if its halves are compared
    heard: Sound
    rate: float  # phonemes per second of the heard recording; NaN if unknown
    compared: tuple[Sound, ...]
    rows: Mapping[str, Sound]  # by name of ROWS
    degraded: Mapping[str, Sound] = field(default_factory=dict)  # the encoder's, by condition of the heard recording
    voices: Mapping[str, str] = field(default_factory=dict)  # stock voices that rows use
    seconds: Mapping[str, float] = field(default_factory=dict)  # by row, that finding the voice took
    steps: Mapping[str, tuple[int, int]] = field(
        default_factory=dict
    )  # by row: steps taken, and the step that was kept


def judge_marks(
    run: RunConfig, config: StyleEncoderConfig, refined_by: Sequence[str], inverted_by: Sequence[str]
) -> dict[str, dict[str, list[Mark]]]:
    """Return the marks of each row of an evaluation, by judge.

    Args:
        run: the settings of the run that trained the encoder.
        config: that of the encoder.
        refined_by, inverted_by: speaker encoders of the losses of the rows refined and inversion.
    """
    heard: set[str] = set(config.features.speaker_encoders)
    trained: set[str] = set(run.loss_encoders)
    if config.encoder.surrogate_steps:  # they approach these embeddings as a loss would
        trained |= heard
    selected: set[str] = {run.objective.people_encoder} if run.objective.people else set()
    by_row: dict[str, dict[Mark, set[str]]] = {
        "nearest": {"heard": {PICKED_BY}},
        "ridge": {"heard": {PICKED_BY}},
        "encoder": {"trained": trained, "heard": heard, "selected": selected},
        "refined": {"trained": trained | set(refined_by), "heard": heard, "selected": selected},
        "inversion": {"trained": set(inverted_by), "heard": {PICKED_BY}},
    }
    return {
        row: {
            judge: [mark for mark, judges in marks.items() if judge in judges]
            for judge in sorted(set().union(*marks.values()))
        }
        for row, marks in by_row.items()
    }


def people_report(results: Sequence[PersonResult], stock: Mapping[str, Sound]) -> dict[str, Any]:
    """Return measures with 95 % intervals over people, and those of each person.

    Identity is ``(c - other) / (same - other)``: c is the mean cosine of the speech's embedding and those of the
    person's compared audio, same that of the person's heard audio, and other that of the heard audio of all other
    people. For all people together it is a ratio of means.

    Args:
        results: of at least two people, with the same rows, judges and conditions.
        stock: sounds of the stock voices, by name.

    Returns:
        ``rows`` (of ROWS and BEST_STOCK), ``above_best_stock`` (share of people whose identity is above that of the
        best stock voice), ``degraded``, ``seconds`` (medians), ``speakers``.
    """
    judges = tuple(results[0].heard.embeddings)
    cosines = {judge: _Cosines(judge, results, stock) for judge in judges}
    rows = [row for row in ROWS if row in results[0].rows]
    measures = {row: _measures(results, row) for row in rows}
    found: dict[str, Any] = {"judges": [*judges], "rows": {}, "above_best_stock": {}, "degraded": {}, "seconds": {}}
    for row in rows:
        identities = {f"identity_{j}": cosines[j].identity([r.rows[row] for r in results]) for j in judges}
        found["rows"][row] = as_json(identities | _estimates(measures[row]))
    found["rows"][BEST_STOCK] = as_json({f"identity_{judge}": c.identity_of_best() for judge, c in cosines.items()})
    for row in (row for row in MEASURED_ABOVE_STOCK if row in rows):
        shares = {judge: c.share_above_best([r.rows[row] for r in results]) for judge, c in cosines.items()}
        found["above_best_stock"][row] = as_json(shares)
    for condition in results[0].degraded:
        sounds = [r.degraded[condition] for r in results]
        found["degraded"][condition] = as_json({f"identity_{j}": c.identity(sounds) for j, c in cosines.items()})
    for row in results[0].seconds:
        found["seconds"][row] = float(np.median([r.seconds[row] for r in results]))
    found["speakers"] = [_speaker(i, result, cosines, measures) for i, result in enumerate(results)]
    return found


class _Cosines:
    """Cosines of one judge's embeddings."""

    def __init__(self, judge: str, results: Sequence[PersonResult], stock: Mapping[str, Sound]) -> None:
        self.judge, self.names = judge, tuple(stock)
        heard = self._embeddings([result.heard for result in results])
        # The cosine with the mean of embeddings of norm 1 is the mean of the cosines with each.
        self.compared = torch.stack([self._embeddings(result.compared).mean(dim=0) for result in results])  # (V, E)
        cosines = self.compared @ heard.T  # (V of the compared, V of the heard)
        self.same = cosines.diagonal()
        self.other = (cosines.sum(dim=1) - self.same) / (len(results) - 1)
        of_stock = self.compared @ self._embeddings([*stock.values()]).T  # (V, W)
        self.best, self.best_index = of_stock.max(dim=1)

    def __call__(self, sounds: Sequence[Sound]) -> Tensor:
        """Return the cosines (V,) of each person's compared audio and of a sound."""
        return (self.compared * self._embeddings(sounds)).sum(dim=1)

    def identity(self, sounds: Sequence[Sound]) -> Estimate:
        return self._identity(self(sounds))

    def identity_of_best(self) -> Estimate:
        return self._identity(self.best)

    def share_above_best(self, sounds: Sequence[Sound]) -> Estimate:
        return estimate(metrics.mean, _column((self(sounds) > self.best).double()))

    def of_person(self, index: int, cosine: float) -> float | None:
        """Return the identity of a cosine with one person's compared audio, in that person's own terms."""
        other, same = float(self.other[index]), float(self.same[index])
        return None if same == other else (cosine - other) / (same - other)

    def _identity(self, cosines: Tensor) -> Estimate:
        return estimate(metrics.speaker_identity, _column(cosines), _column(self.other), _column(self.same))

    def _embeddings(self, sounds: Sequence[Sound]) -> Tensor:
        return torch.stack([sound.embeddings[self.judge].double() for sound in sounds])


def _measures(results: Sequence[PersonResult], row: str) -> dict[str, Tensor]:
    """Return what is measured of a row beside identity, (V,) each; NaN where it is unknown."""
    spoken = [result.rows[row] for result in results]
    compared = torch.tensor([_f0(result.compared) for result in results])
    f0, rate, words, dnsmos = (
        torch.tensor([getattr(sound, name) for sound in spoken], dtype=torch.float64)
        for name in ("f0", "rate", "word_errors", "dnsmos")
    )
    heard_rate = torch.tensor([result.rate for result in results], dtype=torch.float64)
    return {
        "f0_semitones": SEMITONES * (f0 - compared).abs(),
        "rate_error": (rate / heard_rate - 1).abs(),
        "word_errors": words,
        "dnsmos": dnsmos,
    }


def _f0(sounds: Sequence[Sound]) -> float:
    """Return the mean of the median F0 of some sounds, in log2 Hz."""
    return float(torch.tensor([sound.f0 for sound in sounds], dtype=torch.float64).nanmean())


def _estimates(measures: Mapping[str, Tensor]) -> dict[str, Estimate]:
    """Return means with their intervals, of measures with a value; of F0 the median too, for outliers."""
    known = {name: _column(values) for name, values in measures.items() if not values.isnan().all()}
    found = {name: estimate(metrics.mean, values) for name, values in known.items()}
    if "f0_semitones" in known:
        found["f0_semitones_median"] = estimate(metrics.median, known["f0_semitones"])
    return found


def _speaker(
    index: int,
    result: PersonResult,
    cosines: Mapping[str, _Cosines],
    measures: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Return the entry of one person."""
    rows: dict[str, Any] = {}
    for row, sound in result.rows.items():
        identity = {
            judge: c.of_person(index, float(c.compared[index] @ sound.embeddings[judge].double()))
            for judge, c in cosines.items()
        }
        values = {name: float(x[index]) for name, x in measures[row].items()}
        rows[row] = {"identity": identity} | {name: None if np.isnan(x) else x for name, x in values.items()}
    best = {
        judge: {"voice": c.names[int(c.best_index[index])], "identity": c.of_person(index, float(c.best[index]))}
        for judge, c in cosines.items()
    }
    return {
        "speaker": result.speaker,
        "heard": result.heard_file,
        "compared": [*result.compared_files],
        "rows": rows,
        BEST_STOCK: best,
        "voices": dict(result.voices),
        "seconds": dict(result.seconds),
        "steps": {row: {"taken": taken, "kept": kept} for row, (taken, kept) in result.steps.items()},
    }


def _column(values: Tensor) -> metrics.Floats:
    column: metrics.Floats = values.double().numpy()[:, None]
    return column
