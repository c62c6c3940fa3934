"""tune.cluster.authentication: where the token comes from, and who may read it. (Joining is in test_nodes.py.)"""

import os
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError
from tune.cluster.authentication import token_file, use_token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path  # type: ignore[misc]
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        os.environ.pop(name, None)


def test_a_token_is_made_once_for_its_owner_alone(home: Path) -> None:
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


def test_to_join_there_has_to_be_a_token(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="auth_token: no token for the cluster; copy the file"):
        use_token(create=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    use_token(create=False)


def test_a_home_that_cannot_be_written_gets_a_token_of_the_process_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".ray").touch()
    use_token(create=True)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_what_a_user_chose_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    use_token(create=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and not (home / ".ray").exists()
