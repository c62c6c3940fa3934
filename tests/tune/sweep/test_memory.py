"""The memory of trials: what a sweep says and reserves, on a real Ray whose machine has 8 GB for trials."""

from pathlib import Path

import pytest
import ray
import yaml

from nuanced_core.errors import ConfigError
from tests.tune import toy
from tests.tune.conftest import MEMORY, logged, sweep
from tune.config.sweep_config import load_sweep_config
from tune.config.sweep_settings import SweepSettings
from tune.sweep.driver import resume_sweep, run_sweep
from tune.sweep.trials import _trial_resources

SPACE = """
train: {epochs: 1}
search:
  train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}
sweep: {trials: 2, sampler: random, pruner: none}
"""


def test_ray_has_the_memory_of_the_machine_and_each_trial_reserves_its_own(ray_session: None) -> None:
    assert ray.cluster_resources()["memory"] == MEMORY
    trial = {"gpus": 0.5}
    assert _trial_resources(SweepSettings(memory_per_trial=2.5), trial) == {"CPU": 1, "GPU": 0.5, "memory": 2.5e9}
    assert _trial_resources(SweepSettings(memory_per_trial=None), trial) == {"CPU": 1, "GPU": 0.5}


def test_memory_limits_the_trials_at_a_time_which_is_said_and_estimated_anew_on_resumption(
    ray_session: None, tmp_path: Path
) -> None:
    first, lines = sweep(SPACE, tmp_path, "train.spoken=4")
    assert lines[0] == f"sweep {first.folder}: 2 trials, 2 at a time (CPU cores: 2 for trials of 1)"
    file = first.folder / "sweep.yaml"
    saved = yaml.safe_load(file.read_text())
    assert saved["sweep"].pop("memory_per_trial") == "auto"
    file.write_text(yaml.safe_dump(saved))  # as an earlier version wrote it
    with logged() as lines:
        resume_sweep(first.folder, overrides=["sweep.trials=4", "train.spoken=20"], services=toy.services())
    assert any("4 trials, 1 at a time (memory: 8.0 GB for trials of " in line for line in lines), lines
    assert yaml.safe_load(file.read_text())["sweep"]["memory_per_trial"] == "auto"


def test_a_sweep_whose_trials_do_not_fit_is_refused_before_anything_is_written(
    ray_session: None, tmp_path: Path
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(SPACE)
    config = load_sweep_config(file, [f"sweep.outputs={tmp_path / 'outputs'}", "train.spoken=60"])
    with pytest.raises(
        ConfigError, match=r"sweep\.memory_per_trial: \d+\.\d GB: this machine has 8\.0 GB for trials; low"
    ):
        run_sweep(config, name="toy", services=toy.services())
    assert not (tmp_path / "outputs").exists()
    config = config.with_memory_per_trial(4.0)
    assert run_sweep(config, name="toy", services=toy.services()).status["state"] == "finished"
