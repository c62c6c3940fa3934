"""What is measured of a recording of a person: pitch, level and speaking rate.

Dimensions: P pitch frames of 25 ms.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nuanced_core.audio import FRAMES_PER_SECOND, WHISPER_RATE
from nuanced_core.errors import TextError
from nuanced_core.hearing.pitch import loud_frames, pitch_statistics
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.splitting import split_sentences

__all__ = ["PhonemeCounter", "VoiceMeasures", "measure_voice", "speech_frames"]

SAMPLES = WHISPER_RATE // FRAMES_PER_SECOND  # of a pitch frame
# Frames (0.3 s): a frame this close to a loud one belongs to speech. The rate of stock voices' clips, clean, in a room,
# by telephone or in noise of 10 dB, is then within 2 % of that of Kokoro's own durations, with a deviation of 4 %.
REACH = 12
TRANSCRIBED_SECONDS = 30  # that Whisper hears at once
# A transcript is not trusted beyond these, which are Whisper's own.
LEAST_LOG_PROBABILITY, MOST_COMPRESSION, MOST_SILENCE = -1.0, 2.4, 0.6


@dataclass(frozen=True)
class VoiceMeasures:
    """Measures of a recording; NaN where it has no voiced frame."""

    f0_median: float  # log2 Hz
    f0_spread: float  # octaves, see ``pitch_statistics``
    voiced: float  # share of the frames of speech that are voiced
    level: float  # dB relative to full scale, of the voiced frames
    level_spread: float  # dB, standard deviation over the voiced frames


def measure_voice(audio: Tensor, pitch: Tensor) -> VoiceMeasures:
    """Measure audio (samples,) at 16 kHz with the pitch (P,) that ``track_pitch`` found in it."""
    padded = nn.functional.pad(audio, (SAMPLES // 2, SAMPLES))  # a pitch frame's middle is at its number times SAMPLES
    power = padded[: len(pitch) * SAMPLES].view(-1, SAMPLES).square().mean(dim=1)
    voiced = power[pitch > 0].clamp(min=1e-12)
    median, spread = (float(value) for value in pitch_statistics(pitch))
    if len(voiced) == 0:
        return VoiceMeasures(median, spread, 0.0, torch.nan, torch.nan)
    share = len(voiced) / float(speech_frames(audio).sum())
    deviation = float((10 * voiced.log10()).std(correction=0))
    return VoiceMeasures(median, spread, share, float(10 * voiced.mean().log10()), deviation)


def speech_frames(audio: Tensor) -> Tensor:
    """Return which frames (P,) of 25 ms of audio (samples,) at 16 kHz are speech: those within 0.3 s of a loud one."""
    loud = loud_frames(audio).float()[None, None]
    return nn.functional.max_pool1d(loud, 2 * REACH + 1, stride=1, padding=REACH)[0, 0] > 0


class PhonemeCounter:
    """Counts the phonemes of speech, by a transcript of Whisper's.

    Args:
        whisper: a checkpoint in openai-whisper's format; it is loaded on the first call.
        phonemizer: converts the transcript.
    """

    def __init__(self, whisper: Path, phonemizer: Phonemizer, device: torch.device | str = "cpu") -> None:
        self.path, self.phonemizer, self.device = whisper, phonemizer, device

    @cached_property
    def _model(self) -> Any:
        import whisper

        return whisper.load_model(str(self.path), device=self.device)

    def rate(self, audio: Tensor) -> float:
        """Return the phonemes per second of speech in the first 30 s of audio (samples,) at 16 kHz.

        All characters that the phonemizer gives count, with stress marks and spaces, as they do in a voice's phoneme
        count. NaN: Whisper does not trust its transcript, or there is no word in it.
        """
        heard = audio[: TRANSCRIBED_SECONDS * WHISPER_RATE]
        seconds = float(speech_frames(heard).sum()) / FRAMES_PER_SECOND
        text = self._transcribe(heard)
        try:
            count = sum(len(self.phonemizer(sentence)) for sentence in split_sentences(text))
        except TextError:
            return torch.nan
        return count / seconds if seconds else torch.nan

    def _transcribe(self, audio: Tensor) -> str:
        """Return the English words of audio (samples,) of at most 30 s; empty: not to be trusted."""
        from whisper import DecodingOptions
        from whisper.audio import log_mel_spectrogram, pad_or_trim

        spectrum = log_mel_spectrogram(pad_or_trim(audio.to(self.device)), self._model.dims.n_mels)
        options = DecodingOptions(language="en", without_timestamps=True, fp16=False)
        heard = self._model.decode(spectrum, options)
        doubted = (
            heard.avg_logprob < LEAST_LOG_PROBABILITY
            or heard.compression_ratio > MOST_COMPRESSION
            or heard.no_speech_prob > MOST_SILENCE
        )
        return "" if doubted else str(heard.text)
