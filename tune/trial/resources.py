"""What a trial needs of a machine, where the settings say ``auto``: a share of a GPU, and memory.

The share of a GPU is measured on a step of the largest trial, or raised after a trial ran out of it; the memory is
estimated.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, NuancedError
from nuanced_core.exhibits.exhibit import Exhibit
from nuanced_core.training.memory import MEMORY_SETTINGS, estimated_host_memory, estimated_memory
from tune.cluster.machines import Resources, is_cluster
from tune.cluster.nodes import on_nodes
from tune.config.sweep_config import SweepConfig
from tune.trial.protocol import StartRun

__all__ = [
    "CONTEXT",
    "HEADROOM",
    "SHARES",
    "Measure",
    "Peak",
    "largest_run",
    "measure_peak",
    "out_of_memory",
    "share_for",
    "with_estimated_memory",
    "with_measured_share",
    "with_whole_gpus",
]

logger = logging.getLogger(__name__)

SHARES = (0.1, 0.125, 0.2, 0.25, 1 / 3, 0.5, 1.0)  # of a GPU, which 10, 8, 5, 4, 3, 2 or 1 trials fill
HEADROOM = 1.3  # factor on the measured peak
CONTEXT = 6e8  # bytes of a CUDA context with its kernels, which a process holds beside its tensors
_REDUCE_MEMORY = "lower train.spoken, train.window_frames or train.batch_size"
_SAMPLES = 200  # draws from the search space, of which the largest is measured
_STEPS = 2  # the first step renders audio, the second has Adam's moments


@dataclass(frozen=True)
class Peak:
    """The most GPU memory that a process held, and the memory of the GPU, in bytes."""

    held: int
    total: int


Measure = Callable[[StartRun, RunConfig], Peak]


def with_whole_gpus(config: SweepConfig, machines: Sequence[Resources]) -> tuple[SweepConfig, bool]:
    """Replace ``gpus_per_trial: auto`` by one GPU, or by none where there is none; return also whether to measure.

    Raises:
        ConfigError: there is no GPU, or none yet, and the other settings require one.
    """
    settings, device = config.sweep, config.run.train.device
    if settings.gpus_per_trial != "auto":
        return config, False
    has_gpu = any(machine.gpus for machine in machines)
    if has_gpu and device != "cpu":
        return config.with_gpus_per_trial(1.0), True
    place = "sweep.gpus_per_trial: auto:"
    if device == "cuda":
        raise ConfigError(f"{place} there is no GPU, which train.device: cuda requires; set that to auto too")
    if is_cluster(machines) and settings.max_concurrent is not None and not has_gpu:
        raise ConfigError(
            f"{place} no node with a GPU is there yet to measure a step on; start one, or set a number, such as 0.25"
        )
    if settings.gpu_hours is not None and settings.trials is None and settings.hours is None:
        raise ConfigError("sweep.gpu_hours: would never be used up without a GPU; set sweep.hours or sweep.trials")
    logger.info("%s %s, so trials run on the CPU", place, "train.device is cpu" if has_gpu else "no GPU")
    return config.with_gpus_per_trial(0.0), False


def with_measured_share(
    config: SweepConfig, machines: Sequence[Resources], start_run: StartRun, measure: Measure
) -> SweepConfig:
    """Set ``gpus_per_trial`` to the share that the largest trial needs, measured on each machine with a GPU.

    Raises:
        ConfigError: a step cannot be measured, or needs more than a whole GPU.
    """
    run = largest_run(config)
    with_gpus = [machine for machine in machines if machine.gpus]
    shares = []
    for machine, peak in on_nodes(with_gpus, measure, start_run, run, gpus=1).items():
        if isinstance(peak, NuancedError):
            raise peak.__class__(f"{machine.name}: {peak}")
        shares.append(share_for(peak))
        logger.info(
            "%s: a step of the largest trial takes %.1f of %.1f GB: each trial gets %.3g of a GPU, which also limits "
            "its process",
            machine.name,
            peak.held / 1e9,
            peak.total / 1e9,
            shares[-1],
        )
    return config.with_gpus_per_trial(max(shares))


def with_estimated_memory(config: SweepConfig, machines: Sequence[Resources]) -> SweepConfig:
    """Replace ``memory_per_trial: auto`` by the estimate of the largest trial, rounded up to 0.1 GB.

    On a single machine whose memory is large enough but in use by others, it is replaced by what is left, with a
    warning, so that one trial runs at a time.
    """
    if config.sweep.memory_per_trial != "auto":
        return config
    needed = math.ceil(estimated_host_memory(largest_run(config, estimated_host_memory)) / 1e8) / 10  # GB
    machine = machines[0]
    free, limit = (math.floor((found or 0) / 1e8) / 10 for found in (machine.memory, machine.memory_limit))
    if is_cluster(machines) or machine.memory is None or not 0 < free < needed <= limit:
        return config.with_memory_per_trial(needed)
    logger.warning(
        "sweep.memory_per_trial: auto: a trial is estimated to take %.1f GB, and other programs leave %.1f of the %.1f "
        "GB for trials: one runs at a time",
        needed,
        free,
        limit,
    )
    return config.with_memory_per_trial(free)


def largest_run(config: SweepConfig, memory: Callable[[RunConfig], int] = estimated_memory) -> RunConfig:
    """Return the run with the largest estimated memory among random draws from the search space.

    Args:
        memory: estimates the bytes that a run takes.
    """
    runs = [config.run]
    seen: set[str] = set()
    for params in _draws(config):
        relevant = repr({name: value for name, value in params.items() if name.startswith(MEMORY_SETTINGS)})
        if relevant in seen:
            continue
        try:
            runs.append(config.search.apply(config.run, params))
        except ConfigError:
            continue  # contradictory settings make no trial
        seen.add(relevant)
    return max(runs, key=memory)


def _draws(config: SweepConfig) -> Iterator[dict[str, Any]]:
    """Yield random settings of the search space, if some of those that memory depends on are searched."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    if any(name.startswith(MEMORY_SETTINGS) for name in config.search.names):
        for _ in range(_SAMPLES):
            yield config.search.suggest(study.ask())


