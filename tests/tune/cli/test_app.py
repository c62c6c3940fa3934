"""tune.cli.app: usage errors, help, completion and exit codes."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.tune.search.test_ledger import ledger
from tune.cli.app import main

ROOT = Path(__file__).parents[3]
COMMANDS = {"sweep", "train", "status", "board", "dashboard", "doctor", "export", "evaluate", "weights", "cache"}
COMMANDS |= {"voice", "mix", "speak", "convert", "reply", "serve"}


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("nuanced: error: ") and err.count("\n") == 1
    return err.removeprefix("nuanced: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nowhere"], "nowhere: not the folder of a sweep"),
        (["export", "nowhere", "-o", "out"], "nowhere: not the folder of a sweep"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["sweep"], "give either CONFIG or --resume DIR"),
        (["train", "a.yaml", "--resume", "a"], "give either CONFIG or --resume DIR"),
        (["sweep", "--resume", "nowhere"], "nowhere: not the folder of a sweep"),
        (["train", "--resume", "nowhere"], "nowhere: not the folder of a run"),
        (["sweep", "--resume", "a", "--name", "b"], "--name: a folder that is resumed keeps its name and place"),
        (["train", "--resume", "a", "--outputs", "b"], "--outputs: a folder that is resumed keeps its name and place"),
        (["doctor", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["doctor", "--insecure"], "--insecure: concerns a cluster that is joined; give --address too"),
        (["evaluate", "--clips", "a", "--no-identity"], "--identity: concerns the test split; leave it out"),
        (["serve", "--token", "0123456789abcdef"], "--token: give env:NAME"),
        (["serve", "--host", "0.0.0.0"], "--host 0.0.0.0: others can reach it; export a random token"),
        (["evaluate", "--clips", "a", "--card"], "--card: concerns the test split; leave it out"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(arguments, capsys).startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swep"], "no such command 'swep'; did you mean 'sweep'?"),
        (["zzz"], "no such command 'zzz'; see: nuanced --help"),
        (["--quite", "status", "a"], "no such option: --quite; did you mean --quiet?"),
        (["status", "a", "--jsn"], "status: no such option: --jsn; did you mean --json?"),
        (["sweep", "a.yaml", "--trails", "3"], "sweep: no such option: --trails; did you mean --trials?"),
        (["cache", "--verbos"], "cache: no such option: --verbos; did you mean --verbose?"),
        (["export", "a", "-x"], "export: no such option: -x; see: nuanced export --help"),
        (["reply", "a", "b"], "reply: missing option '--llm'; see: nuanced reply --help"),
        (["status"], "status: missing argument 'DIR'; see: nuanced status --help"),
        (["status", "a", "b"], "status: got unexpected extra argument(s) (b); see: nuanced status --help"),
        (["cache", "--prune"], "cache: option '--prune' requires an argument; see: nuanced cache --help"),
        (["cache", "--verify=3"], "cache: option '--verify' does not take a value; see: nuanced cache --help"),
    ],
)
def test_a_usage_error_names_the_command_and_the_nearest_name_or_the_help(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert error_of(arguments, capsys) == message


def test_a_wrong_number_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(["sweep", "a.yaml", "--trials", "x\ny"], capsys)
    assert error.startswith(r"sweep: invalid value for '--trials': 'x\ny': ") and "integer" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "~/absent"],
        ["board", "~/absent"],
        ["dashboard", "~/absent"],
        ["export", "~/absent", "-o", "out"],
        ["sweep", "~/absent"],
        ["sweep", "--resume=~/absent"],
        ["train", "~/absent"],
        ["train", "--resume=~/absent"],
        ["doctor", "--config=~/absent"],
        ["evaluate", "~/absent"],
        ["reply", "~/absent", "out.wav", "--llm", "http://localhost/v1", "--model", "tiny"],
        ["serve", "~/absent", "--port", "0"],
        ["weights", "--source=~/absent"],
        ["--log-file=~/absent/log", "status", "a"],
        ["status", "a", "--log-file=~/absent/log"],
    ],
)
def test_the_home_folder_is_expanded_in_every_path(
    arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))
    assert str(tmp_path / "absent") in error_of(arguments, capsys)


def test_the_help_has_all_commands_in_panels_and_fits_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = _plain(capsys.readouterr().out)
    panels = re.findall(r"─ (\w+) ─", text)
    assert panels == ["Options", "Log", "Training", "Inspection", "Results", "Use", "Storage"]
    words = set(text.split())
    assert words >= COMMANDS | {"--quiet", "--verbose", "--log-file", "--version", "--show-completion"}
    assert max(map(len, text.splitlines())) <= 80
    assert "<bool>" not in text
    assert main(["-h"]) == 0
    assert _plain(capsys.readouterr().out) == text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_has_a_description_and_examples_that_can_be_pasted(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([command, "--help"]) == 0
    lines = [line.strip() for line in _plain(capsys.readouterr().out).splitlines()]
    assert lines[1].startswith(f"Usage: nuanced {command}") and lines[3].endswith(".")
    start = lines.index("Examples:") + 1
    examples = lines[start : lines.index("", start)]
    assert 1 <= len(examples) <= 2 and all(example.startswith(f"nuanced {command}") for example in examples)
    assert {"--verbose", "--log-file", "--quiet"} <= {word for line in lines for word in line.split()}


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: nuanced" in _plain(out) and err == ""


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nuanced {version('nuanced-speech')}\n"


def test_completion_has_a_script_and_proposes_commands_and_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_NUANCED_COMPLETE", "source_bash")
    assert main([]) == 0
    assert "_NUANCED_COMPLETE=complete_bash" in capsys.readouterr().out
    assert _completed("nuanced s", capsys, monkeypatch) == {"sweep", "status", "speak", "serve"}
    assert _completed("nuanced sweep --tr", capsys, monkeypatch) == {"--trials"}
    assert _completed("nuanced status --log", capsys, monkeypatch) == {"--log-file"}


def _completed(line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setenv("_NUANCED_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    assert main([]) == 0
    return set(capsys.readouterr().out.split())


def test_help_and_completion_import_nothing_heavy() -> None:
    script = (
        "import os, sys\nfrom tune.cli.app import main\n"
        "main(['--help'])\nmain(['sweep', '--help'])\n"
        "os.environ.update(_NUANCED_COMPLETE='complete_bash', COMP_WORDS='nuanced sweep --tr', COMP_CWORD='2')\n"
        "main([])\n"
        "print([m for m in ('torch', 'ray', 'optuna', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-2:] == ["--trials", "[]"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EOFError])
def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted(folder: Path) -> None:
        raise error

    monkeypatch.setattr("tune.show.report.status_lines", interrupted)
    assert main(["status", str(tmp_path)]) == 130


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    ledger(tmp_path).ask()
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", "import sys; from tune.cli.app import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run(
        [*command, "status", str(tmp_path)], stdout=write_end, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def _plain(text: str) -> str:
    """Without the colors that some CI environments force."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
