"""TensorBoard's HPARAMS tab of a sweep: a column per searched setting, a row per trial with its state and best scores.

TensorBoard reads the columns from one summary, the first that it finds, and keeps the first settings and status that
it reads of a run. So the columns are in a run of their own, ``hparams``. The row of a trial whose state may change is
in a run that is named by the state and removed when that changes, such as ``running/3`` or ``interrupted/3``; the row
of an ended trial is in the trial's own run, ``3``, beside its curves.

The driver writes all of it from what the study holds, since a trial's process does not know that it was pruned, and
cannot say that it died.
"""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from nuanced_core.errors import DiskError
from tune.cluster.shared_storage import SharedFolder
from tune.config.dimension import Choices, Range
from tune.config.space import Space
from tune.loggers.tensorboard import EVENT_FILE, encode_summaries
from tune.search.results import TrialWatcher

__all__ = ["BEST", "NOT_SEARCHED", "PEOPLE_SCORES", "STATE", "HparamsColumn", "HparamsTable"]

logger = logging.getLogger(__name__)

STATE = "State"  # its column; the capital sorts it before the settings, of which TensorBoard shows only the first five
BEST = "best/"  # prefix of a score's scalar
NOT_SEARCHED = "–"  # sorted behind numbers
_COLUMNS_RUN = "hparams"
_CHANGING = ("running", "interrupted")  # states with runs of their own
_STATES = (*_CHANGING, "complete", "pruned", "failed")
# The status by which TensorBoard filters; it has none for the other states, which stay "unknown".
_STATUS = {
    "running": api_pb2.STATUS_RUNNING,
    "complete": api_pb2.STATUS_SUCCESS,
    "failed": api_pb2.STATUS_FAILURE,
}
_ENDED = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_SCORES = ("val/loss", "val/skill", "val/stft", "val/style")  # shown for each trial
PEOPLE_SCORES = ("val/identity", "val/pitch")  # of runs with validation people
_ROW = ".hparams"  # suffix of the event file with the row of an ended trial
_MOST_LISTED = 9  # TensorBoard offers a checkbox per value up to here, and a regular expression for more


class HparamsColumn:
    """How TensorBoard shows a setting: as a number, true or false, or text.

    TensorBoard prints each number with five digits, 3 as 3.0000, and refuses to filter a column of numbers and text. So
    integers that are listed, as choices or as a short range, are text, and so are lists and choices of several types.
    Integers are padded with spaces, which a browser does not show, so that they sort by value. A longer range of
    integers is numbers: it is filtered by bounds and drawn to scale.

    TensorBoard's parallel coordinates leave out a trial that lacks a value. So a conditional setting, if it is text,
    has the value ``NOT_SEARCHED`` in trials that do not search it.
    """

    def __init__(self, name: str, dimension: Range | Choices) -> None:
        self.name = name
        self._dimension = dimension
        self._values = _listed_values(dimension)
        self._types = {type(value) for value in self._values or ()}

    def value(self, value: Any) -> bool | float | str:
        """Return a value of the setting as TensorBoard gets it."""
        if self._type == api_pb2.DATA_TYPE_BOOL:
            return bool(value)
        if self._type == api_pb2.DATA_TYPE_FLOAT64:
            return float(value) if isinstance(value, int | float) else math.nan  # which TensorBoard shows as missing
        if isinstance(value, str) and not self._quotes_text:
            return value
        return json.dumps(value).rjust(self._width)

    @property
    def default(self) -> str | None:
        """What is shown of a trial that does not search the setting; None: nothing."""
        return NOT_SEARCHED if self._dimension.when and self._type == api_pb2.DATA_TYPE_STRING else None

    @property
    def info(self) -> Any:
        """The column's ``HParamInfo``: type and domain."""
        info = api_pb2.HParamInfo(name=self.name, type=self._type, differs=True)
        if self._values is not None:
            default = [] if self.default is None else [self.default]
            info.domain_discrete.extend([*(self.value(value) for value in self._values), *default])
        elif isinstance(self._dimension, Range):
            info.domain_interval.min_value = self._dimension.low
            info.domain_interval.max_value = self._dimension.high
        return info

    @cached_property
    def _type(self) -> Any:
        if self._types == {bool} and not self._dimension.when:
            return api_pb2.DATA_TYPE_BOOL
        is_number = self._values is None or (float in self._types and self._types <= {int, float})
        return api_pb2.DATA_TYPE_FLOAT64 if is_number else api_pb2.DATA_TYPE_STRING

    @cached_property
    def _width(self) -> int:
        return max(len(str(value)) for value in self._values or ()) if self._types == {int} else 0

    @cached_property
    def _quotes_text(self) -> bool:
        """Whether a text among the choices reads like another choice, as "40" does beside 40."""
        texts = [value if isinstance(value, str) else json.dumps(value) for value in self._values or ()]
        return len(set(texts)) < len(texts)


