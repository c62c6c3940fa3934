"""tune.trial.trainable: one trial in this process, with a real run of the fakes, also on a full disk."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nuanced_core.config.settings import RunConfig
from nuanced_core.training.run import BEST, LAST, Report, Run, start_run
from tune.cluster.shared_storage import SharedFolder
from tune.config.space import Space
from tune.loggers.tensorboard import TensorBoardReport
from tune.trial.reports import unpack_scalars
from tune.trial.trainable import STOP_FILE, StyleEncoderTrial

SPACE = {"train.learning_rate": {"low": 1e-4, "high": 1e-2}}


class Trial:
    """A trial as Ray's actor runs it."""

    def __init__(self, fakes: SimpleNamespace, run: RunConfig, folder: Path, **settings: Any) -> None:
        self.folder = folder / "trials" / "0"

        def start_with_fakes(config: RunConfig, where: Path, report: Report) -> Run:
            return start_run(config, where, report, models=fakes, cache=folder / "cache")  # type: ignore[arg-type]

        self.actor = StyleEncoderTrial.__new__(StyleEncoderTrial)
        asked = {"number": 0, "folder": str(self.folder), "params": {"train.learning_rate": 1e-3}, "gpus": 0.0}
        search = Space.parse(SPACE, run, "a.yaml")
        storage = SharedFolder(str(folder))
        self.actor.setup(
            asked, start_run=start_with_fakes, run=run, search=search, threads=1, storage=storage, **settings
        )

    def step(self) -> dict[str, Any]:
        return unpack_scalars(self.actor.step())


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No process may write a file beyond so many bytes: the kernel refuses, whoever writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# From the first byte of config.yaml to the last of a checkpoint; events, sound and checkpoints differ in size.
@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 40, 400, 1_500, 4_000, 8_000, 20_000, 60_000])
def test_a_disk_that_is_full_at_whatever_write_leaves_what_was_whole(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, size: int
) -> None:
    run = tiny_run.model_copy(update={"train": tiny_run.train.model_copy(update={"epochs": 3})})
    whole = Trial(fakes, run, tmp_path / "whole")
    expected = [whole.step() for _ in range(3)]
    largest = max(file.stat().st_size for file in whole.folder.rglob("*") if file.is_file())

    first = Trial(fakes, run, tmp_path / "full")
    assert first.step()["epoch"] == 1
    kept = {path: (first.folder / path).read_bytes() for path in (LAST, BEST)}
    with files_of_at_most(size):
        result = first.step()
        first.actor.cleanup()
    if size < largest:
        assert result["done"] and "disk" in result and "\n" not in result["disk"], result
        assert {path: (first.folder / path).read_bytes() for path in kept} == kept
    again = Trial(fakes, run, tmp_path / "full")
    results = [again.step()]
    while not results[-1]["done"]:
        results.append(again.step())
    assert [result["epoch"] for result in results] == [1, 2, 3] or size >= largest
    for got, wanted in zip(reversed(results), reversed(expected), strict=False):
        assert got["val/loss"] == pytest.approx(wanted["val/loss"], rel=1e-4)


def test_a_disk_that_is_full_from_the_start_is_told_too(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    Trial(fakes, tiny_run, tmp_path).step()  # renders into the cache
    (tmp_path / "trials").rename(tmp_path / "before")
    trial = Trial(fakes, tiny_run, tmp_path)
    with files_of_at_most(0):
        result = trial.step()
        trial.actor.cleanup()
    assert result["done"] and "disk" in result


def test_curves_that_cannot_be_written_are_a_full_disk_and_not_a_failure(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(fakes, tiny_run, tmp_path)
    trial.step()

    def full(self: TensorBoardReport, step: int, scalars: object, exhibits: object = ()) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardReport, "__call__", full)
    assert trial.step() == {"done": True, "disk": f"{trial.folder}: cannot be written: No space left on device"}


def test_a_process_is_capped_to_its_share_without_what_its_context_takes(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caps: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=int(24e9)))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", caps.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    trial = Trial(fakes, tiny_run, tmp_path)
    for share in (0.25, 0.0, 1.0):
        trial.actor._trial["gpus"] = share
        trial.actor._cap_gpu_memory()
    assert caps == [pytest.approx(0.25 - 0.6 / 24)]  # a whole card, or none, needs no cap


def test_running_out_of_gpu_memory_says_what_was_held_and_what_would_do(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(fakes, tiny_run, tmp_path)
    trial.actor._trial["gpus"] = 0.25

    def short(self: Run) -> dict[str, float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Run, "run_epoch", short)
    result = trial.step()
    assert result["share"] == pytest.approx(1 / 3)
    assert result["out_of_memory"].startswith("out of GPU memory at 25% of the card; a share of 0.333")


def test_a_stopped_trial_leaves_its_node_with_nothing_when_its_folder_is_in_shared_storage(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    first = Trial(fakes, tiny_run, tmp_path, is_shared=True)
    assert first.step()["epoch"] == 1
    scratch = first.actor._folder
    assert scratch.is_dir() and (first.folder / LAST).is_file() and scratch != first.folder
    (tmp_path / STOP_FILE).touch()
    first.actor._stop_checked = -10.0
    result = first.step()
    assert "stopped with its sweep" in result["interrupted"]
    first.actor.cleanup()
    assert not scratch.exists()
    (tmp_path / STOP_FILE).unlink()
    second = Trial(fakes, tiny_run, tmp_path, is_shared=True)
    results = [second.step(), second.step()]
    assert [result["epoch"] for result in results] == [1, 2] and results[-1]["done"]
    second.actor.cleanup()


@pytest.mark.slow
def test_a_trial_whose_copy_cannot_be_written_says_so(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial(fakes, tiny_run, tmp_path, is_shared=True)
    trial.step()

    def refused(source: str, target: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(trial.actor._copy._files, "put_file", refused)
    result = trial.step()
    assert result["done"] and "cannot be written: PermissionError" in result["disk"]
    trial.actor.cleanup()
