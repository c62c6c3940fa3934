"""The search: Ray executes StyleEncoder trials, Optuna decides which, and the study remembers them.

The public names are those in ``__all__``; each is imported when it is first used. Everything else may move.

    from pathlib import Path
    from tune import load_sweep_config, run_sweep

    result = run_sweep(load_sweep_config(Path("configs/quickstart.yaml")), name="first")
    print("\\n".join(result.lines))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.analysis.loaded import LoadedSweep, load_sweep
    from tune.cluster.machines import JoinedCluster, ThisMachine
    from tune.config.space import Space
    from tune.config.sweep_config import SweepConfig, load_run, load_sweep_config
    from tune.search.study import read_study
    from tune.show.status import status
    from tune.sweep.driver import SweepResult, resume_sweep, run_sweep
    from tune.sweep.services import SweepServices
    from tune.sweep.single_run import resume_single_run, train_single_run
    from tune.trial.checkpoints import best_checkpoint

__all__ = [
    "JoinedCluster",
    "LoadedSweep",
    "Space",
    "SweepConfig",
    "SweepResult",
    "SweepServices",
    "ThisMachine",
    "best_checkpoint",
    "load_run",
    "load_sweep",
    "load_sweep_config",
    "read_study",
    "resume_single_run",
    "resume_sweep",
    "run_sweep",
    "status",
    "train_single_run",
]

_MODULES = {
    "JoinedCluster": "cluster.machines",
    "LoadedSweep": "analysis.loaded",
    "Space": "config.space",
    "SweepConfig": "config.sweep_config",
    "SweepResult": "sweep.driver",
    "SweepServices": "sweep.services",
    "ThisMachine": "cluster.machines",
    "best_checkpoint": "trial.checkpoints",
    "load_run": "config.sweep_config",
    "load_sweep": "analysis.loaded",
    "load_sweep_config": "config.sweep_config",
    "read_study": "search.study",
    "resume_single_run": "sweep.single_run",
    "resume_sweep": "sweep.driver",
    "run_sweep": "sweep.driver",
    "status": "show.status",
    "train_single_run": "sweep.single_run",
}


def __getattr__(name: str) -> Any:
    # Importing ray takes seconds, which `nuanced --help` should not.
    if name in _MODULES:
        return getattr(import_module(f"tune.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
