"""How well a conversion keeps the way something was said, on made-up emotional clips.

    python -m tests.benchmarks.emotion [--json] [--voices af_sky am_puck] [--rows flat default] [--whisper base]

A stock voice speaks sentences at other rate, pitch, pitch range and energy, through the differentiable Kokoro; six such
segments with pauses between them are a clip. It is converted, and what CREPE and the samples say of each segment of the
conversion is compared with the source's: the correlation over the segments of a clip of F0 mean, F0 range, energy and
rate, as a mean over clips, and the mean difference of how a segment deviates from its clip's mean (octaves, dB, log
rate). The row ``flat`` has one style for all segments, no contour, and Kokoro's own timing. ``words`` is the word error
rate of the conversion, ``source`` that of the source itself. Needs the extra ``eval``.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, load_audio, write_audio
from nuanced_core.data.model_set import ModelSet
from nuanced_core.judges.pitch import CrepePitch
from nuanced_core.judges.words import SpokenWords, word_errors
from nuanced_core.kokoro.model import Prosody
from nuanced_core.speech.conversion import Conversion, convert
from nuanced_core.speech.models import SpeechModels
from nuanced_core.transfer.words import Transcriber, Word
from nuanced_core.weights.fetch import fetch_whisper
from tests.benchmarks.progress import benchmark

PAUSE = 0.6  # seconds between two segments
VOICED_HZ = 40.0
LOUD_DB = 25.0  # below the loudest frame of a segment: what is quieter is silence
MEASURES = ("F0 mean", "F0 range", "energy", "rate")


@dataclass(frozen=True)
class Manner:
    """How a segment is spoken."""

    speed: float = 1.0
    semitones: float = 0.0
    pitch_range: float = 1.0
    energy: float = 0.0  # added to Kokoro's energy, a natural logarithm
    decibels: float = 0.0  # of the samples


MANNERS = {
    "neutral": Manner(),
    "excited": Manner(1.2, 4.0, 1.6, 0.6, 3.0),
    "sad": Manner(0.8, -3.0, 0.5, -0.6, -6.0),
    "angry": Manner(1.1, -1.5, 1.3, 0.9, 5.0),
    "afraid": Manner(1.25, 5.0, 0.6, -0.5, -5.0),
    "tender": Manner(0.85, 1.5, 1.2, -0.8, -7.0),
}
# Each clip has all manners; its sentences differ in length little, so that rate is not length.
CLIPS = (
    (
        "I did not know that you were coming home today.",
        "The letter was on the table all the time.",
        "They will never find the way back alone.",
        "You told me that the door was closed.",
        "Somebody is waiting for us in the garden.",
        "We had only one more day to stay there.",
    ),
)
ROWS: dict[str, dict[str, Any]] = {
    "flat": {"hold": 1.0, "contour": 0.0, "timing": "kokoro"},
    "default": {},
    "styles alone": {"hold": 0.0, "contour": 0.0, "timing": "kokoro"},
    "styles, half held": {"hold": 0.5, "contour": 0.0, "timing": "kokoro"},
    "timing alone": {"hold": 1.0, "contour": 0.0, "timing": "source"},
    "contour alone": {"hold": 1.0, "contour": 1.0, "timing": "kokoro"},
    "hold 0": {"hold": 0.0},
    "hold 1": {"hold": 1.0},
    "contour 0.4": {"contour": 0.4},
    "contour 1": {"contour": 1.0},
    "window 3": {"window": 3.0},
    "window 12": {"window": 12.0},
}


class RememberedWords:
    """Hears the words of a sound once, since that does not depend on the row."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber, self._found = transcriber, dict[int, list[Word]]()
        self.seconds = 0.0

    def words(self, audio: Tensor) -> list[Word]:
        key = hash(audio.numpy().tobytes())
        if key not in self._found:
            started = time.monotonic()
            self._found[key] = self._transcriber.words(audio)
            self.seconds += time.monotonic() - started
        return self._found[key]

    def check_language(self, audio: Tensor, place: str) -> None:
        """Kokoro's English voices speak English."""


@torch.no_grad()
def speak(models: ModelSet, text: str, voice: str, manner: Manner, seed: int) -> Tensor:
    """Speak a sentence in a manner; return (samples,) at 24 kHz."""
    kokoro, phonemes = models.kokoro, models.phonemizer(text)
    states, style = kokoro.encode_text([phonemes]), models.voices.style(voice, len(phonemes))[None]
    prosody = kokoro.prosody(states, style, speed=manner.speed)
    voiced = prosody.f0 > VOICED_HZ
    middle = prosody.f0[voiced].log2().mean()
    moved = 2 ** (middle + manner.pitch_range * (prosody.f0.clamp(min=1).log2() - middle) + manner.semitones / 12)
    f0 = torch.where(voiced, moved, prosody.f0)
    energy = torch.where(voiced, prosody.energy + manner.energy, prosody.energy)
    changed = Prosody(prosody.durations, prosody.token_frames, f0, energy, prosody.frames)
    return kokoro.speak(states, changed, style, [seed]).item(0) * 10 ** (manner.decibels / 20)


def make_clip(models: ModelSet, voice: str, sentences: tuple[str, ...]) -> tuple[Tensor, list[tuple[float, float]]]:
    """Return a clip (samples,) at 24 kHz and the times of its segments in seconds."""
    parts, times, place = [], [], 0
    pause = torch.zeros(int(PAUSE * KOKORO_RATE))
    for seed, (text, manner) in enumerate(zip(sentences, MANNERS.values(), strict=True)):
        sound = speak(models, text, voice, manner, seed)
        parts += [sound, pause]
        times.append((place / KOKORO_RATE, (place + len(sound)) / KOKORO_RATE))
        place += len(sound) + len(pause)
    clip = torch.cat(parts)
    return clip * min(1.0, 0.9 / float(clip.abs().max())), times


