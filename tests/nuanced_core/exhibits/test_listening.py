"""nuanced_core.exhibits.listening: what is written can be heard, seen and read again."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from nuanced_core.errors import DiskError
from nuanced_core.exhibits.listening import ListeningClip, write_listening


def tone(hertz: float, rate: int, level: float = 0.5) -> tuple[torch.Tensor, int]:
    return level * torch.sin(2 * torch.pi * hertz * torch.arange(rate) / rate), rate


def clip(**sounds: tuple[torch.Tensor, int]) -> ListeningClip:
    return ListeningClip("af_sky, clean", "af_sky", "clean", "Ein “Satz”.", "af_heart", sounds)


def test_sounds_are_mp3_files_with_spectrograms_and_a_list(tmp_path: Path) -> None:
    clips = [clip(heard=tone(440, 16_000), spoken=tone(880, 24_000, level=3.0)), clip(spoken=tone(220, 24_000))]
    write_listening(tmp_path / "listening", clips, epoch=4, step=160, val_loss=1.25)
    written = json.loads((tmp_path / "listening" / "listening.json").read_text(encoding="utf-8"))
    assert (written["epoch"], written["step"], written["val_loss"]) == (4, 160, 1.25)
    first, second = written["clips"]
    assert first["name"] == "af_sky, clean" and first["text"] == "Ein “Satz”." and first["nearest_voice"] == "af_heart"
    assert set(first["files"]) == {"heard", "spoken"} and set(second["files"]) == {"spoken"}
    for name, hertz, rate in (("heard", 440, 16_000), ("spoken", 880, 24_000)):
        samples, found_rate = soundfile.read(tmp_path / "listening" / first["files"][name])
        assert found_rate == rate
        assert len(samples) == pytest.approx(rate, abs=rate // 10)
        spectrum = np.abs(np.fft.rfft(samples[1000 : 1000 + rate // 2]))
        assert 2 * int(spectrum.argmax()) == pytest.approx(hertz, abs=4)
        assert np.abs(samples).max() < 1.1  # scaled down, not clipped
        assert Image.open(tmp_path / "listening" / first["spectrograms"][name]).height == 80
    files = {path.name for path in (tmp_path / "listening").iterdir()}
    assert not [name for name in files if name.endswith(".part")]


def test_a_later_epoch_replaces_an_earlier_one(tmp_path: Path) -> None:
    for epoch, hertz in ((1, 200.0), (2, 2000.0)):
        write_listening(tmp_path, [clip(spoken=tone(hertz, 24_000))], epoch=epoch, step=epoch, val_loss=1.0)
    assert json.loads((tmp_path / "listening.json").read_text())["epoch"] == 2
    samples, rate = soundfile.read(tmp_path / "0_spoken.mp3")
    assert int(np.abs(np.fft.rfft(samples)).argmax()) * rate / len(samples) == pytest.approx(2000, abs=5)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "listening").write_text("a file")
    with pytest.raises(DiskError, match="listening: cannot be written"):
        write_listening(tmp_path / "listening", [], epoch=1, step=1, val_loss=1.0)
