"""Token authentication of Ray clusters: the token file, and a probe of the cluster before this process joins it.

A cluster without authentication is remote code execution: whoever reaches its port can run anything on every node.
"""

import os
import secrets
import shlex
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

from nuanced_core.errors import ConfigError

__all__ = ["check_authentication", "token_file", "use_token"]

_MODE, _TOKEN, _FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_PROBE_SECONDS, _CONNECT_SECONDS = 60, 10
# Runs in a process of its own, because Ray reads the mode once per process. It prints the class of the error.
_PROBE = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    print(type(error).__name__)
else:
    print("accepted")
"""

ProbeResult = Literal["accepted", "rejected", "unreachable"]


def token_file() -> Path:
    """Return the file that Ray reads the token from if $RAY_AUTH_TOKEN is not set."""
    given = os.environ.get(_FILE)
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def use_token(*, create: bool) -> None:
    """Turn token authentication on in this process and its children, unless $RAY_AUTH_MODE is set to something else.

    Args:
        create: whether to create a missing token, for a cluster that is about to be started.

    Raises:
        ConfigError: others can read the token file, or it is missing and ``create`` is false.
    """
    if os.environ.setdefault(_MODE, "token") != "token" or os.environ.get(_TOKEN):
        return
    file = token_file()
    if _is_private_file(file):
        return
    if not create:
        raise ConfigError(
            f"{file}: no token for the cluster; copy the file from the cluster's head, with mode 600, or name it with "
            f"${_FILE}"
        )
    if not _create_token(file):
        # The home directory is not writable: keep the token in the environment, which Ray's processes inherit.
        os.environ[_TOKEN] = secrets.token_hex(32)


def check_authentication(address: str, *, insecure: bool) -> None:
    """Check that a Ray cluster can be reached, requires a token, and accepts this process's token.

    Args:
        address: ``HOST:PORT`` of the cluster's head.
        insecure: whether a cluster that requires no token may be joined; authentication is then turned off here too.

    Raises:
        ConfigError: one of the three is not the case.
    """
    without_token = _probe(address, {_MODE: "disabled"}, without=(_TOKEN, _FILE))
    if without_token == "unreachable":
        raise ConfigError(
            f"--address {address}: no Ray answers there; start one with 'ray start --head', or correct the address"
        )
    if without_token == "accepted":
        if not insecure:
            raise ConfigError(
                f"--address {address}: this cluster requires no token, so anybody who reaches it can run anything on "
                f"it; start its nodes with {_MODE}=token (docs/CLUSTER.md), or give --insecure"
            )
        os.environ[_MODE] = "disabled"
        return
    use_token(create=False)
    if os.environ[_MODE] != "token":
        raise ConfigError(f"--address {address}: this cluster requires a token; unset ${_MODE}={os.environ[_MODE]}")
    if _probe(address, {}) != "accepted":
        source = f"${_TOKEN}" if os.environ.get(_TOKEN) else str(token_file())
        raise ConfigError(
            f"--address {address}: the token in {source} is not this cluster's; copy the token of its head"
        )


def _is_private_file(file: Path) -> bool:
    """Return whether the token file exists.

    Raises:
        ConfigError: it exists, but others than its owner can read it, or it is not a readable regular file.
    """
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{file}: the token cannot be read ({error.strerror}); name another with ${_FILE}") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{file}: not a file with a token; remove it, or name another one with ${_FILE}")
    if mode & 0o077:
        raise ConfigError(
            f"{file}: others can read the token (mode {mode & 0o777:o}); run: chmod 600 {shlex.quote(str(file))}"
        )
    return True


def _create_token(file: Path) -> bool:
    """Write a random token with mode 600, unless the file exists; return False if it cannot be written."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as opened:
            opened.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another sweep has created it meanwhile
            os.link(part, file)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return True


def _probe(address: str, changes: dict[str, str], without: tuple[str, ...] = ()) -> ProbeResult:
    """Connect to the cluster from a process with a changed environment.

    Args:
        changes: environment variables to set.
        without: environment variables to remove.
    """
    environment = {name: value for name, value in {**os.environ, **changes}.items() if name not in without}
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return "unreachable"  # Ray itself would need half a minute to find out
    printed = ""
    with suppress(subprocess.TimeoutExpired):
        command = [sys.executable, "-c", _PROBE, address]
        printed = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        ).stdout.strip()
    if printed == "accepted":
        return "accepted"
    return "rejected" if printed == "AuthenticationError" else "unreachable"
