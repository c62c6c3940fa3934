"""nuanced_core.evaluation.recordings against cosines computed one recording at a time."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.data.dataset import Dataset
from nuanced_core.encoder.baselines import pooled_features
from nuanced_core.errors import AudioError, ConfigError
from nuanced_core.evaluation import predictors, recordings
from nuanced_core.evaluation.predictors import StylePredictors
from nuanced_core.evaluation.recordings import evaluate_clips, evaluate_recordings, find_recordings
from nuanced_core.evaluation.test_split import held_out_sentences, held_out_utterances
from tests.fakes import FakeWhisper, LivelyKokoro, band_embedding, held_out_models, random_encoder


def _write(path: Path, seed: int, seconds: float = 4.0, rate: int = 16_000, level: float = 0.3) -> Path:
    """Write a steady tone with overtones and some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    levels = rng.uniform(0.1, 1, 8)
    sound = sum(a * np.sin(2 * np.pi * (90 + 20 * seed) * (i + 1) * time) for i, a in enumerate(levels))
    soundfile.write(path, level * (sound / 8 + 0.01 * rng.standard_normal(len(time))), rate, subtype="FLOAT")
    return path


class RecordingSetup:
    """Evaluations of a random encoder on recordings."""

    def __init__(self, folder: Path, run: RunConfig) -> None:
        self.models = held_out_models(folder / "voices")
        self.dataset = Dataset(self.models, folder / "cache")  # type: ignore[arg-type]
        self.predictors = StylePredictors(random_encoder(self.models, run), run, self.dataset)

    def report(self, *files: Path) -> dict[str, Any]:
        return evaluate_recordings(self.predictors, self.dataset, files, band_embedding)


@pytest.fixture
def setup(tmp_path: Path, tiny_run: RunConfig, one_process: None) -> RecordingSetup:
    return RecordingSetup(tmp_path, tiny_run)


def test_find_recordings_returns_the_sound_files_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.wav", "A.FLAC", "c.mp3", "a.ogg", "e.m4a", "f.Opus", "notes.txt", "README", "d.wav.part"):
        (tmp_path / name).touch()
    (tmp_path / "g.wav").symlink_to(tmp_path / "gone.wav")
    _write(tmp_path / "h.wav", 1).rename(tmp_path / "h")  # sound without an ending
    found = find_recordings(tmp_path)
    assert [path.name for path in found] == ["A.FLAC", "a.ogg", "b.wav", "c.mp3", "e.m4a", "f.Opus", "g.wav", "h"]
    assert all(path.parent == tmp_path for path in found)
    assert find_recordings(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_find_recordings_passes_over_hidden_files_and_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "nuanced_core")
    for name in ("a.wav", "._a.wav", ".b.wav", ".DS_Store"):
        (tmp_path / name).touch()
    for name in ("take.wav", ".hidden.wav"):
        (tmp_path / name).mkdir()
    assert find_recordings(tmp_path) == [tmp_path / "a.wav"]
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}/take.wav: is a folder; passed over"]


def test_find_recordings_raises_for_a_missing_folder_or_one_without_recordings(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".a.wav").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match=r"^/.*: holds no sound file \(\.wav, .*\.mp3, …\); put recordings in it$"):
        find_recordings(tmp_path)
    with pytest.raises(AudioError, match=r"^/.*/nowhere: no such folder; name one that holds recordings$"):
        find_recordings(tmp_path / "nowhere")
    (tmp_path / "monday").mkdir()
    (tmp_path / "monday" / "a.wav").touch()
    with pytest.raises(
        AudioError, match="holds no recordings itself, but folders that do, such as monday; name one of"
    ):
        find_recordings(tmp_path)


def _mean_cosine(recording: Tensor, phonemes: str, style: Tensor) -> float:
    """Mean cosine of a style's speech, with its own durations, and each half of a recording at 16 kHz."""
    kokoro = LivelyKokoro()
    text = kokoro.encode_text([phonemes])
    spoken = band_embedding(kokoro.speak(text, kokoro.prosody(text, style[None]), style[None], [0]).item(0), 24_000)
    return float(np.mean([float(band_embedding(half, 16_000) @ spoken) for half in _halves(recording)]))


