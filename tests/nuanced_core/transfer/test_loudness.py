"""nuanced_core.transfer.loudness against pyloudnorm on whole sounds, and the standard's own tone."""

import math

import pytest
import torch
from pyloudnorm import Meter

from nuanced_core.transfer.loudness import block_loudness, integrated_loudness, loudness

RATE = 24_000
TONE = torch.sin(2 * math.pi * 997 * torch.arange(5 * RATE) / RATE)


def test_a_tone_at_full_scale_has_minus_3_lufs() -> None:
    assert loudness(TONE, RATE) == pytest.approx(-3.01, abs=0.1)
    assert loudness(TONE / 10, RATE) == pytest.approx(-23.01, abs=0.1)


def test_the_gated_loudness_of_parts_is_that_of_the_whole() -> None:
    parts = [TONE, 0.3 * TONE, torch.zeros(2 * RATE), 0.001 * TONE, 0.2 * TONE]
    whole = Meter(RATE).integrated_loudness(torch.cat(parts).double().numpy())
    blocks = [block for part in parts for block in block_loudness(part, RATE)]
    assert integrated_loudness(blocks) == pytest.approx(whole, abs=0.2)
    assert loudness(torch.cat(parts), RATE) == pytest.approx(whole, abs=1e-6)


def test_short_and_silent_sounds_are_measured_too() -> None:
    assert loudness(0.1 * TONE[: RATE // 10], RATE) == pytest.approx(-23.01, abs=0.5)
    assert loudness(torch.zeros(RATE), RATE) == -math.inf
    assert loudness(torch.zeros(0), RATE) == -math.inf
