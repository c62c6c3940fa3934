"""tune.cli.common.logs and the global options: which messages go to stderr and into the log file."""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from nuanced_core.errors import DiskError
from nuanced_core.progress import progress_bar, stderr_console
from tune.cli.app import main
from tune.cli.common.logs import LOGGERS, LogOptions, log_output
from tune.show.doctor import Finding

core, tune = logging.getLogger("nuanced_core.data.rendering"), logging.getLogger("tune.sweep.driver")
LONG_LINE = "resume with: nuanced sweep --resume '/some/where/my [bold]sweep[/bold]' --address auto"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A command that logs at several levels and prints one result."""

    def status_lines(folder: Path) -> list[str]:
        core.debug("a detail")
        core.info("rendered %d clips", 3)
        tune.warning("a node is lost")
        tune.error("the disk is full")
        return ["a result"]

    monkeypatch.setattr("tune.show.report.status_lines", status_lines)
    return lambda before=(), after=(): main([*before, "status", "a", *after])


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal as stderr."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=40, height=20)
    monkeypatch.setattr("tune.cli.common.logs.stderr_console", lambda: console)
    monkeypatch.setattr("nuanced_core.progress.stderr_console", lambda: console)
    return screen


def test_messages_go_to_stderr_and_results_to_stdout(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    out, err = capsys.readouterr()
    assert out == "a result\n"
    assert err == "rendered 3 clips\nwarning: a node is lost\nerror: the disk is full\n"


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet_leaves_warnings_errors_and_results(
    place: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(**{place: ["--quiet"]}) == 0
    assert capsys.readouterr() == ("a result\n", "warning: a node is lost\nerror: the disk is full\n")


@pytest.mark.parametrize("place", ["before", "after"])
def test_verbose_adds_details_and_logger_names(
    place: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(**{place: ["--verbose"]}) == 0
    assert capsys.readouterr().err.splitlines()[:3] == [
        "nuanced_core.data.rendering: a detail",
        "nuanced_core.data.rendering: rendered 3 clips",
        "warning: tune.sweep.driver: a node is lost",
    ]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_log_file_gets_everything_and_grows(place: str, command: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "a b.log"
    for _ in range(2):
        assert (
            command(**{place: ["--log-file", str(file)]}, **({"after": ["--quiet"]} if place == "before" else {})) == 0
        )
    lines = file.read_text().splitlines()
    assert len(lines) == 8 and lines[0][:4].isdigit()
    assert [line.split(maxsplit=2)[2] for line in lines[:4]] == [
        "DEBUG nuanced_core.data.rendering: a detail",
        "INFO nuanced_core.data.rendering: rendered 3 clips",
        "WARNING tune.sweep.driver: a node is lost",
        "ERROR tune.sweep.driver: the disk is full",
    ]


def test_a_log_file_has_the_error_that_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "log"
    options = ["status", str(tmp_path), "--log-file", str(file)]
    assert main(options) == 2
    assert "not the folder of a sweep" in file.read_text() and "Traceback" not in file.read_text()
    assert capsys.readouterr().err.count("\n") == 1

    def broken(folder: Path) -> list[str]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tune.show.report.status_lines", broken)
    with pytest.raises(ZeroDivisionError):
        main(options)
    assert "ERROR nuanced: a bug\nTraceback" in file.read_text()


def test_an_exit_code_is_no_error_in_the_log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.show.doctor.examine", lambda config: [Finding("python", "3.9", "is too old")])
    file = tmp_path / "log"
    assert main(["doctor", "--log-file", str(file)]) == 1
    assert file.read_text() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--quiet", "--verbose"], "--quiet and --verbose contradict each other; give one of them"),
        (["--log-file", "absent/log"], "--log-file absent/log: cannot be written: No such file or directory"),
    ],
)
def test_options_that_cannot_be_followed_are_one_line(
    options: list[str], message: str, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(before=options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"nuanced: error: {message}") and err.count("\n") == 1


def test_logging_is_as_before_after_each_command(command: Callable[..., int], tmp_path: Path) -> None:
    def state() -> list[tuple[object, ...]]:
        loggers = [logging.getLogger(name) for name in (None, *LOGGERS)]
        return [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]

    before = state()
    command(["--verbose", "--log-file", str(tmp_path / "log")])
    main(["status", str(tmp_path)])
    with pytest.raises(DiskError), log_output(LogOptions(quiet=True)):
        raise DiskError("full")
    assert state() == before
    assert not stderr_console().quiet


def test_other_libraries_keep_their_logging(capsys: pytest.CaptureFixture[str]) -> None:
    with log_output(LogOptions(verbose=True)):
        logging.getLogger("ray").info("nothing for users")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_lines_as_they_are_without_breaks_or_markup(screen: io.StringIO) -> None:
    with log_output(LogOptions()):
        tune.warning(LONG_LINE)
    assert screen.getvalue() == f"warning: {LONG_LINE}\n"


def test_log_lines_appear_above_a_live_table(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    from tune.cli.common import logs

    with log_output(LogOptions()), Live("the table", console=logs.stderr_console(), auto_refresh=False):
        tune.info(LONG_LINE)
    text = screen.getvalue()
    assert text.index(LONG_LINE) < text.rindex("the table")
    assert text.count(LONG_LINE) == 1


def test_quiet_hides_progress_bars_even_with_a_log_file(
    screen: io.StringIO, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with progress_bar("rendering clips", 2) as advance:
            advance()
            advance()
        tune.warning("a node is lost")

    with log_output(LogOptions(quiet=True, log_file=tmp_path / "log")):
        work()
    assert screen.getvalue() == ""
    assert capsys.readouterr().err == "warning: a node is lost\n"
    with log_output(LogOptions()):
        work()
    assert "rendering clips" in screen.getvalue()
