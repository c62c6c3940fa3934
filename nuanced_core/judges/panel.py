"""All judges of a sound: its speaker by several encoders, its pitch, its words and its quality, in one measurement.

Dimensions: E speaker embedding, P pitch frames.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.errors import ConfigError
from nuanced_core.judges.dvector import DVector
from nuanced_core.judges.pitch import CrepePitch
from nuanced_core.judges.quality import DNSMOS, Quality
from nuanced_core.judges.words import SpokenWords, word_errors

__all__ = ["DVECTOR", "Embed", "JudgePanel", "Sound", "load_panel"]

logger = logging.getLogger(__name__)

DVECTOR = "dvector"  # the judge that trains nothing
Embed = Callable[[Tensor, int], Tensor]  # audio (samples,), rate in Hz → speaker embedding (E,) of norm 1
T = TypeVar("T")


class _PitchTracker(Protocol):
    def __call__(self, audio: Tensor, rate: int, /) -> Tensor:
        """Return the pitch (P,) in Hz, 0 where unvoiced."""


class _Transcriber(Protocol):
    def transcribe(self, audio: Tensor, rate: int) -> str:
        """Return the words."""


@dataclass(frozen=True, eq=False)
class Sound:
    """What the judges say of a sound; NaN where there is nothing to say."""

    embeddings: Mapping[str, Tensor]  # (E,) of norm 1, by judge
    f0: float = nan  # median in log2 Hz
    rate: float = nan  # phonemes per second of speech
    word_errors: float = nan  # relative to the words of the text
    dnsmos: float = nan  # overall, 1 to 5

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the form that a cache keeps."""
        measures = torch.tensor([self.f0, self.rate, self.word_errors, self.dnsmos], dtype=torch.float64)
        return {"measures": measures, **{f"judge.{name}": x for name, x in self.embeddings.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Sound":
        """Restore what ``to_tensors`` returned."""
        embeddings = {n.removeprefix("judge."): x for n, x in sorted(tensors.items()) if n.startswith("judge.")}
        return cls(embeddings, *tensors["measures"].tolist())


@dataclass(frozen=True)
class JudgePanel:
    """The judges of an evaluation.

    Args:
        embedders: speaker encoders by name.
        versions: what each judge is, for the keys of a cache: names of ``embedders``, pitch, words, quality.
        track_pitch, words, quality: None leaves the measure out.
    """

    embedders: Mapping[str, Embed]
    versions: Mapping[str, str]
    track_pitch: _PitchTracker | None = None
    words: _Transcriber | None = None
    quality: Callable[[Tensor, int], Quality] | None = None

    def hear(self, audio: Tensor, rate: int) -> Sound:
        """Judge the speaker and the pitch of audio (samples,) at ``rate`` Hz.

        Raises:
            AudioError: it is silent, or too short for a speaker embedding.
        """
        return Sound(self.embed(audio, rate), self._median_f0(audio, rate))

    def judge(self, sentences: Sequence[Tensor], texts: Sequence[str]) -> Sound:
        """Judge spoken sentences, (samples,) each at 24 kHz, whose texts are known: together, the words one by one.

        Raises:
            AudioError: as ``hear``.
        """
        audio = torch.cat([*sentences])
        errors = nan
        if self.words is not None:
            pairs = [
                word_errors(self.words.transcribe(spoken, KOKORO_RATE), text)
                for spoken, text in zip(sentences, texts, strict=True)
            ]
            errors = sum(wrong for wrong, _ in pairs) / sum(count for _, count in pairs)
        dnsmos = nan if self.quality is None else self.quality(audio, KOKORO_RATE).overall
        f0 = self._median_f0(audio, KOKORO_RATE)
        return Sound(self.embed(audio, KOKORO_RATE), f0, word_errors=errors, dnsmos=dnsmos)

    def embed(self, audio: Tensor, rate: int) -> dict[str, Tensor]:
        """Return the speaker embeddings (E,) of audio (samples,) at ``rate`` Hz, by judge.

        Raises:
            AudioError: as ``hear``.
        """
        return {name: embed(audio, rate).float() for name, embed in self.embedders.items()}

    def _median_f0(self, audio: Tensor, rate: int) -> float:
        if self.track_pitch is None:
            return nan
        pitch = self.track_pitch(audio, rate)
        voiced = pitch[pitch > 0]
        return float(voiced.log2().median()) if len(voiced) else nan


def load_panel(
    embedders: Mapping[str, Embed],
    versions: Mapping[str, str],
    whisper: Path,
    *,
    source: str = "auto",
    device: torch.device | str = "cpu",
) -> JudgePanel:
    """Load the judges: the given speaker encoders, and those of the extra ``eval`` that are installed.

    A judge that is not installed is left out with a warning.

    Args:
        embedders: speaker encoders that may train models too.
        versions: what each of them is, and what ``words`` is.
        whisper: a checkpoint, whose transcripts give the word errors.
        source: of the d-vector's file.

    Raises:
        WeightsError: the d-vector's file is not available.
    """
    dvector = _installed(lambda: DVector(source))
    track_pitch, quality = _installed(CrepePitch), _installed(DNSMOS)
    names = dict(versions)
    if dvector is not None:
        embedders, names[DVECTOR] = {**embedders, DVECTOR: dvector}, dvector.name
    if track_pitch is not None:
        names["pitch"] = track_pitch.name
    if quality is not None:
        names["quality"] = quality.name
    return JudgePanel(embedders, names, track_pitch, SpokenWords(whisper, device), quality)


def _installed(load: Callable[[], T]) -> T | None:
    try:
        return load()
    except ConfigError as error:
        logger.warning("left out: %s", error)
        return None
