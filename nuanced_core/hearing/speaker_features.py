"""What a StyleEncoder hears of a speaker beside Whisper's frames: speaker embeddings, and the pitch of the voice.

Dimensions: B batch, E channels: those of the speaker encoders in the order of ``Features.speaker_encoders``, then the
pitch.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nuanced_core.config.settings import PITCH, Features
from nuanced_core.speakers.encoders import SPEAKER_SIZES

__all__ = ["PITCH_CHANNELS", "heard_voice", "speaker_channels", "speaker_features"]

PITCH_CHANNELS = 2  # median and spread of F0
USUAL_PITCH = (7.3, 0.2)  # log2 Hz and octaves; of a voice without a voiced frame
PITCH_SCALE = (0.4, 0.1)  # how much they differ between voices


def speaker_channels(features: Features) -> int:
    """Return E, the number of channels that ``features.speaker`` and ``features.pitch`` mean."""
    return sum(PITCH_CHANNELS if part == PITCH else SPEAKER_SIZES[part] for part in features.speaker_parts)


def speaker_features(features: Features, parts: Mapping[str, Tensor]) -> Tensor:
    """Return the input (E,) of a clip, whose channels are of the order of 1.

    Args:
        parts: by the names in ``features.speaker_parts``: speaker embeddings of norm 1, and as ``PITCH`` (2,) the
            median in log2 Hz and the spread in octaves of the clip's F0, NaN if it has no voiced frame.
    """
    scaled = []
    for name in features.speaker_parts:
        if name == PITCH:
            usual, scale = torch.tensor(USUAL_PITCH), torch.tensor(PITCH_SCALE)
            scaled.append((torch.where(parts[name].isnan(), usual, parts[name]) - usual) / scale)
        else:
            scaled.append(parts[name] * math.sqrt(SPEAKER_SIZES[name]))
    return torch.cat(scaled) if scaled else torch.zeros(0)


def heard_voice(features: Features, speaker: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return what inputs (B, E) of ``speaker_features`` consist of: embeddings (B, …) of norm 1 by the encoder's name,
    and pitch (B, 2), which is NaN if ``features.pitch`` is not set."""
    embeddings: dict[str, Tensor] = {}
    pitch = speaker.new_full((speaker.shape[0], PITCH_CHANNELS), torch.nan)
    start = 0
    for name in features.speaker_parts:
        size = PITCH_CHANNELS if name == PITCH else SPEAKER_SIZES[name]
        part = speaker[:, start : start + size]
        start += size
        if name == PITCH:
            pitch = speaker.new_tensor(USUAL_PITCH) + part * speaker.new_tensor(PITCH_SCALE)
        else:
            embeddings[name] = part / math.sqrt(size)
    return embeddings, pitch
