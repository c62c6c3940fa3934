"""nuanced_core.speech.models: folders that hold no encoder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nuanced_core.encoder import pretrained
from nuanced_core.encoder.pretrained import DEFAULT_MODEL
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.speech.models import SpeechModels

ROOT = Path(__file__).parents[3]


def test_an_installed_package_without_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "__file__", str(tmp_path / "nuanced_core" / "encoder" / "pretrained.py"))
    monkeypatch.setattr(pretrained, "distribution", lambda name: SimpleNamespace(files=None))
    with pytest.raises(WeightsError, match=r"not part of the installed package; copy it .* --model"):
        SpeechModels.load()


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
