"""A real sweep with places that are relative and a password in the environment, looked at from another folder."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest

from nuanced_core.config.yaml_files import read_yaml
from nuanced_core.errors import ConfigError
from tests.tune import toy
from tune.cli.app import main
from tune.sweep.driver import resume_sweep

ROOT = Path(__file__).parents[3]
PASSWORD = "s3cr3t/with:all@of it"  # not escaped, so that parsers find parts of it in other places of the URL
PARTS = ("s3cr3t", "with:all", "of it", quote(PASSWORD, safe=""))
# A package for the URLs vault://USER:PASSWORD@host/PATH of a local PATH.
VAULT = """
from fsspec.implementations.local import LocalFileSystem
class VaultFileSystem(LocalFileSystem):
    protocol = ("vault",)
    url = ""
    @classmethod
    def _get_kwargs_from_urls(cls, url):
        return {"url": url}
    def __init__(self, url="", **others):
        super().__init__(**others)
        self.url = url
    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.rpartition("@host")[2])
"""
# The command with the toy's training. One trial fails with an error that quotes the URL, another looks for the password
# in files and command lines while the sweep runs.
SCRIPT = """
import json, os, sys
from pathlib import Path
import tune.sweep.driver
from tests.tune import toy
from tune.cli.app import main
def start_run(config, folder, report):
    run = toy.start_run(config, folder, report)
    if config.encoder.width == 40:
        raise ValueError(f"cannot reach {os.environ['VAULT_URL']}")
    if config.encoder.width == 48:
        password = os.environ["VAULT_URL"].split(":")[2][:6].encode()
        places = Path(os.environ["TMPDIR"]), Path(os.environ["OUTPUTS"])
        files = [file for place in places for file in place.rglob("*") if file.is_file()]
        files += Path("/proc").glob("[0-9]*/cmdline")
        found = {"files": len(files), "leaks": [str(file) for file in files if password in content(file)]}
        (folder / "leaks.json").write_text(json.dumps(found))
    return run
def content(file):
    try:
        return file.read_bytes()
    except OSError:  # a process that has ended
        return b""
tune.sweep.driver.SweepServices = lambda **options: toy.services(start_run=start_run, machines=options["machines"])
sys.exit(main(sys.argv[1:]))
"""
SETTINGS = """
train: {epochs: 1}
data: {sentences: mine.txt}
search: {encoder.width: [32, 40, 48, 56]}
sweep:
  storage: sqlite:///study.db
  shared: env:VAULT_URL
  max_failures: 0
  enqueue: [{encoder.width: 32}, {encoder.width: 40}, {encoder.width: 48}]
"""


@dataclass(frozen=True)
class Swept:
    """A sweep of three trials that ran in the working directory ``first`` of ``base``, and what it printed."""

    base: Path
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def swept() -> Iterator[Swept]:
    base = Path(tempfile.mkdtemp(prefix="nuanced-"))  # short enough for Ray's sockets
    for name in ("first", "second", "packages/vault-1.dist-info", "tmp"):
        (base / name).mkdir(parents=True)
    (base / "packages" / "vault.py").write_text(VAULT)
    (base / "packages" / "vault-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vault\nVersion: 1\n"
    )
    entry = "[fsspec.specs]\nvault = vault:VaultFileSystem\n"
    (base / "packages" / "vault-1.dist-info" / "entry_points.txt").write_text(entry)
    (base / "first" / "toy.yaml").write_text(SETTINGS)
    (base / "first" / "mine.txt").write_text("Good morning.\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(base / "packages")]),
        "VAULT_URL": f"vault://me:{PASSWORD}@host{base}/shared",
        "NUANCED_CACHE": str(base / "cache"),
        "TMPDIR": str(base / "tmp"),
        "OUTPUTS": str(base / "first" / "out"),
        "RAY_enable_worker_prestart": "0",
        "RAY_AUTH_TOKEN_PATH": str(base / "token"),
    }
    arguments = ["sweep", "toy.yaml", "--outputs", "out", "--trials", "3", "--log-file", str(base / "log"), "--verbose"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=base / "first",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield Swept(base, base / "first" / "out" / "toy", done.stdout + done.stderr)
    shutil.rmtree(base, ignore_errors=True)


def test_a_relative_database_is_found_from_another_working_directory(
    swept: Swept, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(swept.base / "second")
    monkeypatch.syspath_prepend(swept.base / "packages")
    monkeypatch.setenv("VAULT_URL", f"vault://me:{PASSWORD}@host{swept.base}/shared")
    fsspec.register_implementation("vault", "vault.VaultFileSystem", clobber=True)
    with pytest.raises(ConfigError, match=r"its budget is met \(3 trials\)"):  # so it has found all of them
        resume_sweep(swept.folder, services=toy.services())
    assert main(["status", str(swept.folder), "--json"]) == 0
    assert [trial["number"] for trial in json.loads(capsys.readouterr().out)["trials"]] == [0, 1, 2]
    assert list(swept.base.rglob("*.db")) == [swept.folder / "study.db"]
    assert not list((swept.base / "second").iterdir())
    settings = read_yaml(swept.folder / "sweep.yaml")
    first = swept.base / "first"
    assert settings["sweep"]["storage"] == f"sqlite:///{swept.folder}/study.db"
    assert settings["sweep"]["outputs"] == str(first / "out")
    assert settings["sweep"]["shared"] == "env:VAULT_URL"
    assert settings["data"]["sentences"] == str(first / "mine.txt")
    assert read_yaml(swept.folder / "trials" / "2" / "config.yaml")["data"]["sentences"] == str(first / "mine.txt")


def test_a_password_is_in_no_file_and_in_no_output(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(swept.folder), "--verbose"]) == 0
    printed = swept.printed + capsys.readouterr().out
    error = "ValueError: cannot reach vault://me:***@host"
    assert error in printed and error in (swept.folder / "trials" / "1" / "error.txt").read_text()
    assert "Traceback" in (swept.folder / "trials" / "1" / "error.txt").read_text()
    found = json.loads((swept.folder / "trials" / "2" / "leaks.json").read_text())
    assert found["files"] > 20 and found["leaks"] == []
    texts = {str(file): file.read_bytes() for file in swept.base.rglob("*") if file.is_file()}
    assert len(texts) > 20 and any(name.endswith("/log") for name in texts)
    for name, text in {**texts, "printed": printed.encode()}.items():
        for part in PARTS:
            assert part.encode() not in text, name
