"""No command prints a password, logs it or writes it to a file, in whatever way it was given."""

from pathlib import Path
from urllib.parse import quote

import pytest

from nuanced_core.config.yaml_files import write_yaml
from tune.cli.app import main
from tune.config.sweep_config import SETTINGS_FILE

PASSWORD = "s3cr3t/{0}with:all@of #it?"
PARTS = ("s3cr3t", "with:all", "of #it", quote(PASSWORD, safe=""))
ESCAPED, UNESCAPED = quote(PASSWORD, safe=""), PASSWORD
URLS = {
    "no driver": f"postgresql+psycopg://me:{ESCAPED}@127.0.0.1:1/db",
    "not escaped": f"mysql://me:{UNESCAPED}@127.0.0.1:1/db",
    "parameter": f"postgresql://127.0.0.1:1/db?user=me&password={ESCAPED}",
    "bucket": f"s3://key:{ESCAPED}@bucket/x",
}


def output(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails in one line prints and logs, searched for parts of the password."""
    assert main([*arguments, "--log-file", str(folder / "log"), "--verbose"]) == 2
    out, err = capsys.readouterr()
    log = (folder / "log").read_text()
    for part in PARTS:
        assert part not in out + err + log
        assert not any(
            part in file.read_text() for file in folder.rglob("*") if file.is_file() and "keep" not in file.name
        )
    assert err.splitlines()[-1].startswith("nuanced: error: ") and "Traceback" not in err + log
    return out + err


@pytest.mark.parametrize("name", ["storage", "shared"])
@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_new_sweep_with_a_password_is_refused(
    url: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, given = tmp_path / "plain.yaml", tmp_path / "keep.yaml"
    write_yaml(plain, {"search": {"encoder.width": [32, 64]}})
    write_yaml(given, {"search": {"encoder.width": [32, 64]}, "sweep": {name: url}})
    outputs = ["--outputs", str(tmp_path / "out")]
    printed = output(["sweep", str(given), *outputs], tmp_path, capsys)
    assert f"sweep.{name}: " in printed and "***" in printed and f"set sweep.{name} to env:NAME" in printed
    assert "***" in output(["doctor", "--config", str(given)], tmp_path, capsys)
    for override in (f"sweep.{name}={url!r}", f"sweep.{name}=[{url!r}]", f"sweep.trials={url!r}"):
        assert "***" in output(["sweep", str(plain), *outputs, "--set", override], tmp_path, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_a_password_in_the_environment_is_in_no_message(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_URL", url)
    file = tmp_path / "a.yaml"
    for name in ("storage", "shared"):
        write_yaml(file, {"search": {"encoder.width": [32, 64]}, "sweep": {name: "env:A_URL"}})
        command = ["sweep", str(file), "--outputs", str(tmp_path / "out")]
        assert f"sweep.{name}: " in output(command, tmp_path, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("url", [url for name, url in URLS.items() if name != "not escaped"])
def test_commands_on_an_older_sweep_with_a_password_mask_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, logs = tmp_path / "toy", tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    write_yaml(folder / SETTINGS_FILE, {"search": {"encoder.width": [32, 64]}, "sweep": {"storage": url}, "record": {}})
    place = str(folder)
    for command in (["status", place], ["status", place, "--json"], ["dashboard", place], ["export", place, "-o", "x"]):
        assert "sweep.storage: " in output(command, logs, capsys)


def test_an_unexpected_error_is_a_traceback_without_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(folder: Path) -> list[str]:
        raise ConnectionError(f"lost {URLS['no driver']}")

    monkeypatch.setattr("tune.show.report.status_lines", broken)
    assert main(["status", str(tmp_path), "--log-file", str(tmp_path / "log")]) == 1
    for text in (capsys.readouterr().err, (tmp_path / "log").read_text()):
        assert "Traceback" in text and "ConnectionError: lost postgresql+psycopg://me:***@127.0.0.1:1/db" in text
        assert ESCAPED not in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "{file}", "--set", "sweep.storage {url}"],
        ["sweep", "{file}", "--set", "{url}"],
        ["sweep", "{file}", "--trials", "{url}"],
        ["sweep", "{url}"],
        ["status", "{url}"],
        ["dashboard", "{url}"],
    ],
)
def test_a_url_in_a_wrong_place_of_the_command_line_is_masked(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.yaml"
    write_yaml(file, {"search": {"encoder.width": [32, 64]}})
    assert main([text.format(file=file, url=URLS["no driver"]) for text in arguments]) == 2
    err = capsys.readouterr().err
    assert "me:***@" in err and ESCAPED not in err
