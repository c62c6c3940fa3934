"""TODO."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nuanced_core.errors import NuancedError

__all__ = ["ClusterError"]

# Read by Ray in this process and in those that it starts. What a user has set already stays.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Trials on this machine keep the driver's working directory: relative paths in settings mean the same there.
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
    # Our searcher says how many trials there may be at a time; Ray would begin them one by one.
    "TUNE_MAX_PENDING_TRIALS_PG": "1000",
}


class ClusterError(NuancedError):
    """Ray cannot be started, or a cluster cannot be joined."""

    exit_code = 1


@contextmanager
def connected(**how: Any) -> Iterator[None]:
    """A Ray that runs in this process already is used as it is."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray._raylet import Config  # type: ignore[attr-defined]

    Config.initialize("")  # what Ray read of the environment when it was imported is older than ours
    _quieten()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **how)
    except Exception as error:
        where = "Ray does not start" if how["address"] == "local" else f"--address {how['address']}: cannot be joined"
        raise ClusterError(f"{where}: {' '.join(str(error).split())[:300]}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _quieten() -> None:
    """Ray tells users about itself; the study holds what matters."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(ray|optuna)\b")
