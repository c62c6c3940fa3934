"""The level of speech in a clip, and the clip without its silences, by the energy of frames of 20 ms."""

import torch.nn.functional as F
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE

__all__ = ["level_speech", "speech_only"]

FRAME = WHISPER_RATE // 50  # samples, 20 ms
SPEECH_RANGE = 1e-3  # a frame is silent if its power is below this fraction of the loudest frame's (30 dB)
MIN_POWER = 1e-12  # of speech; a clip below it is digital silence
PAUSE_FRAMES = 15  # 0.3 s: a frame this close to speech is kept with it


def level_speech(audio: Tensor, level_db: float) -> Tensor:
    """Scale each clip of audio (B, samples) at 16 kHz so that its speech has a level of ``level_db`` dBFS.

    The level is the root mean square of the frames that are not silent: within 30 dB of the loudest one. The gradient
    passes through the factor: it then has no part that would only make the clip louder.
    """
    power = _frame_power(audio)
    speech = power.detach() >= SPEECH_RANGE * power.detach().amax(dim=1, keepdim=True)
    level = ((power * speech).sum(dim=1, keepdim=True) / speech.sum(dim=1, keepdim=True)).clamp(min=MIN_POWER).sqrt()
    return audio * (10 ** (level_db / 20) / level)


def speech_only(audio: Tensor) -> Tensor:
    """Return audio (samples,) at 16 kHz without the frames further than 0.3 s from any that is not silent.

    So pauses are at most 0.6 s. In steady noise above the limit of silence, everything is kept.
    """
    if len(audio) < FRAME:
        return audio
    power = _frame_power(audio[None])[0]
    speech = (power >= SPEECH_RANGE * power.max()).to(power.dtype)
    near = F.max_pool1d(speech[None, None], 2 * PAUSE_FRAMES + 1, stride=1, padding=PAUSE_FRAMES)[0, 0] > 0
    return audio[: len(near) * FRAME].view(len(near), FRAME)[near].flatten()


def _frame_power(audio: Tensor) -> Tensor:
    """Return the mean power (B, samples // 320) of the frames of audio (B, samples)."""
    whole = audio.shape[1] // FRAME * FRAME
    return audio[:, :whole].reshape(len(audio), -1, FRAME).square().mean(dim=2)
