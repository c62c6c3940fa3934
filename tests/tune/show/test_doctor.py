"""tune.show.doctor: a machine where something is wrong, and one where nothing is fetched yet."""

from pathlib import Path

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from tune.config.space import Space
from tune.config.sweep_config import SweepConfig, load
from tune.config.sweep_settings import SweepSettings
from tune.show.doctor import Finding, examine


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
    # Every model that the sweep would try is checked.
    assert found["whisper-tiny.en files"].value == "not fetched yet"
    assert found["whisper-base files"].value == "not fetched yet"


def test_a_machine_that_is_too_small_is_a_problem() -> None:
    problem = examined(cpus_per_trial=4000)["machine"].problem
    assert problem is not None and "sweep.cpus_per_trial: 4000" in problem


def test_a_package_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.show.doctor._IMPORTED_MODULES", ("nothing_of_this_name",))
    problem = examined()["nothing_of_this_name"].problem
    assert problem is not None and "ModuleNotFoundError" in problem


def test_the_estimated_cache_grows_with_what_is_rendered_and_counts_shared_clips_once() -> None:
    def wanted(search: dict[str, object], **sections: object) -> float:
        run = validate(RunConfig, sections, "a.yaml")
        config = SweepConfig(run, Space.parse(search, run, "a.yaml"), SweepSettings(trials=1))
        value = {finding.name: finding for finding in examine(config)}["disk of cache"].value
        return float(value.split("free, ")[1].split()[0])

    width = {"encoder.width": [8, 16]}
    few = wanted(width, mixes={"steps": 1000})
    assert few > 5 * wanted(width) > 0
    assert wanted(width, mixes={"steps": 1000}, models={"whisper": "large-v3"}) > 10 * few
    assert wanted({"mixes.steps": [1000, 3000]}) == pytest.approx(wanted(width, mixes={"steps": 3000}), rel=0.01)
    assert wanted({"mixes.steps": [1000], "mixes.step_size": [0.5, 1.0]}) == pytest.approx(2 * few, rel=0.1)


def test_a_file_of_one_run_is_examined_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("mixes: {steps: 100000}\nmodels: {whisper: large-v3}\n")
    found = {finding.name: finding for finding in examine(load(file))}
    assert found["whisper-large-v3 files"].value == "not fetched yet"
    assert "may be needed; free some, name another folder with NUANCED_CACHE" in str(found["disk of cache"].problem)
