"""Which share of a GPU a trial needs: measured by one step of the largest trial, or by what broke the last one."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError, NuancedError
from nuanced_core.training.memory import estimated_memory
from tune.cluster.machines import Resources, is_cluster
from tune.cluster.nodes import on_nodes
from tune.config.sweep_config import SweepConfig

if TYPE_CHECKING:
    from tune.trial.protocol import Start


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
    "with_measured_share",
    "with_whole_gpus",
]

logger = logging.getLogger(__name__)

SHARES = (0.1, 0.125, 0.2, 0.25, 1 / 3, 0.5, 1.0)  # of a GPU: so many trials, 10 to 1, fill it
HEADROOM = 1.3  # times what a trial held when it was measured, or when it asked for more
CONTEXT = 6e8  # bytes of a CUDA context with its kernels, which a process holds beside its tensors
_LESS = "lower train.spoken, train.window_frames or train.batch_size"
_DRAWN = 200  # settings of a search space of which the largest is measured
_STEPS = 2  # the first one speaks, the second has Adam's moments


@dataclass(frozen=True)
class Peak:
    """What a process held of a GPU at most, and what the GPU has, in bytes."""

    held: int
    total: int


Measure = Callable[["Start", RunConfig], Peak]


def with_whole_gpus(config: SweepConfig, machines: Sequence[Resources]) -> tuple[SweepConfig, bool]:
    """The settings with a whole GPU for each trial in the place of ``auto``, or none where there is none; and whether
    a step is to be measured.

    Raises:
        ConfigError: there is no GPU, or not yet, and the other settings want one.
    """
    settings, device = config.sweep, config.run.train.device
    if settings.gpus_per_trial != "auto":
        return config, False
    there = any(machine.gpus for machine in machines)
    if there and device != "cpu":
        return config.on_gpus(1.0), True
    place = "sweep.gpus_per_trial: auto:"
    if device == "cuda":
        raise ConfigError(f"{place} there is no GPU, which train.device: cuda wants; take auto there too")
    if is_cluster(machines) and settings.max_concurrent is not None and not there:
        raise ConfigError(
            f"{place} no node with a GPU is there yet to measure a step on; start one, or set a number, such as 0.25"
        )
    if settings.trials is None and settings.hours is None:
        raise ConfigError("sweep.gpu_hours: would never be used up without a GPU; set sweep.hours or sweep.trials")
    logger.info("%s %s, so trials run on the CPU", place, "train.device is cpu" if there else "no GPU")
    return config.on_gpus(0.0), False


def with_measured_share(
    config: SweepConfig, machines: Sequence[Resources], start: "Start", measure: Measure
) -> SweepConfig:
    """The settings with the share of a GPU that the largest trial needs, measured on this machine or each node.

    Raises:
        ConfigError: a step cannot be measured, or a whole GPU is too small for it.
    """
    run = largest_run(config)
    shares = []
    for machine, found in on_nodes(
        [machine for machine in machines if machine.gpus], measure, start, run, gpus=1
    ).items():
        if isinstance(found, NuancedError):
            raise found.__class__(f"{machine.name}: {found}")
        shares.append(share_for(found))
        logger.info(
            "%s: a step of the largest trial takes %.1f of %.1f GB: %.3g of a GPU for each trial, "
            "the most that its process may take",
            machine.name,
            found.held / 1e9,
            found.total / 1e9,
            shares[-1],
        )
    return config.on_gpus(max(shares))


def largest_run(config: SweepConfig) -> RunConfig:
    """The run that is foretold to take the most memory, of many that the search space allows."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it tells users about itself
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    runs = [config.run]
    for _ in range(_DRAWN):
        try:
            runs.append(config.search.apply(config.run, config.search.suggest(study.ask())))
        except ConfigError:
            continue  # settings that contradict one another make no trial
    return max(runs, key=estimated_memory)


def measure_peak(start: "Start", run: RunConfig) -> Peak:
    """Train a few steps and validate once, in a process that holds a whole GPU and nothing else.

    Raises:
        ConfigError: torch sees no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("sweep.gpus_per_trial: auto: torch sees no GPU here; set it to a number (0: none)")
    short = run.model_copy(update={"train": run.train.model_copy(update={"epochs": 1, "steps_per_epoch": _STEPS})})
    torch.cuda.reset_peak_memory_stats()
    total = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = start(short, Path(folder), lambda step, scalars: None)
            started.run_epoch()
        except torch.OutOfMemoryError:
            raise _too_large(Peak(torch.cuda.max_memory_reserved(), total)) from None
        started.close()
    return Peak(torch.cuda.max_memory_reserved(), total)


def share_for(peak: Peak) -> float:
    """The smallest share of a GPU that holds such a trial, with headroom.

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
        f"{peak.total / 1e9:.1f} of the GPU; {_LESS}"
    )


def out_of_memory(share: float, *, peak: float | None = None) -> dict[str, Any]:
    """What a trial that ran out of its share of a GPU reports: ``out_of_memory``, one line, and ``share`` for a retry.

    Args:
        share: of a GPU that it had.
        peak: of the card's memory that it held at most; measured here if None.
    """
    import torch

    if peak is None and not torch.cuda.is_available():
        peak = share
    elif peak is None:
        held = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
        peak = max(held, min(share, 1.0))
    wanted = next((part for part in SHARES if part >= HEADROOM * peak and part > share), 1.0)
    fix = f"a share of {wanted:g} may do: sweep.gpus_per_trial={wanted:g}" if share < 1 else _LESS
    return {"out_of_memory": f"out of GPU memory at {peak:.0%} of the card; {fix}", "share": wanted}
