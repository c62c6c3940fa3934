"""Speech to speech: the words of a recording spoken again by Kokoro, the way they were said.

A recording is read three times: to check it; to hear its words, F0 and level in chunks of at most 29 s; and to speak
its segments. Between the passes only words and curves of 25 ms are in memory, so that it does not grow with the sound.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, KOKORO_RATE, WHISPER_RATE
from nuanced_core.encoder.recording import combined_speaker, speaker_embeddings
from nuanced_core.errors import ConfigError, DiskError, TextError
from nuanced_core.hearing.pitch import pitch_statistics
from nuanced_core.kokoro.model import TIMBRE_SIZE
from nuanced_core.machine_limits import release_memory
from nuanced_core.progress import progress_bar
from nuanced_core.speech.heard import Heard, WordHearer, hear
from nuanced_core.speech.models import SpeechModels
from nuanced_core.speech.packs import check_output, resolve_voice
from nuanced_core.speech.streams import Recording, RecordingReader, SoundWriter, check_sound_output
from nuanced_core.transfer.imitation import Imitation, Imitator, Timing, fade_in, measure_voice
from nuanced_core.transfer.loudness import loudness
from nuanced_core.transfer.segments import Segment, make_segments
from nuanced_core.transfer.words import Transcriber, Word, place_text
from nuanced_core.weights.fetch import fetch_whisper

__all__ = ["Conversion", "ConvertedSegment", "Joiner", "convert"]

logger = logging.getLogger(__name__)

LEAST_HEARD_SECONDS = 2.0  # of the recording around a segment, that its own style is taken from
GROUP = 8  # segments whose styles are computed together
LEAST_GAP = 0.05  # seconds between two segments, where one is longer than it was
WINDOW_BOUNDS = 1.0, 20.0  # seconds
MOST_PEAK = 0.99
SHOWN_ROW = 39  # of a pack, for 40 phonemes
QUIETEST, LOUDEST_GAIN = -60.0, 30.0  # LUFS; dB


@dataclass(frozen=True)
class ConvertedSegment:
    """A segment of a recording, and where it is in the conversion; times are in seconds, those of words too."""

    words: tuple[Word, ...]
    start: float
    end: float
    spoken_start: float
    spoken_end: float
    phonemes: int
    pitch: float  # median F0 of the recording in Hz; NaN where nothing is voiced
    loudness: float  # LUFS of the recording
    style: Tensor  # (256,)

    def to_json(self) -> dict[str, Any]:
        """Return the form that is written into a transcript."""
        numbers = {
            "start": self.start,
            "end": self.end,
            "spoken_start": self.spoken_start,
            "spoken_end": self.spoken_end,
            "rate": self.phonemes / max(self.end - self.start, 1e-3),
            "pitch": self.pitch,
            "loudness": self.loudness,
        }
        return {
            "text": " ".join(word.text for word in self.words),
            **{name: round(value, 3) if math.isfinite(value) else None for name, value in numbers.items()},
            "words": [
                {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in self.words
            ],
            "style": [round(value, 5) for value in self.style.tolist()],
        }


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` did."""

    source: Path
    target: Path
    seconds: float  # of the recording
    loudness: float  # LUFS of the recording
    pitch: float  # mean F0 of the recording in Hz (of the logarithm); NaN where nothing is voiced
    style: Tensor  # (256,) of the whole recording, for 40 phonemes
    segments: tuple[ConvertedSegment, ...]

    @property
    def text(self) -> str:
        """The words that were spoken."""
        return " ".join(word.text for segment in self.segments for word in segment.words)

    def to_json(self) -> dict[str, Any]:
        """Return the transcript. Times are in s, rate in phonemes per s, pitch in Hz, loudness in LUFS."""
        return {
            "source": str(self.source),
            "target": str(self.target),
            "language": "en",
            "seconds": round(self.seconds, 3),
            "loudness": round(self.loudness, 2) if math.isfinite(self.loudness) else None,
            "pitch": round(self.pitch, 2) if math.isfinite(self.pitch) else None,
            "text": self.text,
            "style": [round(value, 5) for value in self.style.tolist()],
            "segments": [segment.to_json() for segment in self.segments],
        }


