"""What a StyleEncoder hears of a recording: Whisper's features, and the speaker features that it was trained with.

Dimensions: P channels after pooling, E channels of speaker features.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from nuanced_core.audio import WHISPER_RATE
from nuanced_core.config.settings import PITCH, Features
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.hearing.speaker_features import speaker_features
from nuanced_core.hearing.whisper_features import WhisperFeatures
from nuanced_core.speakers.encoders import SpeakerEncoder

__all__ = ["RecordingModels", "combined_speaker", "pooled_recording", "recording_speaker", "speaker_embeddings"]

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
    pitch = clip_pitch(audio[: PITCH_SECONDS * WHISPER_RATE], WHISPER_RATE) if features.pitch else None
    return combined_speaker(features, speaker_embeddings(features, models, audio), pitch)


def speaker_embeddings(features: Features, models: RecordingModels, audio: Tensor) -> dict[str, Tensor]:
    """Return the speaker embeddings of audio (samples,) at 16 kHz that the settings ask for, by the encoder's name.

    Raises:
        AudioError, WeightsError: as ``pooled_recording``.
    """
    return {name: models.speaker_encoder(name).embed(audio, WHISPER_RATE) for name in features.speaker_encoders}


def combined_speaker(features: Features, embeddings: Mapping[str, Tensor], pitch: Tensor | None) -> Tensor | None:
    """Return the speaker features (1, E) of embeddings and a pitch (2,), which may be of another stretch of time.

    Args:
        pitch: as ``clip_pitch`` returns it; not read if the settings do not ask for it.
    """
    if not features.speaker_parts:
        return None
    parts = dict(embeddings)
    if features.pitch:
        assert pitch is not None
        parts[PITCH] = pitch
    return speaker_features(features, parts)[None]
