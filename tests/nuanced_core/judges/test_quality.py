"""nuanced_core.judges.quality on Kokoro's speech, the same in noise, and silence."""

import sys

import pytest
import torch
from torch import Tensor

from nuanced_core.errors import ConfigError
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.judges.quality import DNSMOS


@pytest.fixture(scope="module")
def quality() -> DNSMOS:
    pytest.importorskip("speechmos", reason="the extra eval is not installed")
    return DNSMOS()


@pytest.mark.real
def test_speech_is_better_than_the_same_in_noise(quality: DNSMOS, spoken: Tensor) -> None:
    clean, noisy = quality(spoken, 24_000), quality(degraded(spoken, 24_000, "snr10", seed=0), 24_000)
    assert clean.overall > 3 and clean.background > 3.7 and clean.signal > 3.2 and clean.p808 > 3
    assert noisy.overall < clean.overall - 0.3 and noisy.background < clean.background - 0.5
    assert quality(spoken, 24_000) == clean


@pytest.mark.real
def test_audio_beyond_full_scale_is_scaled_down(quality: DNSMOS, spoken: Tensor) -> None:
    loud = spoken / spoken.abs().max()
    assert quality(5 * loud, 24_000).overall == pytest.approx(quality(0.99 * loud, 24_000).overall, abs=0.05)


@pytest.mark.slow
def test_silence_has_scores(quality: DNSMOS) -> None:
    assert 1 <= quality(torch.zeros(16_000), 16_000).overall < 3


def test_missing_extra_raises_config_error_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "speechmos", None)
    with pytest.raises(ConfigError, match=r"^DNSMOS needs speechmos \(.*\); pip install '.*\[eval\]'$"):
        DNSMOS()
