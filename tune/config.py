"""The settings of a sweep: one YAML file holds a run's sections, what is searched, and how."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nuanced_core.config import (
    RunConfig,
    Settings,
    apply_overrides,
    dotted_names,
    nearest,
    read_yaml,
    validate,
)
from nuanced_core.errors import ConfigError
from tune.space import Space

__all__ = ["SETTINGS_FILE", "SweepConfig", "SweepSettings", "as_override", "load", "load_run", "load_sweep"]

SETTINGS_FILE = "sweep.yaml"  # in the folder of a sweep

# "record" is what a finished sweep's sweep.yaml adds to its settings, so that such a file can be run again.
_SWEEP_SECTIONS = ("search", "sweep", "record")

PositiveInt = Annotated[int, Field(ge=1)]
Hours = Annotated[float, Field(gt=0)]
Objective = Literal["val/loss", "val/stft", "val/style", "train/seconds_per_step"]


class SweepSettings(Settings):
    """How a space is searched, and with what."""

    trials: PositiveInt | None = Field(
        default=20, description="budget: trials that are run, failed ones included; null: until the hours are used up"
    )
    hours: Hours | None = Field(default=None, description="budget: no trial begins later, all resumptions together")
    gpu_hours: Hours | None = Field(default=None, description="budget: hours of whole GPUs that trials have used")
    objectives: tuple[Objective, ...] = Field(
        default=("val/loss",),
        min_length=1,
        description="what is minimised; of several there is a Pareto front instead of one best trial, and no pruning",
    )
    sampler: Literal["tpe", "random", "cmaes", "gp", "qmc"] = Field(
        default="tpe", description="what decides which settings to try"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the sampler")
    pruner: Literal["halving", "hyperband", "median", "patience", "none"] = Field(
        default="halving", description="what stops poor trials early"
    )
    patience: PositiveInt = Field(default=3, description="of pruner patience: epochs that may bring nothing better")
    enqueue: tuple[dict[str, Any], ...] = Field(
        default=(), description="settings that are tried first, by dotted name; what they leave out is drawn"
    )
    warm_start: str | None = Field(default=None, description="folder of another sweep, whose best settings come first")
    warm_start_trials: PositiveInt = Field(default=3, description="how many of them")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        default=2, description="how often a trial whose process dies goes on from its checkpoint"
    )
    stop_after_failures: Annotated[int, Field(ge=0)] = Field(
        default=5, description="the sweep stops if so many trials fail before one does not; 0: never"
    )
    storage: str | None = Field(
        default=None, description="SQLAlchemy URL of a database for the study; null: a journal file in the folder"
    )
    study_name: str | None = Field(default=None, description="in that database; null: the folder's name")
    cpus_per_trial: Annotated[float, Field(gt=0)] = Field(default=1, description="CPU cores, also torch's threads")
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default=0.0, description="GPUs; a fraction lets trials share one; auto: the share that a measured step needs"
    )
    max_concurrent: PositiveInt | None = Field(default=None, description="trials at one time; null is as many as fit")
    outputs: str = Field(default="outputs", min_length=1, description="folder that holds the sweeps")
    shared: str | None = Field(
        default=None,
        min_length=1,
        description="path or fsspec URL that all nodes reach, for copies of trials' folders; null: they see outputs",
    )
    keep_checkpoints: Literal["best_and_last", "best"] = Field(
        default="best_and_last", description="of a trial that has ended; one that is under way has both"
    )
    keep_trials: PositiveInt | None = Field(
        default=None, description="trials whose checkpoints are kept, the best so many; null: all"
    )

    @property
    def gpus(self) -> float:
        """``gpus_per_trial`` as a number, which the driver has put in the place of ``auto``."""
        return 0.0 if self.gpus_per_trial == "auto" else self.gpus_per_trial

    @model_validator(mode="after")
    def _whole_or_shared(self) -> "SweepSettings":
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus_per_trial {self.gpus:g} is neither a share of one GPU nor whole")
        return self

    @model_validator(mode="after")
    def _bounded(self) -> "SweepSettings":
        if self.trials is None and self.hours is None and self.gpu_hours is None:
            raise ValueError("trials, hours and gpu_hours are all null, so the sweep would never end; set one of them")
        if self.gpu_hours is not None and not self.gpus_per_trial:  # auto may find a GPU
            raise ValueError("gpu_hours would never be used up while gpus_per_trial is 0; set hours instead")
        return self

    @model_validator(mode="after")
    def _several_objectives(self) -> "SweepSettings":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: one stands twice; name each once")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(f"several objectives cannot be pruned by one of them; set pruner none, not {self.pruner}")
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError("sampler cmaes takes one objective; take tpe, gp, qmc or random")
        if len(self.objectives) > 1 and self.keep_trials is not None:
            raise ValueError(
                "keep_trials keeps the best ones, and of several objectives none is the best; leave it out"
            )
        return self


@dataclass(frozen=True)
class SweepConfig:
    """One sweep, whole: the run that its trials vary, what they vary, and how they are chosen."""

    run: RunConfig
    search: Space
    sweep: SweepSettings

    def on_gpus(self, share: float) -> "SweepConfig":
        """With so many GPUs for each trial, in the place of ``gpus_per_trial: auto``."""
        sweep = self.sweep.model_copy(update={"gpus_per_trial": share})
        return replace(self, run=_on_device(self.run, "cuda" if share else "cpu"), sweep=sweep)

    def runs_to_prepare(self) -> list[RunConfig]:
        """The runs whose data and models the trials need, each combination once."""
        return self.search.variants(self.run)

    def check_extends(self, before: "SweepConfig") -> None:
        """Refuse what trials of ``before`` and trials of this sweep could not be compared by, or sampled from.

        Raises:
            ConfigError: one line that names the setting, what it was and what it would be.
        """
        fixed = {
            "objective": (before.run.objective, self.run.objective),
            **{
                f"data.{name}": (getattr(before.run.data, name), getattr(self.run.data, name))
                for name in ("val_voices", "val_sentences", "val_sentences_per_voice", "max_phonemes", "seed")
            },
            "sweep.objectives": (before.sweep.objectives, self.sweep.objectives),
            "sweep.storage": (before.sweep.storage, self.sweep.storage),
        }
        for name, (old, new) in fixed.items():
            if old != new:
                raise ConfigError(f"{name}: was {old}, would be {new}: trials could not be compared; begin a new sweep")
        if before.sweep.shared != self.sweep.shared:
            raise ConfigError(
                f"sweep.shared: was {before.sweep.shared}, would be {self.sweep.shared}: trials in flight would not "
                "find their checkpoints; leave it as it was"
            )
        self.search.check_extends(before.search)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, in the form that ``load_sweep`` reads."""
        return {
            **self.run.model_dump(mode="json"),
            "search": self.search.as_dict(),
            "sweep": self.sweep.model_dump(mode="json"),
        }


