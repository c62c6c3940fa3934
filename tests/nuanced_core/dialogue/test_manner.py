"""How something was said, in words and numbers, on sounds whose rate, pitch and loudness are known."""

import math

import torch
from torch import Tensor

from nuanced_core.dialogue.manner import Manner, Phrase, describe, measure_manner

RATE = 16_000
TEXT = "one two three four"


def syllables(count: int, seconds: float, hertz: float, level: float) -> Tensor:
    """Bursts of a harmonic sound with short pauses, as syllables, and silence around them."""
    time = torch.arange(round(RATE * seconds / count)) / RATE
    wave = sum(torch.sin(2 * torch.pi * hertz * k * time) / k for k in range(1, 9))
    burst = level * wave * torch.sin(torch.pi * time * count / seconds).clamp(min=0) ** 0.3
    noise = 1e-4 * torch.randn(RATE // 2, generator=torch.Generator().manual_seed(0))
    return torch.cat([noise, burst.repeat(count), noise])


def test_rate_pitch_and_level_are_measured() -> None:
    slow, fast = syllables(4, 2.0, 120, 0.1), syllables(4, 1.0, 240, 0.2)
    first, second = measure_manner(slow, TEXT), measure_manner(fast, TEXT)
    assert abs(2**first.pitch - 120) < 2 and abs(2**second.pitch - 240) < 4
    assert abs(second.level - first.level - 6.02) < 1
    assert 1.3 < second.rate / first.rate < 2.1  # what is near to speech counts as speech
    nothing = measure_manner(torch.zeros(100), TEXT)
    assert math.isnan(nothing.rate) and math.isnan(nothing.pitch) and math.isnan(nothing.level)


def test_phrases_are_described_against_the_mean_of_the_recording_or_a_given_one() -> None:
    slow, fast = syllables(4, 2.0, 120, 0.05), syllables(8, 1.6, 180, 0.2)
    seconds = len(slow) / RATE
    phrases = [Phrase(TEXT, 0, seconds), Phrase(f"{TEXT} {TEXT}", seconds, seconds + len(fast) / RATE)]
    lines = describe(phrases, torch.cat([slow, fast])).splitlines()
    assert "syllables per second, median pitch 1" in lines[0] and "dBFS" in lines[0]
    assert lines[1] == "Phrase by phrase, against the mean of this recording:"
    assert lines[2].startswith(f'- "{TEXT}": ') and "much slower (-" in lines[2] and "quieter (-" in lines[2]
    assert "faster (+" in lines[3] and "louder (+" in lines[3] and "nan" not in "".join(lines)
    usual = measure_manner(fast, TEXT + TEXT)
    alone = describe(phrases[:1], slow, Manner(math.nan, usual.pitch, usual.level)).splitlines()
    assert "much lower (-7.0 semitones)" in alone[0] and "much quieter (-12 dB)" in alone[0]
    assert describe(phrases[:1], slow).count("\n") == 0  # one phrase has nothing to be compared with
