"""tune.loggers.live_events: the events of a trial on another node, here while it runs."""

import itertools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuanced_core.errors import DiskError
from tests.tune import toy
from tests.tune.sweep.test_resume import driver, killed, wait_for
from tune.cluster.shared_storage import LIVE_MARK, EndedTrialCopier, SharedFolder
from tune.loggers.live_events import LiveEvents
from tune.loggers.tensorboard import EVENT_FILE, TensorBoardReport


class Node:
    """Another node, which copies its trial to shared storage after each epoch."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "node" / "3"
        self.folder.mkdir(parents=True)
        (self.folder / "config.yaml").write_text("a: 1\n")
        self.shared = SharedFolder(str(tmp_path / "shared"))
        self.report = TensorBoardReport(self.folder)
        self.copy = self.shared.child("trials", "3")

    def epoch(self, step: int) -> None:
        self.report(step, {"val/loss": 1.0 / step}, toy.exhibits())
        self.report.flush()
        self.copy.push(self.folder)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def steps(folder: Path) -> list[int]:
    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("val/loss")]


def fetched(live: LiveEvents, number: int = 3) -> None:
    live.reported(number)
    live.tick()
    until = time.monotonic() + 10
    while live._busy and time.monotonic() < until:
        time.sleep(0.01)


def test_new_events_are_appended_to_the_file_here(node: Node, tmp_path: Path) -> None:
    live, here = LiveEvents(node.shared, tmp_path / "sweep", interval=0), tmp_path / "sweep" / "trials" / "3"
    node.epoch(10)
    fetched(live)
    (file,) = here.glob(f"{EVENT_FILE}*")
    opened = file.open("rb")  # as a TensorBoard that reads on
    first = opened.read()
    assert steps(here) == [10] and {path.name for path in here.iterdir()} == {file.name, LIVE_MARK}
    node.epoch(20)
    fetched(live)
    assert first + opened.read() == (node.folder / file.name).read_bytes() and steps(here) == [10, 20]
    node.report.close()
    node.report = TensorBoardReport(node.folder)  # resumed on another node: another file
    node.epoch(20)
    fetched(live)
    assert len(list(here.glob(f"{EVENT_FILE}*"))) == 2 and steps(here) == [10, 20]
    live.close()


def test_the_copy_at_the_end_replaces_what_was_fetched_after_its_last_bytes(node: Node, tmp_path: Path) -> None:
    live, here = LiveEvents(node.shared, tmp_path / "sweep", interval=0), tmp_path / "sweep" / "trials" / "3"
    copier = EndedTrialCopier(node.shared, tmp_path / "sweep", live.end)
    node.epoch(10)
    fetched(live)
    (file,) = here.glob(f"{EVENT_FILE}*")
    opened = file.open("rb")
    opened.read()
    node.epoch(20)
    copier.fetch(3)
    copier.close()
    assert opened.read().endswith(
        (node.folder / file.name).read_bytes()[-200:]
    )  # also by a reader of the replaced file
    assert {path.name for path in here.iterdir()} == {file.name, "config.yaml"} and steps(here) == [10, 20]
    node.epoch(30)
    fetched(live)  # a late report changes nothing any more
    live.close()


def test_a_trial_that_ended_while_no_driver_ran_is_copied_though_its_events_are_here(
    node: Node, tmp_path: Path
) -> None:
    live, here = LiveEvents(node.shared, tmp_path / "sweep", interval=0), tmp_path / "sweep" / "trials" / "3"
    node.epoch(10)
    fetched(live)
    live.close()
    node.epoch(20)
    copier = EndedTrialCopier(node.shared, tmp_path / "sweep")
    copier.fetch_missing([3])
    copier.close()
    assert (here / "config.yaml").exists() and not (here / LIVE_MARK).exists() and steps(here) == [10, 20]


def test_a_file_that_is_not_continued_there_is_left_alone(node: Node, tmp_path: Path) -> None:
    live, here = LiveEvents(node.shared, tmp_path / "sweep", interval=0), tmp_path / "sweep" / "trials" / "3"
    node.epoch(10)
    fetched(live)
    (file,) = here.glob(f"{EVENT_FILE}*")
    before = file.read_bytes()
    for content in (before[:40], b"x" * (len(before) + 100)):  # a shorter one, and another one
        node.copy.write(file.name, content)
        fetched(live)
        assert file.read_bytes() == before
    live.close()


def test_fetches_are_limited_and_hold_up_nothing(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, begun, free = LiveEvents(node.shared, tmp_path / "sweep", interval=0.5), [], threading.Event()
    node.epoch(10)

    def slow(self: SharedFolder) -> list[str]:
        begun.append(time.monotonic())
        free.wait(20)
        return []

    monkeypatch.setattr(SharedFolder, "names", slow)
    start = time.monotonic()
    for _ in range(50):
        live.reported(3)
        live.tick()
    assert time.monotonic() - start < 0.4
    free.set()
    while len(begun) < 3 and time.monotonic() - start < 10:
        live.reported(3)
        live.tick()
        time.sleep(0.01)
    live.close()
    gaps = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert len(begun) == 3 and min(gaps) > 0.4


def test_storage_that_does_not_answer_is_one_warning(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    live = LiveEvents(node.shared, tmp_path / "sweep", interval=0)
    node.epoch(10)

    def unreachable(self: SharedFolder, name: str, start: int) -> bytes:
        raise DiskError("sweep.shared: no route")

    with monkeypatch.context() as patch:
        patch.setattr(SharedFolder, "read_from", unreachable)
        with caplog.at_level(logging.WARNING):
            fetched(live)
            fetched(live)
    assert [record.message for record in caplog.records] == [
        "trial 3: its curves cannot be shown while it runs: sweep.shared: no route"
    ]
    fetched(live)
    assert steps(tmp_path / "sweep" / "trials" / "3") == [10]
    live.close()


def test_a_sweep_shows_its_running_trials_in_its_own_folder(ray_session: None, tmp_path: Path) -> None:
    fixed: list[Any] = ["sweep.trials=1", "train.epochs=4", "sweep.memory_per_trial=null"]
    fixed += [f"search.encoder.width=[{toy.SLOW}]", f"sweep.shared=file://{tmp_path / 'shared'}"]
    process = driver(tmp_path, *fixed)
    try:
        wait_for(tmp_path / "toy" / "trials" / "0" / LIVE_MARK, process)
        here = tmp_path / "toy" / "trials" / "0"
        until = time.monotonic() + 20
        while not list(here.glob(f"{EVENT_FILE}*")) and time.monotonic() < until:
            time.sleep(0.1)
        assert steps(here)[0] == 10 and not (here / "config.yaml").exists()
    finally:
        killed(process)
