"""Pitch tracking of audio by CREPE (Kim et al. 2018, arXiv:1802.06182); needs the extra ``eval``.

Dimensions: T samples, P = T // 600 + 1 pitch frames of 25 ms, 360 bins of 20 cents.
"""

from importlib.metadata import version

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.errors import ConfigError
from nuanced_core.judges.identity import INSTALL_EXTRA

__all__ = ["CrepePitch"]

CAPACITY = "tiny"  # of torchcrepe's two models; the full one takes 20 times as long
HOP = SAMPLES_PER_FRAME * WHISPER_RATE // KOKORO_RATE  # samples at 16 kHz, CREPE's rate
LOWEST_HZ, HIGHEST_HZ = 50.0, 550.0  # range of speaking voices
FIRST_BIN_CENTS = 1997.3794084376191  # above 10 Hz
NEIGHBOURS = 4  # bins on either side of the peak that refine it, as in the CREPE paper
VOICED_ACTIVATION = 0.5  # least peak activation of a voiced frame


class CrepePitch:
    """Pitch tracker; returns Hz, and 0 where the audio is unvoiced.

    Raises:
        ConfigError: torchcrepe is not installed.
    """

    def __init__(self) -> None:
        try:
            import torchcrepe
        except ImportError as error:
            raise ConfigError(f"CREPE's pitch needs torchcrepe ({error}); {INSTALL_EXTRA}") from None
        self.name = f"torchcrepe {version('torchcrepe')} {CAPACITY}"
        self._crepe = torchcrepe

    @torch.no_grad()
    def __call__(self, audio: Tensor, rate: int = KOKORO_RATE) -> Tensor:
        """Return the pitch (P,) in Hz of audio (T,) at ``rate`` Hz, every 25 ms.

        torchcrepe's own decoders are not used: they add random noise to the pitch, so that the same clip would differ
        from itself.
        """
        samples = resample(audio.detach().float().cpu(), rate, WHISPER_RATE)
        frames = torch.cat(list(self._crepe.preprocess(samples[None], WHISPER_RATE, HOP)))
        activation = self._crepe.infer(frames, CAPACITY)  # (P, 360)
        bins = torch.arange(activation.shape[1])
        cents = FIRST_BIN_CENTS + self._crepe.CENTS_PER_BIN * bins
        hertz = 10 * 2 ** (cents / 1200)
        activation = activation * ((hertz >= LOWEST_HZ) & (hertz <= HIGHEST_HZ))
        peak, peak_bin = activation.max(dim=1)
        weights = activation * ((bins - peak_bin[:, None]).abs() <= NEIGHBOURS)
        pitch = 10 * 2 ** ((weights @ cents) / weights.sum(dim=1).clamp(min=1e-9) / 1200)
        return torch.where(peak >= VOICED_ACTIVATION, pitch, 0.0)
