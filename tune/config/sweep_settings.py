"""TODO."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nuanced_core.config.settings import Settings

__all__ = ["SweepSettings"]

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
