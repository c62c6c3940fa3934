"""What a StyleEncoder hears of a recording: Whisper's features, and the speaker features that it was trained with.

Dimensions: P channels after pooling, E channels of speaker features.
"""

from typing import Protocol

from torch import Tensor

from nuanced_core.audio import WHISPER_RATE
from nuanced_core.config.settings import PITCH, Features
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.hearing.speaker_features import speaker_features
from nuanced_core.hearing.whisper_features import WhisperFeatures
from nuanced_core.speakers.encoders import SpeakerEncoder

__all__ = ["RecordingModels", "pooled_recording", "recording_speaker"]

PITCH_SECONDS = 60  # of a recording in which pitch is tracked; limits memory


class RecordingModels(Protocol):
    """The models that hear a recording; ``ModelSet`` has them."""

    @property
    def whisper(self) -> WhisperFeatures:
        """Whisper's encoder."""

    def speaker_encoder(self, name: str) -> SpeakerEncoder:
        """Return a speaker encoder."""


def pooled_recording(encoder: StyleEncoder, models: RecordingModels, audio: Tensor) -> Tensor:
    """Return the input (1, P + E) of ``encoder.styles`` and ``encoder.pack_of`` for a recording of any length.

    Whisper's features are never all in memory. Speaker features are computed if the encoder was trained with them.

    Args:
        models: Whisper is the model that ``encoder.config.whisper`` names.
        audio: (samples,) at 16 kHz.

    Raises:
        AudioError: the recording is silent or too short, and the encoder needs a speaker embedding of it.
        WeightsError: a speaker encoder is not available.
    """
    whisper, layers = models.whisper, encoder.config.layers
    speaker = recording_speaker(encoder.config.features, models, audio)
    return encoder.pooled_blocks(lambda: whisper.blocks(audio, layers), speaker)


def recording_speaker(features: Features, models: RecordingModels, audio: Tensor) -> Tensor | None:
    """Return the speaker features (1, E) of audio (samples,) at 16 kHz; None if the settings ask for none.

    Raises:
        AudioError, WeightsError: as ``pooled_recording``.
    """
    if not features.speaker_parts:
        return None
    parts: dict[str, Tensor] = {}
    for name in features.speaker_encoders:
        parts[name] = models.speaker_encoder(name).embed(audio, WHISPER_RATE)
    if features.pitch:
        parts[PITCH] = clip_pitch(audio[: PITCH_SECONDS * WHISPER_RATE], WHISPER_RATE)
    return speaker_features(features, parts)[None]
