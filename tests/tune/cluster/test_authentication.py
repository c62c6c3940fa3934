"""tune.cluster.authentication: creation and permissions of the token file, and the probe of a cluster."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from nuanced_core.errors import ConfigError
from tune.cluster.authentication import check_authentication, token_file, use_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        os.environ.pop(name, None)


def test_a_token_is_created_once_and_only_its_owner_can_read_it(home: Path) -> None:
    use_token(create=True)
    file = home / ".ray" / "auth_token"
    assert token_file() == file and os.environ["RAY_AUTH_MODE"] == "token"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    token = file.read_text()
    use_token(create=True)
    assert file.read_text() == token and len(token) == 64


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_can_read_is_refused(home: Path, mode: int) -> None:
    use_token(create=True)
    token_file().chmod(mode)
    with pytest.raises(ConfigError, match=rf"others can read the token \(mode {mode:o}\); run: chmod 600 .*auth_token"):
        use_token(create=True)


def test_joining_requires_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="auth_token: no token for the cluster; copy the file"):
        use_token(create=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    use_token(create=False)


def test_the_token_is_kept_in_the_environment_if_the_home_directory_is_not_writable(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".ray").touch()
    use_token(create=True)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_mode_that_the_user_has_set_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token(create=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and not (home / ".ray").exists()


def test_a_cluster_is_joined_only_with_its_own_private_token(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_authentication(cluster.address, insecure=False)
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    wrong = tmp_path / "auth_token"
    wrong.write_text("0" * 64)
    wrong.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(wrong))
    with pytest.raises(ConfigError, match=r"others can read the token \(mode 644\); run: chmod 600"):
        check_authentication(cluster.address, insecure=False)
    wrong.chmod(0o600)
    with pytest.raises(ConfigError, match=f"the token in {wrong} is not this cluster's"):
        check_authentication(cluster.address, insecure=False)
    wrong.write_text(token.read_text())
    check_authentication(cluster.address, insecure=False)
    with pytest.raises(ConfigError, match="no Ray answers there"):
        check_authentication("127.0.0.1:1", insecure=False)


def test_a_cluster_without_authentication_is_refused_unless_insecure_is_given(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
import sys
from ray.cluster_utils import Cluster
made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
print(made.address, flush=True)
sys.stdin.read()
made.shutdown()
"""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    head = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert head.stdout is not None
        address = next(line for line in head.stdout if ":" in line and " " not in line.strip()).strip()
        refusal = r"requires no token, so anybody who reaches it can run anything on it; .* give --insecure"
        with pytest.raises(ConfigError, match=refusal):
            check_authentication(address, insecure=False)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        check_authentication(address, insecure=True)
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
    finally:
        head.communicate()
