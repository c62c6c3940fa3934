"""nuanced_core.speech.models: where the encoder is found, and folders that hold none."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.speech import models
from nuanced_core.speech.models import DEFAULT_MODEL, SHARED, SpeechModels, find_model

ROOT = Path(__file__).parents[3]
ENCODER_FILES = ("README.md", "config.json", "model.safetensors")


def test_the_default_is_looked_for_here_then_in_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_model(DEFAULT_MODEL) == ROOT / DEFAULT_MODEL
    (tmp_path / DEFAULT_MODEL).mkdir(parents=True)
    assert find_model(DEFAULT_MODEL) == DEFAULT_MODEL
    assert find_model("elsewhere") == Path("elsewhere")


def test_an_installed_package_without_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "__file__", str(tmp_path / "nuanced_core" / "speech" / "models.py"))
    monkeypatch.setattr(models, "distribution", lambda name: SimpleNamespace(files=None))
    with pytest.raises(WeightsError, match=r"not part of the installed package; copy it .* --model"):
        SpeechModels.load()


def test_an_installed_package_finds_the_encoder_of_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, folder = tmp_path / "env" / "lib" / "site", tmp_path / "env" / SHARED / DEFAULT_MODEL
    about = site / "nuanced_speech-0.1.0.dist-info"
    for path in (about, folder):
        path.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: nuanced-speech\nVersion: 0.1.0\n")
    (about / "RECORD").write_text("".join(f"../../{SHARED}/{DEFAULT_MODEL}/{file},,\n" for file in ENCODER_FILES))
    for file in ENCODER_FILES:
        (folder / file).symlink_to(ROOT / DEFAULT_MODEL / file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(models, "__file__", str(site / "nuanced_core" / "speech" / "models.py"))
    assert find_model(DEFAULT_MODEL).samefile(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="not in this folder"):
        find_model(DEFAULT_MODEL)


def test_a_folder_without_an_encoder_or_its_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file"):
        SpeechModels.load(tmp_path)
    for file in (ROOT / DEFAULT_MODEL).iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["run"]
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="run: the training run's settings are missing"):
        SpeechModels.load(tmp_path)
