"""nuanced_core.speakers.channel."""

import pytest
import torch
from torch import Tensor

from nuanced_core.speakers.channel import random_channel
from tests.nuanced_core.speakers.directional import slopes
from tests.nuanced_core.speakers.sounds import voice

CLIPS = voice(130, 1.0).expand(64, -1)


def _channel(audio: Tensor, seed: int = 0, **options: object) -> Tensor:
    return random_channel(audio, torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def _noise_db(seed: int = 0, **options: object) -> tuple[Tensor, Tensor]:
    """The noise that is added to CLIPS, and its level in dB below them."""
    noise = _channel(CLIPS, seed, strength=0.0, **options) - CLIPS
    return noise, 10 * torch.log10(CLIPS.square().mean(dim=1) / noise.square().mean(dim=1))


def test_the_same_generator_gives_the_same_channels_and_each_clip_has_its_own() -> None:
    found = _channel(CLIPS[:3])
    assert torch.equal(found, _channel(CLIPS[:3]))
    assert not torch.equal(found, _channel(CLIPS[:3], seed=1))
    assert not torch.equal(found[0], found[1])
    generator = torch.Generator().manual_seed(0)
    first, second = (random_channel(CLIPS[:1], generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_noise_has_the_ratios_asked_for() -> None:
    _, ratios = _noise_db()
    assert 15 - 0.01 < float(ratios.min()) < 18 and 37 < float(ratios.max()) < 40 + 0.01
    _, fixed = _noise_db(snr_db=(20.0, 20.0))
    torch.testing.assert_close(fixed, torch.full((64,), 20.0), atol=0.01, rtol=0)


def test_the_noise_is_white_to_low() -> None:
    noise, _ = _noise_db(snr_db=(20.0, 20.0))
    power = torch.fft.rfft(noise).abs().square()  # a bin for each Hz
    tilt = 10 * torch.log10(power[:, 50:1000].mean(dim=1) / power[:, 6000:7500].mean(dim=1))
    assert float(tilt.min()) == pytest.approx(0, abs=1) and float(tilt.max()) > 10


def test_the_equaliser_is_gentle_and_without_delay() -> None:
    impulse = torch.zeros(256, 512)
    impulse[:, 256] = 1.0
    filters = _channel(impulse, snr_db=(200.0, 200.0))
    assert torch.equal(filters.argmax(dim=1), torch.full((256,), 256))
    torch.testing.assert_close(filters[:, 256], torch.ones(256), atol=1e-3, rtol=0)
    assert float(filters[:, :250].abs().max()) < 1e-6
    response = 20 * torch.log10(torch.fft.rfft(filters).abs())
    assert 1 < float(response.std()) < 3 and float(response.abs().max()) < 20


def test_a_louder_clip_has_louder_noise() -> None:
    torch.testing.assert_close(_channel(10 * CLIPS[:2]), 10 * _channel(CLIPS[:2]))


def test_gradient_equals_finite_differences() -> None:
    audio = voice(130, 0.1).double()[None]
    weights = torch.randn(audio.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient, difference = slopes(lambda point: (_channel(point) * weights).sum(), audio, step=1e-6)
    assert gradient == pytest.approx(difference, rel=1e-6)


def test_silence_stays_silent_with_a_finite_gradient() -> None:
    silence = torch.zeros(2, 800, requires_grad=True)
    found = _channel(silence)
    found.sum().backward()
    assert float(found.detach().abs().max()) < 1e-15
    assert silence.grad is not None and silence.grad.isfinite().all()
