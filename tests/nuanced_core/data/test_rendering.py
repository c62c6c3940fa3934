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

from nuanced_core.config.settings import Augment, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import cache as cache_module
from nuanced_core.data import rendering
from nuanced_core.data.cache import Cache
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.rendering import RenderRequest, render, worker_count
from nuanced_core.data.utterances import Utterance
from nuanced_core.errors import ConfigError, DiskError, TrainingError
from nuanced_core.training import preparation
from tests.fakes import FakeKokoro, fake_models

STYLES = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
VERSIONS: list[tuple[int, ...]] = [(0,), (0, 1), (0,), (0, 1), (0,), (0,)]
ORDERS = [
    RenderRequest(Utterance(f"af_{n}", f"Text {n}.", "a" * (5 + n), 5 + n, style, n), versions)
    for n, (style, versions) in enumerate(zip(STYLES, VERSIONS, strict=True))
]
DEADLY = "a" * 7


class Trouble(FakeKokoro):
    """Kokoro that fails at one text in a way that a file names; it goes on once the file is gone."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def encode_text(self, phonemes: list[str]):  # type: ignore[no-untyped-def]
        for trouble in [path.name for path in self.folder.iterdir()] if phonemes == [DEADLY] else []:
            if trouble == "once":
                (self.folder / trouble).unlink()
            if trouble in ("once", "always"):
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "full":
                raise DiskError("the disk is full")
            if trouble == "bug":
                raise ValueError("not\na style")
        if (self.folder / "slow").exists():
            time.sleep(0.5)
        return super().encode_text(phonemes)


def opened(folder: Path) -> Dataset:
    (folder / "trouble").mkdir(parents=True, exist_ok=True)
    models = fake_models(folder / "voices")
    models.kokoro = Trouble(folder / "trouble")
    return Dataset(models, folder / "cache", Augment(copies=1))  # type: ignore[arg-type]


def interrupted(folder: str) -> None:
    """Render slowly until somebody stops it; run by a process of its own."""
    try:
        render(ORDERS * 20, partial(opened, Path(folder)), 2, print)
    except KeyboardInterrupt:
        sys.exit(130)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    opened(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a worker starts so slowly that progress is told of."""
    monkeypatch.setattr(rendering, "TELL_EVERY", 1e9)


def _missing(folder: Path) -> list[str]:
    dataset = opened(folder)
    return [order.utterance.text for order in ORDERS if dataset.missing([order.utterance], order.versions)]


def test_processes_render_what_one_process_renders(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    render(ORDERS, partial(opened, folder), 2, said.append)
    assert said[0] == "rendering 6 clips, once, in 2 processes"
    assert _missing(folder) == []
    render(ORDERS, partial(opened, tmp_path / "one"), 1, said.append)
    assert said[1:] == ["rendering 6 clips, once"]
    several, one = (Cache(path / "cache") for path in (folder, tmp_path / "one"))
    assert len(several.entries()) == 14
    for entry in several.entries():
        found, expected = (cache.load(entry.kind, entry.path.stem) for cache in (several, one))
        assert found and expected and found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name])


def test_when_a_process_is_killed_the_others_finish_its_work(folder: Path) -> None:
    (folder / "trouble" / "once").touch()
    said: list[str] = []
    render(ORDERS, partial(opened, folder), 2, said.append)
    assert said[1:] == ["a rendering process was killed by signal 9; 1 go on"]
    assert _missing(folder) == []


def test_when_none_is_left_one_line_says_so_and_what_is_rendered_is_kept(folder: Path) -> None:
    (folder / "trouble" / "always").touch()
    with pytest.raises(
        TrainingError, match=r"^rendering 'Text 2.' in af_2: the last rendering .* signal 9 .* is kept$"
    ):
        render(ORDERS, partial(opened, folder), 2, print)
    left = _missing(folder)
    assert "Text 2." in left and len(left) < len(ORDERS)
    (folder / "trouble" / "always").unlink()
    dataset = opened(folder)
    render([o for o in ORDERS if o.utterance.text in left], lambda: dataset, 1, print)
    assert dataset.models.kokoro.spoken <= len(left) and _missing(folder) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("trouble", "error", "told"),
    [
        ("full", DiskError, "^the disk is full$"),
        ("bug", TrainingError, "^rendering 'Text 2.' in af_2: ValueError: not a style$"),
    ],
)
def test_an_error_of_a_process_is_one_line(folder: Path, trouble: str, error: type[Exception], told: str) -> None:
    (folder / "trouble" / trouble).touch()
    with pytest.raises(error, match=told):
        render(ORDERS[1:4], partial(opened, folder), 2, print)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_quietly_with_the_one_that_started_them(folder: Path, how: signal.Signals) -> None:
    (folder / "trouble" / "slow").touch()
    script = f"from tests.nuanced_core.data.test_rendering import interrupted; interrupted({str(folder)!r})"
    with (folder / "stderr").open("wb") as stderr:
        parent = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stderr=stderr)
        _until(lambda: len(_missing(folder)) < len(ORDERS))
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does
        else:
            parent.kill()
        assert parent.wait(30) == (130 if how == signal.SIGINT else -9)
        _until(lambda: not _group_lives(parent.pid))
    assert (folder / "stderr").read_text() == ""


