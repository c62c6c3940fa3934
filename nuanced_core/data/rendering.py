"""Rendering of clips into the cache by several processes.

Several processes with one thread each render faster than one process with all threads: Kokoro's layers are too small
to parallelize. A worker gets one request at a time through a pipe; the closed pipe tells it that its parent is gone.
"""

import logging
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, NamedTuple

import torch

from nuanced_core.data.dataset import Dataset, Version
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.errors import NuancedError, TrainingError
from nuanced_core.machine_limits import available_memory, usable_cpus
from nuanced_core.progress import progress_bar

__all__ = ["RenderJob", "RenderRequest", "make_job", "merge_requests", "render_jobs", "worker_count"]

logger = logging.getLogger(__name__)

CLIPS_PER_WORKER = 8  # one process renders fewer than that in the time in which a worker loads the models
MAX_WORKERS = 8
BYTES_PER_WORKER = 1.6e9  # Python, torch, Kokoro and its activations (measured)
WHISPER_IN_MEMORY = 3  # times its file: read as float16, kept as float32


class RenderRequest(NamedTuple):
    """An utterance to render, and the versions of its clip to compute features of."""

    utterance: Utterance
    versions: tuple[Version, ...]


class RenderJob(NamedTuple):
    """Requests for one set of models."""

    requests: Sequence[RenderRequest]
    open_dataset: Callable[[], Dataset]  # must be picklable if there are several workers
    workers: int


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: "Connection[Any, Any]"


def merge_requests(requests: Iterable[RenderRequest], dataset: Dataset) -> list[RenderRequest]:
    """Merge the requests for the same clip, so that no two workers render it; each version is named once."""
    merged: dict[str, RenderRequest] = {}
    for request in requests:
        key = dataset.clip_key(request.utterance)
        versions = (*merged[key].versions, *request.versions) if key in merged else request.versions
        merged[key] = RenderRequest(request.utterance, tuple(dict.fromkeys(versions)))
    return list(merged.values())


def make_job(requests: Sequence[RenderRequest], dataset: Dataset) -> RenderJob:
    """Return a job for requests for the models of a dataset, with as many workers as are worth starting."""
    workers = worker_count(len(requests), dataset.models) if requests else 1
    # Workers load the models themselves: replace() drops those that this process has loaded.
    open_dataset = partial(Dataset, replace(dataset.models), dataset.folder) if workers > 1 else lambda: dataset
    return RenderJob(requests, open_dataset, workers)


def worker_count(requests: int, models: ModelSet) -> int:
    """Return how many processes are worth starting and fit into memory; on a GPU always 1."""
    useful = requests // CLIPS_PER_WORKER
    if models.device.type != "cpu" or useful < 2:
        return 1
    bytes_each = BYTES_PER_WORKER + WHISPER_IN_MEMORY * models.whisper_file.path.stat().st_size
    return max(1, min(MAX_WORKERS, usable_cpus(), useful, int(available_memory() / bytes_each)))


def render_jobs(jobs: Sequence[RenderJob]) -> None:
    """Render missing clips and compute missing features, job by job, with one progress bar.

    With one worker a job runs in this process. Finished clips stay in the cache, however this ends; a dead worker's
    request is given to another one. With several workers a script that calls this needs
    ``if __name__ == "__main__":``, as always where processes are spawned.

    Raises:
        NuancedError: an utterance cannot be rendered, or no worker is left.
    """
    total = sum(len(job.requests) for job in jobs)
    if not total:
        return
    workers = max(job.workers for job in jobs)
    logger.info("rendering %d clips%s", total, f" in {workers} processes" if workers > 1 else "")
    with progress_bar("rendering clips", total) as advance:
        for job in jobs:
            if job.workers > 1:
                _render_in_processes(job, advance)
            elif job.requests:
                dataset = job.open_dataset()
                for request in job.requests:
                    dataset.clips([request.utterance], request.versions)
                    advance()


def _render_in_processes(job: RenderJob, advance: Callable[[], None]) -> None:
    # The longest first, so that no worker gets a long one at the end while the others have nothing left.
    waiting = deque(sorted(job.requests, key=lambda r: -len(r.utterance.phonemes) * len(r.versions)))
    busy: dict[_Worker, RenderRequest] = {}
    idle: list[_Worker] = []
    pool: list[_Worker] = []
    try:
        for _ in range(job.workers):
            pool.append(_start_worker(job.open_dataset))
        idle += pool
        while waiting or busy:
            while waiting and idle:
                worker, request = idle.pop(), waiting.popleft()
                busy[worker] = request
                with suppress(OSError):  # it is dead, which ``recv`` notices below
                    worker.pipe.send(_to_message(request))
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                request = busy.pop(worker)
                try:
                    error = worker.pipe.recv()
                except (EOFError, OSError):
                    waiting.appendleft(request)
                    pool.remove(worker)
                    _report_death(worker, len(pool), request)
                    continue
                if error is not None:
                    raise error
                idle.append(worker)
                advance()
    finally:
        for worker in pool:
            worker.pipe.close()
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def _report_death(worker: _Worker, left: int, request: RenderRequest) -> None:
    """Log the death of a worker, or raise TrainingError if none is left."""
    worker.process.join()
    code = worker.process.exitcode
    cause = f"was killed by signal {-code}" if code and code < 0 else f"ended with exit code {code}"
    if left:
        logger.warning("a rendering process %s; %d continue", cause, left)
        return
    raise TrainingError(
        f"rendering {request.utterance.text!r} in {request.utterance.voice}: the last rendering process {cause} "
        "(out of memory?); run the command again: finished clips are kept"
    )


def _start_worker(open_dataset: Callable[[], Dataset]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    parent_end, worker_end = context.Pipe()
    process = context.Process(target=_work, args=(worker_end, open_dataset), daemon=True)
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


def _work(pipe: "Connection[Any, Any]", open_dataset: Callable[[], Dataset]) -> None:
    """Render what the pipe requests and answer with None or an error, until the pipe is closed."""
    torch.set_num_threads(1)
    dataset = None
    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            request = _from_message(pipe.recv())
            try:
                dataset = dataset or open_dataset()
                dataset.clips([request.utterance], request.versions)
            except NuancedError as error:
                pipe.send(error)
            except Exception as error:
                place = f"rendering {request.utterance.text!r} in {request.utterance.voice}"
                pipe.send(TrainingError(" ".join(f"{place}: {type(error).__name__}: {error}".split())))
            else:
                pipe.send(None)


def _to_message(request: RenderRequest) -> tuple[Any, ...]:
    """Convert a request to a message without tensors, which torch would share between processes through files."""
    u = request.utterance
    return u.voice, u.text, u.phonemes, u.phoneme_count, u.style.tolist(), u.seed, request.versions


def _from_message(message: tuple[Any, ...]) -> RenderRequest:
    voice, text, phonemes, count, style, seed, versions = message
    return RenderRequest(Utterance(voice, text, phonemes, count, torch.tensor(style), seed), versions)
