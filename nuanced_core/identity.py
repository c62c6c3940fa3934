"""Whose voice a clip is, by a speaker encoder that nothing here is trained on; needs the extra ``eval``."""

import warnings
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import ConfigError

__all__ = ["EXTRA", "SpeakerEncoder"]

EXTRA = "pip install 'nuanced-speech[eval]'"
RATE = WHISPER_RATE  # Hz, Resemblyzer's too
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
                from resemblyzer import VoiceEncoder, preprocess_wav
        except ImportError as error:
            raise ConfigError(f"speaker identity needs Resemblyzer ({error}); {EXTRA}") from None
        self.name = f"resemblyzer {version('resemblyzer')}"
        self._preprocess = preprocess_wav
        self._encoder = VoiceEncoder("cpu", verbose=False)

    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """The embedding (256,), of norm 1, of audio (samples,) at ``rate`` Hz; long silences are cut out of it."""
        samples = resample(audio.detach().float().cpu(), rate, RATE).numpy()
        level = float(np.sqrt(np.square(samples, dtype=np.float64).mean()))
        if level:
            samples = samples * np.float32(LEVEL / level)  # else a loud clip would differ from itself, quiet
        speech = self._preprocess(samples) if level else samples  # silence has no level to normalise
        # A clip in which the voice detector hears no voice would be empty.
        kept = speech if len(speech) else samples
        embedding: Tensor = torch.from_numpy(np.asarray(self._encoder.embed_utterance(kept), np.float32))
        return embedding
