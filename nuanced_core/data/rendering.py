"""Rendering of clips into the cache by several processes.

Several processes with one thread each render faster than one process with all threads: Kokoro's layers are too small
to parallelize.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from nuanced_core.data.dataset import Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.processes import Work, run_in_processes
from nuanced_core.data.utterances import Utterance
from nuanced_core.data.versions import Version
from nuanced_core.machine_limits import available_memory, release_memory, usable_cpus
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
    open_dataset: Callable[[], Dataset] = lambda: dataset  # noqa: E731
    if workers > 1:
        open_dataset = partial(Dataset, replace(dataset.models), dataset.folder, parts=dataset.parts)
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
                    _render(request, dataset)
                    advance()


def _render_in_processes(job: RenderJob, advance: Callable[[], None]) -> None:
    # The longest first, so that no worker gets a long one at the end while the others have nothing left.
    requests = sorted(job.requests, key=lambda r: -len(r.utterance.phonemes) * len(r.versions))
    work = Work(partial(_Renderer, job.open_dataset), _describe, "rendering", "clips")
    run_in_processes(work, map(_to_message, requests), job.workers, advance)


class _Renderer:
    """Renders requested clips in a process of its own."""

    def __init__(self, open_dataset: Callable[[], Dataset]) -> None:
        self.dataset = open_dataset()

    def __call__(self, message: tuple[Any, ...]) -> None:
        _render(_from_message(message), self.dataset)


def _render(request: RenderRequest, dataset: Dataset) -> None:
    dataset.clips([request.utterance], request.versions)
    release_memory()


def _describe(message: tuple[Any, ...]) -> str:
    voice, text = message[:2]
    return f"rendering {text!r} in {voice}"


def _to_message(request: RenderRequest) -> tuple[Any, ...]:
    """Convert a request to a message without tensors, which torch would share between processes through files."""
    u = request.utterance
    return u.voice, u.text, u.phonemes, u.phoneme_count, u.style.tolist(), u.seed, request.versions


def _from_message(message: tuple[Any, ...]) -> RenderRequest:
    voice, text, phonemes, count, style, seed, versions = message
    return RenderRequest(Utterance(voice, text, phonemes, count, torch.tensor(style), seed), versions)
