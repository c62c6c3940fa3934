"""What a conversion of people's recordings keeps: words, quality, speaker, and how it was said.

    python -m tests.benchmarks.conversion PEOPLE [--split validation] [--limit 3] [--keep FOLDER]

PEOPLE holds a folder of recordings for each speaker; the first of each is converted with the default settings, and
beside it a stock voice says the same words. For each person:

- words: word error rate of the conversion, against the words that it was to speak; ``source``: of the recording, heard
  by the same Whisper base as a whole, against the same words
- DNSMOS of conversion, stock voice and recording
- d-vector: cosine of conversion and stock voice with the recording, beside that of the recording's halves
- speed: seconds of the recording per second, transcription included, and what ``nuanced voice`` takes for 10 s of it

Over all segments of at least a second: the correlation between recording and conversion of how the segment deviates
from its clip's mean, in F0 mean, F0 range (CREPE), energy and rate. Needs the extra ``eval``.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, load_audio, write_audio
from nuanced_core.evaluation.metrics import correlation, estimate, mean
from nuanced_core.judges.dvector import DVector
from nuanced_core.judges.pitch import CrepePitch
from nuanced_core.judges.quality import DNSMOS
from nuanced_core.judges.words import SpokenWords, word_errors
from nuanced_core.people.corpus import find_people
from nuanced_core.speech.conversion import Conversion, convert
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.speaking import Speaker
from nuanced_core.speech.voices import voice_from_clips
from nuanced_core.transfer.words import Transcriber
from nuanced_core.weights.fetch import fetch_whisper
from tests.benchmarks.emotion import MEASURES, measure
from tests.benchmarks.progress import Row, benchmark

STOCK = ("af_heart", "am_michael", "bf_emma", "bm_george")  # in turn
LEAST_SECONDS = 1.0  # of a segment that is measured
VOICE_SECONDS = 10


@dataclass(frozen=True)
class _Judges:
    words: SpokenWords
    quality: DNSMOS
    speaker: DVector
    pitch: CrepePitch

    def quality_of(self, audio: torch.Tensor) -> float:
        return self.quality(audio, KOKORO_RATE).overall


def main() -> None:
    """Convert, print a line a person, then the means."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("people", type=Path)
    parser.add_argument("--split", default="validation", choices=["train", "validation", "test"])
    parser.add_argument("--limit", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder for the sounds")
    arguments = parser.parse_args()
    with benchmark() as bench, tempfile.TemporaryDirectory() as temporary:
        bench.doing("loading models")
        people = find_people(arguments.people, for_training=False).of_splits(arguments.split).speakers
        files = [paths[0] for paths in people.values()][: arguments.limit]
        speech = SpeechModels.load()
        whisper = fetch_whisper("base")
        hearer = Transcriber(whisper.path, whisper.name)
        judges = _Judges(SpokenWords(whisper.path), DNSMOS(), DVector(), CrepePitch())
        deviations: list[tuple[np.ndarray, np.ndarray]] = []
        bench.summary = lambda: _summary([*bench.rows.values()], deviations)
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(bench.each("converting recordings", files)):
            target = folder / f"{file.stem}_converted.wav"
            started = time.monotonic()
            conversion = convert(file, target, speech=speech, hearer=hearer)
            speed = conversion.seconds / (time.monotonic() - started)
            stock = STOCK[number % len(STOCK)]
            spoken = torch.cat([*Speaker(speech).say(conversion.text, speech.models.voices.pack(stock))])
            write_audio(folder / f"{file.stem}_{stock}.wav", spoken)
            row = {**_judge(file, target, spoken, conversion, judges), "speed": speed, **_voice(speech, file)}
            deviations.append(_segments(file, target, conversion, judges.pitch))
            bench.add(file.stem, row)


def _summary(rows: list[Row], deviations: list[tuple[np.ndarray, np.ndarray]]) -> Iterator[str]:
    """Return lines with the means over people and the correlations over segments."""
    yield f"mean of {len(rows)}, with 95 % intervals over people"
    for name in rows[0]:
        of_people = estimate(mean, np.array([[row[name]] for row in rows]))
        yield f"  {name:22} {of_people.value:.3f} [{of_people.low:.3f}, {of_people.high:.3f}]"
    source, kept = (np.concatenate(part) for part in zip(*deviations, strict=True))
    yield f"correlation over {len(source)} segments"
    for name, found in zip(MEASURES, correlation(source.T, kept.T), strict=True):
        yield f"  {name:22} {found:.3f}"


def _judge(file: Path, target: Path, stock: torch.Tensor, conversion: Conversion, judges: _Judges) -> dict[str, float]:
    source, spoken = load_audio(file, KOKORO_RATE), load_audio(target, KOKORO_RATE)
    wrong = {}
    for name, audio in (("words", spoken), ("words, stock", stock), ("words, source", source)):
        errors, words = word_errors(judges.words.transcribe(audio, KOKORO_RATE), conversion.text)
        wrong[name] = errors / words
    own, halves = judges.speaker(source, KOKORO_RATE), source.chunk(2)
    first, second = (judges.speaker(half, KOKORO_RATE) for half in halves)
    return {
        **wrong,
        "DNSMOS": judges.quality_of(spoken),
        "DNSMOS, stock": judges.quality_of(stock),
        "DNSMOS, source": judges.quality_of(source),
        "d-vector": float(own @ judges.speaker(spoken, KOKORO_RATE)),
        "d-vector, stock": float(own @ judges.speaker(stock, KOKORO_RATE)),
        "d-vector, halves": float(first @ second),
    }


def _voice(speech: SpeechModels, file: Path) -> dict[str, float]:
    clip = load_audio(file, WHISPER_RATE)[: VOICE_SECONDS * WHISPER_RATE]
    started = time.monotonic()
    voice_from_clips(speech, [clip])
    return {"seconds of a voice": time.monotonic() - started}


def _segments(file: Path, target: Path, conversion: Conversion, pitch: CrepePitch) -> tuple[np.ndarray, np.ndarray]:
    """Return how each segment deviates from the clip's mean, in the recording and in the conversion: (segments, 4)."""
    segments = [s for s in conversion.segments if s.end - s.start >= LEAST_SECONDS]
    texts = tuple(" ".join(word.text for word in segment.words) for segment in segments)
    found = []
    for path, times in (
        (file, [(s.start, s.end) for s in segments]),
        (target, [(s.spoken_start, s.spoken_end) for s in segments]),
    ):
        values = measure(load_audio(path, KOKORO_RATE), times, texts, pitch)
        found.append(values - np.nanmean(values, axis=0))
    return found[0], found[1]


if __name__ == "__main__":
    main()
