"""Starting Ray on this machine: what it has, who may talk to it, and how little it says."""

import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nuanced_core.errors import ConfigError, NuancedError
from tune.config import SweepSettings

__all__ = ["ClusterError", "Resources", "check_fit", "local_cluster", "local_resources"]

# Read by Ray in this process and in those that it starts. What a user has set already stays.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Trials keep the driver's working directory, so that relative paths in settings mean the same.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A trial of 0 GPUs sees none, instead of all.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # The driver stops a sweep by itself; the study and TensorBoard keep what Ray would log.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The newer of Ray's two ways to print prints at verbosity 0 as well.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
# Little goes through Ray's object store: one function and small dicts. Bytes.
_OBJECT_STORE = 128 * 2**20


class ClusterError(NuancedError):
    """Ray cannot be started."""

    exit_code = 1


@dataclass(frozen=True)
class Resources:
    """What trials can use: CPU cores and GPUs."""

    cpus: int
    gpus: int

    def fitting(self, settings: SweepSettings) -> int:
        """How many trials run at one time."""
        fit = int(self.cpus // settings.cpus_per_trial)
        per_gpu = settings.gpus_per_trial
        if 0 < per_gpu <= 1:
            fit = min(fit, self.gpus * int(1 / per_gpu + 1e-6))
        elif per_gpu:
            fit = min(fit, int(self.gpus // per_gpu))
        return min(fit, settings.trials or fit, settings.max_concurrent or fit)


def local_resources() -> Resources:
    """The CPU cores that this process may use, and this machine's GPUs."""
    import torch

    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return Resources(cpus, torch.cuda.device_count())


def check_fit(settings: SweepSettings, resources: Resources) -> None:
    """Refuse a sweep of which not one trial could start.

    Raises:
        ConfigError: a trial needs more than there is.
    """
    needs = (
        ("cpus", settings.cpus_per_trial, resources.cpus),
        ("gpus", settings.gpus_per_trial, resources.gpus),
    )
    for name, needed, there in needs:
        if needed > there:
            raise ConfigError(
                f"sweep.{name}_per_trial: {needed:g}: this machine has {there}; "
                f"lower it with --set sweep.{name}_per_trial={there}"
            )


@contextmanager
def local_cluster(resources: Resources) -> Iterator[None]:
    """Ray on this machine, for as long as the context lasts; a Ray that runs in this process already is used.

    Raises:
        ClusterError: Ray does not start.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        # A token of this process's own, which Ray's processes inherit: no file needs to hold it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    _quieten()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address="local",
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        raise ClusterError(f"Ray does not start: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _quieten() -> None:
    """Ray tells users about itself; the study holds what matters."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(ray|optuna)\b")
