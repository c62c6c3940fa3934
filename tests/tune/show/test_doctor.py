"""tune.show.doctor: a machine where something is wrong, and one where nothing is fetched yet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.weights import store
from tests.cgroups import cgroup
from tune.cluster.machines import Resources
from tune.config.space import Space
from tune.config.sweep_config import SweepConfig, load
from tune.config.sweep_settings import SweepSettings
from tune.show.doctor import Finding, examine


def examined(**settings: float | None) -> dict[str, Finding]:
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


def test_what_keeps_ray_from_starting_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    problem = examined()["Ray's files"].problem
    assert problem is not None and "not a folder that can be written; name another folder with --temp DIR" in problem
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(sys, "executable", "/opt/it's/bin/python")
    problem = examined()["Ray's files"].problem
    assert problem is not None and "make the virtual environment in another folder" in problem


def test_a_machine_that_is_too_small_is_a_problem() -> None:
    problem = examined(cpus_per_trial=4000)["machine"].problem
    assert problem is not None and "sweep.cpus_per_trial: 4000" in problem


def test_a_machine_with_too_little_memory_is_refused_as_before_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Resources(cpus=64, gpus=0, memory=int(14e9))
    monkeypatch.setattr("tune.show.doctor.local_resources", lambda: small)
    found = examined(memory_per_trial=2.5)
    assert found["memory"].value.endswith(
        "14.0 GB for trials of about 2.5 GB: 5 trials fit at a time (memory: 14.0 GB for trials of 2.5 GB)"
    )
    assert [finding for finding in found.values() if finding.problem] == []
    found = examined(memory_per_trial=15)
    assert found["machine"].problem is None
    assert str(found["memory"].problem).startswith("sweep.memory_per_trial: 15.0 GB: this machine has 14.0 GB")
    assert "fit at a time (CPU cores: 64" in examined(memory_per_trial=None)["memory"].value


# Without the check that takes most of the time.
DOCTOR = """
import tune.show.doctor
from tune.cli.app import main
tune.show.doctor._IMPORTED_MODULES = ()
raise SystemExit(main())
"""


@pytest.mark.slow
def test_doctor_knows_the_limits_of_a_container(tmp_path: Path) -> None:
    with cgroup(cpus=1, memory=1_500_000_000) as inside:
        command = [*inside, sys.executable, "-c", DOCTOR, "doctor"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 1
    assert re.search(r"^machine +1 CPU cores, ", done.stdout, re.MULTILINE)
    assert re.search(
        r"^memory +1\.5 GB, 0\.\d GB for trials of about \d\.\d GB: 0 trials fit", done.stdout, re.MULTILINE
    )
    assert "memory: sweep.memory_per_trial: 2.3 GB: this machine has 0." in done.stdout + done.stderr


def test_a_damaged_model_file_is_named_with_the_command_that_fetches_it() -> None:
    def fill(folder: Path) -> str:
        (folder / "a.npy").write_bytes(b"abc")
        return "a note"

    for asset, source, command in (
        ("kokoro", "hub", "nuanced weights"),
        ("voices", "folder-0123", "nuanced weights --source FOLDER"),
    ):
        file = store.build(asset, source, fill).folder / "a.npy"
        file.write_bytes(b"a")
        assert examined()[f"{asset} files"].problem == f"{file} is damaged; '{command}' fetches it again"


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
