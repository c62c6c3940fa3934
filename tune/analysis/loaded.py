"""A sweep read from its folder, for notebooks and for the report: while it runs, finished, interrupted or empty."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pandas as pd
import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import read_yaml
from nuanced_core.errors import ConfigError
from nuanced_core.paths import user_path
from tune.analysis.figures import FigureSource, Importance, figures, importance, slices
from tune.analysis.tables import PREDICTORS, baselines_frame, leading_trials, trials_frame
from tune.analysis.trial_files import TrialFolders, read_curves
from tune.config.sweep_config import SETTINGS_FILE, SweepConfig, load_run, parse_sweep
from tune.search.results import best_trial
from tune.search.study import METRIC, read_study
from tune.show.status import study_status
from tune.trial.checkpoints import best_checkpoint
from tune.trial.protocol import CONFIG_FILE

if TYPE_CHECKING:
    from nuanced_core.encoder.style_encoder import StyleEncoder

__all__ = ["BestTrial", "LoadedSweep", "load_sweep"]

logger = logging.getLogger(__name__)


def load_sweep(folder: str | Path) -> "LoadedSweep":
    """Read the sweep in ``folder``, in whatever state it is; load it again to see what has happened since.

    Raises:
        ConfigError: ``folder`` holds no sweep.
    """
    folder = user_path(folder)
    study = read_study(folder)
    file = folder / SETTINGS_FILE
    data = read_yaml(file) if file.is_file() else {}
    record = data.get("record")
    return LoadedSweep(
        folder,
        study,
        parse_sweep(data, str(file)) if data else None,
        record if isinstance(record, dict) else {},
    )


class LoadedSweep:
    """A sweep as it was when it was read.

    Attributes:
        folder: of the sweep.
        study: a copy of its Optuna study.
        config: its settings; None if ``sweep.yaml`` is missing.
        record: ``started``, ``git_commit``, ``versions`` and ``models`` (SHA-256 by file), as far as they are known.
        status: as ``tune.status`` returns it.
    """

    def __init__(
        self, folder: Path, study: optuna.Study, config: SweepConfig | None, record: Mapping[str, Any]
    ) -> None:
        self.folder, self.study, self.config, self.record = folder, _copy_in_memory(study), config, record
        self.status = study_status(self.study)
        self.frozen: list[FrozenTrial] = self.study.get_trials(deepcopy=False)
        self._folders = TrialFolders(folder, None if config is None else config.sweep.shared)

    def __repr__(self) -> str:
        return f"<LoadedSweep {str(self.folder)!r}: {self.status['state']}, {len(self.frozen)} trials>"

    def trials(self) -> pd.DataFrame:
        """Return a row per trial.

        Columns: ``number``, ``state``, ``value`` (``val/loss``), ``epochs``, ``seconds``, ``gpu_hours``, a column per
        searched setting (missing where a trial does not search it), a column per metric of the trial's best epoch such
        as ``val/skill``, and ``error``.
        """
        gpus = 0.0 if self.config is None else self.config.sweep.gpus
        return trials_frame(self.frozen, self.status["trials"], gpus)

    def curves(self, tags: Sequence[str] | None = None) -> pd.DataFrame:
        """Return the scalars of the trials' TensorBoard files, a row per point.

        Args:
            tags: names such as ``val/loss``; all if None.

        Returns:
            the columns ``trial``, ``tag``, ``step``, ``wall_time`` (seconds since 1970) and ``value``; no rows of a
            trial whose folder cannot be read here.
        """
        return read_curves({trial.number: self.trial_folder(trial.number) for trial in self.frozen}, tags)

    def baselines(self) -> pd.DataFrame:
        """Return the best trial, or the best so far, beside the baselines that it knows.

        A row per predictor (mean voice, nearest voice, ridge regression, oracle), a column per term (``loss``,
        ``stft``, ``style``, and of people ``identity`` and ``pitch``). A higher identity is better; lower is better in
        the other terms.
        """
        return baselines_frame(self.study)

    @cached_property
    def figures(self) -> dict[str, go.Figure]:
        """Plotly figures by name, as far as the trials allow them.

        ``history``, ``importance``, ``slices``, ``contour``, ``parallel``, ``curves``, ``pareto``.
        """
        return figures(self._source)

    @cached_property
    def slices(self) -> dict[str, go.Figure]:
        """A Plotly figure per searched setting: its values and the objective of the complete trials that have them."""
        return slices(self._source)

    @cached_property
    def importance(self) -> Importance | None:
        """How much each setting matters, by PED-ANOVA; None if there are too few complete trials to tell."""
        return importance(self._source)

    @cached_property
    def best(self) -> "BestTrial | None":
        """The complete trial with the lowest ``val/loss``; None while no trial is complete."""
        trial = best_trial(self.study)
        return None if trial is None else BestTrial(self, trial)

    @cached_property
    def leading(self) -> list[FrozenTrial]:
        """The complete trials by rank, then pruned and running ones by their ``val/loss``."""
        return leading_trials(self.study)

    @property
    def objectives(self) -> list[str]:
        """What is minimised."""
        return list(self.study.user_attrs.get("objectives", [METRIC]))

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial, which need not exist; with ``sweep.shared`` that on the disk named there."""
        return self._folders.of(number, has_ended=self.frozen[number].state.is_finished())

    @property
    def _source(self) -> FigureSource:
        metrics = self.leading[0].user_attrs.get("metrics", {}) if self.leading else {}
        return FigureSource(
            study=self.study,
            trials=self.frozen,
            states=self.status["trials"],
            objectives=self.objectives,
            baselines={name: metrics[f"{name}/loss"] for name in PREDICTORS if f"{name}/loss" in metrics},
            best=None if self.best is None else self.best.number,
            curves=lambda: self.curves([METRIC]),
        )


