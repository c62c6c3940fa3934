"""Speaker embeddings by an encoder that nothing here is trained on; needs the extra ``eval``."""

import warnings
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import ConfigError

__all__ = ["INSTALL_EXTRA", "Resemblyzer"]

INSTALL_EXTRA = "pip install 'nuanced-speech[eval]'"
RATE = WHISPER_RATE  # Hz, Resemblyzer's rate too
FRAME_SAMPLES = RATE // 50  # 20 ms
SPEECH_LEVEL = 10 ** (-30 / 20)  # root mean square; Resemblyzer amplifies quiet clips to it, but leaves loud ones loud


class Resemblyzer:
    """Resemblyzer's voice encoder (generalised end-to-end loss, Wan et al. 2018, arXiv:1710.10467), on the CPU.

    Raises:
        ConfigError: Resemblyzer is not installed.
    """

    name: str  # with version and settings; part of a cache key

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of webrtcvad (pkg_resources) and of SciPy (a deprecated name)
                from resemblyzer import VoiceEncoder
                from resemblyzer.audio import trim_long_silences
        except ImportError as error:
            raise ConfigError(f"speaker identity needs Resemblyzer ({error}); {INSTALL_EXTRA}") from None
        self.name = f"resemblyzer {version('resemblyzer')}, {SPEECH_LEVEL:.3f} where it speaks"
        self._trim = trim_long_silences
        self._encoder = VoiceEncoder("cpu", verbose=False)

    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """Return the embedding (256,), of norm 1, of audio (samples,) at ``rate`` Hz; long silences are removed."""
        samples = resample(audio.detach().float().cpu(), rate, RATE).numpy()
        level = _speech_level(samples)
        if level:
            # Resemblyzer itself would include silences in the level, and would not attenuate loud clips.
            samples = samples * np.float32(SPEECH_LEVEL / level)
            speech = self._trim(samples)
            samples = speech if len(speech) else samples  # the voice activity detector may find no speech
        embedding: Tensor = torch.from_numpy(np.asarray(self._encoder.embed_utterance(samples), np.float32))
        return embedding


def _speech_level(samples: NDArray[np.float32]) -> float:
    """Return the root mean square of the 20 ms frames that are not silent: within 30 dB of the loudest one."""
    whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
    frames = samples[:whole].reshape(-1, FRAME_SAMPLES) if whole else samples[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float(np.sqrt(power[power >= power.max() / 1000].mean()))
