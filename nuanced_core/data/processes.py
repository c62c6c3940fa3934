"""Work that is shared out among processes, which get one request at a time each.

A worker gets its requests through a pipe; the closed pipe tells it that its parent is gone.
"""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

import torch

from nuanced_core.errors import NuancedError, TrainingError

__all__ = ["Work", "run_in_processes"]

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """What processes do with requests, which are any values that can be pickled and hold no tensors.

    torch would share tensors between processes through files.
    """

    open_worker: Callable[[], Callable[[Any], None]]  # called once in each process; must be picklable
    describe: Callable[[Any], str]  # a request as the beginning of an error, such as "rendering 'Hello.' in af_sky"
    name: str  # of the work, such as "rendering"
    results: str  # what is kept of finished requests, such as "clips"


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: "Connection[Any, Any]"


def run_in_processes(work: Work, requests: Iterable[Any], workers: int, advance: Callable[[], None]) -> None:
    """Give requests, in order, to several processes with one thread each; call ``advance`` after each request.

    A dead process's request is given to another one. A script that calls this needs ``if __name__ == "__main__":``, as
    always where processes are spawned.

    Raises:
        NuancedError: that of a request, after which nothing else is done.
        TrainingError: a request failed otherwise, or no process is left.
    """
    waiting = deque(requests)
    busy: dict[_Worker, Any] = {}
    idle: list[_Worker] = []
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            pool.append(_start_worker(work.open_worker))
        idle += pool
        while waiting or busy:
            while waiting and idle:
                worker, request = idle.pop(), waiting.popleft()
                busy[worker] = request
                with suppress(OSError):  # it is dead, which ``recv`` notices below
                    worker.pipe.send(request)
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                request = busy.pop(worker)
                try:
                    error = worker.pipe.recv()
                except (EOFError, OSError):
                    waiting.appendleft(request)
                    pool.remove(worker)
                    _report_death(worker, len(pool), work, request)
                    continue
                if isinstance(error, NuancedError):
                    raise error
                if error is not None:
                    raise TrainingError(f"{work.describe(request)}: {error}")
                idle.append(worker)
                advance()
    finally:
        for worker in pool:
            worker.pipe.close()
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def _report_death(worker: _Worker, left: int, work: Work, request: Any) -> None:
    """Log the death of a worker, or raise TrainingError if none is left."""
    worker.process.join()
    code = worker.process.exitcode
    cause = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
    if left:
        logger.warning("a %s process %s; %d continue", work.name, cause, left)
        return
    raise TrainingError(
        f"{work.describe(request)}: the last {work.name} process {cause} (out of memory?); run the command again: "
        f"finished {work.results} are kept"
    )


def _start_worker(open_worker: Callable[[], Callable[[Any], None]]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    parent_end, worker_end = context.Pipe()
    process = context.Process(target=_work, args=(worker_end, open_worker), daemon=True)
    # The first process also starts Python's resource tracker, which would unblock the signal again.
    resource_tracker.ensure_running()
    # A signal that is blocked here stays blocked in the new process: only the parent handles Ctrl-C.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    worker_end.close()
    return _Worker(process, parent_end)


def _work(pipe: "Connection[Any, Any]", open_worker: Callable[[], Callable[[Any], None]]) -> None:
    """Do what the pipe requests and answer with None, an error or the text of one, until the pipe is closed."""
    torch.set_num_threads(1)
    handle = None
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            request = pipe.recv()
            try:
                handle = handle or open_worker()
                handle(request)
            except NuancedError as error:
                pipe.send(error)
            except Exception as error:
                pipe.send(" ".join(f"{type(error).__name__}: {error}".split()))
            else:
                pipe.send(None)