def _halves(recording: Tensor) -> tuple[Tensor, Tensor]:
    return recording[: len(recording) // 2], recording[len(recording) // 2 :]


def test_identity_is_0_for_the_test_voices_and_1_for_the_other_half_of_the_recording(
    setup: RecordingSetup, tmp_path: Path, bars: dict[str, tuple[int, int]]
) -> None:
    files = [_write(tmp_path / f"{seed}.wav", seed) for seed in (1, 2, 3)]
    report = setup.report(*files)
    assert list(report["rows"]) == ["mean", "nearest", "ridge", "encoder"]
    assert bars == {"evaluating recordings": (3, 3)}
    text, phonemes = next(iter(held_out_sentences(setup.models.phonemizer, 2).items()))
    assert report["text"] == text
    separate = Dataset(setup.models, tmp_path / "separate")  # type: ignore[arg-type]
    test_voices = [clip.audio for clip in separate.clips(held_out_utterances(setup.models.voices, {text: phonemes}))]
    assert len(test_voices) == 9
    sums = {name: np.zeros(3) for name in report["rows"]}  # cosine, other speaker, same speaker
    for file, clip in zip(files, report["clips"], strict=True):
        sound = torch.from_numpy(soundfile.read(file, dtype="float32")[0])
        first, second = (band_embedding(half, 16_000) for half in _halves(sound))
        same = float(first @ second)
        other = np.mean([float(half @ band_embedding(v, 24_000)) for half in (first, second) for v in test_voices])
        features = FakeWhisper()(sound)[None]
        styles = setup.predictors(features, torch.ones(1, features.shape[2], dtype=torch.bool), [len(phonemes)])
        for name, style in styles.items():
            cosine = _mean_cosine(sound, phonemes, style[0])
            sums[name] += cosine, other, same
            expected = (cosine - other) / (same - other)
            assert clip["identity"][name] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert clip["file"] == file.name
    for name, (cosine, other, same) in sums.items():
        found = report["rows"][name]
        assert found["identity"] == pytest.approx((cosine - other) / (same - other), rel=1e-3, abs=1e-4)
        assert found["identity_ci"][0] <= found["identity"] <= found["identity_ci"][1]


def test_distance_is_that_of_the_predictors_and_grows_with_the_level(setup: RecordingSetup, tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{i}.wav", 2, level=level) for i, level in enumerate((0.3, 3, 30))]
    found = [clip["distance"] for clip in setup.report(*files)["clips"]]
    features = FakeWhisper()(torch.from_numpy(soundfile.read(files[2], dtype="float32")[0]))[None]
    mask = torch.ones(1, features.shape[2], dtype=torch.bool)
    distance = setup.predictors.baselines.nearest.scaler.distance(pooled_features(features, mask))
    assert found[2] == pytest.approx(float(distance), rel=1e-5)
    assert found[0] < found[1] < found[2]


def test_single_recording_has_no_interval(setup: RecordingSetup, tmp_path: Path) -> None:
    for measures in setup.report(_write(tmp_path / "a.wav", 1))["rows"].values():
        assert measures["identity_ci"] == [None, None]
        assert measures["identity"] is not None


def test_report_does_not_depend_on_sample_rate_channels_or_format(setup: RecordingSetup, tmp_path: Path) -> None:
    plain = _write(tmp_path / "a.wav", 1)
    sound = torch.from_numpy(soundfile.read(plain, dtype="float32")[0])
    upsampled = resample(sound, 16_000, 32_000).numpy()
    soundfile.write(tmp_path / "b.flac", np.stack([1.5 * upsampled, 0.5 * upsampled], axis=1), 32_000)
    expected, found = setup.report(plain)["clips"][0], setup.report(tmp_path / "b.flac")["clips"][0]
    for name, value in expected["identity"].items():
        assert found["identity"][name] == pytest.approx(value, abs=0.05), name
    assert found["distance"] == pytest.approx(expected["distance"], rel=0.05)


def test_of_a_long_recording_the_beginning_is_used(
    setup: RecordingSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _write(tmp_path / "a.wav", 1)
    expected = setup.report(file)
    sound, rate = soundfile.read(file)
    soundfile.write(file, np.r_[sound, soundfile.read(_write(tmp_path / "b.wav", 2))[0]], rate, subtype="FLOAT")
    assert setup.report(file) != expected
    monkeypatch.setattr(recordings, "MAX_SECONDS", len(sound) / rate)
    assert setup.report(file) == expected


def test_bad_recordings_are_listed_with_their_reasons_and_the_others_evaluated(
    setup: RecordingSetup, tmp_path: Path, bars: dict[str, tuple[int, int]], caplog: pytest.LogCaptureFixture
) -> None:
    good = [_write(tmp_path / f"{seed}.wav", seed) for seed in (1, 2)]
    expected = setup.report(*good)
    assert expected["skipped"] == []
    silent, text, half = tmp_path / "silent.wav", tmp_path / "text.wav", tmp_path / "half.wav"
    soundfile.write(silent, np.zeros(64_000), 16_000)
    text.write_text("no sound")
    soundfile.write(half, np.r_[soundfile.read(good[0])[0], np.full(64_000, 0.001)], 16_000)
    bad = {
        _write(tmp_path / "short.wav", 1, seconds=2.9): "2.9 s is too short to identify a voice; record at least 3 s",
        silent: "is silent; record it again",
        text: "not a sound file that can be read",
        half: "one half is silent, and the halves are compared; cut off the silence",
        tmp_path / "gone.wav": "no such file",
    }
    short, *others = bad
    report = setup.report(short, good[0], *others, good[1])
    assert {**report, "skipped": []} == expected
    assert [clip["file"] for clip in report["skipped"]] == [file.name for file in bad]
    for clip, reason in zip(report["skipped"], bad.values(), strict=True):
        assert clip["reason"].startswith(reason)
    assert bars["evaluating recordings"] == (7, 7)
    assert "5 of 7 recordings were skipped; the report says why" in caplog.text
    for file, reason in bad.items():
        with pytest.raises(AudioError) as caught:
            setup.report(file)
        assert str(caught.value).startswith(f"{file}: {reason}")
    caplog.clear()
    with pytest.raises(AudioError, match=r"^none of 5 recordings can be used; the first: /.*/short\.wav: 2\.9 s"):
        setup.report(*bad)
    messages = [record.getMessage() for record in caplog.records]
    for message, (file, reason) in zip(messages, bad.items(), strict=True):
        assert message.startswith(f"{file}: {reason}")
    assert len(setup.report(_write(tmp_path / "enough.wav", 1, seconds=3))["clips"]) == 1


def test_one_call_evaluates_an_exported_encoder(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_process: None
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    for seed in (2, 1):
        _write(folder / f"{seed}.wav", seed)
    models = held_out_models(tmp_path / "voices")
    fetched = []

    def fetch(wanted: Models, device: torch.device) -> SimpleNamespace:
        fetched.append((wanted.whisper, wanted.source))
        return models

    monkeypatch.setattr(predictors.ModelSet, "fetch", fetch)
    monkeypatch.setattr(predictors, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(recordings, "Resemblyzer", lambda source: band_embedding)
    report = evaluate_clips(str(exported), str(folder), source="packages")
    assert report["model"] == str(exported)
    assert [clip["file"] for clip in report["clips"]] == ["1.wav", "2.wav"]
    assert list(report["rows"]) == ["mean", "nearest", "ridge", "encoder"]  # no oracle: the true style is unknown
    assert all(set(measures) == {"identity", "identity_ci"} for measures in report["rows"].values())
    assert fetched == [(report["whisper"], "packages")]

    def missing(source: str) -> None:
        raise ConfigError("speaker identity needs Resemblyzer")

    monkeypatch.setattr(recordings, "Resemblyzer", missing)
    with pytest.raises(ConfigError, match="Resemblyzer"):
        evaluate_clips(exported, folder)
    assert len(fetched) == 1  # the second call raised before it fetched anything
