"""docs/CLUSTER.md and the files that it names: commands, settings, links, and no secrets."""

import re
from pathlib import Path

import click
import pytest

from tests.tune.cluster.shell_commands import FOLDER, GUIDE, ROOT, calls, guide_calls, parse_ray, run_nuanced
from tune.config.sweep_settings import SweepSettings

FILES = [GUIDE, *sorted(FOLDER.iterdir())]


@pytest.mark.parametrize("wrong", ["sweep configs/cluster.yaml --adress auto", "sweeep configs/cluster.yaml"])
def test_a_misspelt_command_is_found(wrong: str) -> None:
    assert list(calls(f"cd x && .venv/bin/nuanced {wrong} | tee a", "nuanced")) == [wrong.split()]
    assert list(calls(f"ray exec a.yaml 'cd x && nuanced {wrong}'", "nuanced")) == [wrong.split()]
    with pytest.raises(ValueError, match="nuanced swee"):
        run_nuanced(*wrong.split())
    with pytest.raises(click.NoSuchOption):
        parse_ray(["start", "--haed"])


def test_nuanced_accepts_the_guide_s_commands() -> None:
    found = guide_calls("nuanced")
    assert {call[0] for call in found} == {"sweep", "doctor"}
    assert sum("--address" in call for call in found) >= 5
    for call in found:
        invocation = run_nuanced(*call)
        if call[0] == "sweep":
            assert (invocation.config is None) == ("--resume" in call)
            if "--address" in call:  # not in a container on one machine
                assert invocation.address == call[call.index("--address") + 1]


def test_ray_accepts_the_guide_s_commands() -> None:
    found = guide_calls("ray")
    assert {"start", "up", "exec", "down", "status", "stop"} - {call[0] for call in found} == {"stop"}
    for call in found:
        parse_ray(call)
    heads = [call for call in found if "--head" in call]
    assert heads
    assert all("--dashboard-host=127.0.0.1" in call for call in heads)


def test_all_settings_that_the_files_name_exist() -> None:
    names = set()
    for file in FILES:
        names |= set(re.findall(r"\bsweep\.([a-z_]+)\b", file.read_text(encoding="utf-8").replace("sweep.yaml", "")))
    assert {"shared", "max_concurrent", "max_failures", "storage"} <= names
    assert names <= set(SweepSettings.model_fields)


def test_the_guide_names_all_cluster_files_and_only_files_that_exist() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    named = {(GUIDE.parent / link).resolve() for link in re.findall(r"\]\(([^)#]+)\)", text)}
    named |= {ROOT / path for path in re.findall(r"\b(?:docs|configs|tests)/[\w./-]+\.\w+", text)}
    assert all(path.is_file() for path in named), [path for path in named if not path.is_file()]
    assert set(FOLDER.iterdir()) <= named


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_holds_a_secret_or_a_path_of_one_machine(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not re.findall(r"\b[0-9a-f]{32,}\b", text)