def convert(
    source: str | Path,
    target: str | Path,
    *,
    speech: SpeechModels | Callable[[], SpeechModels] | None = None,
    window: float = 6.0,
    hold: float = 0.5,
    timing: Timing = "source",
    contour: float = 0.7,
    text: str | None = None,
    voice: str | Path | None = None,
    transcript: str | Path | None = None,
    whisper: str = "base",
    hearer: WordHearer | None = None,
) -> Conversion:
    """Speak the words of a recording again, the way they were said, and write the speech to a sound file.

    Pauses are those of the recording, and so is the loudness (EBU R 128). Memory does not grow with the recording, but
    for a byte for each pair of a word of ``text`` and one that was heard.

    Args:
        source: a sound file of English speech, of any length.
        target: the sound file to write: .wav, .flac, .mp3 or .ogg, at 24 kHz.
        speech: the encoder and the models, or a function that loads them when the recording and the settings are
            checked; by default ``SpeechModels.load``.
        window: seconds that a segment, which has a style of its own, lasts at most.
        hold: 0 to 1; how far the segments' styles are drawn towards that of the whole recording; 1: one style for all.
        timing: "source": words take the time that they took; "kokoro": durations as predicted, pauses as in the source.
        contour: 0 to 1; share of the recording's own F0 and energy, moved to the voice's mean, in what is spoken.
            The loudness of each segment follows the recording's by the same share.
        text: the words that are said, where Whisper's are not good enough.
        voice: the timbre of another voice: a stock voice's name, a pack or a mix (see ``resolve_voice``).
        transcript: a JSON file to write, with words, times and styles.
        whisper: name of the Whisper model that transcribes.
        hearer: hears the words instead of Whisper.

    Raises:
        AudioError: the recording cannot be read, is silent, is not in English, or has no words.
        ConfigError: a setting is out of range, or ``target`` has another suffix.
        DiskError: a file cannot be written.
        TextError: ``text`` has nothing speakable.
        VoiceError: ``voice`` is not a voice.
        WeightsError: a model file is not available.
    """
    source, target = Path(source), Path(target)
    _check_settings(window, hold, timing, contour, text)
    _check_places(source, target, None if transcript is None else Path(transcript))
    recording = Recording.open(source)
    if speech is None or callable(speech):
        speech = (speech or SpeechModels.load)()
    pack = None if voice is None else resolve_voice(voice, speech.models.voices)
    # The Whisper that transcribes is not kept while Kokoro speaks.
    heard = hear(recording, hearer or _transcriber(whisper, speech), has_text=text is not None)
    words = heard.words if text is None else place_text(text, heard.words)
    segments = _speakable(make_segments(words, window), speech, source)
    conversion = _Converter(speech, recording, heard, hold, timing, contour, pack).run(segments, target)
    if transcript is not None:
        _write_json(Path(transcript), conversion.to_json())
    return conversion


def _transcriber(name: str, speech: SpeechModels) -> Transcriber:
    file = fetch_whisper(name, speech.models.source)
    return Transcriber(file.path, file.name, speech.models.device)


