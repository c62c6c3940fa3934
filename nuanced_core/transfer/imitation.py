"""A segment of a recording spoken again: its words in a style, with its durations, F0 and energy as far as wanted.

Dimensions: N tokens, S = 256 style, F frames of 25 ms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, KOKORO_RATE
from nuanced_core.kokoro.model import DifferentiableKokoro, Prosody
from nuanced_core.transfer.alignment import words_of_phonemes
from nuanced_core.transfer.curves import SourceCurves, VoiceCurves, follow_energy, follow_f0, source_times
from nuanced_core.transfer.segments import Segment
from nuanced_core.transfer.timing import speech_frames, timed_frames

__all__ = ["Imitation", "Imitator", "Timing", "fade_in", "faded", "measure_voice"]

Timing = Literal["source", "kokoro"]

FADE = KOKORO_RATE // 100  # samples; the ends of a segment, so that they join without a click
ENDINGS = ".!?,;:…—"
# Sentences whose predicted curves tell a voice's means.
MEASURED_SENTENCES = (
    "The early train was late, so we walked along the river.",
    "Would you bring me a glass of water?",
)


@dataclass(frozen=True)
class Imitation:
    """A segment as it is spoken again."""

    audio: Tensor  # (samples,) at 24 kHz
    start: float  # seconds in the audio at which the first word begins
    end: float  # seconds at which the last word has ended
    phonemes: int


@dataclass(frozen=True)
class Imitator:
    """Speaks segments of one recording.

    Args:
        kokoro, phonemize: of the models.
        source: curves of the recording; ``level`` is their ``level_statistics``.
        voice: means of the voice that speaks.
        predicted_shift: octaves by which predicted F0 is moved, where prosody is of another voice than timbre.
        timing, contour: see ``convert``.
    """

    kokoro: DifferentiableKokoro
    phonemize: Callable[[str], str]
    source: SourceCurves
    level: tuple[float, float]
    voice: VoiceCurves
    predicted_shift: float
    timing: Timing
    contour: float

    def phonemes(self, segment: Segment) -> str:
        """Return the phonemes of a segment; a phrase within a sentence ends with a comma.

        Raises:
            TextError: it has no words.
        """
        text = segment.text
        return self.phonemize(text if text.rstrip("\"'”’)")[-1:] in ENDINGS else f"{text},")

    @torch.no_grad()
    def speak(self, segment: Segment, style: Tensor, seed: int) -> Imitation:
        """Speak a segment in a style (S,)."""
        phonemes = self.phonemes(segment)
        words = words_of_phonemes([word.text for word in segment.words], phonemes, self.phonemize)
        known = [word for word, phoneme in zip(words, phonemes, strict=True) if phoneme in self.kokoro.vocabulary]
        owners = [-1, *known, -1]
        states, styles = self.kokoro.encode_text([phonemes]), style[None].to(self.kokoro.device)
        frames = None
        if self.timing == "source":
            frames = timed_frames(self.kokoro.durations(states, styles)[0], owners, segment.words)[None]
        prosody = self._followed(self.kokoro.prosody(states, styles, frames), segment, owners)
        audio = self.kokoro.speak(states, prosody, styles, [seed]).item(0).float().cpu()
        first, last = speech_frames(prosody.token_frames[0], owners)
        return Imitation(faded(audio), first / FRAMES_PER_SECOND, last / FRAMES_PER_SECOND, len(phonemes))

    def _followed(self, prosody: Prosody, segment: Segment, owners: Sequence[int]) -> Prosody:
        f0, energy = prosody.f0[0], prosody.energy[0]
        if self.predicted_shift:
            f0 = f0 * 2**self.predicted_shift
        if self.contour:
            anchors = _anchors(prosody.token_frames[0], owners, segment)
            times = source_times(anchors, len(f0))
            shift = self.voice.f0_mean - self.source.f0_mean
            if shift == shift:  # not NaN: some of the recording is voiced
                f0 = follow_f0(f0, self.source, times, shift, self.contour)
            energy = follow_energy(energy, self.source, times, self.voice, self.level, self.contour)
        return Prosody(prosody.durations, prosody.token_frames, f0[None], energy[None], prosody.frames)


def measure_voice(kokoro: DifferentiableKokoro, phonemize: Callable[[str], str], pack: Tensor) -> VoiceCurves:
    """Return the means of what Kokoro predicts for a voice, given as a pack (510, 1, S)."""
    f0, energy = [], []
    with torch.no_grad():
        for sentence in MEASURED_SENTENCES:
            phonemes = phonemize(sentence)
            style = pack[len(phonemes) - 1].to(kokoro.device)
            prosody = kokoro.prosody(kokoro.encode_text([phonemes]), style)
            f0.append(prosody.f0[0])
            energy.append(prosody.energy[0])
    return VoiceCurves.of(f0, energy)


def _anchors(token_frames: Tensor, owners: Sequence[int], segment: Segment) -> list[tuple[float, float]]:
    """Return where the words of a segment begin and end: (seconds in the speech, seconds in the recording)."""
    ends = (token_frames.cumsum(dim=0) / FRAMES_PER_SECOND).tolist()
    frames = token_frames.tolist()
    anchors: list[tuple[float, float]] = []
    for place, word in enumerate(owners):
        if word < 0:
            continue
        timed = segment.words[word]
        if place == 0 or owners[place - 1] != word:
            anchors.append((ends[place] - frames[place] / FRAMES_PER_SECOND, timed.start))
        if place + 1 == len(owners) or owners[place + 1] != word:
            anchors.append((ends[place], timed.end))
    # Stress marks and spaces within a word divide it; its times then repeat, which must not go back.
    rising: list[tuple[float, float]] = []
    for spoken, heard in anchors:
        rising.append((spoken, max(heard, rising[-1][1]) if rising else heard))
    return rising or [(0.0, segment.start), (max(ends[-1], 1e-3), segment.end)]


def faded(audio: Tensor) -> Tensor:
    """Return audio (samples,) faded to 0 at both ends."""
    return fade_in(fade_in(audio).flip(0)).flip(0)


def fade_in(audio: Tensor) -> Tensor:
    """Return audio (samples,) faded to 0 at its beginning, over at most its first half."""
    count = min(FADE, len(audio) // 2)
    return torch.cat([audio[:count] * torch.linspace(0, 1, count), audio[count:]])
