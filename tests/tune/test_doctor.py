"""tune.doctor: what is found on a machine where something is wrong, and where nothing is fetched yet."""

from pathlib import Path

import pytest

from nuanced_core.config import RunConfig
from tune.config import SweepConfig, SweepSettings
from tune.doctor import Finding, examine
from tune.space import Space


def examined(**settings: float) -> dict[str, Finding]:
    run = RunConfig()
    space = Space.parse({"models.whisper": ["tiny.en", "base"]}, run, "a.yaml")
    sweep = SweepSettings(trials=1, **settings)  # type: ignore[arg-type]
    return {finding.name: finding for finding in examine(SweepConfig(run, space, sweep))}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUANCED_CACHE", str(tmp_path / "cache"))


def test_a_sound_machine_has_no_problem_even_before_models_are_fetched() -> None:
    found = examined()
    assert [finding for finding in found.values() if finding.problem] == []
    assert {"python", "torch", "ray", "optuna", "machine", "phonemizer", "disk of outputs"} <= set(found)
    # Every model that the sweep would try is looked for.
    assert found["whisper-tiny.en files"].value == "not fetched yet"
    assert found["whisper-base files"].value == "not fetched yet"


def test_a_machine_that_is_too_small_is_a_problem() -> None:
    problem = examined(cpus_per_trial=4000)["machine"].problem
    assert problem is not None and "sweep.cpus_per_trial: 4000" in problem


def test_a_package_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.doctor._IMPORTED", ("nothing_of_this_name",))
    problem = examined()["nothing_of_this_name"].problem
    assert problem is not None and "ModuleNotFoundError" in problem
