"""tune.show.progress: the table in a terminal and the log lines elsewhere (the driver's tests have a whole sweep's)."""

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.tune.search.test_ledger import ledger, result
from tune.search.ledger import TrialLedger
from tune.show.progress import Progress


def run_trial(progress: Progress, book: TrialLedger, number: int, loss: float, error: str | None = None) -> None:
    """One trial from its start to its end, as Ray and the ledger report it."""
    trial = SimpleNamespace(config={**(book.ask() or {}), "epochs": 10})
    progress.on_trial_start(0, [], trial)
    book.report(number, result(1, loss))
    progress.on_trial_result(0, [], trial, result(1, loss))
    if error is not None:
        book.fail(number, error)
    book.end(number)
    progress.on_step_end(0, [])


def test_the_terminal_s_table_follows_trials_and_keeps_to_its_height(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=12)
    book = ledger(tmp_path, budget=40)
    progress = Progress(book, 40, console)
    with caplog.at_level(logging.INFO):
        progress.setup()
        for number in range(40):
            run_trial(progress, book, number, 1.0 if number else 0.5, "out of memory" if number == 39 else None)
        screen.truncate(0)
        screen.seek(0)
        progress.close()
    # The table is drawn over its former self, a line erased at a time.
    lines = screen.getvalue().rpartition("\x1b[2K")[2].splitlines()
    assert len(lines) <= 12
    assert any("0*" in line and "complete" in line and "0.5000" in line for line in lines)
    assert any("39" in line and "failed" in line for line in lines)
    assert not any(line.strip().startswith("20 ") for line in lines)
    assert "40 of 40 trials ended" in screen.getvalue()
    assert any("lowest val/loss so far: 0.5000, trial 0" in line for line in lines)
    assert caplog.messages == ["trial 39 failed: out of memory"]  # once, above the table


@pytest.mark.parametrize(
    "console",
    [None, Console(file=io.StringIO()), Console(file=io.StringIO(), force_terminal=True, quiet=True)],
    ids=["none", "no terminal", "quiet"],
)
def test_without_a_terminal_each_event_is_logged_and_a_failure_is_a_warning(
    console: Console | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    book = ledger(tmp_path, budget=2)
    progress = Progress(book, 2, console)
    with caplog.at_level(logging.INFO):
        progress.setup()
        run_trial(progress, book, 0, 0.5)
        run_trial(progress, book, 1, 0.75, "out of memory")
        progress.close()
    events = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [event for event in events if "starts" not in event[1]] == [
        ("INFO", "trial 0 epoch 1/10: val/loss 0.5000  val/skill -0.500"),
        ("INFO", "trial 0 complete: val/loss 0.5000  (best so far)"),
        ("INFO", "trial 1 epoch 1/10: val/loss 0.7500  val/skill -0.750"),
        ("WARNING", "trial 1 failed: out of memory"),
    ]
    assert console is None or console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_trials_with_people_show_their_identity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    for console in (None, Console(file=screen, force_terminal=True, width=100, height=12)):
        folder = tmp_path / str(console is None)
        folder.mkdir()
        book = ledger(folder, budget=1)
        progress = Progress(book, 1, console)
        with caplog.at_level(logging.INFO):
            progress.setup()
            trial = SimpleNamespace(config={**(book.ask() or {}), "epochs": 10})
            progress.on_trial_start(0, [], trial)
            progress.on_trial_result(0, [], trial, result(1, 0.5) | {"val/identity": 0.625})
            progress.close()
    assert "trial 0 epoch 1/10: val/loss 0.5000  val/skill -0.500  val/identity 0.625" in caplog.messages
    assert "val/identity" in screen.getvalue() and "0.625" in screen.getvalue()


def test_a_resumed_sweep_counts_and_compares_earlier_trials(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    book = ledger(tmp_path, budget=20)
    progress = Progress(book, 20, Console(file=screen, force_terminal=True, width=100), earlier=(3, (0.4, 1)))
    with caplog.at_level(logging.DEBUG):
        progress.setup()
        run_trial(progress, book, 0, 0.9)
        progress.close()
    assert "4 of 20 trials ended" in screen.getvalue()
    assert "lowest val/loss so far: 0.4000, trial 1" in screen.getvalue()
    assert "trial 0 complete: val/loss 0.9000" in caplog.messages


def test_a_trial_uses_its_gpu_while_it_has_a_process(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=20, gpus_per_trial=1.0)
    progress = Progress(book, 20)
    trial = SimpleNamespace(config={**(book.ask() or {}), "epochs": 10})
    uses = []
    for event in (lambda *_: None, progress.on_trial_start, progress.on_trial_recover, progress.on_trial_start):
        event(0, [], trial)
        uses.append(book._open[0].has_process)
    assert uses == [False, True, False, True]