def _copy_in_memory(study: optuna.Study) -> optuna.Study:
    """Return a copy that does not change while the sweep goes on."""
    copy = optuna.create_study(study_name=study.study_name, directions=study.directions)
    for name, value in study.user_attrs.items():
        copy.set_user_attr(name, value)
    copy.add_trials(study.get_trials(deepcopy=False))
    return copy


class BestTrial:
    """The best trial of a sweep.

    Attributes:
        number: of the trial.
        params: its searched settings, by dotted name.
        value: its ``val/loss``.
        metrics: scalars of its best epoch.
    """

    def __init__(self, sweep: LoadedSweep, trial: FrozenTrial) -> None:
        self._sweep = sweep
        self.number = trial.number
        self.params: dict[str, Any] = dict(trial.user_attrs["params"])
        self.value: float = sweep.status["trials"][trial.number]["value"]
        self.metrics: dict[str, float] = dict(trial.user_attrs.get("metrics", {}))

    def __repr__(self) -> str:
        return f"<BestTrial {self.number}: {METRIC} {self.value:.4f}>"

    def config(self) -> RunConfig:
        """Return the settings of the trial's run.

        Raises:
            ConfigError: neither the trial's folder nor the sweep's has its settings file.
        """
        file = self._sweep.trial_folder(self.number) / CONFIG_FILE
        if file.is_file():
            return load_run(file)
        config = self._sweep.config
        if config is None:
            raise ConfigError(f"{file}: no such file, and no {SETTINGS_FILE} beside the study; restore one of them")
        return config.search.apply(config.run, self.params)

    def encoder(self) -> "StyleEncoder":
        """Return the encoder of the trial's best checkpoint, in eval mode.

        Raises:
            ConfigError: the trial's checkpoint was removed, or is of another version of this project.
            WeightsError: the checkpoint is damaged.
        """
        from nuanced_core.encoder.checkpoint import encoder_of_checkpoint

        return encoder_of_checkpoint(best_checkpoint(self._sweep.folder, self.number).file)
