"""What was said in a recording, and how: rate, pitch and loudness of each phrase against the speaker's own mean.

Dimensions: P pitch frames of 25 ms.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import AudioError
from nuanced_core.hearing.pitch import track_pitch
from nuanced_core.people.measures import LEAST_LOG_PROBABILITY, MOST_SILENCE, measure_voice, speech_frames

__all__ = ["Manner", "Phrase", "describe", "hear_phrases", "measure_manner"]

# Differences from the speaker's mean that a listener notices; smaller ones are called usual.
RATE_STEPS = (0.12, 0.35)  # shares: somewhat, much
PITCH_STEPS = (1.0, 3.0)  # semitones
LEVEL_STEPS = (2.0, 5.0)  # dB
LEAST_SECONDS = 0.3  # of a phrase whose manner is measured
_VOWELS = re.compile(r"[aeiouy]+", re.IGNORECASE)


@dataclass(frozen=True)
class Manner:
    """How something is said; NaN where it cannot be measured."""

    rate: float  # syllables per second of speech
    pitch: float  # median of the voiced frames, log2 Hz
    level: float  # dB relative to full scale, of the voiced frames


@dataclass(frozen=True)
class Phrase:
    """Words of a recording, and where they are."""

    text: str
    start: float  # s
    end: float  # s


def hear_phrases(models: ModelSet, audio: Tensor) -> list[Phrase]:
    """Return the phrases that Whisper finds in audio (samples,) at 16 kHz, without those that it does not trust.

    Raises:
        AudioError: there is none.
    """
    import whisper

    model = whisper.load_model(str(models.whisper_file.path), device=str(models.device))
    # One temperature: with several, words that Whisper doubts are drawn at random.
    options = {"language": "en", "temperature": 0.0, "fp16": False, "condition_on_previous_text": False}
    found: dict[str, Any] = model.transcribe(audio.float().cpu().numpy(), verbose=None, **options)
    phrases = [
        Phrase(text, float(segment["start"]), float(segment["end"]))
        for segment in found["segments"]
        if (text := " ".join(str(segment["text"]).split()))
        and any(character.isalnum() for character in text)
        and not (segment["no_speech_prob"] > MOST_SILENCE and segment["avg_logprob"] < LEAST_LOG_PROBABILITY)
    ]
    if not phrases:
        raise AudioError("there are no words that Whisper understands; record English speech, closer to the microphone")
    return phrases


def measure_manner(audio: Tensor, text: str) -> Manner:
    """Measure how a text was said in audio (samples,) at 16 kHz."""
    unknown = Manner(math.nan, math.nan, math.nan)
    if len(audio) < LEAST_SECONDS * WHISPER_RATE:
        return unknown
    measures = measure_voice(audio, track_pitch(audio, WHISPER_RATE))
    seconds = float(speech_frames(audio).sum()) / FRAMES_PER_SECOND
    rate = _syllables(text) / seconds if seconds >= LEAST_SECONDS else math.nan
    return Manner(rate, measures.f0_median, measures.level)


def describe(phrases: Sequence[Phrase], audio: Tensor, usual: Manner | None = None) -> str:
    """Describe in plain words and numbers how phrases of audio (samples,) at 16 kHz were said.

    Args:
        usual: the speaker's mean, of another recording; None: that of this one.

    Returns:
        A line about the whole, and one for each phrase.
    """
    whole = measure_manner(audio, " ".join(phrase.text for phrase in phrases))
    mean = usual or whole
    against = "the speaker's usual way" if usual else "the mean of this recording"
    lines = [f"As a whole: {_absolute(whole)}{f'; {_relative(whole, usual)}' if usual else ''}."]
    if len(phrases) > 1 or usual:
        lines.append(f"Phrase by phrase, against {against}:")
        for phrase in phrases:
            part = audio[round(phrase.start * WHISPER_RATE) : round(phrase.end * WHISPER_RATE)]
            lines.append(f'- "{phrase.text}": {_relative(measure_manner(part, phrase.text), mean)}')
    return "\n".join(lines)


def _absolute(manner: Manner) -> str:
    found = []
    if math.isfinite(manner.rate):
        found.append(f"{manner.rate:.1f} syllables per second")
    if math.isfinite(manner.pitch):
        found.append(f"median pitch {2**manner.pitch:.0f} Hz")
    if math.isfinite(manner.level):
        found.append(f"level {manner.level:.0f} dBFS")
    return ", ".join(found) or "nothing can be measured"


def _relative(manner: Manner, mean: Manner) -> str:
    found = []
    rate = manner.rate / mean.rate - 1
    if math.isfinite(rate):
        found.append(_difference(rate, RATE_STEPS, ("slower", "faster"), "usual rate", f"{100 * rate:+.0f} %"))
    pitch = 12 * (manner.pitch - mean.pitch)
    if math.isfinite(pitch):
        found.append(_difference(pitch, PITCH_STEPS, ("lower", "higher"), "usual pitch", f"{pitch:+.1f} semitones"))
    level = manner.level - mean.level
    if math.isfinite(level):
        found.append(_difference(level, LEVEL_STEPS, ("quieter", "louder"), "usual loudness", f"{level:+.0f} dB"))
    return ", ".join(found) or "too short to be measured"


def _difference(value: float, steps: tuple[float, float], words: tuple[str, str], usual: str, number: str) -> str:
    some, much = steps
    if abs(value) < some:
        return f"{usual} ({number})"
    return f"{'much' if abs(value) >= much else 'somewhat'} {words[value > 0]} ({number})"


def _syllables(text: str) -> int:
    """Return about how many syllables English words have: their groups of vowels, without a final e."""
    words = re.findall(r"[a-z']+|\d", text.lower())
    return sum(max(1, len(_VOWELS.findall(re.sub(r"(?<=[^aeiouyl])e$", "", word)))) for word in words)
