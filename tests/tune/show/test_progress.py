"""tune.show.progress: the table in a terminal (the plain lines are tested with the driver)."""

import io
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from tests.tune.search.ledgers import ledger, result
from tune.show.progress import Progress


def test_the_terminal_s_table_follows_trials_and_keeps_to_its_height(tmp_path: Path) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=12)
    book = ledger(tmp_path, budget=40)
    said: list[str] = []
    progress = Progress(book, 40, said.append, console)
    progress.setup()
    for number in range(40):
        trial = SimpleNamespace(config={**(book.ask() or {}), "epochs": 10})
        progress.on_trial_start(0, [], trial)
        loss = 1.0 if number else 0.5
        book.report(number, result(1, loss))
        progress.on_trial_result(0, [], trial, result(1, loss))
        if number == 39:
            book.fail(number, "out of memory")
        book.end(number)
        progress.on_step_end(0, [])
    screen.truncate(0)
    screen.seek(0)
    progress.close()
    # The table is drawn over its former self, a line erased at a time.
    lines = screen.getvalue().rpartition("\x1b[2K")[2].splitlines()
    assert len(lines) <= 12
    assert any("0*" in line and "complete" in line and "0.5000" in line for line in lines)
    assert any("39" in line and "failed" in line and "out of memory" in line for line in lines)
    assert not any(line.strip().startswith("20 ") for line in lines)
    assert "40 of 40 trials ended" in screen.getvalue()
    assert said == []
