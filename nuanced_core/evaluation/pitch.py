"""The pitch of a sound, by CREPE (Kim et al. 2018, arXiv:1802.06182); needs the extra ``eval``.

Dimensions: T samples, P = T // 600 + 1 pitch frames of 25 ms.
"""

from importlib.metadata import version

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.errors import ConfigError
from nuanced_core.evaluation.identity import EXTRA

__all__ = ["CrepePitch"]

CAPACITY = "tiny"  # of torchcrepe's two models: the full one takes 20 times as long
HOP = SAMPLES_PER_FRAME * WHISPER_RATE // KOKORO_RATE  # samples at 16 kHz, CREPE's rate
LOWEST, HIGHEST = 50.0, 550.0  # Hz, of a speaking voice
NEIGHBOURS = 4  # bins of 20 cents either way that refine the largest, as CREPE's authors do
PERIODIC = 0.5  # activation of a frame that is voiced


class CrepePitch:
    """Pitch in Hz, 0 where unvoiced.

    Raises:
        ConfigError: torchcrepe is not installed.
    """

    def __init__(self) -> None:
        try:
            import torchcrepe
        except ImportError as error:
            raise ConfigError(f"CREPE's pitch needs torchcrepe ({error}); {EXTRA}") from None
        self.name = f"torchcrepe {version('torchcrepe')} {CAPACITY}"
        self._crepe = torchcrepe

    @torch.no_grad()
    def __call__(self, audio: Tensor, rate: int = KOKORO_RATE) -> Tensor:
        """The pitch (P,) in Hz of audio (T,) at ``rate`` Hz, every 25 ms.

        torchcrepe's own decoders add random noise to the pitch, so that the same clip would differ from itself.
        """
        heard = resample(audio.detach().float().cpu(), rate, WHISPER_RATE)
        frames = torch.cat(list(self._crepe.preprocess(heard[None], WHISPER_RATE, HOP)))
        activation = self._crepe.infer(frames, CAPACITY)  # (P, 360)
        cents = 1997.3794084376191 + self._crepe.CENTS_PER_BIN * torch.arange(activation.shape[1])
        hertz = 10 * 2 ** (cents / 1200)
        activation = activation * ((hertz >= LOWEST) & (hertz <= HIGHEST))
        peak, best = activation.max(dim=1)
        near = (torch.arange(activation.shape[1]) - best[:, None]).abs() <= NEIGHBOURS
        weights = activation * near
        pitch = 10 * 2 ** ((weights @ cents) / weights.sum(dim=1).clamp(min=1e-9) / 1200)
        return torch.where(peak >= PERIODIC, pitch, 0.0)
