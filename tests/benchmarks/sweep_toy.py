"""The objective of the sweep benchmark, as a run of this project's sweep and as a trainable of Ray Tune.

Workers import this file, so it imports little itself.
"""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.tune as ray_tune

if TYPE_CHECKING:
    from nuanced_core.config.settings import RunConfig
    from tune.trial.protocol import Report

__all__ = ["SPACE", "ToyRun", "ToyTrainable"]

SPACE = """
search:
  train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}
  encoder.width: {low: 32, high: 512}
  train.batch_size: {low: 4, high: 64}
  encoder.pooling: [mean, mean_std, max]
"""


def _toy_epoch(rate: float, width: int, batch: int, pooling: str, epoch: int, sleep: float) -> dict[str, float]:
    """Sleep for ``sleep`` seconds and return the scalars of an epoch, with its start and end (Unix time)."""
    started = time.time()
    if sleep:
        time.sleep(sleep)
    distance = (
        (math.log10(rate) + 3) ** 2 + (width / 256 - 1) ** 2 + (batch / 32 - 1) ** 2 + (pooling != "mean_std") / 2
    )
    return {"val/loss": distance + 1 / epoch, "toy/started": started, "toy/ended": time.time()}


class ToyRun:
    """The toy as a run of ``run_sweep``."""

    def __init__(self, config: "RunConfig", folder: Path, report: "Report", *, sleep: float) -> None:
        self.config, self.sleep = config, sleep
        self.epoch, self.scalars = 0, dict[str, float]()

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.train.epochs

    def run_epoch(self) -> dict[str, float]:
        self.epoch += 1
        encoder, train = self.config.encoder, self.config.train
        params = train.learning_rate, encoder.width, train.batch_size, encoder.pooling
        self.scalars = _toy_epoch(*params, self.epoch, self.sleep)
        return self.scalars

    def close(self) -> None: ...


class ToyTrainable(ray_tune.Trainable):  # type: ignore[misc]
    """The toy as a trainable of Ray Tune."""

    def setup(self, config: dict[str, Any], *, epochs: int, sleep: float) -> None:
        self._params, self._epochs, self._sleep, self._epoch = config, epochs, sleep, 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._params, self._epoch = new_config, 0
        return True

    def step(self) -> dict[str, Any]:
        self._epoch += 1
        scalars = _toy_epoch(**self._params, epoch=self._epoch, sleep=self._sleep)
        return {**scalars, "done": self._epoch >= self._epochs}
