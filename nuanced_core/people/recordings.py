"""A recording of a person, heard once: checked, measured, embedded and encoded, and kept in the cache.

Each part is an entry of its own, so another speaker encoder, Whisper or number of augmented copies computes only what
is new. The key of an entry is the hash of the file's content and of everything else that the entry depends on; it does
not cover this project's code: raise ``PEOPLE_FORMAT`` when the code computes something else.

Dimensions: L layers, T feature frames, D Whisper channels, E speaker embedding.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE, load_audio
from nuanced_core.config.settings import PITCH, Augment
from nuanced_core.data.cache import Cache, Kind
from nuanced_core.data.dataset import FEATURES_FORMAT, SPEAKERS_FORMAT
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.versions import NO_COPIES, Version, heard_version, is_clean, version_key
from nuanced_core.errors import AudioError
from nuanced_core.hashing import content_key, hash_file
from nuanced_core.hearing.pitch import clip_pitch, track_pitch
from nuanced_core.people.measures import SAMPLES, PhonemeCounter, VoiceMeasures, measure_voice, speech_frames

__all__ = ["CHECKED_BY", "READ_SECONDS", "HeardRecording", "HearingSettings", "RecordingHearer"]

logger = logging.getLogger(__name__)

PEOPLE_FORMAT = "3"  # part of the keys: raise it when the checks or the measures of a recording change
MIN_SECONDS = 2.0  # of a recording
READ_SECONDS = 300.0  # of a recording: an hour, of which a minute is heard, would take gigabytes of memory
MIN_SPEECH_SECONDS = 1.2  # so that each half can be embedded
LEAD_SECONDS = 0.1  # that are kept before the first loud frame
FRAME = WHISPER_RATE // 50  # samples, 20 ms
LOUD = 1e-3  # of the power of the loudest frame: -30 dB
CHECKED_BY = "campplus"  # the speaker encoder by which two people in one recording are found
# Least cosine of the embeddings of the halves of a recording, by seconds of speech in a half: see docs/LOG.md for how
# many recordings of one person it rejects, and how many of two people it finds.
SIMILARITY_SECONDS, LEAST_SIMILARITY = (1.0, 2.0, 3.0, 5.0), (0.2, 0.35, 0.42, 0.5)
# Loggers whose warnings about single files would hide everything else.
_TALKATIVE = ("nuanced_core.audio", "nuanced_core.sound_files", "nuanced_core.text.phonemes", "phonemizer")


@dataclass(frozen=True)
class HearingSettings:
    """What is heard of recordings.

    Args:
        seconds: of each recording, from the beginning of the speech in its first 5 minutes.
        encoders: speaker encoders; ``CHECKED_BY`` is always one of them.
        augment: defines the augmented copies, of which Whisper's states are computed too.
        parts: what is computed of each augmented copy beside Whisper's states: names of speaker encoders, and
            ``PITCH``.
    """

    seconds: float
    encoders: tuple[str, ...]
    augment: Augment = NO_COPIES
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class HeardRecording:
    """What is known of a recording."""

    speaker: str
    file: Path
    key: str  # hash of the file's content and of the settings that say what of it is heard
    seconds: float  # that were heard
    embeddings: Mapping[str, Tensor] = field(repr=False)  # (E,) by speaker encoder
    half_embeddings: Mapping[str, Tensor] = field(repr=False)  # (2, E) of the first and the second half of the speech
    voice: VoiceMeasures
    rate: float  # phonemes per second of speech; NaN if Whisper understands nothing

    @property
    def f0_median(self) -> float:
        """Median F0 in log2 Hz."""
        return self.voice.f0_median

    @property
    def f0_spread(self) -> float:
        """Spread of F0 in octaves."""
        return self.voice.f0_spread


class RecordingHearer:
    """Hears recordings, or finds in the cache what was heard before.

    Args:
        models: Whisper, the speaker encoders and the phonemizer, loaded only for what the cache lacks.
    """

    def __init__(self, models: ModelSet, cache: Cache, settings: HearingSettings) -> None:
        self.models, self.cache, self.settings = models, cache, settings

    @property
    def encoders(self) -> tuple[str, ...]:
        """The speaker encoders; the first one finds two people in one recording."""
        return tuple(dict.fromkeys((CHECKED_BY, *self.settings.encoders)))

    @property
    def versions(self) -> range:
        """The versions of a recording: 0 is the clean one, then come the augmented copies."""
        return range(1 + self.settings.augment.copies)

    def find(self, file: Path, speaker: str) -> HeardRecording | str | None:
        """Return what the cache has of a recording, or the reason why it cannot be used; None: it is not all there."""
        try:
            key = self._key(file)
        except OSError as error:
            return f"cannot be read ({error.strerror})"
        if (rejected := self.cache.load("people", self._rejection_key(key))) is not None:
            return bytes(rejected["reason"].tolist()).decode()
        voice = self.cache.load("people", self._voice_key(key))
        found = {name: self.cache.load("people", self._encoder_key(key, name)) for name in self.encoders}
        entries = {name: entry for name, entry in found.items() if entry is not None}
        if voice is None or len(entries) < len(found) or not self._has_features(key):
            return None
        seconds, rate, *measures = voice["measures"].tolist()
        return HeardRecording(
            speaker=speaker,
            file=file,
            key=key,
            seconds=seconds,
            embeddings={name: entry["whole"] for name, entry in entries.items()},
            half_embeddings={name: entry["halves"] for name, entry in entries.items()},
            voice=VoiceMeasures(*measures),
            rate=rate,
        )

    def hear(self, file: Path) -> None:
        """Compute what the cache lacks of a recording, or keep there why it cannot be used.

        Nothing is done for a file that cannot be opened, which ``find`` reports.

        Raises:
            DiskError: the cache cannot be written.
            WeightsError: a model is not available.
        """
        try:
            key = self._key(file)
        except OSError:
            return
        with _quiet():
            try:
                self._hear(file, key)
            except AudioError as error:
                reason = str(error).removeprefix(f"{file}: ")
                codes = torch.tensor(list(reason.encode()), dtype=torch.uint8)
                self.cache.save("people", self._rejection_key(key), {"reason": codes})

    def states(self, recording: HeardRecording, layers: Sequence[int], version: Version = 0) -> Tensor:
        """Return Whisper's states (L, T, D), float16, of a version of a recording.

        They are computed if they are not in the cache, as those of a condition or of further copies may not be.

        Raises:
            AudioError: that needs the file, and it can no longer be read.
        """
        names = [str(layer) for layer in layers]
        states = self.cache.load("features", self._features_key(recording.key, version), names)
        if states is None:
            states = self._compute_states(self.audio(recording), recording.key, version)
        return torch.stack([states[name] for name in names])

    def part(self, recording: HeardRecording, name: str, version: Version = 0) -> Tensor:
        """Return the embedding (E,) of a version of a recording by a speaker encoder, or for ``PITCH`` the median in
        log2 Hz and the spread in octaves of its F0 (2,).

        Raises:
            AudioError: as ``states``.
        """
        if is_clean(version) and name == PITCH:
            return torch.tensor([recording.f0_median, recording.f0_spread])
        if is_clean(version) and name in recording.embeddings:
            return recording.embeddings[name]
        kept = self.cache.load("speakers", self._part_key(recording.key, version, name))
        return kept["part"] if kept else self._compute_part(self.audio(recording), recording.key, version, name)

    def _hear(self, file: Path, key: str) -> None:
        audio = self._load(file)
        for name in self.encoders:  # the first one may reject the recording
            if self.cache.load("people", self._encoder_key(key, name)) is None:
                self._embed(audio, key, name)
        if self.cache.load("people", self._voice_key(key)) is None:
            self._measure(audio, key)
        for version in self.versions:
            if not self.cache.has("features", self._features_key(key, version)):
                self._compute_states(audio, key, version)
            for name in self.settings.parts if version else ():
                if not self.cache.has("speakers", self._part_key(key, version, name)):
                    self._compute_part(audio, key, version, name)

    def _load(self, file: Path) -> Tensor:
        """Return what is heard of a file: audio (samples,) at 16 kHz, from the beginning of its speech.

        Where that is depends on the loudest part of a recording, of which the first 5 minutes are read.

        Raises:
            AudioError: it cannot be read, or is too short, or holds too little speech.
        """
        audio = load_audio(file, WHISPER_RATE, READ_SECONDS)
        seconds = len(audio) / WHISPER_RATE
        if seconds < MIN_SECONDS:
            raise AudioError(f"{seconds:.2f} s is too short; at least {MIN_SECONDS:g} s are needed")
        power = audio[: len(audio) // FRAME * FRAME].view(-1, FRAME).square().mean(dim=1)
        first = int((power >= LOUD * power.max()).nonzero()[0])
        start = max(0, round(first * FRAME - LEAD_SECONDS * WHISPER_RATE))
        heard = audio[start:][: round(self.settings.seconds * WHISPER_RATE)]
        voiced = int((track_pitch(heard, WHISPER_RATE) > 0).sum())
        if not voiced or (speech := _speech_seconds(heard)) < MIN_SPEECH_SECONDS:
            raise AudioError("there is no voice in it" if not voiced else f"only {speech:.1f} s of speech")
        return heard

    def audio(self, recording: HeardRecording) -> Tensor:
        """Return what is heard of a recording: (samples,) at 16 kHz.

        Raises:
            AudioError: its file can no longer be read.
        """
        with _quiet():
            return self._load(recording.file)

    def _embed(self, audio: Tensor, key: str, name: str) -> None:
        """Embed a recording and its halves, which have equal amounts of speech.

        Raises:
            AudioError: the halves are those of two people.
        """
        speech = speech_frames(audio).cumsum(dim=0)
        middle = int((speech >= speech[-1] / 2).nonzero()[0]) * SAMPLES
        encoder = self.models.speaker_encoder(name)
        halves = torch.stack([encoder.embed(half, WHISPER_RATE) for half in (audio[:middle], audio[middle:])])
        if name == CHECKED_BY:
            similarity = float(halves[0] @ halves[1])
            least = np.interp(_speech_seconds(audio) / 2, SIMILARITY_SECONDS, LEAST_SIMILARITY)
            if similarity < least:
                raise AudioError(f"its halves sound like two people (similarity {similarity:.2f}, below {least:.2f})")
        self.cache.save(
            "people", self._encoder_key(key, name), {"whole": encoder.embed(audio, WHISPER_RATE), "halves": halves}
        )

    def _measure(self, audio: Tensor, key: str) -> None:
        voice = measure_voice(audio, track_pitch(audio, WHISPER_RATE))
        measures = [len(audio) / WHISPER_RATE, self._counter.rate(audio), *astuple(voice)]
        self.cache.save("people", self._voice_key(key), {"measures": torch.tensor(measures)})

    @cached_property
    def _counter(self) -> PhonemeCounter:
        return PhonemeCounter(self.models.whisper_file.path, self.models.phonemizer, self.models.device)

    def _compute_states(self, audio: Tensor, key: str, version: Version) -> dict[str, Tensor]:
        """Compute and save Whisper's states of a version of audio, by layer, each (T, D) float16."""
        states = self.models.whisper(heard_version(audio, version, self.settings.augment, key)).half()
        saved = {str(layer): state for layer, state in enumerate(states)}
        return self.cache.save("features", self._features_key(key, version), saved)

    def _compute_part(self, audio: Tensor, key: str, version: Version, name: str) -> Tensor:
        heard = heard_version(audio, version, self.settings.augment, key)
        if name == PITCH:
            part = clip_pitch(heard, WHISPER_RATE)
        else:
            part = self.models.speaker_encoder(name).embed(heard, WHISPER_RATE)
        return self.cache.save("speakers", self._part_key(key, version, name), {"part": part})["part"]

    def _has_features(self, key: str) -> bool:
        entries: list[tuple[Kind, str]] = [("features", self._features_key(key, version)) for version in self.versions]
        for version in self.versions[1:]:
            entries += [("speakers", self._part_key(key, version, name)) for name in self.settings.parts]
        missing = [entry for kind, entry in entries if not self.cache.has(kind, entry)]  # all others count as used
        return not missing

    def _key(self, file: Path) -> str:
        """Return the key of what is heard of a file.

        Raises:
            OSError: it cannot be read.
        """
        stat = file.stat()
        return content_key(
            "person", PEOPLE_FORMAT, self.settings.seconds, _file_hash(file, stat.st_size, stat.st_mtime_ns)
        )

    def _rejection_key(self, key: str) -> str:
        # With ffmpeg, more files can be read.
        return content_key(key, "rejection", self.models.speaker_sha256(CHECKED_BY), shutil.which("ffmpeg") is not None)

    def _voice_key(self, key: str) -> str:
        return content_key(key, "voice", self.models.whisper_file.sha256, self.models.phonemizer.name)

    def _encoder_key(self, key: str, name: str) -> str:
        return content_key(key, "embeddings", self.models.speaker_sha256(name))

    def _features_key(self, key: str, version: Version) -> str:
        return content_key(
            key, self.models.whisper_file.sha256, FEATURES_FORMAT, *version_key(version, self.settings.augment)
        )

    def _part_key(self, key: str, version: Version, name: str) -> str:
        model = name if name == PITCH else self.models.speaker_sha256(name)
        return content_key(key, "part", model, SPEAKERS_FORMAT, *version_key(version, self.settings.augment))


@lru_cache(maxsize=100_000)
def _file_hash(file: Path, size: int, modified: int) -> str:
    """Return the hash of a file, which is read again if its size or the time of its modification has changed."""
    return hash_file(file)


def _speech_seconds(audio: Tensor) -> float:
    return float(speech_frames(audio).sum()) / FRAMES_PER_SECOND


@contextmanager
def _quiet() -> Iterator[None]:
    """Log warnings about single files as debug messages."""

    def as_debug(record: logging.LogRecord) -> bool:
        logger.debug("%s", record.getMessage())
        return False

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    for talkative in loggers:
        talkative.addFilter(as_debug)
    try:
        yield
    finally:
        for talkative in loggers:
            talkative.removeFilter(as_debug)
