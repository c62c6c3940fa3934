"""What all benchmarks share: progress on stderr, rows on stdout once they are known, partial results at Ctrl-C."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from nuanced_core.errors import NuancedError
from nuanced_core.progress import stderr_console
from tune.cli.common.logs import LogOptions, log_output
from tune.sweep.signals import interrupt_on_signal

if TYPE_CHECKING:
    from nuanced_core.data.dataset import Dataset
    from nuanced_core.data.utterances import Utterance

__all__ = ["INTERRUPTED", "Bench", "Row", "benchmark", "render_missing"]

HEARTBEAT = 10.0  # seconds between two lines about the same work
INTERRUPTED = 130  # 128 + SIGINT

Item = TypeVar("Item")
Row = Mapping[str, float]


class Bench:
    """The progress and the results of a benchmark that runs.

    Args:
        as_json: whether stdout gets nothing but the JSON of all rows, at the end.

    Attributes:
        rows: what is known: cells by column, by name; a row of one nameless cell is a figure of its own.
        repeat: whether all rows are printed again at the end, because they have changed since.
        summary: returns further lines for the end, also of rows that are incomplete.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.rows: dict[str, Row] = {}
        self.repeat = False
        self.summary: Callable[[], Iterable[str]] = lambda: ()
        self.started = time.monotonic()
        self._header: tuple[str, ...] = ()
        self._doing, self._since, self._last_line = "starting", self.started, self.started
        self._done, self._total = 0, 0

    def doing(self, what: str) -> None:
        """Say on stderr what is done from now on; it is said again every ``HEARTBEAT`` seconds, with its time."""
        self._doing, self._since, self._done, self._total = what, time.monotonic(), 0, 0
        self._say(what)

    def each(self, what: str, items: Sequence[Item]) -> Iterator[Item]:
        """Return the items; the lines on stderr have the number of those that are done and the time that is left."""
        self.doing(what)
        self._total = len(items)
        for item in items:
            yield item
            self._done += 1

    def add(self, name: str, row: Row | float) -> None:
        """Add a row, or a single figure, and print it."""
        self.rows[name] = row if isinstance(row, Mapping) else {"": row}
        self.print(*self.lines({name: self.rows[name]}))

    def print(self, *lines: str) -> None:
        """Print lines of results now, unless JSON was asked for."""
        if not self.as_json:
            for line in lines:
                print(line, flush=True)

    def lines(self, rows: Mapping[str, Row]) -> Iterator[str]:
        """Return rows as lines of a table; the names of the columns come first if they are not those printed last."""
        for name, row in rows.items():
            columns = tuple(row)
            if columns == ("",):
                yield f"{name:32}  {_cell(row[''])}"
                continue
            widths = [max(8, len(column)) for column in columns]
            if columns != self._header:
                self._header = columns
                yield "  ".join([" " * 18, *(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))])
            cells = (f"{_cell(value):>{w}}" for value, w in zip(row.values(), widths, strict=True))
            yield "  ".join([f"{name:18}", *cells])

    def finish(self, interrupted: bool) -> None:
        """Print the JSON or the summary; if interrupted, all rows again under a line that says so."""
        if interrupted:
            count = f"{len(self.rows)} results were finished" if self.rows else "nothing was finished"
            partial = f"partial: interrupted after {time.monotonic() - self.started:.0f} s, {count}"
            if self.as_json:
                self._say(partial)
            self.print(partial)
        if self.repeat or interrupted:
            self._header = ()
            self.print(*self.lines(self.rows))
        if self.as_json:
            figures = {name: row[""] if tuple(row) == ("",) else row for name, row in self.rows.items()}
            print(json.dumps(figures, indent=2), flush=True)
        elif self.rows:
            self.print(*self.summary())

    def beat(self) -> None:
        """Say again what is done if the last line is ``HEARTBEAT`` seconds old."""
        now = time.monotonic()
        if now - self._last_line < HEARTBEAT:
            return
        seconds, done, total = now - self._since, self._done, self._total
        count = f" {done} of {total}," if total else ""
        left = f", about {seconds / done * (total - done):.0f} s left" if done else ""
        self._say(f"{self._doing}:{count} {seconds:.0f} s{left}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        line = f"[{self._last_line - self.started:4.0f} s] {text}"
        stderr_console().print(line, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def benchmark(as_json: bool = False) -> Iterator[Bench]:
    """Run a benchmark inside the context, which ends it in good order.

    At Ctrl-C the rows that are known are printed with a line that says that they are partial.

    Raises:
        SystemExit: with 130 at Ctrl-C; with the error's code and one line on stderr at a NuancedError.
    """
    bench, ended = Bench(as_json), threading.Event()
    beats = threading.Thread(target=_beat, args=(bench, ended), daemon=True)
    interrupted = False
    with interrupt_on_signal(), log_output(LogOptions()):
        beats.start()
        try:
            yield bench
        except KeyboardInterrupt:
            interrupted = True
        except NuancedError as error:
            print(f"error: {error}", file=sys.stderr)
            if error.exit_code != INTERRUPTED:
                raise SystemExit(error.exit_code) from None
            interrupted = True
        finally:
            ended.set()
            beats.join()
        with suppress(BrokenPipeError):
            bench.finish(interrupted)
    if interrupted:
        raise SystemExit(INTERRUPTED)


def render_missing(dataset: "Dataset", utterances: Iterable["Utterance"]) -> None:
    """Render the clips that the cache lacks, and their features, with several processes where that is faster."""
    from nuanced_core.data.rendering import RenderRequest, make_job, render_jobs
    from nuanced_core.data.versions import CLEAN

    missing = dataset.missing(utterances)
    render_jobs([make_job([RenderRequest(utterance, CLEAN) for utterance in missing], dataset)])


def _beat(bench: Bench, ended: threading.Event) -> None:
    while not ended.wait(1.0):
        bench.beat()


def _cell(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
