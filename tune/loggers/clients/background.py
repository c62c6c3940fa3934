"""A logger that works in a thread: it takes what a run reports, and sends it epoch by epoch while training goes on."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from nuanced_core.exhibits.exhibit import Exhibit
from tune.config.secrets import masked

__all__ = ["BackgroundLogger", "Client", "Reported", "RunState", "failure"]

logger = logging.getLogger(__name__)

RunState = Literal["complete", "pruned", "failed", "interrupted"]

_MOST_BATCHES = 100  # that wait for a server; later ones are dropped
_CLOSE_SECONDS = 60.0  # for which the end of a trial waits for what is still to be sent
# Environment variables with secrets of the clients, which an error message of theirs might quote.
_SECRETS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True)
class Reported:
    """What a run reported at once: scalars and exhibits at ``step``, at ``time`` (Unix, in seconds)."""

    step: int
    time: float
    scalars: Mapping[str, float]
    exhibits: tuple[Exhibit, ...] = ()


class Client(Protocol):
    """The client of a service for one run; any method may raise any Exception."""

    def log(self, batch: Sequence[Reported]) -> None:
        """Send an epoch; one that failed is sent again with the next one."""

    def close(self, state: RunState) -> None:
        """End the run in this process."""


class BackgroundLogger:
    """Sends what a run reports in a thread, so that neither a slow nor a failing service holds up training.

    Args:
        name: of the service, for warnings.
        connect: begins the run at the service, or continues it.
        close_seconds: for which ``close`` waits for what is still to be sent.

    Attributes:
        warnings: one line about the first failure; empty while there is none.
    """

    def __init__(self, name: str, connect: Callable[[], Client], close_seconds: float = _CLOSE_SECONDS) -> None:
        self._name, self._connect, self._close_seconds = name, connect, close_seconds
        self.warnings: list[str] = []
        self._batch: list[Reported] = []  # of the current epoch
        self._batches: deque[list[Reported]] = deque()
        self._state: RunState | None = None  # the run's last one, once it is closed
        self._wake = threading.Event()
        self._wake.set()  # to connect
        # A daemon: a server that does not answer must not keep the trial's process from ending.
        self._thread = threading.Thread(target=self._work, name=f"nuanced-{name}", daemon=True)
        self._thread.start()

    def __call__(self, step: int, scalars: Mapping[str, float], exhibits: Sequence[Exhibit] = ()) -> None:
        """Keep scalars and exhibits for the next ``flush``."""
        self._batch.append(Reported(step, time.time(), dict(scalars), tuple(exhibits)))

    def flush(self) -> None:
        """Begin to send what was reported since the last call."""
        if self._batch:
            if len(self._batches) < _MOST_BATCHES:
                self._batches.append(self._batch)
            else:
                self._warn(f"more than {_MOST_BATCHES} epochs wait to be sent; later ones are left out")
            self._batch = []
        self._wake.set()

    def close(self, state: RunState) -> None:
        """Send what is left and end the run; what takes longer than ``close_seconds`` is given up."""
        self._state = state
        self.flush()
        self._thread.join(self._close_seconds)
        if self._thread.is_alive():
            self._warn(f"did not take everything within {self._close_seconds:g} s after the end of the trial")

    def _work(self) -> None:
        client: Client | None = None
        while True:
            self._wake.wait()
            self._wake.clear()
            state = self._state
            try:
                client = client or self._connect()
                while self._batches:
                    client.log(self._batches[0])
                    self._batches.popleft()
            except Exception as error:
                self._warn(failure(error))
            if state is not None:
                self._end(client, state)
                return

    def _end(self, client: Client | None, state: RunState) -> None:
        try:
            if client is not None:
                client.close(state)
        except Exception as error:
            self._warn(failure(error))

    def _warn(self, problem: str) -> None:
        if not self.warnings:
            self.warnings.append(f"{self._name}: {problem}; what it shows may be incomplete, and the trials go on")


def failure(error: Exception) -> str:
    """Return an error of a client in one line, without secrets."""
    text = masked(" ".join(f"{type(error).__name__}: {error}".split()))
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return text[:300]