class _SweepSection(Settings):
    """The section under its name, so that errors say ``sweep.trials``."""

    sweep: SweepSettings = SweepSettings()


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> SweepConfig:
    """The sweep in the YAML file ``path`` with ``section.name=value`` overrides, all of it checked.

    Raises:
        ConfigError: one line that names the file, the first wrong setting and the nearest right name.
    """
    run_data, search_data, sweep_data = _read(path, overrides)
    run = validate(RunConfig, run_data, str(path))
    sweep = validate(_SweepSection, {"sweep": sweep_data}, str(path)).sweep
    run = _on_its_device(run, sweep, str(path))
    search = Space.parse(search_data, run, str(path))
    _refuse_fixed_and_searched(search, overrides)
    return SweepConfig(run, search, sweep)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run in ``path``, which may be a sweep's file: what concerns the search is left out.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    return validate(RunConfig, _read(path, overrides)[0], str(path))


def load(path: Path) -> SweepConfig | RunConfig:
    """What ``path`` describes: a sweep if it says what is searched, else one run.

    Raises:
        ConfigError: as ``load_sweep``.
    """
    return load_sweep(path) if read_yaml(path).get("search") else load_run(path)


def _read(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """What the file says about the run, the search and the sweep."""
    data = apply_overrides(read_yaml(path), overrides)
    sections = [*RunConfig.model_fields, *_SWEEP_SECTIONS]
    names = [*sections, *dotted_names(RunConfig), *dotted_names(_SweepSection)]
    for name in data:
        if name not in sections:
            raise ConfigError(f"{path}: {name}: unknown setting; {nearest(name, names)}")
    run = {name: value for name, value in data.items() if name not in _SWEEP_SECTIONS}
    sweep = data.get("sweep")
    return run, data.get("search"), {} if sweep is None else sweep


def _on_its_device(run: RunConfig, sweep: SweepSettings, place: str) -> RunConfig:
    """``run`` on what its trials are given, so that driver and trials render for the same device."""
    if sweep.gpus_per_trial == "auto":
        return run
    given = "cuda" if sweep.gpus_per_trial else "cpu"
    if run.train.device not in ("auto", given):
        raise ConfigError(
            f"{place}: train.device: {run.train.device!r}: sweep.gpus_per_trial {sweep.gpus_per_trial:g} gives each "
            f"trial {given!r}; take auto, or change sweep.gpus_per_trial"
        )
    return _on_device(run, given)


def _on_device(run: RunConfig, device: str) -> RunConfig:
    return run.model_copy(update={"train": run.train.model_copy(update={"device": device})})


def _refuse_fixed_and_searched(search: Space, overrides: Sequence[str]) -> None:
    """A searched setting that the user also fixes would silently not be fixed."""
    fixed: Mapping[str, str] = {o.partition("=")[0].strip(): o.partition("=")[2] for o in overrides}
    for name in search.names:
        if name in fixed:
            raise ConfigError(
                f"--set {name}={fixed[name]}: this setting is searched; "
                f"take it out of the search with --set search.{name}=null"
            )


def as_override(name: str, value: str | float | None) -> str:
    """``name=value`` for the overrides, whatever characters the value holds."""
    return f"{name}={json.dumps(value)}"
