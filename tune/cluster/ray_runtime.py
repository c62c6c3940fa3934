"""The Ray runtime of this process: started or joined with the project's environment, and shut down afterwards."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nuanced_core.errors import NuancedError

__all__ = ["RAY_ENVIRONMENT", "ClusterError", "ray_connection"]

# Read by Ray in this process and in those that it starts. Variables that the user has set are not changed.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Trials on this machine keep the driver's working directory: relative paths in settings mean the same there.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A trial of 0 GPUs sees none, instead of all.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # The driver handles SIGINT itself; the study and TensorBoard hold what Ray would log.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Ray's newer output also prints at verbosity 0.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    # The project's searcher limits the number of concurrent trials; Ray would start them one by one.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}


class ClusterError(NuancedError):
    """Ray cannot be started, or a cluster cannot be joined."""

    exit_code = 1


@contextmanager
def ray_connection(**options: Any) -> Iterator[None]:
    """Initialize Ray, and shut it down at the end of the context; a Ray that this process already runs is used as is.

    Args:
        options: arguments of ``ray.init``, among them ``address``.

    Raises:
        ClusterError: Ray does not start, or the cluster cannot be joined.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")  # reads the environment again: Ray read it when it was imported, before it was set here
    _silence_ray()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except Exception as error:
        address = options["address"]
        failure = "Ray does not start" if address == "local" else f"--address {address}: cannot be joined"
        raise ClusterError(f"{failure}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _silence_ray() -> None:
    """Hide Ray's own log records and warnings; the study holds what matters."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(ray|optuna)\b")
