"""What pyproject.toml, constraints.txt, the Makefile and the dev container say of one another."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10; pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[1:]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=; ]", line, maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


def python_files() -> list[Path]:
    return [file for package in ("nuanced_core", "tune") for file in sorted((ROOT / package).rglob("*.py"))]


def test_every_dependency_is_pinned() -> None:
    wanted = names(PROJECT["dependencies"]).union(*(names(extra) for extra in EXTRAS.values()))
    assert wanted - names(PINS) == set()
    assert [line for line in PINS if not re.match(r"[a-z0-9-]+==[\w.+]+(; python_version .+)?$", line)] == []


def test_errors_name_extras_that_exist() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in python_files())
    assert set(re.findall(r"nuanced-speech\[(\w+)\]", code)) == {"dashboard", "eval", "serve"}  # and, by name, loggers
    assert {"dashboard", "eval", "serve", "mlflow", "wandb", "dev"} == set(EXTRAS)


@pytest.mark.parametrize("extra", ["dashboard", "mlflow", "serve", "wandb"])
def test_the_tests_have_all_extras(extra: str) -> None:
    # `make setup` installs dev and eval.
    assert names(EXTRAS[extra]) <= names(EXTRAS["dev"])


def test_the_dev_container_sets_up_and_owns_its_volumes() -> None:
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text(encoding="utf-8"))
    image = (folder / container["build"]["dockerfile"]).read_text(encoding="utf-8")
    target = container["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    mounts = [dict(part.split("=") for part in mount.split(",")) for mount in container["mounts"]]
    assert {mount["target"] for mount in mounts} == {
        f"{container['workspaceFolder']}/.venv",
        f"/home/{container['remoteUser']}/.cache/nuanced-speech",
    }
    owned = image.partition(f"install -d -o {container['remoteUser']} ")[2].split("\nUSER")[0].split()
    assert {mount["target"] for mount in mounts} <= set(owned)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="not run by pytest-xdist")
def test_the_tests_of_a_file_run_in_one_process(request: pytest.FixtureRequest) -> None:
    """pytest-xdist reads the group from the name: without it, two processes would each set up what tests share."""
    assert request.node.nodeid.endswith("@tests/test_packaging.py")
