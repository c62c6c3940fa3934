"""tune.loggers.clients.background: batches by epoch, and services that are slow, dead or late."""

import threading
import time
from collections.abc import Sequence

import pytest

from tests.tune import toy
from tune.loggers.clients.background import BackgroundLogger, Reported, RunState, failure


class FakeService:
    """A client that keeps what it is sent, and fails or waits as it is told."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Reported]] = []
        self.state: RunState | None = None
        self.failures = 0
        self.free = threading.Event()
        self.free.set()

    def log(self, batch: Sequence[Reported]) -> None:
        self.free.wait(20)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to host")
        self.batches.append(batch)

    def close(self, state: RunState) -> None:
        self.state = state


def report_epoch(logger: BackgroundLogger, epoch: int, steps: int = 5) -> None:
    for step in range(epoch * steps, (epoch + 1) * steps):
        logger(step, {"loss/total": float(step)})
    logger((epoch + 1) * steps - 1, {"val/loss": 1.0}, toy.exhibits())
    logger.flush()


def wait_for(service: FakeService, batches: int) -> None:
    until = time.monotonic() + 10
    while len(service.batches) < batches and time.monotonic() < until:
        time.sleep(0.01)
    assert len(service.batches) == batches


def test_an_epoch_is_one_batch_with_all_its_steps_and_exhibits() -> None:
    service = FakeService()
    logger = BackgroundLogger("fake", lambda: service)
    report_epoch(logger, 0)
    report_epoch(logger, 1)
    logger.close("pruned")
    assert service.state == "pruned" and logger.warnings == []
    assert [[reported.step for reported in batch] for batch in service.batches] == [
        [0, 1, 2, 3, 4, 4],
        [5, 6, 7, 8, 9, 9],
    ]
    assert [len(reported.exhibits) for reported in service.batches[0]] == [0, 0, 0, 0, 0, 2]


def test_a_slow_service_holds_up_no_step() -> None:
    service = FakeService()
    service.free.clear()
    logger = BackgroundLogger("fake", lambda: service)
    begun = time.monotonic()
    for epoch in range(20):
        report_epoch(logger, epoch)
    assert time.monotonic() - begun < 2 and not service.batches
    service.free.set()
    logger.close("complete")
    assert len(service.batches) == 20 and logger.warnings == []


def test_what_a_failing_service_missed_is_sent_with_the_next_epoch_and_warned_of_once() -> None:
    service = FakeService()
    service.failures = 2
    logger = BackgroundLogger("fake", lambda: service)
    for epoch in range(2):
        left = service.failures
        report_epoch(logger, epoch)
        until = time.monotonic() + 10
        while service.failures == left and time.monotonic() < until:
            time.sleep(0.01)
    report_epoch(logger, 2)
    wait_for(service, 3)
    logger.close("complete")
    assert [batch[0].step for batch in service.batches] == [0, 5, 10]
    assert logger.warnings == [
        "fake: ConnectionError: no route to host; what it shows may be incomplete, and the trials go on"
    ]


def test_a_service_that_cannot_be_reached_at_first_is_tried_again() -> None:
    service, attempts = FakeService(), []

    def connect() -> FakeService:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("refused")
        return service

    logger = BackgroundLogger("fake", connect)
    for epoch in range(3):
        report_epoch(logger, epoch)
        time.sleep(0.1)
    logger.close("complete")
    assert len(service.batches) == 3 and len(logger.warnings) == 1 and service.state == "complete"


def test_a_service_that_never_answers_is_given_up_at_the_end() -> None:
    service = FakeService()
    service.free.clear()
    logger = BackgroundLogger("fake", lambda: service, close_seconds=0.2)
    report_epoch(logger, 0)
    begun = time.monotonic()
    logger.close("complete")
    assert time.monotonic() - begun < 5
    assert "did not take everything within 0.2 s" in logger.warnings[0]
    service.free.set()


def test_epochs_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.loggers.clients.background._MOST_BATCHES", 3)
    service = FakeService()
    service.free.clear()
    logger = BackgroundLogger("fake", lambda: service)
    for epoch in range(10):
        report_epoch(logger, epoch)
    service.free.set()
    logger.close("complete")
    assert len(service.batches) == 3 and "more than 3 epochs wait" in logger.warnings[0]


def test_an_error_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k3y" * 13)
    error = ConnectionError(f"http://me:s3cr3t@host/x refused\nkey {'k3y' * 13}")
    assert failure(error) == "ConnectionError: http://me:***@host/x refused key ***"
