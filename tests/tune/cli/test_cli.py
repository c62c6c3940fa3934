"""tune.cli.app: exit codes, one line for an error, and what is printed for scripts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nuanced_core.training.run import BEST
from tests.tune.search.test_ledger import ledger, result
from tests.tune.sweep.test_driver import Swept
from tune.cli import app as cli
from tune.cli.app import main
from tune.show import doctor
from tune.show.doctor import Finding
from tune.trial.checkpoints import best_checkpoint

ROOT = Path(__file__).parents[3]


def test_status_as_json_is_the_sweep_s_status(mixed: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    swept, _ = mixed
    assert main(["status", str(swept.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == swept.status


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status", "nowhere"], "nowhere: not the folder of a sweep"),
        (["export", "nowhere", "-o", "out"], "nowhere: not the folder of a sweep"),
        (["sweep", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["sweep"], "give either CONFIG, to begin, or --resume DIR, to go on"),
        (["train", "a.yaml", "--resume", "a"], "give either CONFIG, to begin, or --resume DIR, to go on"),
        (["sweep", "--resume", "nowhere"], "nowhere: not the folder of a sweep"),
        (["train", "--resume", "nowhere"], "nowhere: not the folder of a run"),
        (["sweep", "--resume", "a", "--name", "b"], "--name: a folder that is resumed stays what and where it is"),
        (["doctor", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"nuanced: error: {told}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [[], ["swep"], ["status", "a", "--jsn"], ["export", "a"]])
def test_a_command_line_that_cannot_be_parsed_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_trials_and_outputs_are_settings_of_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("search: {encoder.depth: [1, 2]}\n")
    assert main(["sweep", str(file), "--trials", "0"]) == 2
    assert "sweep.trials: 0" in capsys.readouterr().err
    (tmp_path / "a").mkdir()
    assert main(["sweep", str(file), "--outputs", str(tmp_path)]) == 2
    assert f"{tmp_path / 'a'}: exists already" in capsys.readouterr().err


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tune.show.report.status_lines", interrupted)
    assert main(["status", str(tmp_path)]) == 130


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    book.ask()
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", "import sys; from tune.cli.app import main; sys.exit(main(sys.argv[1:]))"]
    done = subprocess.run(
        [*command, "status", str(tmp_path)], stdout=write_end, stderr=subprocess.PIPE, cwd=ROOT, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom tune.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'ray', 'optuna', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"sweep", "train", "status", "export", "weights", "doctor"} <= set(done.stdout.split())


@pytest.mark.parametrize(("problem", "code"), [(None, 0), ("is too old", 1)])
def test_doctor_exits_by_whether_a_sweep_could_run(
    problem: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda config: [Finding("python", "3.9", problem)])
    assert main(["doctor"]) == code
    assert ("problem: python: is too old" in capsys.readouterr().out) == (problem is not None)


def test_export_takes_the_best_trial_s_checkpoint_or_the_one_that_is_named(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    for number, loss in enumerate((0.5, 0.25)):
        book.ask()
        book.report(number, result(1, loss))
        book.end(number)
        file = tmp_path / "trials" / str(number) / BEST
        file.parent.mkdir(parents=True)
        file.touch()
    best = best_checkpoint(tmp_path)
    assert best.file == tmp_path / "trials" / "1" / BEST
    assert best.facts == {"sweep": tmp_path.name, "trial": 1, "val/loss": 0.25, "val/skill": -0.25}
    assert best_checkpoint(tmp_path, 0).file == tmp_path / "trials" / "0" / BEST
    with pytest.raises(cli.NuancedError, match="no trial 2; it has 2, numbered from 0"):
        best_checkpoint(tmp_path, 2)


def test_export_takes_a_single_run_s_folder(tmp_path: Path) -> None:
    (tmp_path / BEST).parent.mkdir(parents=True)
    (tmp_path / BEST).touch()
    assert best_checkpoint(tmp_path).file == tmp_path / BEST
    with pytest.raises(cli.NuancedError, match="one run, not a sweep"):
        best_checkpoint(tmp_path, 0)
