"""nuanced_core.progress: a bar in a terminal, log lines elsewhere, nothing where INFO is disabled."""

import io
import logging
from collections.abc import Callable

import pytest
from rich.console import Console

from nuanced_core import progress
from nuanced_core.progress import LOG_INTERVAL, progress_bar, stderr_console

Attach = Callable[[bool], io.StringIO]


class Clock:
    """A stand-in for the module ``time`` whose time passes only on request."""

    def __init__(self) -> None:
        self.now = 100.0  # seconds

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Attach:
    """A function that replaces stderr's console by one with or without a terminal, and returns its output."""

    def attach(terminal: bool) -> io.StringIO:
        output = io.StringIO()
        console = Console(file=output, force_terminal=terminal, color_system=None, width=80, height=20)
        monkeypatch.setattr(progress, "stderr_console", lambda: console)
        return output

    return attach


def test_a_terminal_shows_a_bar_and_logs_nothing(
    attach: Attach, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    output = attach(True)
    with caplog.at_level(logging.INFO), progress_bar("rendering clips", 3) as advance:
        for _ in range(3):
            clock.now += 2 * LOG_INTERVAL
            advance()
    assert "rendering clips" in output.getvalue()
    assert "3/3" in output.getvalue()
    assert caplog.messages == []


def test_without_a_terminal_lines_are_logged_at_intervals_with_the_time_left(
    attach: Attach, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    output = attach(False)
    with caplog.at_level(logging.INFO), progress_bar("rendering clips", 8) as advance:
        for _ in range(8):
            clock.now += 0.4 * LOG_INTERVAL
            advance()
    # The interval has passed after the 3rd and the 6th item; an item takes 4 s.
    assert caplog.messages == [
        "rendering clips: 3 of 8, about 20 s left",
        "rendering clips: 6 of 8, about 8 s left",
    ]
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert output.getvalue() == ""


def test_short_work_and_the_last_item_are_not_logged(
    attach: Attach, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    attach(False)
    with caplog.at_level(logging.INFO):
        with progress_bar("short", 3) as advance:
            for _ in range(3):
                advance()
        with progress_bar("one item", 1) as advance:
            clock.now += 2 * LOG_INTERVAL
            advance()
    assert caplog.messages == []


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_at_level_warning(
    terminal: bool, attach: Attach, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    output = attach(terminal)
    with caplog.at_level(logging.WARNING), progress_bar("rendering clips", 2) as advance:
        clock.now += 2 * LOG_INTERVAL
        advance()
    assert output.getvalue() == ""
    assert caplog.messages == []


def test_an_error_in_the_work_is_passed_on_and_restores_the_terminal(
    attach: Attach, caplog: pytest.LogCaptureFixture
) -> None:
    output = attach(True)
    caplog.set_level(logging.INFO)
    with pytest.raises(ZeroDivisionError), progress_bar("rendering clips", 2) as advance:
        advance()
        raise ZeroDivisionError
    hide_cursor, show_cursor = "\x1b[?25l", "\x1b[?25h"
    assert output.getvalue().count(hide_cursor) == output.getvalue().count(show_cursor) == 1


def test_bars_can_be_nested(attach: Attach, caplog: pytest.LogCaptureFixture) -> None:
    output = attach(True)
    caplog.set_level(logging.INFO)
    with progress_bar("evaluating", 1) as advance_outer, progress_bar("rendering clips", 1) as advance_inner:
        advance_inner()
        advance_outer()
    assert "evaluating" in output.getvalue()
    assert "rendering clips" in output.getvalue()


def test_all_callers_share_one_console_on_stderr() -> None:
    assert stderr_console() is stderr_console()
    assert stderr_console().stderr
