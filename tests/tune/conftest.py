"""One Ray on this machine for all tests of this folder, and the sweeps that several tests look at."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tune import toy
from tune.cluster.machines import Resources, ThisMachine
from tune.config.sweep_config import load_sweep_config
from tune.sweep.driver import SweepResult, run_sweep

MEMORY = int(8e9)  # bytes that trials have, whatever the machine
MIXED = f"""
train: {{epochs: 4}}
search:
  train.learning_rate: {{low: 1.0e-5, high: 1.0e-1, log: true}}
  encoder.width: [64, {toy.TRAINING_ERROR}, {toy.NAN}, {toy.CRASH}, {toy.KILLED}]
  data.voices: [original, [af_heart, am_adam]]
# This seed suggests each width at least once, and the two that cost a process only once.
sweep: {{trials: 9, sampler: random, seed: 67, pruner: none}}
"""
PRUNED = """
train: {epochs: 4}
search:
  train.learning_rate: {low: 1.0e-5, high: 1.0e-1, log: true}
sweep: {trials: 10, sampler: tpe, seed: 0, pruner: halving}
"""


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = str(Path(__file__).parents[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
        patch.setenv("RAY_enable_worker_prestart", "0")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path_factory.mktemp("token") / "auth_token"))
        patch.setattr("tune.cluster.machines.local_resources", lambda: Resources(cpus=2, gpus=0, memory=MEMORY))
        with ThisMachine().started():
            yield


def sweep(text: str, folder: Path, *overrides: str) -> tuple[SweepResult, list[str]]:
    """Run the toy sweep that the YAML ``text`` describes; return its result, and its log and report."""
    file = folder / "toy.yaml"
    file.write_text(text)
    config = load_sweep_config(file, [*overrides, f"sweep.outputs={folder}"])
    with logged() as lines:
        result = run_sweep(config, name="toy", services=toy.services())
    return result, [*lines, *result.lines]


@contextmanager
def logged() -> Iterator[list[str]]:
    """What tune and nuanced_core log meanwhile, also in fixtures of a session, where there is no caplog."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("tune", "nuanced_core")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


@pytest.fixture(scope="session")
def mixed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, list[str]]:
    """A sweep in which trials end in every way but pruning."""
    return sweep(MIXED, tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="session")
def pruned(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, list[str]]:
    """A sweep with a pruner, in which nothing fails."""
    return sweep(PRUNED, tmp_path_factory.mktemp("pruned"))
