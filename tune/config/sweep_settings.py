"""The settings of the search itself: its budget, sampler, pruner, storage, and the resources of each trial."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nuanced_core.config.settings import Settings
from tune.config.places import database_file
from tune.config.secrets import VARIABLE_NAME, is_variable

__all__ = ["SweepSettings"]

PositiveInt = Annotated[int, Field(ge=1)]
Hours = Annotated[float, Field(gt=0)]
NonEmpty = Annotated[str, Field(min_length=1)]
Logger = Literal["tensorboard", "mlflow", "wandb"]
Objective = Literal["val/loss", "val/stft", "val/style", "train/seconds_per_step"]


class SweepSettings(Settings):
    """The ``sweep`` section of a YAML file: how the space is searched, and with which resources."""

    trials: PositiveInt | None = Field(
        default=20,
        description="budget: number of trials, failed ones included unless they are run again; null: until the hours "
        "are used up",
    )
    hours: Hours | None = Field(
        default=None, description="budget: hours after which no trial starts, summed over resumptions"
    )
    gpu_hours: Hours | None = Field(
        default=None, description="budget: GPU hours of all trials; a share of a GPU counts as a share of an hour"
    )
    objectives: tuple[Objective, ...] = Field(
        default=("val/loss",),
        min_length=1,
        description="what is minimised; several give a Pareto front instead of one best trial, without pruning",
    )
    sampler: Literal["tpe", "random", "cmaes", "gp", "qmc", "grid"] = Field(
        default="tpe",
        description="sampler that chooses the settings of each trial; grid: all combinations, in random order",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the sampler")
    pruner: Literal["halving", "hyperband", "median", "patience", "none"] = Field(
        default="halving", description="pruner that stops poor trials early"
    )
    patience: PositiveInt = Field(
        default=3, description="pruner patience: epochs without improvement before a trial is stopped"
    )
    enqueue: tuple[dict[str, Any], ...] = Field(
        default=(), description="settings to try first, by dotted name; settings left out are sampled"
    )
    warm_start: str | None = Field(
        default=None, description="folder of another sweep, whose best settings are tried first"
    )
    warm_start_trials: PositiveInt = Field(default=3, description="number of trials taken from warm_start")
    repeats: PositiveInt = Field(
        default=1,
        description="number of seeds (train.seed and the next ones) that settings are trained with and whose mean is "
        "compared; each is a trial of the budget, and settings whose first trial was pruned are not repeated",
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(
        default=2, description="how often a trial whose process dies is restarted from its checkpoint"
    )
    stop_after_failures: Annotated[int, Field(ge=0)] = Field(
        default=5, description="stop the sweep if its first trials fail, this many of them; 0: never"
    )
    storage: str | None = Field(
        default=None,
        description="SQLAlchemy URL of a database for the study, or env:NAME for the URL in the environment variable "
        "NAME; a relative SQLite file lies in the sweep's folder; null: a journal file there",
    )
    study_name: str | None = Field(
        default=None, description="name of the study in the database; null: the folder's name"
    )
    cpus_per_trial: Annotated[float, Field(gt=0)] = Field(
        default=1, description="CPU cores of a trial, also the number of torch threads"
    )
    gpus_per_trial: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        default=0.0,
        description="GPUs of a trial; with a fraction, trials share a GPU; auto: the share that a measured step needs",
    )
    memory_per_trial: Annotated[float, Field(gt=0)] | Literal["auto"] | None = Field(
        default="auto",
        description="memory of a trial's process in GB; as many run at one time as it allows; auto: estimated for the "
        "largest trial; null: memory does not limit trials",
    )
    max_concurrent: PositiveInt | None = Field(
        default=None, description="most trials at one time; null: as many as fit"
    )
    outputs: NonEmpty = Field(default="outputs", description="folder that holds the sweeps' folders")
    shared: NonEmpty | None = Field(
        default=None,
        description="path or fsspec URL that all nodes can reach, to which trials' folders are copied, or env:NAME for "
        "that in the environment variable NAME; null: all nodes can reach outputs",
    )
    loggers: tuple[Logger, ...] = Field(
        default=("tensorboard",),
        description="where trials' curves, sounds and pictures are written; mlflow and wandb are extras, which find "
        "their servers by their own environment variables",
    )
    keep_checkpoints: Literal["best_and_last", "best"] = Field(
        default="best_and_last", description="checkpoints kept of a finished trial; a running one has both"
    )
    keep_trials: PositiveInt | None = Field(
        default=None, description="number of best trials whose checkpoints are kept; null: all"
    )

    @property
    def gpus(self) -> float:
        """``gpus_per_trial`` as a number; 0 for ``auto``, until the driver has replaced it by the measured share."""
        return 0.0 if self.gpus_per_trial == "auto" else self.gpus_per_trial

    @property
    def memory(self) -> int:
        """``memory_per_trial`` in bytes; 0 for null, and for ``auto`` until the driver has replaced it."""
        return int(self.memory_per_trial * 1e9) if isinstance(self.memory_per_trial, int | float) else 0

    @field_validator("storage", "shared")
    @classmethod
    def _names_variable(cls, value: str | None) -> str | None:
        if is_variable(value) and not VARIABLE_NAME.fullmatch(str(value)):
            raise ValueError("not the name of an environment variable; write env:NAME")
        return value

    @field_validator("storage")
    @classmethod
    def _is_database(cls, value: str | None) -> str | None:
        if value is not None and not is_variable(value):
            database_file(value)
        return value

    @field_validator("loggers")
    @classmethod
    def _each_once(cls, value: tuple[Logger, ...]) -> tuple[Logger, ...]:
        if len(set(value)) < len(value):
            raise ValueError("one is listed twice; name each once")
        return value

    @model_validator(mode="after")
    def _whole_or_shared(self) -> "SweepSettings":
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus_per_trial {self.gpus:g} is neither a share of one GPU nor a whole number")
        return self

    @model_validator(mode="after")
    def _bounded(self) -> "SweepSettings":
        if self.trials is None and self.hours is None and self.gpu_hours is None and self.sampler != "grid":
            raise ValueError("trials, hours and gpu_hours are all null, so the sweep would never end; set one of them")
        if self.gpu_hours is not None and not self.gpus_per_trial:  # auto may find a GPU
            raise ValueError("gpu_hours would never be used up while gpus_per_trial is 0; set hours instead")
        return self

    @model_validator(mode="after")
    def _several_objectives(self) -> "SweepSettings":
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: one is listed twice; name each once")
        if len(self.objectives) == 1 and self.objectives != ("val/loss",):
            raise ValueError(
                f"objectives: {self.objectives[0]} alone: a single objective is val/loss, whose terms the section "
                "objective weighs; list several, or leave it out"
            )
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(f"several objectives cannot be pruned by one of them; set pruner none, not {self.pruner}")
        if len(self.objectives) > 1 and self.sampler == "cmaes":
            raise ValueError("sampler cmaes takes one objective; take tpe, gp, qmc or random")
        if len(self.objectives) > 1 and self.repeats > 1:
            raise ValueError("repeats compares means of val/loss, not of several objectives; leave it out")
        if self.repeats > 1 and self.keep_trials is not None:
            raise ValueError(
                "keep_trials keeps the trials with the lowest loss, which need not be those with the lowest mean of "
                "their repeats; leave one of the two out"
            )
        if len(self.objectives) > 1 and self.keep_trials is not None:
            raise ValueError(
                "keep_trials keeps the best trials, but with several objectives there is no best one; leave it out"
            )
        return self
