from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.data.dataset import Dataset
from nuanced_core.errors import AudioError
from nuanced_core.evaluation import predictors as style_rows
from nuanced_core.evaluation.predictors import StylePredictors
from nuanced_core.evaluation.recordings import evaluate_recordings, recordings_in
from nuanced_core.evaluation.test_split import held_out_sentences, held_out_utterances
from tests.fakes import FakeWhisper, LivelyKokoro, band_embedding, held_out_models, random_encoder


def _write(path: Path, seed: int, seconds: float = 4.0, rate: int = 16_000, level: float = 0.3) -> Path:
    """A tone with overtones, steady but for some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    levels = rng.uniform(0.1, 1, 8)
    sound = sum(a * np.sin(2 * np.pi * (90 + 20 * seed) * (i + 1) * time) for i, a in enumerate(levels))
    soundfile.write(path, level * (sound / 8 + 0.01 * rng.standard_normal(len(time))), rate, subtype="FLOAT")
    return path


class Lab:
    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.models = held_out_models(folder / "voices")
        self.dataset = Dataset(self.models, folder / "cache")  # type: ignore[arg-type]
        self.rows = StylePredictors(random_encoder(self.models, run), run, self.dataset, lambda line: None)
        self.said: list[str] = []

    def report(self, *files: Path) -> dict[str, Any]:
        return evaluate_recordings(self.rows, self.dataset, files, band_embedding, self.said.append)


@pytest.fixture
def lab(tmp_path: Path, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(style_rows, "worker_count", lambda orders, models: 1)
    return Lab(tmp_path, tiny_run)


def test_the_sound_files_of_a_folder_are_found_by_name(tmp_path: Path) -> None:
    for name in ("b.wav", "A.FLAC", "c.mp3", "a.ogg", "notes.txt", "wav", "d.wav.part"):
        (tmp_path / name).touch()
    assert [path.name for path in recordings_in(tmp_path)] == ["A.FLAC", "a.ogg", "b.wav", "c.mp3"]
    assert all(path.parent == tmp_path for path in recordings_in(tmp_path))


def test_no_folder_and_a_folder_without_recordings_are_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(AudioError, match=r"^/.*: holds no \.wav, \.flac, \.ogg, \.mp3 file; put recordings in it$"):
        recordings_in(tmp_path)
    for path in (tmp_path / "nowhere", tmp_path / "notes.txt"):
        with pytest.raises(AudioError, match=f"^{path}: no such folder; name one that holds recordings$"):
            recordings_in(path)


def _cosines(lab: Lab, sound: Tensor, phonemes: str, style: Tensor) -> float:
    """Of what a style says, with its own durations, to the halves of a recording at 16 kHz."""
    kokoro = LivelyKokoro()
    text = kokoro.encode_text([phonemes])
    said = band_embedding(kokoro.speak(text, kokoro.prosody(text, style[None]), style[None], [0]).item(0), 24_000)
    return float(np.mean([float(band_embedding(half, 16_000) @ said) for half in _halves(sound)]))


def _halves(sound: Tensor) -> tuple[Tensor, Tensor]:
    return sound[: len(sound) // 2], sound[len(sound) // 2 :]


def test_identity_is_0_for_the_test_voices_saying_the_same_and_1_for_the_other_half(lab: Lab, tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{seed}.wav", seed) for seed in (1, 2, 3)]
    report = lab.report(*files)
    assert list(report["rows"]) == ["mean", "nearest", "ridge", "encoder"]
    text, phonemes = next(iter(held_out_sentences(lab.models.phonemizer, 2).items()))
    assert report["text"] == text
    apart = Dataset(lab.models, tmp_path / "apart")  # type: ignore[arg-type]
    strangers = [clip.audio for clip in apart.clips(held_out_utterances(lab.models.voices, {text: phonemes}))]
    assert len(strangers) == 9
    sums = {name: np.zeros(3) for name in report["rows"]}  # cosine, stranger, same
    for file, clip in zip(files, report["clips"], strict=True):
        sound = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
        first, second = (band_embedding(half, 16_000) for half in _halves(sound))
        same = float(first @ second)
        stranger = np.mean([float(h @ band_embedding(s, 24_000)) for h in (first, second) for s in strangers])
        features = FakeWhisper()(sound)[None]
        styles = lab.rows(features, torch.ones(1, features.shape[2], dtype=torch.bool), [len(phonemes)])
        for name, style in styles.items():
            cosine = _cosines(lab, sound, phonemes, style[0])
            sums[name] += cosine, stranger, same
            expected = (cosine - stranger) / (same - stranger)
            assert clip["identity"][name] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert clip["file"] == file.name
    for name, (cosine, stranger, same) in sums.items():
        found = report["rows"][name]
        assert found["identity"] == pytest.approx((cosine - stranger) / (same - stranger), rel=1e-3, abs=1e-4)
        assert found["identity_ci"][0] <= found["identity"] <= found["identity_ci"][1]
    assert lab.said[-3:] == ["1.wav", "2.wav", "3.wav"]


def test_distance_is_that_of_the_rows_and_grows_with_what_is_foreign(lab: Lab, tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{i}.wav", 2, level=level) for i, level in enumerate((0.3, 3, 30))]
    found = [clip["distance"] for clip in lab.report(*files)["clips"]]
    features = FakeWhisper()(torch.from_numpy(soundfile.read(files[2], dtype="float32")[0]))[None]
    mask = torch.ones(1, features.shape[2], dtype=torch.bool)
    assert found[2] == pytest.approx(float(lab.rows.distance(features, mask)), rel=1e-5)
    assert found[0] < found[1] < found[2]


def test_of_one_recording_there_is_no_interval(lab: Lab, tmp_path: Path) -> None:
    for row in lab.report(_write(tmp_path / "a.wav", 1))["rows"].values():
        assert row["identity_ci"] == [None, None]
        assert row["identity"] is not None


def test_rate_channels_and_format_do_not_matter(lab: Lab, tmp_path: Path) -> None:
    plain = _write(tmp_path / "a.wav", 1)
    sound = torch.from_numpy(soundfile.read(plain, dtype="float32")[0])
    faster = resample(sound, 16_000, 32_000).numpy()
    soundfile.write(tmp_path / "b.flac", np.stack([1.5 * faster, 0.5 * faster], axis=1), 32_000)
    expected, found = lab.report(plain)["clips"][0], lab.report(tmp_path / "b.flac")["clips"][0]
    for name, value in expected["identity"].items():
        assert found["identity"][name] == pytest.approx(value, abs=0.05), name
    assert found["distance"] == pytest.approx(expected["distance"], rel=0.05)


def test_a_recording_that_cannot_be_used_is_told(lab: Lab, tmp_path: Path) -> None:
    silent, text = tmp_path / "silent.wav", tmp_path / "text.wav"
    soundfile.write(silent, np.zeros(64_000), 16_000)
    text.write_text("no sound")
    for file, told in (
        (_write(tmp_path / "short.wav", 1, seconds=2.9), "2.9 s is too short to tell a voice; at least 3 s are needed"),
        (silent, "is silent; record it again"),
        (text, "not a sound file"),
    ):
        with pytest.raises(AudioError) as caught:
            lab.report(file)
        assert str(caught.value).startswith(f"{file}: {told}")
    assert len(lab.report(_write(tmp_path / "enough.wav", 1, seconds=3))["clips"]) == 1
