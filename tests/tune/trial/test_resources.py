"""tune.trial.resources: the share of a GPU that is derived from what a step held, and memory; the GPU is pretended."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError
from nuanced_core.training.memory import estimated_host_memory, estimated_memory
from tests.tune.conftest import logged
from tune.cluster.machines import Resources
from tune.config.sweep_config import load_sweep_config, parse_sweep
from tune.trial.resources import (
    CONTEXT,
    HEADROOM,
    SHARES,
    Peak,
    largest_run,
    measure_peak,
    share_for,
    with_estimated_memory,
    with_whole_gpus,
)

CARD = int(24e9)
SWEEP = """
search:
  encoder.width: [64, 2048]
  train.spoken: {low: 1, high: 8}
  train.learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
sweep: {gpus_per_trial: auto, trials: 2}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(SWEEP)
    return path


@pytest.mark.parametrize("held", [0.2e9, 1e9, 3e9, 6e9, 11e9, 17e9, 23e9])
def test_the_share_holds_what_was_measured_with_headroom_and_is_the_smallest_such(held: float) -> None:
    share = share_for(Peak(int(held), CARD))
    needed = (held + CONTEXT) / CARD * HEADROOM
    assert share >= needed or share == 1.0
    smaller = [other for other in SHARES if other < share]
    assert not smaller or max(smaller) < needed


def test_a_step_that_no_gpu_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes 23\.9 GB and more than the 24\.0 of the GPU; lower train\.spoken"):
        share_for(Peak(int(23.9e9), CARD))


def test_the_largest_trial_of_the_space_is_measured(file: Path) -> None:
    config = load_sweep_config(file)
    largest = largest_run(config)
    assert (largest.encoder.width, largest.train.spoken) == (2048, 8)
    assert estimated_memory(largest) > estimated_memory(config.run)


LARGE = Resources(cpus=2, gpus=1, memory=int(64e9), memory_limit=int(64e9))


def test_the_memory_of_the_largest_trial_replaces_auto(file: Path) -> None:
    config = load_sweep_config(file, ["sweep.gpus_per_trial=0"])
    needed = with_estimated_memory(config, [LARGE]).sweep.memory
    assert 0 <= needed - estimated_memory(largest_run(config)) < 1e8
    on_gpu = load_sweep_config(file, ["sweep.gpus_per_trial=0.5"])
    assert (
        0
        <= with_estimated_memory(on_gpu, [LARGE]).sweep.memory - estimated_host_memory(on_gpu.run)
        < 1e8
        < needed - 2e9
    )
    for given, number in (("1.5", 1.5), ("null", None)):
        config = load_sweep_config(file, [f"sweep.memory_per_trial={given}"])
        assert with_estimated_memory(config, [LARGE]).sweep.memory_per_trial == number


def test_one_trial_at_a_time_runs_where_other_programs_use_the_memory(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_sweep_config(file, ["sweep.gpus_per_trial=0"])
    needed = with_estimated_memory(config, [LARGE]).sweep.memory
    busy = Resources(cpus=8, gpus=0, memory=int(1.27e9), memory_limit=needed)
    found = with_estimated_memory(config, [busy]).sweep
    assert (found.memory, busy.capacity(found)) == (int(1.2e9), 1)
    assert "other programs leave 1.2 of the" in caplog.text and "one runs at a time" in caplog.text
    # A machine that is too small, or has nothing left, and a node, whose memory is what Ray says.
    for other in (replace(busy, memory_limit=needed - 1), replace(busy, memory=0), replace(busy, node="1")):
        assert other.capacity(with_estimated_memory(config, [other]).sweep) == 0


def test_without_a_gpu_trials_run_on_the_cpu_which_is_logged(file: Path) -> None:
    with logged() as lines:
        config, measured = with_whole_gpus(load_sweep_config(file), [Resources(cpus=2, gpus=0)])
    assert (config.sweep.gpus_per_trial, config.run.train.device, measured) == (0.0, "cpu", False)
    assert lines == ["sweep.gpus_per_trial: auto: no GPU, so trials run on the CPU"]
    hours = load_sweep_config(file, ["sweep.trials=null", "sweep.gpu_hours=1"])
    with pytest.raises(ConfigError, match=r"never be used up without a GPU; set sweep\.hours"):
        with_whole_gpus(hours, [Resources(cpus=2, gpus=0)])


def test_a_sweep_that_requires_a_gpu_does_not_fall_back_to_the_cpu(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"auto: there is no GPU, which train\.device: cuda requires"):
        with_whole_gpus(load_sweep_config(file, ["train.device=cuda"]), [Resources(2, 0)])
    head = Resources(4, 0, "head", "1")  # of a cluster whose other nodes are yet to come
    with pytest.raises(ConfigError, match="no node with a GPU is there yet to measure a step on"):
        with_whole_gpus(load_sweep_config(file, ["sweep.max_concurrent=4"]), [head])
    with logged() as lines:
        with_whole_gpus(load_sweep_config(file, ["train.device=cpu"]), [Resources(2, 1)])
    assert lines == ["sweep.gpus_per_trial: auto: train.device is cpu, so trials run on the CPU"]


def test_a_step_that_does_not_fit_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def start_run(run: RunConfig, folder: Path, report: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 23 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=CARD))
    with pytest.raises(ConfigError, match=r"takes 23\.0 GB and more than the 24\.0 of the GPU; lower train\.spoken"):
        measure_peak(start_run, RunConfig())


def test_a_gpu_is_given_whole_until_the_share_is_known(file: Path) -> None:
    config, measured = with_whole_gpus(load_sweep_config(file), [Resources(cpus=2, gpus=1)])
    assert (config.sweep.gpus_per_trial, config.run.train.device, measured) == (1.0, "cuda", True)
    given, measured = with_whole_gpus(load_sweep_config(file, ["sweep.gpus_per_trial=0.5"]), [Resources(2, 1)])
    assert (given.sweep.gpus_per_trial, measured) == (0.5, False)


def test_a_measurement_trains_and_validates_once_and_reads_what_torch_held(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Started:
        def run_epoch(self) -> None:
            seen.append("epoch")

        def close(self) -> None:
            seen.append("closed")

    def start_run(run: RunConfig, folder: Path, report: Any) -> Any:
        seen.append((run.train.epochs, run.train.steps_per_epoch))
        return Started()

    with pytest.raises(ConfigError, match="torch sees no GPU here"):
        measure_peak(start_run, RunConfig())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: seen.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 5 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=CARD))
    assert measure_peak(start_run, RunConfig()) == Peak(5 * 10**9, CARD)
    assert seen == ["reset", (1, 2), "epoch", "closed"]


def test_without_a_gpu_no_gpu_hours_are_kept(file: Path) -> None:
    config, _ = with_whole_gpus(load_sweep_config(file, ["sweep.gpu_hours=1"]), [Resources(cpus=2, gpus=0)])
    assert parse_sweep(config.as_dict(), "saved").sweep.gpu_hours is None
    text = "search: {encoder.width: [32, 64]}\nsweep: {gpus_per_trial: auto, trials: null, sampler: grid}\n"
    file.write_text(text)
    with_whole_gpus(load_sweep_config(file), [Resources(cpus=2, gpus=0)])  # the grid ends it
