"""tune.cli.inspection: the status for scripts, and the exit code of the doctor."""

import json

import pytest

from tests.tune.sweep.test_driver import Swept
from tune.cli.app import main
from tune.show import doctor
from tune.show.doctor import Finding


def test_status_as_json_is_the_sweep_s_status(mixed: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    swept, _ = mixed
    assert main(["status", str(swept.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == swept.status


@pytest.mark.parametrize(("problem", "code"), [(None, 0), ("is too old", 1)])
def test_doctor_exits_by_whether_a_sweep_could_run(
    problem: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda config: [Finding("python", "3.9", problem)])
    assert main(["doctor"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["python", "3.9"]
    assert ("problem: python: is too old" in lines) == (problem is not None)
    assert lines[-1] == ("a sweep can run" if code == 0 else "a sweep could not run")
