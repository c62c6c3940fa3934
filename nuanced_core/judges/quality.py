"""Quality of speech as listeners rate it, by DNSMOS (Reddy et al. 2022, arXiv:2110.01763); needs the extra ``eval``."""

from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import ConfigError
from nuanced_core.judges.identity import INSTALL_EXTRA

__all__ = ["DNSMOS", "Quality"]

RATE = WHISPER_RATE  # Hz


@dataclass(frozen=True)
class Quality:
    """Mean opinion scores from 1 (bad) to 5 (excellent): three of ITU-T P.835, and one of ITU-T P.808."""

    overall: float
    signal: float
    background: float
    p808: float


class DNSMOS:
    """The models of the package speechmos, on the CPU.

    Raises:
        ConfigError: speechmos is not installed.
    """

    name: str  # with version; part of a cache key

    def __init__(self) -> None:
        try:
            from speechmos import dnsmos
        except ImportError as error:
            raise ConfigError(f"DNSMOS needs speechmos ({error}); {INSTALL_EXTRA}") from None
        self.name = f"speechmos {version('speechmos')}"
        self._run = dnsmos.run

    def __call__(self, audio: Tensor, rate: int) -> Quality:
        """Rate audio (samples,) at ``rate`` Hz; below 9 s it is repeated, longer audio is rated in windows of 9 s.

        Audio beyond full scale is scaled down to it.
        """
        samples = resample(audio.detach().float().cpu(), rate, RATE).numpy()
        scores = self._run(samples / max(1.0, float(np.abs(samples).max())), RATE)
        return Quality(*(float(scores[f"{name}_mos"]) for name in ("ovrl", "sig", "bak", "p808")))
