import logging
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core.config.settings import Augment
from nuanced_core.data import processes, rendering
from nuanced_core.data.cache import Cache
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.rendering import RenderJob, RenderRequest, merge_requests, render_jobs, worker_count
from nuanced_core.data.utterances import Utterance
from nuanced_core.data.versions import AugmentedCopy
from nuanced_core.errors import DiskError, TrainingError
from tests.fakes import FakeKokoro, fake_models

STYLES = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
VERSIONS: list[tuple[int, ...]] = [(0,), (0, 1), (0,), (0, 1), (0,), (0,)]
REQUESTS = [
    RenderRequest(Utterance(f"af_{n}", f"Text {n}.", "a" * (5 + n), 5 + n, style, n), versions)
    for n, (style, versions) in enumerate(zip(STYLES, VERSIONS, strict=True))
]
FAILING_PHONEMES = "a" * 7


class FailingKokoro(FakeKokoro):
    """Kokoro that fails at one text in the ways that files in a folder name, until they are removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def encode_text(self, phonemes: list[str]):  # type: ignore[no-untyped-def]
        for failure in [path.name for path in self.folder.iterdir()] if phonemes == [FAILING_PHONEMES] else []:
            if failure == "once":
                (self.folder / failure).unlink()
            if failure in ("once", "always"):
                os.kill(os.getpid(), signal.SIGKILL)
            if failure == "full":
                raise DiskError("the disk is full")
            if failure == "bug":
                raise ValueError("not\na style")
        if (self.folder / "slow").exists():
            time.sleep(0.5)
        return super().encode_text(phonemes)


def open_dataset(folder: Path) -> Dataset:
    (folder / "failures").mkdir(parents=True, exist_ok=True)
    models = fake_models(folder / "voices")
    models.kokoro = FailingKokoro(folder / "failures")
    return Dataset(models, folder / "cache", Augment(copies=1))  # type: ignore[arg-type]


def render_until_stopped(folder: str) -> None:
    """Render slowly in a process of its own until a signal stops it."""
    try:
        render_jobs([RenderJob(REQUESTS * 20, partial(open_dataset, Path(folder)), 2)])
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_dataset(tmp_path)
    return tmp_path


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What rendering logs, without the lines of the progress bar, which depend on the machine's speed."""
    caplog.set_level(logging.INFO, logger="nuanced_core.data.rendering")
    messages: list[str] = []
    for logger, level in ((rendering.logger, "info"), (processes.logger, "warning")):
        log = getattr(logger, level)
        monkeypatch.setattr(
            logger, level, lambda text, *args, log=log: (messages.append(text % args), log(text, *args))
        )
    return messages


def _missing(folder: Path) -> list[str]:
    dataset = open_dataset(folder)
    return [r.utterance.text for r in REQUESTS if dataset.missing([r.utterance], r.versions)]


def test_several_processes_render_the_same_as_one(folder: Path, tmp_path: Path, logged: list[str]) -> None:
    render_jobs([RenderJob(REQUESTS, partial(open_dataset, folder), 2)])
    assert logged == ["rendering 6 clips in 2 processes"]
    assert _missing(folder) == []
    render_jobs([RenderJob(REQUESTS, partial(open_dataset, tmp_path / "one"), 1)])
    assert logged[1:] == ["rendering 6 clips"]
    several, one = (Cache(path / "cache") for path in (folder, tmp_path / "one"))
    assert len(several.entries()) == 14
    for entry in several.entries():
        found, expected = (cache.load(entry.kind, entry.path.stem) for cache in (several, one))
        assert found and expected and found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name])


def test_work_of_a_killed_process_is_finished_by_the_others(folder: Path, logged: list[str]) -> None:
    (folder / "failures" / "once").touch()
    render_jobs([RenderJob(REQUESTS, partial(open_dataset, folder), 2)])
    assert logged[1:] == ["a rendering process was killed by signal 9; 1 continue"]
    assert _missing(folder) == []


