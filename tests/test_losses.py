import numpy as np
import pytest
import scipy.signal
import torch

from nuanced_core.losses import FLOOR, RESOLUTIONS, MelSTFTLoss, Resolution, style_loss


@pytest.fixture(scope="module")
def mel() -> MelSTFTLoss:
    return MelSTFTLoss()


def _audio(seed: int, items: int = 2) -> torch.Tensor:
    return torch.randn(items, 6000, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_zero_for_the_same_sound_and_grows_with_the_difference(mel: MelSTFTLoss) -> None:
    reference = mel.spectra(_audio(0))
    losses = [float(mel(mel.spectra(_audio(0) + level * _audio(1)), reference)) for level in (0.0, 0.1, 0.5, 1.0)]
    assert losses[0] == 0
    assert losses == sorted(losses)


def test_equals_the_formula_computed_with_scipy() -> None:
    resolution = Resolution(512, 128, 512, 40)
    mel = MelSTFTLoss([resolution])
    x, y = (_audio(s, 1) for s in (0, 1))
    bank = mel.mel_0.numpy()

    def spectrum(audio: torch.Tensor) -> np.ndarray:
        padded = np.pad(audio[0].numpy(), 256)
        frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::128]
        return bank @ np.abs(np.fft.rfft(frames * scipy.signal.get_window("hann", 512))).T

    a, b = spectrum(x), spectrum(y)
    expected = np.linalg.norm(a - b) / np.linalg.norm(b) + np.abs(np.log(a + FLOOR) - np.log(b + FLOOR)).mean()
    assert float(mel(mel.spectra(x), mel.spectra(y))) == pytest.approx(expected, rel=1e-4)


def test_no_mel_band_is_empty(mel: MelSTFTLoss) -> None:
    for i in range(len(RESOLUTIONS)):
        assert (getattr(mel, f"mel_{i}").sum(dim=1) > 0).all()


def test_a_batch_is_the_mean_of_its_items(mel: MelSTFTLoss) -> None:
    x, y = mel.spectra(_audio(0)), mel.spectra(_audio(1))
    singles = [mel([s[i : i + 1] for s in x], [s[i : i + 1] for s in y]) for i in range(2)]
    torch.testing.assert_close(mel(x, y), torch.stack(singles).mean())


def test_gradient_is_finite_in_silence(mel: MelSTFTLoss) -> None:
    silence = torch.zeros(1, 6000, requires_grad=True)
    (gradient,) = torch.autograd.grad(mel(mel.spectra(silence), mel.spectra(_audio(0, 1))), silence)
    assert torch.isfinite(gradient).all()


def test_style_loss_takes_the_cosine_over_the_style_dimensions() -> None:
    a = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    b = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    cosines = [float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]
    expected = 1 - np.mean(cosines) + float(((a - b) ** 2).mean())
    assert float(style_loss(a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(style_loss(a, a)) == pytest.approx(0, abs=1e-6)