def spoken_times(conversion: Conversion, times: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return where the segments of the source are in the conversion: words, by the middle of their time."""
    found = []
    for start, end in times:
        inside = [s for s in conversion.segments if start - 0.2 <= (s.start + s.end) / 2 <= end + 0.2]
        if inside:
            found.append((inside[0].spoken_start, inside[-1].spoken_end))
        else:  # two sentences became one segment; its time is divided as the source's
            whole = min(conversion.segments, key=lambda s: abs((s.start + s.end) / 2 - (start + end) / 2))
            pace = (whole.spoken_end - whole.spoken_start) / (whole.end - whole.start)
            found.append(tuple(whole.spoken_start + pace * (t - whole.start) for t in (start, end)))
    return found


def measure(audio: Tensor, times: list[tuple[float, float]], texts: tuple[str, ...], pitch: CrepePitch) -> np.ndarray:
    """Measure segments of audio (samples,) at 24 kHz: (segments, measures), see ``MEASURES``."""
    rows = []
    for (start, end), text in zip(times, texts, strict=True):
        part = audio[max(0, int((start - 0.1) * KOKORO_RATE)) : int((end + 0.15) * KOKORO_RATE)]
        levels = 10 * part[: len(part) // 600 * 600].reshape(-1, 600).square().mean(dim=1).clamp(min=1e-10).log10()
        loud = torch.nonzero(levels > levels.max() - LOUD_DB)[:, 0]
        seconds = float(loud[-1] - loud[0] + 1) / 40
        f0 = pitch(part)
        octaves = f0[f0 > 0].log2()
        low, high = np.quantile(octaves.numpy(), [0.1, 0.9]) if len(octaves) else (np.nan, np.nan)
        energy = float(levels[loud].mean())
        rows.append((float(octaves.median()), high - low, energy, np.log(len(text) / seconds)))
    return np.array(rows)


def correlation(source: np.ndarray, found: np.ndarray) -> list[float]:
    """Return the correlation over segments of each column of two arrays (segments, measures)."""
    return [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(source.T, found.T, strict=True)]


def main() -> None:
    """Convert the clips with each row's settings and print its correlations."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--voices", nargs="+", default=["af_sky", "am_puck"])
    parser.add_argument("--rows", nargs="+", default=["flat", "default"], choices=[*ROWS])
    parser.add_argument("--whisper", default="base")
    parser.add_argument("--keep", type=Path, help="folder for the sounds")
    arguments = parser.parse_args()
    with benchmark(arguments.json) as bench, tempfile.TemporaryDirectory() as temporary:
        bench.doing("loading models")
        speech = SpeechModels.load()
        file = fetch_whisper(arguments.whisper)
        hearer = RememberedWords(Transcriber(file.path, file.name))
        pitch, judge = CrepePitch(), SpokenWords(file.path)
        folder = arguments.keep or Path(temporary)
        clips = []
        for voice in bench.each("speaking and measuring clips", arguments.voices):
            for number, texts in enumerate(CLIPS):
                path = folder / f"{voice}_{number}.wav"
                audio, times = make_clip(speech.models, voice, texts)
                write_audio(path, audio)
                errors = word_errors(judge.transcribe(audio, KOKORO_RATE), " ".join(texts))
                clips.append((path, texts, times, measure(audio, times, texts, pitch), errors))
        for row in arguments.rows:
            own_clips = bench.each(f"converting: {row}", clips)
            bench.add(row, _row(own_clips, ROWS[row], row, speech, hearer, pitch, judge))


def _row(
    clips: Iterable[Any],
    settings: dict[str, Any],
    name: str,
    speech: SpeechModels,
    hearer: RememberedWords,
    pitch: CrepePitch,
    judge: SpokenWords,
) -> dict[str, float]:
    correlations, errors, spreads, source_errors = [], [], [], []
    took = seconds = 0.0
    for path, texts, times, source, wrong in clips:
        target = path.with_name(f"{path.stem}_{name.replace(' ', '_')}.wav")
        hearer.words(load_audio(path, WHISPER_RATE))  # not timed here
        started, before = time.process_time(), hearer.seconds
        conversion = convert(path, target, speech=speech, hearer=hearer, **settings)
        took += time.process_time() - started - (hearer.seconds - before)
        seconds += conversion.seconds
        audio = load_audio(target, KOKORO_RATE)
        found = measure(audio, spoken_times(conversion, times), texts, pitch)
        correlations.append(correlation(source, found))
        spreads.append(np.abs((found - found.mean(0)) - (source - source.mean(0))).mean(axis=0))
        errors.append(word_errors(judge.transcribe(audio, KOKORO_RATE), " ".join(texts)))
        source_errors.append(wrong)
    means, deviations = np.nanmean(correlations, axis=0), np.nanmean(spreads, axis=0)
    return {
        **dict(zip(MEASURES, means.tolist(), strict=True)),
        **{f"error of {m}": float(d) for m, d in zip(MEASURES, deviations, strict=True)},
        "words": sum(e for e, _ in errors) / sum(n for _, n in errors),
        "source": sum(e for e, _ in source_errors) / sum(n for _, n in source_errors),
        "cpu seconds per second": took / seconds,
    }


if __name__ == "__main__":
    main()
