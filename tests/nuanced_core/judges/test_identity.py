"""nuanced_core.judges.identity: speaker embeddings of synthetic vowels and of Kokoro's voices."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.audio import resample
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import ConfigError
from nuanced_core.judges.identity import Resemblyzer
from tests.nuanced_core.stock_speech import cosines_of_voices


@pytest.fixture(scope="module")
def encoder() -> Resemblyzer:
    pytest.importorskip("webrtcvad", reason="the extra eval is not installed")
    return Resemblyzer()


def _vowels(seed: int, f0: float = 120.0, rate: int = 16_000, seconds: float = 2.0) -> Tensor:
    """Harmonics below 4 kHz with three random formants, modulated at the rate of syllables."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(rate * seconds)) / rate
    formants = rng.uniform((300, 900, 2200), (800, 1900, 3200))
    hertz = np.arange(1, int(4000 / f0)) * f0
    levels = sum(np.exp(-(((hertz - formant) / 150) ** 2)) for formant in formants)
    tones = np.sin(2 * np.pi * (hertz[:, None] * time + rng.random((len(hertz), 1))))
    sound = (levels[:, None] * tones).sum(axis=0) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))
    return torch.from_numpy((0.1 * sound / sound.std()).astype(np.float32))


@pytest.mark.parametrize(
    "sound",
    [_vowels(0), _vowels(1, seconds=0.3), torch.zeros(16_000), torch.zeros(1600), 1e-5 * _vowels(2)],
    ids=["voice", "short", "silence", "short silence", "quiet"],
)
def test_embedding_is_deterministic_and_has_norm_1(encoder: Resemblyzer, sound: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Resemblyzer's warnings must not reach the user
        found = encoder(sound, 16_000)
    assert found.shape == (256,)
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(encoder(sound, 16_000), found)


def test_embedding_does_not_depend_on_sample_rate_or_level(encoder: Resemblyzer) -> None:
    sound, other = (0.1 * _vowels(seed, f0, rate=24_000) for seed, f0 in ((0, 120), (1, 230)))  # -40 dBFS
    plain = encoder(sound, 24_000)
    other_cosine = float(plain @ encoder(other, 24_000))
    for same in (encoder(resample(sound, 24_000, 16_000), 16_000), encoder(0.2 * sound, 24_000)):
        assert float(plain @ same) > 0.98 > other_cosine + 0.1


def test_silence_around_speech_is_removed(encoder: Resemblyzer) -> None:
    sound = _vowels(0)
    padded = torch.nn.functional.pad(sound, (32_000, 32_000))
    assert float(encoder(sound, 16_000) @ encoder(padded, 16_000)) > 0.9


def test_audio_that_requires_grad_is_detached(encoder: Resemblyzer) -> None:
    sound = _vowels(0)
    found = encoder(sound.clone().requires_grad_(), 16_000)
    assert torch.equal(found, encoder(sound, 16_000)) and not found.requires_grad


@pytest.mark.real
def test_same_voice_has_a_higher_cosine_than_any_other_voice(encoder: Resemblyzer, models: ModelSet) -> None:
    cosines, same, others = cosines_of_voices(models, encoder)
    assert cosines.argmax(dim=0).tolist() == cosines.argmax(dim=1).tolist() == [0, 1, 2]
    assert same.min() > others.max()
    assert same.mean() - others.mean() > 0.2


@pytest.mark.parametrize("seconds", [0.3, 1.7, 6.0])
def test_embedding_is_that_of_the_package(encoder: Resemblyzer, seconds: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SciPy: a deprecated name
        package = pytest.importorskip("resemblyzer", reason="not installed")
    sound = torch.cat([_vowels(2, seconds=seconds), torch.zeros(24_000), 0.4 * _vowels(3, f0=180, seconds=seconds)])
    frames = sound[: len(sound) // 320 * 320].view(-1, 320).square().mean(dim=1)
    level = frames[frames >= frames.max() / 1000].mean().sqrt()
    heard = package.audio.trim_long_silences((10**-1.5 / level * sound).numpy())
    assert 0 < len(heard) < len(sound)
    expected = torch.from_numpy(package.VoiceEncoder("cpu", verbose=False).embed_utterance(heard))
    torch.testing.assert_close(encoder(sound, 16_000), expected, atol=1e-4, rtol=0)


def test_missing_extra_raises_config_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(ConfigError, match=r"^speaker identity needs webrtcvad \(.*\); pip install '.*\[eval\]'$"):
        Resemblyzer()
