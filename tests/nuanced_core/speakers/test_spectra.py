"""nuanced_core.speakers.spectra against torchaudio's Kaldi filter bank and librosa's mel spectrogram."""

import pytest
import torch
import torchaudio.compliance.kaldi
from torch import Tensor

from nuanced_core.speakers.spectra import KaldiFbank, MelPower
from tests.nuanced_core.speakers.sounds import voice


def _noise(samples: int, level: float = 0.1, offset: float = 0.0) -> Tensor:
    return offset + level * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


SOUNDS = {
    "voice": voice(120, 1.3),
    "noise": _noise(16_000),
    "loud": _noise(8_001, level=0.5),
    "one frame": _noise(400),
    "almost two frames": _noise(559),
    "two frames": _noise(560),
    "offset": _noise(4_000, level=0.05, offset=0.1),
    "silence": torch.zeros(1_000),
}


def _kaldi(sound: Tensor) -> Tensor:
    """Kaldi's filter bank in float64: in float32 torchaudio's own is off by 0.1 in bands between two harmonics."""
    found: Tensor = torchaudio.compliance.kaldi.fbank(sound[None].double() * 32_768, num_mel_bins=80, dither=0.0)
    return found


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS.keys())
def test_filter_bank_equals_kaldi_s(sound: Tensor) -> None:
    torch.set_default_dtype(torch.float64)  # of the matrices, which would be rounded otherwise
    try:
        exact = KaldiFbank()(sound[None].double())[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert exact.shape == (1 + (len(sound) - 400) // 160, 80)
    torch.testing.assert_close(exact, _kaldi(sound), atol=1e-3, rtol=0)
    found = KaldiFbank()(sound[None])[0].double()
    torch.testing.assert_close(found, exact, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.mean(dim=0), exact.mean(dim=0), atol=5e-4, rtol=0)


@pytest.mark.parametrize("sound", SOUNDS.values(), ids=SOUNDS.keys())
def test_mel_power_equals_librosa_s(sound: Tensor) -> None:
    librosa = pytest.importorskip("librosa", reason="the extra eval is not installed")
    expected = librosa.feature.melspectrogram(y=sound.numpy(), sr=16_000, n_fft=400, hop_length=160, n_mels=40)
    found = MelPower()(sound[None])[0]
    assert found.shape == (1 + len(sound) // 160, 40)
    torch.testing.assert_close(found, torch.from_numpy(expected.T), atol=1e-6, rtol=1e-4)


def test_mel_power_equals_that_of_a_complex_transform() -> None:
    sound = SOUNDS["voice"].double()
    padded = torch.nn.functional.pad(sound, (200, 200))
    window = torch.hann_window(400, dtype=torch.float64)
    power = torch.stft(padded, 400, 160, window=window, center=False, return_complex=True).abs().square()
    mel = MelPower().double()
    torch.testing.assert_close(mel(sound[None])[0], (mel.bands @ power).T, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("spectrum", [KaldiFbank, MelPower])
def test_a_batch_equals_its_clips(spectrum: type[KaldiFbank | MelPower]) -> None:
    clips = torch.stack([SOUNDS["voice"][:7_000], SOUNDS["noise"][:7_000]])
    together = spectrum()(clips)
    for clip, expected in zip(clips, together, strict=True):
        torch.testing.assert_close(spectrum()(clip[None])[0], expected, rtol=1e-4, atol=5e-3)


@pytest.mark.parametrize("spectrum", [KaldiFbank, MelPower])
def test_gradient_equals_finite_differences(spectrum: type[KaldiFbank | MelPower]) -> None:
    sound = 0.1 * torch.randn(2, 750, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(spectrum().double(), sound.requires_grad_(), fast_mode=True)
