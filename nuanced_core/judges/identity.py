"""Speaker embeddings by an encoder that nothing here is trained on; needs the extra ``eval``."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import ConfigError
from nuanced_core.speakers.encoders import load_speaker_encoder
from nuanced_core.weights.fetch import fetch_speaker_encoder

__all__ = ["INSTALL_EXTRA", "Resemblyzer"]

INSTALL_EXTRA = "pip install 'nuanced-speech[eval]'"
RATE = WHISPER_RATE  # Hz, Resemblyzer's rate too
FRAME_SAMPLES = RATE // 50  # 20 ms
SPEECH_LEVEL = 10 ** (-30 / 20)  # root mean square; Resemblyzer amplifies quiet clips to it, but leaves loud ones loud
VAD_SAMPLES = RATE * 30 // 1000  # 30 ms, a frame of the voice activity detector
VAD_MODE = 3  # the strictest
VAD_SMOOTHED = 8  # frames of its moving average
VAD_KEPT = 3  # frames before and after speech that are kept with it


class Resemblyzer:
    """Resemblyzer's voice encoder (generalised end-to-end loss, Wan et al. 2018, arXiv:1710.10467), on the CPU.

    It hears what the package Resemblyzer would: WebRTC's voice activity detector removes long silences. The package
    itself is not needed; it wants a release of the detector that only a C compiler can install.

    Args:
        source: where its file is fetched from, as for ``fetch_speaker_encoder``.

    Raises:
        ConfigError: the detector is not installed.
        WeightsError: the file is not available.
    """

    name: str  # with version and settings; part of a cache key

    def __init__(self, source: str = "auto") -> None:
        try:
            from webrtcvad import Vad
        except ImportError as error:
            raise ConfigError(f"speaker identity needs webrtcvad ({error}); {INSTALL_EXTRA}") from None
        file = fetch_speaker_encoder("resemblyzer", source)
        self.name = f"resemblyzer {file.sha256[:12]}, {SPEECH_LEVEL:.3f} where it speaks"
        self._detector = Vad
        self._network = load_speaker_encoder(file.path, "resemblyzer").network

    @torch.no_grad()
    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """Return the embedding (256,), of norm 1, of audio (samples,) at ``rate`` Hz; long silences are removed."""
        samples = resample(audio.detach().float().cpu(), rate, RATE).numpy()
        level = _speech_level(samples)
        if level:
            # Resemblyzer itself would include silences in the level, and would not attenuate loud clips.
            samples = samples * np.float32(SPEECH_LEVEL / level)
            speech = self._without_silences(samples)
            samples = speech if len(speech) else samples  # the voice activity detector may find no speech
        embedding: Tensor = self._network(torch.from_numpy(samples)[None])[0]
        return embedding

    def _without_silences(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what Resemblyzer's ``trim_long_silences`` returns: whole frames of 30 ms of speech and near it."""
        frames = samples[: len(samples) // VAD_SAMPLES * VAD_SAMPLES].reshape(-1, VAD_SAMPLES)
        if not len(frames):
            return frames.reshape(-1)
        detector = self._detector(VAD_MODE)  # a new one: it adapts to what it has heard
        pcm = np.round(frames * (2**15 - 1)).astype(np.int16)
        voiced = [detector.is_speech(frame.tobytes(), RATE) for frame in pcm]
        around = np.pad(np.array(voiced, np.float64), ((VAD_SMOOTHED - 1) // 2, VAD_SMOOTHED // 2))
        smoothed = np.convolve(around, np.ones(VAD_SMOOTHED), "valid") / VAD_SMOOTHED
        # np.round makes silence of 4 voiced frames in 8.
        near = np.convolve(np.round(smoothed), np.ones(2 * VAD_KEPT + 1))[VAD_KEPT:-VAD_KEPT] > 0
        return frames[near].reshape(-1)


def _speech_level(samples: NDArray[np.float32]) -> float:
    """Return the root mean square of the 20 ms frames that are not silent: within 30 dB of the loudest one."""
    whole = len(samples) // FRAME_SAMPLES * FRAME_SAMPLES
    frames = samples[:whole].reshape(-1, FRAME_SAMPLES) if whole else samples[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    return float(np.sqrt(power[power >= power.max() / 1000].mean()))