@dataclass
class _Row:
    """What is shown of a trial that has not ended."""

    params: Mapping[str, Any]
    state: str | None = None  # None: nothing is written yet
    scores: dict[int, Mapping[str, float]] = field(default_factory=dict)  # by epoch; each better than the one before


class HparamsTable(TrialWatcher):
    """Writes the HPARAMS tab of a sweep and keeps it up to date.

    What cannot be written is missing in the tab, with a warning, and does not stop the sweep.

    Args:
        folder: contains the trials' folders.
        space: the searched settings.
        others: further settings that trials differ in.
        scores: names of scalars that are shown for each trial, beside the usual ones.
        copy: ``folder`` in shared storage, where the same is written, in the background.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        *,
        scores: Sequence[str],
        others: Mapping[str, Choices] | None = None,
        copy: SharedFolder | None = None,
    ) -> None:
        self._folder, self._copy = folder, copy
        self._dimensions = {**space.dimensions, **(others or {})}
        self._columns: dict[str, HparamsColumn] = {}
        self._scores = tuple(dict.fromkeys([*scores, *_SCORES]))
        self._rows: dict[int, _Row] = {}
        self._copier = ThreadPoolExecutor(1)  # one thread, so that the order of writes is kept
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        # Ray's Tuner pickles its searcher, and with it the ledger and its watcher, for Tuner.restore, never used here.
        return {}

    def open(self, study: optuna.Study) -> None:
        """Write the columns, and the rows of trials of earlier drivers as far as they are missing or outdated."""
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        dimensions = {**_earlier_dimensions(trials), **self._dimensions}
        self._columns = {name: HparamsColumn(name, dimension) for name, dimension in dimensions.items()}
        with self._warnings():
            is_changed = self._write_columns()
            for trial in trials:
                row = _row_of(trial)
                if trial.state == TrialState.RUNNING:
                    self._rows[trial.number] = row
                    self._show(trial.number, row, "interrupted")
                elif is_changed or not any((self._folder / str(trial.number)).glob(f"*{_ROW}")):
                    self._rows[trial.number] = row
                    self._end(trial.number, _ENDED[trial.state])
            self._remove_outdated()

    def started(self, number: int, params: Mapping[str, Any]) -> None:
        """Show a trial as running."""
        with self._warnings():
            row = self._rows.setdefault(number, _Row(params))
            row.params = params
            self._show(number, row, "running")

    def improved(self, number: int, epoch: int, scores: Mapping[str, float]) -> None:
        """Add the scores of a trial's best epoch so far."""
        with self._warnings():
            row = self._rows[number]
            row.scores[epoch] = scores
            file = self._changing_file(number, row)
            with file.open("ab") as events:
                events.write(encode_summaries(self._score_summaries({epoch: scores}), begins_file=False))
            self._copy_later(file)

    def ended(self, number: int, state: str) -> None:
        """Show how a trial ended; with shared storage, only once the trial's folder was copied."""
        with self._warnings():
            if state == "interrupted":
                self._show(number, self._rows.setdefault(number, _Row({})), state)
            else:
                self._end(number, state)

    def close(self) -> None:
        """Wait for the copies."""
        self._copier.shutdown(wait=True)
        for state in _CHANGING:
            with suppress(OSError):  # it is not empty, or was never made
                (self._folder / state).rmdir()

    def _show(self, number: int, row: _Row, state: str) -> None:
        """Write the row of a trial that has not ended."""
        if row.state == state:
            return
        previous, row.state = row.state, state
        if previous is not None:
            self._remove(previous, number)
        self._write(self._changing_file(number, row), self._row_summaries(row, state))

    def _end(self, number: int, state: str) -> None:
        """Write the row of an ended trial to the trial's own folder, in the file that is read last there."""
        row = self._rows.pop(number, _Row({}))  # unknown: its enqueued settings were refused
        if row.state is not None:
            self._remove(row.state, number)
        folder = self._folder / str(number)
        files = sorted(path.name for path in folder.glob(f"{EVENT_FILE}*"))
        last = files[-1] if files else EVENT_FILE
        self._write(folder / f"{last.removesuffix(_ROW)}{_ROW}", self._row_summaries(row, state))

    def _write_columns(self) -> bool:
        """Write the columns unless they are there already; return whether they have changed.

        Changed columns get another run, since TensorBoard keeps the first that it reads of one.
        """
        infos = [api_pb2.HParamInfo(name=STATE, type=api_pb2.DATA_TYPE_STRING, differs=True)]
        infos[0].domain_discrete.extend(_STATES)
        infos += [column.info for column in self._columns.values()]
        note = "the trial's epoch with the lowest val/loss"
        metrics = [
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=f"{BEST}{name}"), description=note) for name in self._scores
        ]
        experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
        digest = hashlib.sha256(experiment.SerializeToString(deterministic=True)).hexdigest()[:12]
        name = f"{EVENT_FILE}.{digest}"
        earlier = sorted(self._folder.glob(f"{_COLUMNS_RUN}*/{EVENT_FILE}*"))
        if [file.name for file in earlier] == [name]:
            return False
        for file in earlier:
            self._remove_run(file.parent.name)
        runs = (_COLUMNS_RUN, *(f"{_COLUMNS_RUN}-{n}" for n in range(2, len(earlier) + 3)))
        run = next(run for run in runs if run not in {file.parent.name for file in earlier})
        summary = _hparams_summary(metadata.EXPERIMENT_TAG, experiment=experiment)
        self._write(self._folder / run / name, [(0, summary)])
        return True

    def _row_summaries(self, row: _Row, state: str) -> list[tuple[int, Any]]:
        start = plugin_data_pb2.SessionStartInfo()
        values = {name: self._columns[name].value(v) for name, v in row.params.items() if name in self._columns}
        defaults = {name: column.default for name, column in self._columns.items() if column.default is not None}
        for name, value in {STATE: state, **defaults, **values}.items():
            kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
            setattr(start.hparams[name], kind, value)
        summaries = [_hparams_summary(metadata.SESSION_START_INFO_TAG, session_start_info=start)]
        if state in _STATUS:
            end = plugin_data_pb2.SessionEndInfo(status=_STATUS[state])
            summaries.append(_hparams_summary(metadata.SESSION_END_INFO_TAG, session_end_info=end))
        return [*((0, summary) for summary in summaries), *self._score_summaries(row.scores)]

    def _score_summaries(self, scores: Mapping[int, Mapping[str, float]]) -> list[tuple[int, Any]]:
        """Return the scalars of the best epochs; the step is the epoch."""
        return [
            (epoch, Summary(value=[Summary.Value(tag=f"{BEST}{name}", simple_value=found[name])]))
            for epoch, found in scores.items()
            for name in self._scores
            if name in found
        ]

    def _changing_file(self, number: int, row: _Row) -> Path:
        return self._folder / str(row.state) / str(number) / EVENT_FILE

    def _write(self, file: Path, summaries: Sequence[tuple[int, Any]]) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name("hparams.part")  # not a name that TensorBoard reads
        part.write_bytes(encode_summaries(summaries))
        part.replace(file)
        self._copy_later(file)

    def _copy_later(self, file: Path) -> None:
        run, copy = file.parent.relative_to(self._folder).parts, self._copy
        if copy is not None:
            self._later(lambda: copy.child(*run).write(file.name, file.read_bytes()) if file.exists() else None)

    def _remove(self, state: str, number: int) -> None:
        self._remove_run(f"{state}/{number}")

    def _remove_run(self, run: str) -> None:
        folder, copy = self._folder / run, self._copy
        names = [path.name for path in folder.glob("*")]
        shutil.rmtree(folder, ignore_errors=True)
        if copy is not None:
            self._later(lambda: copy.child(*run.split("/")).remove(*names))

    def _remove_outdated(self) -> None:
        """Remove rows that a killed driver left of trials that are in another state now."""
        for state in _CHANGING:
            for folder in (self._folder / state).glob("*"):
                if not folder.name.isdecimal() or getattr(self._rows.get(int(folder.name)), "state", None) != state:
                    self._remove_run(f"{state}/{folder.name}")

    def _later(self, work: Callable[[], object]) -> None:
        def do() -> None:
            with self._warnings():
                work()

        self._copier.submit(do)

    @contextmanager
    def _warnings(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # also of a value that TensorBoard's format cannot hold
            if not self._has_warned:
                kind = "" if isinstance(error, OSError | DiskError) else f"{type(error).__name__}: "
                logger.warning("TensorBoard's HPARAMS tab is incomplete: %s%s", kind, error)
            self._has_warned = True


def _listed_values(dimension: Range | Choices) -> tuple[Any, ...] | None:
    """Return all values of a dimension, or None if they are too many to list."""
    if isinstance(dimension, Choices):
        return dimension.values
    values = tuple(islice(dimension.all_values or (), _MOST_LISTED + 1)) if dimension.is_integer else ()
    return values if 0 < len(values) <= _MOST_LISTED else None


def _earlier_dimensions(trials: Sequence[FrozenTrial]) -> dict[str, Range | Choices]:
    """Return what trials were found to differ in, which the space of a resumed sweep may have dropped."""
    found: dict[str, list[Any]] = {}
    for trial in trials:
        for name, value in trial.user_attrs.get("params", {}).items():
            found.setdefault(name, []).append(value)
    return {name: _dimension_of(values) for name, values in found.items()}


def _dimension_of(values: Sequence[Any]) -> Range | Choices:
    if all(isinstance(value, float) for value in values):
        return Range(min(values), max(values))
    return Choices(tuple({json.dumps(value): value for value in values}.values()))


def _row_of(trial: FrozenTrial) -> _Row:
    attributes = trial.user_attrs
    scores = {attributes["best_epoch"]: attributes["metrics"]} if "metrics" in attributes else {}
    return _Row(attributes.get("params", {}), scores=scores)


def _hparams_summary(tag: str, **content: Any) -> Any:
    """Return the summary of one message of the HPARAMS plugin."""
    data = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)])
