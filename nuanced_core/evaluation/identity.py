"""Whose voice a clip is, by a speaker encoder that nothing here is trained on; needs the extra ``eval``."""

import warnings
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import ConfigError

__all__ = ["EXTRA", "SpeakerEncoder"]

EXTRA = "pip install 'nuanced-speech[eval]'"
RATE = WHISPER_RATE  # Hz, Resemblyzer's too
FRAME = RATE // 50  # samples
LEVEL = 10 ** (-30 / 20)  # root mean square to which Resemblyzer turns quiet clips up, but not loud ones down


class SpeakerEncoder:
    """Resemblyzer's voice encoder (generalised end-to-end loss, Wan et al. 2018, arXiv:1710.10467), on the CPU.

    Raises:
        ConfigError: Resemblyzer is not installed.
    """

    name: str  # with its version

    def __init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # webrtcvad's, of pkg_resources, and SciPy's, of an old name
                from resemblyzer import VoiceEncoder
                from resemblyzer.audio import trim_long_silences
        except ImportError as error:
            raise ConfigError(f"speaker identity needs Resemblyzer ({error}); {EXTRA}") from None
        self.name = f"resemblyzer {version('resemblyzer')}, {LEVEL:.3f} where it speaks"
        self._trim = trim_long_silences
        self._encoder = VoiceEncoder("cpu", verbose=False)

    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """The embedding (256,), of norm 1, of audio (samples,) at ``rate`` Hz; long silences are cut out of it."""
        samples = resample(audio.detach().float().cpu(), rate, RATE).numpy()
        level = _level(samples)
        if level:
            # Resemblyzer itself would measure the level with the silences, and turn loud clips not down.
            samples = samples * np.float32(LEVEL / level)
            speech = self._trim(samples)
            samples = speech if len(speech) else samples  # the voice detector may hear no voice
        embedding: Tensor = torch.from_numpy(np.asarray(self._encoder.embed_utterance(samples), np.float32))
        return embedding


def _level(samples: NDArray[np.float32]) -> float:
    """Root mean square of the frames of 20 ms that are not silent: within 30 dB of the loudest one."""
    whole = len(samples) // FRAME * FRAME
    frames = samples[:whole].reshape(-1, FRAME) if whole else samples[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float(np.sqrt(power[power >= power.max() / 1000].mean()))