def test_death_of_the_last_process_is_an_error_and_finished_clips_are_kept(folder: Path) -> None:
    (folder / "failures" / "always").touch()
    with pytest.raises(
        TrainingError, match=r"^rendering 'Text 2.' in af_2: the last rendering .* signal 9 .* are kept$"
    ):
        render_jobs([RenderJob(REQUESTS, partial(open_dataset, folder), 2)])
    left = _missing(folder)
    assert "Text 2." in left and len(left) < len(REQUESTS)
    (folder / "failures" / "always").unlink()
    dataset = open_dataset(folder)
    render_jobs([RenderJob([r for r in REQUESTS if r.utterance.text in left], lambda: dataset, 1)])
    assert dataset.models.kokoro.spoken <= len(left) and _missing(folder) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        ("full", DiskError, "^the disk is full$"),
        ("bug", TrainingError, "^rendering 'Text 2.' in af_2: ValueError: not a style$"),
    ],
)
def test_error_of_a_process_is_one_line(folder: Path, failure: str, error: type[Exception], message: str) -> None:
    (folder / "failures" / failure).touch()
    with pytest.raises(error, match=message):
        render_jobs([RenderJob(REQUESTS[1:4], partial(open_dataset, folder), 2)])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_without_output_when_their_parent_ends(folder: Path, how: signal.Signals) -> None:
    (folder / "failures" / "slow").touch()
    script = "import sys; from tests.nuanced_core.data.test_rendering import render_until_stopped as render;"
    script += "render(sys.argv[1])"
    with (folder / "stderr").open("wb") as stderr:
        command = [sys.executable, "-c", script, str(folder)]
        parent = subprocess.Popen(command, start_new_session=True, stderr=stderr)
        _wait_until(lambda: len(_missing(folder)) < len(REQUESTS))
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does
        else:
            parent.kill()
        assert parent.wait(30) == (130 if how == signal.SIGINT else -9)
        _wait_until(lambda: not _group_exists(parent.pid))
    assert (folder / "stderr").read_text() == ""


def _wait_until(condition) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_worker_count_is_limited_by_cores_memory_and_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "whisper.pt"
    file.write_bytes(bytes(1000))
    models = SimpleNamespace(device=torch.device("cpu"), whisper_file=SimpleNamespace(path=file))
    count = partial(worker_count, models=models)
    monkeypatch.setattr(rendering, "usable_cpus", lambda: 4)
    monkeypatch.setattr(rendering, "available_memory", lambda: 100e9)
    assert [count(n) for n in (0, 1, 15, 16, 31, 32, 10**6)] == [1, 1, 1, 2, 3, 4, 4]
    monkeypatch.setattr(rendering, "usable_cpus", lambda: 64)
    assert count(10**6) == 8
    monkeypatch.setattr(rendering, "available_memory", lambda: 5e9)
    assert count(10**6) == 3
    monkeypatch.setattr(rendering, "available_memory", lambda: 0)
    assert count(10**6) == 1
    monkeypatch.setattr(rendering, "available_memory", lambda: 100e9)
    models.device = torch.device("cuda")
    assert count(10**6) == 1


def test_requests_for_the_same_clip_are_merged(folder: Path) -> None:
    dataset = open_dataset(folder)
    first, second = (request.utterance for request in REQUESTS[:2])
    copy = AugmentedCopy(Augment(copies=0, noise=1.0), 1)
    same_clip = Utterance("af_0", "Other spelling.", first.phonemes, first.phoneme_count, first.style, first.seed)
    requests = [RenderRequest(first, (0, 1)), RenderRequest(second, (0,)), RenderRequest(same_clip, (0, "room", copy))]
    merged = merge_requests(requests, dataset)
    assert [(request.utterance.seed, request.versions) for request in merged] == [
        (0, (0, 1, "room", copy)),
        (1, (0,)),
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs_share_one_progress_bar(
    folder: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    bars: list[list[int]] = []
    progress_bar = rendering.progress_bar

    def counted(description: str, total: int):  # type: ignore[no-untyped-def]
        bars.append([total])
        return progress_bar(description, total)

    monkeypatch.setattr(rendering, "progress_bar", counted)
    opened = partial(open_dataset, folder)
    render_jobs(
        [RenderJob(REQUESTS[:2], opened, 1), RenderJob([], opened, 1), RenderJob(REQUESTS[2:], opened, workers)]
    )
    assert bars == [[6]] and _missing(folder) == []
    assert logged == ["rendering 6 clips" + (f" in {workers} processes" if workers > 1 else "")]


def test_progress_is_counted_per_clip(folder: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    advanced: list[int] = []

    class Bar:
        def __init__(self, description: str, total: int) -> None:
            assert (description, total) == ("rendering clips", 2)

        def __enter__(self):  # type: ignore[no-untyped-def]
            return lambda: advanced.append(len(_missing(folder)))

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(rendering, "progress_bar", Bar)
    render_jobs([RenderJob(REQUESTS[:2], lambda: open_dataset(folder), 1)])
    assert advanced == [5, 4]
    render_jobs([RenderJob([], lambda: open_dataset(folder), 1)])
    assert len(logged) == 1
