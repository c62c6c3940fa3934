"""RealSTFT compared with torch.stft, torch.istft and SciPy."""

import pytest
import scipy.signal
import torch

from nuanced_core.kokoro.stft import RealSTFT


@pytest.mark.parametrize(("n_fft", "hop"), [(20, 5), (64, 16), (1024, 256), (21, 7)])
def test_forward_equals_torch(n_fft: int, hop: int) -> None:
    audio = torch.randn(2, 2400, generator=torch.Generator().manual_seed(0))
    expected = torch.stft(audio, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True)
    real, imaginary = RealSTFT(n_fft, hop)(audio)
    torch.testing.assert_close(real, expected.real, atol=1e-4 if n_fft > 64 else 1e-5, rtol=1e-5)
    torch.testing.assert_close(imaginary, expected.imag, atol=1e-4 if n_fft > 64 else 1e-5, rtol=1e-5)


def test_forward_equals_scipy() -> None:
    audio = torch.randn(1, 800, generator=torch.Generator().manual_seed(1))
    real, imaginary = RealSTFT(20, 5)(audio)
    padded = torch.nn.functional.pad(audio, (10, 10), mode="reflect")[0].numpy()
    window = scipy.signal.get_window("hann", 20, fftbins=True)
    transform = scipy.signal.ShortTimeFFT(window, hop=5, fs=1.0, fft_mode="onesided", phase_shift=None)
    # ShortTimeFFT adds padding: keep only the slices that lie entirely inside the signal.
    first = transform.lower_border_end[1]
    expected = transform.stft(padded)[:, first - transform.p_min :][:, : real.shape[-1]]
    torch.testing.assert_close(real[0], torch.from_numpy(expected.real).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(imaginary[0], torch.from_numpy(expected.imag).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n_fft", "hop"), [(20, 5), (64, 16)])
def test_inverse_equals_torch(n_fft: int, hop: int) -> None:
    generator = torch.Generator().manual_seed(2)
    spectrum = torch.complex(*(torch.randn(2, n_fft // 2 + 1, 41, generator=generator) for _ in range(2)))
    expected = torch.istft(spectrum, n_fft, hop, window=torch.hann_window(n_fft))
    torch.testing.assert_close(
        RealSTFT(n_fft, hop).inverse(spectrum.real, spectrum.imag), expected, atol=1e-5, rtol=1e-5
    )


def test_masked_batch_inverse_matches_single_items() -> None:
    stft = RealSTFT(20, 5)
    generator = torch.Generator().manual_seed(3)
    real, imaginary = (torch.randn(2, 11, 41, generator=generator) for _ in range(2))
    alone = stft.inverse(real[1:, :, :30], imaginary[1:, :, :30])
    mask = torch.ones(2, 1, 41)
    mask[1, :, 30:] = 0
    together = stft.inverse(real * mask, imaginary * mask, mask)
    torch.testing.assert_close(together[1:, : alone.shape[1]], alone)


def test_round_trip_restores_audio_and_gradient() -> None:
    stft = RealSTFT(20, 5)
    audio = torch.randn(1, 600, generator=torch.Generator().manual_seed(4), requires_grad=True)
    restored = stft.inverse(*stft(audio))
    torch.testing.assert_close(restored, audio, atol=1e-5, rtol=1e-5)
    weights = torch.randn(1, 600, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad((restored * weights).sum(), audio)
    torch.testing.assert_close(gradient, weights, atol=1e-5, rtol=1e-5)


def test_runs_under_autocast_compile_and_export() -> None:
    stft = RealSTFT(20, 5)
    audio = torch.randn(1, 600, generator=torch.Generator().manual_seed(6))
    expected = stft.inverse(*stft(audio))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = stft.inverse(*stft(audio))
    assert (rounded.float() - expected).abs().max() < 0.05 * expected.abs().max()
    traced = torch.compile(lambda x: stft.inverse(*stft(x)), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(audio), expected)
    exported = torch.export.export(stft, (audio,)).module()
    torch.testing.assert_close(exported(audio), stft(audio))
