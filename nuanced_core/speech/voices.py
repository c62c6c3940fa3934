"""A voice from clips of a person, as a pack."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, load_audio
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.speech.models import SpeechModels

__all__ = ["Voice", "voice_from_clips"]


@dataclass(frozen=True, eq=False)
class Voice:
    """A person's voice."""

    pack: Tensor  # (510, 1, 256) float32 on the CPU
    notes: tuple[str, ...]


@torch.no_grad()
def voice_from_clips(speech: SpeechModels, clips: Sequence[Path | str | Tensor]) -> Voice:
    """Return the voice of clips of one person: sound files, or audio (samples,) at 16 kHz."""
    audio = [clip if isinstance(clip, Tensor) else load_audio(Path(clip), WHISPER_RATE) for clip in clips]
    pooled = [pooled_recording(speech.encoder, speech.models, clip) for clip in audio]
    return Voice(speech.encoder.pack_of(torch.stack(pooled).mean(dim=0)).cpu(), ())
