"""Speaker encoders by name: audio → speaker embedding of norm 1, whatever the audio's level.

Dimensions: B batch, E size of an embedding.
"""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuanced_core.audio import WHISPER_RATE, is_silent, resample
from nuanced_core.errors import AudioError, ConfigError, WeightsError, one_line
from nuanced_core.speakers import campplus, ge2e
from nuanced_core.speakers.levels import level_speech, speech_only
from nuanced_core.speakers.spectra import KaldiFbank

__all__ = ["MIN_SECONDS", "RATE", "SPEAKER_ENCODERS", "SPEAKER_SIZES", "SpeakerEncoder", "load_speaker_encoder"]

SPEAKER_SIZES = {"campplus": campplus.SIZE, "resemblyzer": ge2e.SIZE}  # channels of an embedding, E
SPEAKER_ENCODERS: tuple[str, ...] = ("campplus", "resemblyzer")
RATE = WHISPER_RATE  # Hz, that of all speaker encoders
MIN_SECONDS = 0.5  # shorter clips say too little about a speaker
SPEECH_DB = -30.0  # level of the speech that a network hears: what Resemblyzer was trained with; CAM++ ignores it
# Of a band, natural logarithm: 36 dB below the median of speech at SPEECH_DB. Digital silence, and what a telephone
# cuts off, would otherwise dominate the mean over time that CAM++'s input is relative to.
MIN_LOG_ENERGY = 4.0
MAX_SPEECH_SECONDS = 30  # of a recording that are heard; more does not change an embedding
WINDOW_SECONDS = 10  # of them in memory at once
_FIX = f"record at least {MIN_SECONDS} s of speech"


class SpeakerEncoder(nn.Module):
    """A frozen speaker encoder, differentiable in the audio.

    Args:
        name: one of ``SPEAKER_ENCODERS``.
        network: audio (B, samples) at 16 kHz whose speech has a level of -30 dB → embeddings (B, E).
        size: E.
    """

    def __init__(self, name: str, network: nn.Module, size: int) -> None:
        super().__init__()
        self.name, self.size = name, size
        self.network = network.requires_grad_(False)

    def forward(self, audio: Tensor) -> Tensor:
        """Return embeddings (B, E) of norm 1 of audio (B, samples) at 16 kHz; the clips have equal lengths.

        The level of a clip changes neither its embedding nor the direction of the gradient. A silent clip has a finite
        embedding, which means nothing.

        Raises:
            AudioError: the clips are shorter than 0.5 s.
        """
        seconds = audio.shape[-1] / RATE
        if seconds < MIN_SECONDS:
            raise AudioError(f"a clip of {seconds:.2f} s is too short for a speaker embedding; give {MIN_SECONDS} s")
        return F.normalize(self.network(level_speech(audio, SPEECH_DB)), dim=1)

    @torch.no_grad()
    def embed(self, audio: Tensor, rate: int) -> Tensor:
        """Return the embedding (E,) of norm 1, on the CPU, of a recording (samples,) of any length at ``rate`` Hz.

        Silence at the ends and pauses are shortened, and the first 30 s of speech are heard: the mean over windows of
        at most 10 s, so the memory is that of one.

        Raises:
            AudioError: the recording is silent, or shorter than 0.5 s.
        """
        seconds = len(audio) / rate
        if seconds < MIN_SECONDS:
            raise AudioError(f"a recording of {seconds:.2f} s is too short for a speaker embedding; {_FIX}")
        samples = resample(audio.detach().float().cpu(), rate, RATE)
        if is_silent(samples):
            raise AudioError(f"a recording of {seconds:.2f} s is silent, so it has no speaker embedding; {_FIX}")
        speech = speech_only(samples)
        speech = (speech if len(speech) >= MIN_SECONDS * RATE else samples)[: MAX_SPEECH_SECONDS * RATE]
        device = next(self.buffers()).device
        count = -(-len(speech) // (WINDOW_SECONDS * RATE))
        windows = speech[: len(speech) // count * count].view(count, -1)
        embeddings = torch.cat([self(window[None].to(device)) for window in windows])
        return F.normalize(embeddings.mean(dim=0), dim=0).cpu()


class _FbankThenCAMPPlus(nn.Module):
    def __init__(self, network: campplus.CAMPPlus) -> None:
        super().__init__()
        self.fbank, self.network = KaldiFbank(), network

    def forward(self, audio: Tensor) -> Tensor:
        fbank = self.fbank(audio).clamp(min=MIN_LOG_ENERGY)
        embedding: Tensor = self.network(fbank - fbank.mean(dim=1, keepdim=True))
        return embedding


def load_speaker_encoder(file: Path, name: str, device: torch.device | str = "cpu") -> SpeakerEncoder:
    """Load a speaker encoder from its checkpoint (see ``fetch_speaker_encoder`` in ``nuanced_core.weights``).

    Raises:
        ConfigError: there is no speaker encoder of this name.
        WeightsError: the file is not its checkpoint.
    """
    if name not in SPEAKER_ENCODERS:
        raise ConfigError(f"{name!r} is not a speaker encoder; choose one of: {', '.join(SPEAKER_ENCODERS)}")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        if name == "campplus":
            encoder = SpeakerEncoder(
                name, _FbankThenCAMPPlus(campplus.CAMPPlus(checkpoint, rectified=False)), campplus.SIZE
            )
        else:
            encoder = SpeakerEncoder(name, ge2e.GE2E(checkpoint["model_state"]), ge2e.SIZE)
    except (RuntimeError, KeyError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        reason = one_line(error)
        raise WeightsError(f"{file}: not the speaker encoder {name} ({reason}); fetch it again") from error
    return encoder.to(device)
