"""Weights & Biases through its own client: a run per trial, with an ID that a resumed trial has again."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from nuanced_core.exhibits.exhibit import Sound
from tune.loggers.clients.background import Reported, RunState
from tune.loggers.clients.media import write_exhibits

__all__ = ["WandbRun", "is_offline_by_default"]

_NOT_IN_PROJECT = re.compile(r"[/\\#?%:]")  # what W&B refuses in the name of a project
_LONGEST_PROJECT = 128  # characters


class WandbRun:
    """A trial's run in W&B, which is created, or continued if the trial was resumed.

    Without a login and without ``WANDB_MODE`` it is written to ``folder`` alone, to be uploaded later.

    Args:
        folder: of the trial, where W&B's own files lie unless ``WANDB_DIR`` is set.
        study: name of the study, which names the project.
        sweep: name of the sweep, by which W&B groups its runs.
        name, key: the run's name and ID.
        settings: its configuration.
    """

    def __init__(self, folder: Path, study: str, sweep: str, name: str, key: str, settings: Mapping[str, Any]) -> None:
        mode: Any = os.environ.get("WANDB_MODE") or ("offline" if is_offline_by_default() else None)
        self._run = wandb.init(
            project=_NOT_IN_PROJECT.sub("-", study)[:_LONGEST_PROJECT],
            group=sweep,
            name=name,
            id=key,
            resume="allow",
            reinit="create_new",  # beside the run that this process had before
            dir=os.environ.get("WANDB_DIR") or folder,
            config=dict(settings),
            mode=mode,
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, batch: Sequence[Reported]) -> None:
        """Pass an epoch on to W&B's own process, which sends it."""
        for reported in batch:
            with tempfile.TemporaryDirectory(prefix="nuanced-wandb-") as folder:
                files = write_exhibits(Path(folder), reported.exhibits)
                media = {
                    exhibit.name: (wandb.Audio if isinstance(exhibit, Sound) else wandb.Image)(str(files[exhibit.name]))
                    for exhibit in reported.exhibits
                }
                self._run.log({**reported.scalars, **media}, step=reported.step)  # copies the files

    def close(self, state: RunState) -> None:
        """End the run: as failed, as preempted if it is to be resumed, else as finished, with ``state`` beside it."""
        self._run.summary["state"] = state
        if state == "interrupted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state in ("complete", "pruned") else 1)


def is_offline_by_default() -> bool:
    """Return whether W&B would ask for a login: nobody is logged in, and ``WANDB_MODE`` is not set."""
    return not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False)