def _check_settings(window: float, hold: float, timing: str, contour: float, text: str | None) -> None:
    if not WINDOW_BOUNDS[0] <= window <= WINDOW_BOUNDS[1]:
        raise ConfigError(f"window: {window} s is not between {WINDOW_BOUNDS[0]:g} and {WINDOW_BOUNDS[1]:g} s")
    for name, value in (("hold", hold), ("contour", contour)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: {value} is not between 0 and 1")
    if timing not in get_args(Timing):
        raise ConfigError(f"timing: {timing!r} is unknown; choose {' or '.join(get_args(Timing))}")
    if text is not None and not any(map(str.isalnum, text)):
        raise TextError(f"text {text[:60]!r} has nothing to speak: give at least one word")


def _check_places(source: Path, target: Path, transcript: Path | None) -> None:
    check_sound_output(target)
    if transcript is not None:
        check_output(transcript)
    known = {source.resolve()}
    for place in [target, *([] if transcript is None else [transcript])]:
        if place.resolve() in known:
            raise ConfigError(f"{place}: is given twice; name another file to write")
        known.add(place.resolve())


def _speakable(segments: Sequence[Segment], speech: SpeechModels, source: Path) -> list[Segment]:
    """Return the segments that have something to speak.

    Raises:
        TextError: there is none.
    """
    found, problem = [], "it has no words"
    for segment in segments:
        try:
            speech.models.phonemizer(segment.text)
            found.append(segment)
        except TextError as error:
            problem = str(error)
            logger.warning("%s: at %.1f s: %s; left out", source, segment.start, error)
    if not found:
        raise TextError(f"{source}: nothing that was heard can be spoken: {problem}")
    return found


class _Converter:
    """The third pass: styles of the segments, their speech, and where it is placed."""

    def __init__(
        self,
        speech: SpeechModels,
        recording: Recording,
        heard: Heard,
        hold: float,
        timing: Timing,
        contour: float,
        voice: Tensor | None,
    ) -> None:
        self.speech, self.recording, self.heard = speech, recording, heard
        self.hold, self.timing, self.contour, self.voice = hold, timing, contour, voice
        models = speech.models
        with torch.no_grad():
            self.features = speech.encoder.config.features
            self.embeddings = speaker_embeddings(self.features, models, heard.speech)
            self.pack = speech.encoder.pack_of(self._pooled(heard.speech, heard.curves.f0)).cpu()
        measured = measure_voice(models.kokoro, models.phonemizer, self.pack)
        shift = 0.0
        if voice is not None:
            own = measure_voice(models.kokoro, models.phonemizer, voice)
            shift = own.f0_mean - measured.f0_mean
            measured = replace(measured, f0_mean=own.f0_mean)
        level = heard.curves.level_statistics()
        self.imitator = Imitator(
            models.kokoro, models.phonemizer, heard.curves, level, measured, shift, timing, contour
        )

    def run(self, segments: Sequence[Segment], target: Path) -> Conversion:
        done: list[ConvertedSegment] = []
        with progress_bar("speaking, segments", len(segments)) as advance, SoundWriter(target) as writer:
            joiner = Joiner(writer)
            before: tuple[float, float] | None = None  # end of the last segment: in the recording, and as spoken
            for segment, audio, style in self._styled(segments):
                imitation = self.imitator.speak(segment, style, seed=len(done))
                level = loudness(audio, WHISPER_RATE)
                start = self._place(segment, before)
                joiner.add(self._levelled(imitation, level), start - imitation.start)
                end = start + imitation.end - imitation.start
                done.append(self._converted(segment, imitation, start, end, level, style))
                before = segment.end, end
                release_memory()
                advance()
            assert before is not None
            rest = self.recording.seconds - before[0]
            joiner.finish(max(before[1] + rest if self.timing == "kokoro" else self.recording.seconds, before[1]))
        return Conversion(
            self.recording.path,
            target,
            self.recording.seconds,
            self.heard.loudness,
            2**self.heard.curves.f0_mean,
            self.pack[SHOWN_ROW, 0],
            tuple(done),
        )

    def _styled(self, segments: Sequence[Segment]) -> Iterator[tuple[Segment, Tensor, Tensor]]:
        """Yield each segment with its audio at 16 kHz and its style (256,)."""
        reader = RecordingReader(self.recording)
        for first in range(0, len(segments), GROUP):
            group = segments[first : first + GROUP]
            sounds, pooled = [], []
            for segment in group:
                if self.hold < 1:
                    pooled.append(self._own(reader, segment))
                sounds.append(reader.part(segment.start, segment.end))
            counts = torch.tensor([len(self.imitator.phonemes(segment)) for segment in group])
            yield from zip(group, sounds, self._styles(pooled, counts), strict=True)

    @torch.no_grad()
    def _pooled(self, audio: Tensor, f0: Tensor) -> Tensor:
        """Return what the encoder hears of audio at 16 kHz with pitch (P,) in Hz: (1, P + E).

        The speaker embeddings are those of the whole recording: a speaker does not change with the segment, and a few
        seconds tell less of them.
        """
        speaker = combined_speaker(self.features, self.embeddings, torch.stack(pitch_statistics(f0)))
        encoder, whisper = self.speech.encoder, self.speech.models.whisper
        return encoder.pooled_blocks(lambda: whisper.blocks(audio, encoder.config.layers), speaker)

    def _own(self, reader: RecordingReader, segment: Segment) -> Tensor:
        """Return the same of a segment, and of what is around it if it is short."""
        more = max(0.1, (LEAST_HEARD_SECONDS - segment.end + segment.start) / 2)
        audio = reader.part(segment.start - more, segment.end + more)
        return self._pooled(audio, self._f0(segment.start - more, segment.end + more))

    def _f0(self, start: float, end: float) -> Tensor:
        return self.heard.curves.f0[max(0, int(start * FRAMES_PER_SECOND)) : math.ceil(end * FRAMES_PER_SECOND)]

    def _styles(self, pooled: Sequence[Tensor], counts: Tensor) -> Tensor:
        """Return the styles (segments, 256) of segments with phoneme counts (segments,)."""
        styles = self.pack[counts - 1, 0]
        if self.hold < 1:
            with torch.no_grad():
                device = self.speech.models.device
                own = self.speech.encoder.styles(torch.cat(list(pooled)), counts.to(device)).cpu()
            styles = self.hold * styles + (1 - self.hold) * own
        if self.voice is not None:
            timbre = self.voice[counts - 1, 0, :TIMBRE_SIZE].cpu()
            styles = torch.cat([timbre, styles[:, TIMBRE_SIZE:]], dim=1)
        return styles

    def _place(self, segment: Segment, before: tuple[float, float] | None) -> float:
        """Return when a segment's first word is spoken, in seconds."""
        if before is None:
            return segment.start
        pause = max(segment.start - before[0], 0.0)
        if self.timing == "kokoro":
            return before[1] + pause
        return max(segment.start, before[1] + min(pause, LEAST_GAP))

    def _levelled(self, imitation: Imitation, level: float) -> Tensor:
        """Return a segment's speech, as loud as the recording, or as its segment by the share of ``contour``."""
        whole = self.heard.loudness if math.isfinite(self.heard.loudness) else level
        wanted = whole + (self.contour * (max(level, QUIETEST) - whole) if math.isfinite(level) else 0.0)
        spoken = loudness(imitation.audio, KOKORO_RATE)
        if not math.isfinite(wanted) or not math.isfinite(spoken):
            return imitation.audio
        audio = imitation.audio * 10 ** (min(wanted - spoken, LOUDEST_GAIN) / 20)
        return audio * min(1.0, MOST_PEAK / max(float(audio.abs().max()), 1e-9))

    def _converted(
        self, segment: Segment, imitation: Imitation, start: float, end: float, level: float, style: Tensor
    ) -> ConvertedSegment:
        f0 = self._f0(segment.start, segment.end)
        pitch = float(f0[f0 > 0].median()) if bool((f0 > 0).any()) else math.nan
        return ConvertedSegment(
            segment.words, segment.start, segment.end, start, end, imitation.phonemes, pitch, level, style
        )


class Joiner:
    """Adds sounds where they belong, and writes what no later one can reach."""

    def __init__(self, writer: SoundWriter) -> None:
        self._writer, self._waiting = writer, torch.zeros(0)

    def add(self, audio: Tensor, start: float) -> None:
        """Add samples (T,) at a time in seconds.

        What would lie before the last sound's beginning is left out, and the rest faded in.
        """
        place = round(start * KOKORO_RATE) - self._writer.samples
        audio, place = (audio, place) if place >= 0 else (fade_in(audio[-place:]), 0)
        self._grow(place)
        self._writer.write(self._waiting[:place])
        self._waiting = self._waiting[place:]
        self._grow(len(audio))
        self._waiting[: len(audio)] += audio

    def finish(self, seconds: float) -> None:
        """Write the rest, and silence up to a length in seconds."""
        self._grow(round(seconds * KOKORO_RATE) - self._writer.samples)
        self._writer.write(self._waiting)

    def _grow(self, samples: int) -> None:
        self._waiting = torch.nn.functional.pad(self._waiting, (0, max(0, samples - len(self._waiting))))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
