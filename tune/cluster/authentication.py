"""Ray's token: what may talk to a cluster holds it, in a file that nobody else can read.

An open cluster is remote code execution: whoever reaches its port runs what they like on every node.
"""

import os
import secrets
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

from nuanced_core.errors import ConfigError

__all__ = ["check_cluster", "token_file", "use_token"]

_MODE, _TOKEN, _FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_PROBE_SECONDS, _CONNECT_SECONDS = 60, 10
# A process of its own, since Ray reads the mode once a process. What it knows of an error is its class.
_PROBE = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1])
except Exception as error:
    print(type(error).__name__)
else:
    print("open")
"""

Access = Literal["open", "closed", "nobody"]


def token_file() -> Path:
    """Where Ray looks for the token if it is not in $RAY_AUTH_TOKEN."""
    given = os.environ.get(_FILE)
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def use_token(*, create: bool) -> None:
    """Let this process and those that it starts ask for a token and show it, unless $RAY_AUTH_MODE says otherwise.

    Args:
        create: make a token if there is none: for a cluster that is about to be started.

    Raises:
        ConfigError: others can read the token file, or there is none and none is to be made.
    """
    if os.environ.setdefault(_MODE, "token") != "token" or os.environ.get(_TOKEN):
        return
    file = token_file()
    if _check_private(file):
        return
    if not create:
        raise ConfigError(
            f"{file}: no token for the cluster; copy the file from the cluster's head, with mode 600, or name it with "
            f"${_FILE}"
        )
    if not _made(file):
        # A home that cannot be written: a token of this process's own, which Ray's processes inherit.
        os.environ[_TOKEN] = secrets.token_hex(32)


def check_cluster(address: str, *, insecure: bool) -> None:
    """Refuse to join a cluster that nobody answers for, that lets anybody in, or that does not take our token.

    Raises:
        ConfigError: one of these; ``insecure`` allows the second.
    """
    door = _probe(address, {_MODE: "disabled"}, without=(_TOKEN, _FILE))
    if door == "nobody":
        raise ConfigError(
            f"--address {address}: no Ray answers there; start one with 'ray start --head', or mend the address"
        )
    if door == "open":
        if not insecure:
            raise ConfigError(
                f"--address {address}: this cluster lets anybody in who reaches it, to run anything; start its nodes "
                f"with {_MODE}=token (docs/CLUSTER.md), or give --insecure"
            )
        os.environ[_MODE] = "disabled"
        return
    use_token(create=False)
    if os.environ[_MODE] != "token":
        raise ConfigError(f"--address {address}: this cluster wants a token; take ${_MODE}={os.environ[_MODE]} away")
    if _probe(address, {}) != "open":
        where = f"${_TOKEN}" if os.environ.get(_TOKEN) else str(token_file())
        raise ConfigError(f"--address {address}: the token in {where} is not this cluster's; copy that of its head")


def _check_private(file: Path) -> bool:
    """Whether there is such a file; refused if its owner is not the only one who can read it."""
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ConfigError(f"{file}: the token cannot be read ({error.strerror}); name another with ${_FILE}") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{file}: not a file with a token; remove it, or name another one with ${_FILE}")
    if mode & 0o077:
        raise ConfigError(f"{file}: others can read the token (mode {mode & 0o777:o}); run: chmod 600 {file}")
    return True


def _made(file: Path) -> bool:
    """Whether there is now a file with a token that its owner alone can read."""
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as opened:
            opened.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # another sweep was quicker
            os.link(part, file)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return True


def _probe(address: str, changes: dict[str, str], without: tuple[str, ...] = ()) -> Access:
    """What answers at the address to a process with this environment."""
    environment = {name: value for name, value in {**os.environ, **changes}.items() if name not in without}
    told = ""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return "nobody"  # which Ray would find out in half a minute
    with suppress(subprocess.TimeoutExpired):
        command = [sys.executable, "-c", _PROBE, address]
        told = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        ).stdout.strip()
    if told == "open":
        return "open"
    return "closed" if told == "AuthenticationError" else "nobody"
