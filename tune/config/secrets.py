"""Passwords in URLs: read from environment variables, refused in settings, and masked in everything that is printed.

``env:NAME`` in place of a URL stands for the value of the environment variable NAME. Settings keep ``env:NAME``; the
value is read where it is used, so that no file of a sweep holds it.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

from nuanced_core.errors import ConfigError

__all__ = [
    "VARIABLE_NAME",
    "check_no_secrets",
    "from_environment",
    "has_secret",
    "is_variable",
    "masked",
    "remember_secrets",
]

VARIABLE_NAME = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")

_MASK = "***"
# A shorter text would be replaced inside of other words; in a URL it is masked whatever its length.
_SHORTEST = 4  # characters
# The names of URL parameters that hold secrets: password, sslpassword, access_token, AccountKey, sig, ….
_SECRET_NAME = (
    r"(?:[\w.-]*(?:pass|passwd|password|passphrase|pwd|secret|token|signature|credentials?"
    r"|(?:access|account|api|encryption|master|private|secret|shared|storage)[-_]?key)|key|sig|sas|auth)"
)
_END = r"(?=[:,;)\]}]*(?:[&\s'\"]|$))"  # of a parameter in a sentence: before its punctuation and quotes
_PARAMETER_IN_TEXT = re.compile(rf"(?<=[?&;])({_SECRET_NAME}|odbc_connect)=[^&\s]+?{_END}", re.IGNORECASE)
_PARAMETER = re.compile(rf"(?<=[?&;])({_SECRET_NAME})=([^&\s]+)", re.IGNORECASE)  # of a whole URL
_ODBC = re.compile(r"(?<=[?&])odbc_connect=([^&\s]+)", re.IGNORECASE)  # an escaped connection string: DRIVER=…;PWD=…
_ODBC_PASSWORD = re.compile(r"(?:^|;)\s*(?:pwd|password)\s*=([^;]+)", re.IGNORECASE)
# A password ends at the last @ and may hold others, and slashes, that are not escaped. Digits and a slash are a port.
# A path library leaves one slash of two.
_USER_AND_PASSWORD = re.compile(r"(?<=\w:/)(/?[^\s/:@]*):(?!\d{2,5}/)(\S+)@")
_URL_PASSWORD = re.compile(r"[A-Za-z][\w+.-]*:.*?(?<=://)[^\s/:@]*:(?!\d{2,5}/)(.+)@", re.DOTALL)  # of a whole URL

_secrets: dict[str, None] = {}  # texts that this process masks, in the order in which they were found


def is_variable(value: str | None) -> bool:
    """Return whether a setting is ``env:NAME``."""
    return value is not None and value.startswith("env:")


def from_environment(value: str, setting: str) -> str:
    """Return the value of a setting, which for ``env:NAME`` is that of the environment variable NAME.

    The secrets in it are masked by this process from now on.

    Args:
        setting: dotted name, for errors.

    Raises:
        ConfigError: the variable is not set or empty.
    """
    found = VARIABLE_NAME.fullmatch(value)
    if found is not None:
        name = found[1]
        value = os.environ.get(name, "").strip()
        if not value:
            state = "is empty" if name in os.environ else "is not set"
            raise ConfigError(f"{setting}: env:{name}: the environment variable {name} {state}; export {name} first")
    remember_secrets(value)
    return value


def check_no_secrets(data: Any, place: str, name: str = "") -> None:
    """Check that no text in ``data`` is a URL with a password: settings are written to files.

    Args:
        data: settings as read from YAML.
        place: the file, for errors.
        name: dotted name of ``data``.

    Raises:
        ConfigError: one is; the message names its setting, and masks its password.
    """
    if isinstance(data, Mapping):
        for key, value in data.items():
            check_no_secrets(value, place, f"{name}.{key}" if name else str(key))
    elif isinstance(data, Sequence) and not isinstance(data, str):
        for value in data:
            check_no_secrets(value, place, name)
    elif isinstance(data, str) and has_secret(data):
        remember_secrets(data)
        setting = name if name in ("sweep.storage", "sweep.shared") else "sweep.storage or sweep.shared"
        raise ConfigError(
            f"{place}: {name}: {masked(data)}: holds a password, which would be written to the sweep's folder; export "
            f"the URL as an environment variable and set {setting} to env:NAME, with the variable's name"
        )


def has_secret(text: str) -> bool:
    """Return whether a text is a URL with a password, a token or a secret key."""
    return next(_secrets_in(text), None) is not None


def remember_secrets(text: str) -> None:
    """Let ``masked`` replace the secrets of a URL in every text, also where they stand alone or in another encoding."""
    for secret in _secrets_in(text):
        # Where a password holds @ or / without an escape, URL parsers take its parts for a host or a port.
        for part in (secret, unquote(secret), unquote_plus(secret), *re.split(r"[@/:?#]", secret)):
            for form in _forms(part):
                if len(form) >= _SHORTEST:
                    _secrets[form] = None


def masked(text: str) -> str:
    """Return a text with ``***`` in place of the passwords in URLs and of all secrets that this process has met."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    text = _PARAMETER_IN_TEXT.sub(rf"\1={_MASK}", text)
    return _USER_AND_PASSWORD.sub(rf"\1:{_MASK}@", text)


def _secrets_in(url: str) -> Iterator[str]:
    """Yield the password and the secret parameters of a URL, as they are written in it."""
    if "://" not in url:
        return
    parameters = [match[2] for match in _PARAMETER.finditer(url)]
    odbc = [password for match in _ODBC.finditer(url) for password in _ODBC_PASSWORD.findall(unquote_plus(match[1]))]
    password = _URL_PASSWORD.match(_PARAMETER.sub("", url))
    yield from (secret for secret in [*([password[1]] if password else []), *parameters, *odbc] if secret != _MASK)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it can appear in messages: as it is, escaped in a URL, and quoted in Python and JSON."""
    yield secret
    yield " ".join(secret.split())
    yield quote(secret, safe="")
    yield quote(secret, safe=" +")
    yield quote_plus(secret)
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
