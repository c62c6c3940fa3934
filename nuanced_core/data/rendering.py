"""Clips rendered into the cache by several processes at once.

One process with one thread a core renders faster than one process with all of them: Kokoro's layers are too small to
share. A worker gets one utterance at a time through a pipe, so the pipe's end is all that tells it that it is alone.
"""

import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nuanced_core.data.dataset import Dataset, Version
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.errors import NuancedError, TrainingError
from nuanced_core.progress import progress_bar

__all__ = ["RenderRequest", "render", "worker_count"]

logger = logging.getLogger(__name__)


CLIPS_PER_WORKER = 8  # fewer are rendered here in the time in which a worker loads the models
MOST_WORKERS = 8
BYTES_PER_WORKER = 1.6e9  # Python, torch, Kokoro and what it computes (measured)
WHISPER_IN_MEMORY = 3  # times its file: read as float16, kept as float32


class RenderRequest(NamedTuple):
    """An utterance that is to be rendered, and the versions of it that are to be heard."""

    utterance: Utterance
    versions: tuple[Version, ...]


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: "Connection[Any, Any]"


def worker_count(orders: int, models: ModelSet) -> int:
    """How many processes are worth starting and fit into memory; on a GPU one, which has it to itself."""
    worth = orders // CLIPS_PER_WORKER
    if models.device.type != "cpu" or worth < 2:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    each = BYTES_PER_WORKER + WHISPER_IN_MEMORY * models.whisper_file.path.stat().st_size
    return max(1, min(MOST_WORKERS, cores, worth, int(_available_memory() / each)))


def render(orders: Sequence[RenderRequest], open_dataset: Callable[[], Dataset], workers: int) -> None:
    """Render and hear what is missing; with one worker in this process.

    What is finished stays in the cache, however this ends; what a dead worker had is given to another. With more than
    one worker ``open_dataset`` must be picklable, and a script that calls this needs ``if __name__ == "__main__":``,
    as always where processes are spawned.

    Raises:
        NuancedError: an utterance cannot be rendered, or no worker is left.
    """
    if not orders:
        return
    logger.info("rendering %d clips in %d processes", len(orders), workers)
    with progress_bar("rendering clips", len(orders)) as done:
        if workers > 1:
            _render_in_processes(orders, open_dataset, workers, done)
            return
        dataset = open_dataset()
        for order in orders:
            dataset.clips([order.utterance], order.versions)
            done()


def _render_in_processes(
    orders: Sequence[RenderRequest],
    open_dataset: Callable[[], Dataset],
    workers: int,
    done: Callable[[], None],
) -> None:
    # The longest first, so that none is left alone with a long one at the end.
    waiting = deque(sorted(orders, key=lambda order: -len(order.utterance.phonemes) * len(order.versions)))
    busy: dict[_Worker, RenderRequest] = {}
    idle: list[_Worker] = []
    pool: list[_Worker] = []
    try:
        for _ in range(workers):
            pool.append(_started(open_dataset))
        idle += pool
        while waiting or busy:
            while waiting and idle:
                worker, order = idle.pop(), waiting.popleft()
                busy[worker] = order
                with suppress(OSError):  # it died; its pipe tells so below
                    worker.pipe.send(_to_message(order))
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                order = busy.pop(worker)
                try:
                    error = worker.pipe.recv()
                except (EOFError, OSError):
                    waiting.appendleft(order)
                    pool.remove(worker)
                    _report_death(worker, len(pool), order)
                    continue
                if error is not None:
                    raise error
                idle.append(worker)
                done()
    finally:
        for worker in pool:
            worker.pipe.close()
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def _report_death(worker: _Worker, left: int, order: RenderRequest) -> None:
    worker.process.join()
    code = worker.process.exitcode
    how = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
    if left:
        logger.warning("a rendering process %s; %s go on", how, left)
        return
    raise TrainingError(
        f"rendering {order.utterance.text!r} in {order.utterance.voice}: the last rendering process {how} "
        "(out of memory?); run the command again: what was rendered is kept"
    )


def _started(open_dataset: Callable[[], Dataset]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_work, args=(its, open_dataset), daemon=True)
    # The first process also starts Python's resource tracker, which would unblock the signal again.
    resource_tracker.ensure_running()
    # A blocked signal stays blocked in a new process: Ctrl-C is the parent's to handle.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    its.close()
    return _Worker(process, ours)


def _work(pipe: "Connection[Any, Any]", open_dataset: Callable[[], Dataset]) -> None:
    """Render what comes through the pipe, and answer with None or an error, until it is closed."""
    torch.set_num_threads(1)
    dataset = None
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            order = _from_message(pipe.recv())
            try:
                dataset = dataset or open_dataset()
                dataset.clips([order.utterance], order.versions)
            except NuancedError as error:
                pipe.send(error)
            except Exception as error:
                told = f"rendering {order.utterance.text!r} in {order.utterance.voice}: {type(error).__name__}: {error}"
                pipe.send(TrainingError(" ".join(told.split())))
            else:
                pipe.send(None)


def _to_message(order: RenderRequest) -> tuple[Any, ...]:
    """An order without tensors, which torch would share between the processes through files."""
    u = order.utterance
    return u.voice, u.text, u.phonemes, u.phoneme_count, u.style.tolist(), u.seed, order.versions


def _from_message(plain: tuple[Any, ...]) -> RenderRequest:
    voice, text, phonemes, count, style, seed, versions = plain
    return RenderRequest(Utterance(voice, text, phonemes, count, torch.tensor(style), seed), versions)


def _available_memory() -> int:
    """Bytes that new processes can have."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/meminfo").read_text(encoding="ascii").partition("MemAvailable:")[2].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
