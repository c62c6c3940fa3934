"""tune.config.secrets: passwords are found in URLs of every form, and masked wherever they stand."""

import json
import logging
from urllib.parse import quote, quote_plus

import pytest

from nuanced_core.errors import ConfigError
from tune.config.secrets import check_no_secrets, from_environment, has_secret, masked, remember_secrets

PASSWORD = "s3cr3t/with:all@of#them?"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/db", "postgresql://u:***@h/db"),
        ("sqlite+pysqlcipher://:p@/x.db", "sqlite+pysqlcipher://:***@/x.db"),
        (f"postgresql+psycopg://u:{PASSWORD}@h:5432/db", "postgresql+psycopg://u:***@h:5432/db"),
        (f"mysql://u:{quote(PASSWORD, safe='')}@h/db?ssl_key=/k.pem", "mysql://u:***@h/db?ssl_key=/k.pem"),
        (
            "postgresql://h:5432/db?user=u&password=p@x&sslmode=on",
            "postgresql://h:5432/db?user=u&password=***&sslmode=on",
        ),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BPWD%3Dp", "mssql+pyodbc:///?odbc_connect=***"),
        ("s3://AKIA:ab/c+d@bucket/x", "s3://AKIA:***@bucket/x"),
        ("simplecache::ftp://u:p@h/x", "simplecache::ftp://u:***@h/x"),
        ("abfs://box@account.dfs/x?sv=1&sig=ab%2Fc", "abfs://box@account.dfs/x?sv=1&sig=***"),
        ("https://h/x?X-Amz-Signature=ab&AccountKey=cd", "https://h/x?X-Amz-Signature=***&AccountKey=***"),
    ],
)
def test_a_password_in_a_url_is_found_and_masked(url: str, shown: str) -> None:
    assert has_secret(url) and masked(url) == shown
    assert masked(f"sweep.storage: {url}: cannot be opened") == f"sweep.storage: {shown}: cannot be opened"
    assert masked(repr({"url": url})) == repr({"url": shown})
    assert not has_secret(shown)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user@host:5432/db",
        "webhdfs://host:9870/user/me@example.org",
        "mysql://h/db?ssl_key=/a/key.pem&charset=utf8",
        "sqlite:////a/b@c:d/study.db",
        "memory://shared",
        "/mnt/a:b@c",
        "outputs: ratio 1:2 @ 3",
        "http://127.0.0.1:8080/dashboard",
    ],
)
def test_what_holds_no_password_is_left_as_it_is(url: str) -> None:
    assert not has_secret(url) and masked(url) == url


def test_a_password_that_was_met_is_masked_in_every_form_and_in_parts() -> None:
    remember_secrets(f"postgresql://u:{quote(PASSWORD, safe='')}@h/db")
    for form in (PASSWORD, quote(PASSWORD, safe=""), quote_plus(PASSWORD), repr(PASSWORD), json.dumps(PASSWORD)):
        assert "s3cr3t" not in masked(f'FATAL: authentication of "u" by {form} failed')
    # What a parser makes of a password whose characters are not escaped.
    remember_secrets("postgresql://u:first@second:third/4567@h/db")
    assert masked("no host second; port 'third/4567' is no number; database 4567@h") == (
        "no host ***; port '***/***' is no number; database ***@h"
    )


def test_a_secret_that_is_shorter_than_a_word_is_masked_in_urls_alone() -> None:
    remember_secrets("postgresql://u:on@h/db")
    assert masked("one connection to postgresql://u:on@h/db") == "one connection to postgresql://u:***@h/db"


def test_a_value_is_read_from_the_environment_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_URL", f"postgresql://u:{quote(PASSWORD, safe='')}@h/db\n")
    assert from_environment("env:A_URL", "sweep.storage").endswith("@h/db")
    assert "s3cr3t" not in masked(f"not {PASSWORD}")
    assert from_environment("sqlite:///a.db", "sweep.storage") == "sqlite:///a.db"


@pytest.mark.parametrize(("value", "state"), [(None, "is not set"), ("", "is empty"), (" \n", "is empty")])
def test_a_variable_without_a_value_is_named_with_its_setting(
    value: str | None, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("A_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("A_URL", value)
    with pytest.raises(ConfigError) as caught:
        from_environment("env:A_URL", "sweep.shared")
    assert str(caught.value) == f"sweep.shared: env:A_URL: the environment variable A_URL {state}; export A_URL first"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"sweep": {"storage": "postgresql://u:pass@h/db"}}, "sweep.storage"),
        ({"sweep": {"shared": "s3://key:pass@bucket/x"}}, "sweep.shared"),
        ({"sweep": {"storage": ["postgresql://u:pass@h/db"]}}, "sweep.storage"),
        ({"models": {"source": "https://u:pass@h/models"}}, "models.source"),
        ({"sweep": {"enqueue": [{"data.sentences": "https://h/x?token=pass"}]}}, "sweep.enqueue.data.sentences"),
    ],
)
def test_a_password_in_settings_is_refused_with_the_setting_and_the_fix(data: object, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_no_secrets(data, "a.yaml")
    message = str(caught.value)
    assert message.startswith(f"a.yaml: {name}: ") and "env:NAME" in message and "pass@" not in message
    assert "=pass" not in message and "\n" not in message


def test_tracebacks_and_arguments_of_log_records_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    from tune.cli.common.logs import LogOptions, log_output

    logger = logging.getLogger("tune.sweep.driver")
    url = "postgresql://u:s3cr3t@h/db"
    with log_output(LogOptions()):
        try:
            raise OSError(f"no route to {url}")
        except OSError:
            logger.exception("%s: cannot be opened", url)
    err = capsys.readouterr().err
    assert "Traceback" in err and err.count("postgresql://u:***@h/db") == 2 and "s3cr3t" not in err
