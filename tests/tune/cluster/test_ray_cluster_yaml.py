"""docs/cluster/ray-cluster.yaml: Ray's validation, its start commands, and the setup of nodes."""

import copy
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from tests.tune.cluster.shell_commands import FOLDER, calls, guide_calls, parse_ray, run_nuanced, trials_per_node


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return prepared(yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text(encoding="utf-8")))


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """Prepare and validate the configuration as ``ray up`` does before it contacts the provider."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def ray_starts(lines: list[str]) -> list[tuple[str, click.Context]]:
    """The lines that start Ray, and how Ray parses them."""
    return [(line, parse_ray(call)) for line in lines for call in calls(line, "ray") if call and call[0] == "start"]


def test_ray_accepts_the_file_and_refuses_a_misspelt_one(launcher: dict[str, Any]) -> None:
    assert launcher["provider"]["type"] == "aws"
    for wrong in ({**launcher, "max_workrs": 1}, {**launcher, "setup_commands": [{"a": 1}]}):
        with pytest.raises(jsonschema.ValidationError):
            prepared(wrong)
    with pytest.raises(ValueError, match="head_node_type"):
        prepared({**launcher, "head_node_type": "none"})


@pytest.mark.parametrize("role", ["head", "worker"])
def test_the_project_s_ray_is_started_with_a_token(launcher: dict[str, Any], role: str) -> None:
    lines = launcher[f"{role}_start_ray_commands"]
    [(line, context)] = ray_starts(lines)
    assert re.search(r"RAY_AUTH_MODE=token \.venv/bin/ray start", line)
    if role == "head":
        assert context.params["dashboard_host"] == "127.0.0.1"
        assert context.params["num_cpus"] == 0
        assert context.params["autoscaling_config"]
    else:
        assert context.params["address"] == "$RAY_HEAD_IP:6379"
    for line in lines:
        assert subprocess.run(["bash", "-n", "-c", line], check=False).returncode == 0


def test_the_workers_have_the_capacity_that_the_guide_s_sweep_asks_for(launcher: dict[str, Any]) -> None:
    head, worker = launcher["available_node_types"]["head"], launcher["available_node_types"]["gpu"]
    assert head["resources"] == {"CPU": 0}
    assert 1 <= worker["min_workers"] <= worker["max_workers"] <= launcher["max_workers"]
    [asked] = [call for call in guide_calls("nuanced") if "~/shared/outputs" in call]
    config = run_nuanced(*asked).config
    assert config is not None
    per_node = trials_per_node(config.sweep, worker["resources"]["CPU"], worker["resources"]["GPU"])
    assert config.sweep.max_concurrent == per_node * worker["max_workers"]


def test_nodes_get_the_commit_and_a_private_token(launcher: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    for remote in launcher["file_mounts"]:
        copied = home / Path(remote).relative_to("/home/ubuntu")
        if copied.suffix == ".bundle":
            identity = ["-c", "user.name=a", "-c", "user.email=a"]
            subprocess.run(["git", "init", "-q", tmp_path / "repo"], check=True)
            (tmp_path / "repo" / "Makefile").write_text("setup:\n")
            for command in (["add", "."], ["commit", "-qm", "a"], ["bundle", "create", "-q", copied, "HEAD"]):
                subprocess.run(["git", *identity, *command], cwd=tmp_path / "repo", check=True)
        else:
            copied.write_text("token")
            copied.chmod(0o644)
    for line in launcher["setup_commands"]:
        if not line.startswith("sudo ") and "pip install" not in line:
            for _ in range(2):  # `ray up` repeats them on existing nodes
                subprocess.run(["bash", "-ec", line], env={**os.environ, "HOME": str(home)}, check=True)
    assert stat.S_IMODE((home / ".ray" / "auth_token").stat().st_mode) == 0o600
    assert (home / "nuanced-speech" / "Makefile").is_file()