def measure_peak(start_run: StartRun, run: RunConfig) -> Peak:
    """Train a few steps and validate once, in a process that has a whole GPU to itself.

    Raises:
        ConfigError: torch sees no GPU, or the run needs more than a whole GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("sweep.gpus_per_trial: auto: torch sees no GPU here; set it to a number (0: none)")
    short = run.model_copy(update={"train": run.train.model_copy(update={"epochs": 1, "steps_per_epoch": _STEPS})})
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = start_run(short, Path(folder), _ignore)
            started.run_epoch()
        except torch.OutOfMemoryError:
            raise _too_large(Peak(torch.cuda.max_memory_reserved(), total)) from None
        started.close()
    return Peak(torch.cuda.max_memory_reserved(), total)


def _ignore(step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
    """Take what a run reports."""


def share_for(peak: Peak) -> float:
    """Return the smallest share of a GPU that fits a trial of this peak, with headroom.

    Raises:
        ConfigError: a whole GPU is too small.
    """
    needed = (peak.held + CONTEXT) / peak.total
    if needed > 1:
        raise _too_large(peak)
    return next((share for share in SHARES if share >= HEADROOM * needed), 1.0)


def _too_large(peak: Peak) -> ConfigError:
    return ConfigError(
        f"sweep.gpus_per_trial: auto: a step of the largest trial takes {peak.held / 1e9:.1f} GB and more than the "
        f"{peak.total / 1e9:.1f} of the GPU; {_REDUCE_MEMORY}"
    )


def out_of_memory(share: float, *, peak: float | None = None) -> dict[str, Any]:
    """Return the report of a trial that ran out of GPU memory: ``out_of_memory``, one line, and ``share`` for a retry.

    Args:
        share: of a GPU that the trial had.
        peak: the largest part of the GPU's memory that the trial held; measured here if None.
    """
    import torch

    if peak is None and not torch.cuda.is_available():
        peak = share
    elif peak is None:
        held = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
        peak = max(held, min(share, 1.0))
    next_share = next((part for part in SHARES if part >= HEADROOM * peak and part > share), 1.0)
    fix = f"a share of {next_share:g} may do: sweep.gpus_per_trial={next_share:g}" if share < 1 else _REDUCE_MEMORY
    return {"out_of_memory": f"out of GPU memory at {peak:.0%} of the card; {fix}", "share": next_share}