def _until(condition) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_as_many_processes_as_cores_memory_and_work_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "whisper.pt"
    file.write_bytes(bytes(1000))
    models = SimpleNamespace(device=torch.device("cpu"), whisper_file=SimpleNamespace(path=file))
    count = partial(worker_count, models=models)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(rendering, "_available_memory", lambda: 100e9)
    assert [count(n) for n in (0, 1, 15, 16, 31, 32, 10**6)] == [1, 1, 1, 2, 3, 4, 4]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64))
    assert count(10**6) == 8
    monkeypatch.setattr(rendering, "_available_memory", lambda: 5e9)
    assert count(10**6) == 3
    monkeypatch.setattr(rendering, "_available_memory", lambda: 0)
    assert count(10**6) == 1
    monkeypatch.setattr(rendering, "_available_memory", lambda: 100e9)
    models.device = torch.device("cuda")
    assert count(10**6) == 1


@pytest.fixture
def prepared(tmp_path: Path, fakes: SimpleNamespace, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Prepares a run of some voices with the fakes, as another process than before; returns what was said."""
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NUANCED_CACHE_LIMIT", raising=False)
    monkeypatch.setattr(preparation, "loaded_models", lambda settings, device, say: fakes)

    def prepare(*voices: str, again: bool = False) -> list[str]:
        said: list[str] = []
        if not again:
            monkeypatch.setattr(cache_module, "_used", set())
        data = {**tiny_run.data.model_dump(mode="json"), "voices": list(voices)}
        run = validate(RunConfig, {**tiny_run.model_dump(mode="json"), "data": data, "augment": {"copies": 2}}, "x")
        preparation.prepare([run], said.append)
        return said

    return prepare


def _entries(tmp_path: Path) -> set[Path]:
    return {entry.path for entry in Cache(tmp_path / "cache").entries() if entry.kind != "baselines"}


def test_prepare_renders_what_is_missing_with_its_versions(prepared, fakes: SimpleNamespace, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert prepared("af_heart") == ["rendering 6 clips, once"]
    assert fakes.whisper.heard == 2 * 3 + 4 + 3  # clean and two copies in training; clean and degraded in validation
    assert prepared("af_heart") == []
    assert prepared("af_heart", "af_bella") == ["rendering 2 clips, once"]
    entries = Cache(tmp_path / "cache").entries()
    assert len([e for e in entries if e.kind == "features"]) == 4 * 3 + 4 + 3


def test_beyond_the_limit_what_no_run_needs_is_removed(
    prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    prepared("af_heart")
    first = _entries(tmp_path)
    prepared("af_bella")
    second = _entries(tmp_path) - first
    assert len(second) == 2 * (1 + 3)  # the sound of two sentences and its versions' features
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "1GB")
    assert prepared("af_bella") == [] and _entries(tmp_path) == first | second
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "0")
    *_, needed = prepared("af_bella")
    assert "are needed, more than NUANCED_CACHE_LIMIT, 0 B" in needed
    kept = _entries(tmp_path)
    assert second < kept and len(first - kept) == 2 * (1 + 3)  # validation stays
    prepared("af_heart", again=True)
    assert _entries(tmp_path) == first | second  # since this process needs both now


def test_a_limit_that_is_no_size_is_told_before_the_work(
    prepared, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("NUANCED_CACHE_LIMIT", "little")
    with pytest.raises(ConfigError, match="NUANCED_CACHE_LIMIT: 'little'"):
        prepared("af_heart")
    assert fakes.kokoro.spoken == 0


def test_there_is_a_line_from_time_to_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TELL_EVERY", -1.0)
    said: list[str] = []
    render(ORDERS[:2], lambda: opened(folder), 1, said.append)
    assert said == ["rendering 2 clips, once", "rendered 1 of 2 clips", "rendered 2 of 2 clips"]
    render([], lambda: opened(folder), 1, said.append)
    assert len(said) == 3


def test_on_a_terminal_there_is_a_bar(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rendering, "Console", partial(rendering.Console, force_terminal=True, width=80))
    render(ORDERS[:2], lambda: opened(folder), 1, lambda line: None)
    assert "2/2" in capsys.readouterr().out
