"""nuanced_core.text.espeak: espeak-ng is loaded from packages in folders of any name, in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import espeakng_loader
import pytest

from nuanced_core.text.espeak import LONGEST_PATH
from nuanced_core.text.phonemes import Phonemizer

TEXT = "Mister Brückner reads 12 books."
SCRIPT = f"""
import json, os, sys
from nuanced_core.errors import NuancedError
from nuanced_core.text.phonemes import make_phonemizer
before = dict(os.environ)
try:
    spoken = [make_phonemizer("espeak")({TEXT!r}) for _ in range(2)]
except NuancedError as error:
    sys.exit(str(error))
assert dict(os.environ) == before
child = os.fork()
if child == 0:
    os._exit(make_phonemizer("espeak")({TEXT!r}) != spoken[0])
print(json.dumps([*spoken, os.waitpid(child, 0)[1]]))
"""


def speak(packages: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Convert the text in a new process that finds espeak's package in the folder ``packages``."""
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(packages), root]), **variables}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)


def package_in(folder: Path) -> Path:
    """A copy of the package with espeak's library and data, in a folder that may be only read."""
    shutil.copytree(Path(espeakng_loader.__file__).parent, folder / "espeakng_loader")
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return folder


@pytest.mark.parametrize("name", ["o" * LONGEST_PATH, "odd 'ä\"$HOME %s #?\n" + "o" * LONGEST_PATH])
def test_data_at_a_path_that_espeak_cannot_hold_is_read(tmp_path: Path, name: str, espeak: Phonemizer) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    ended = speak(package_in(tmp_path / name), PHONEMIZER_ESPEAK_DATA_PATH="/nowhere", TMPDIR=str(temporary))
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == [espeak(TEXT), espeak(TEXT), 0]
    assert not list(temporary.iterdir())


def test_a_package_without_its_data_is_told_in_one_line(tmp_path: Path) -> None:
    package = package_in(tmp_path / "packages") / "espeakng_loader"
    data = package / "espeak-ng-data"
    data.chmod(0o755)
    (data / "phontab").unlink()
    ended = speak(tmp_path / "packages")
    assert ended.stderr.splitlines() == [
        f"{data}: holds no data of espeak-ng; install the package espeakng-loader again"
    ]


def test_a_temporary_folder_that_cannot_be_used_is_told_in_one_line(tmp_path: Path) -> None:
    # tempfile falls back to other folders, so that it is replaced by one that is always full.
    (tmp_path / "sitecustomize.py").write_text(
        "import tempfile\ndef full(*_, **__): raise OSError(28, 'No space left on device')\ntempfile.mkdtemp = full\n"
    )
    (line,) = speak(tmp_path).stderr.splitlines()
    assert line.startswith("espeak-ng cannot be loaded: [Errno 28] No space left on device; name a temporary folder")
