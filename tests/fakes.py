"""Small fakes of Kokoro, Whisper and the evaluation models: the same interfaces without weights."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nuanced_core.audio import SAMPLES_PER_FEATURE_FRAME, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.hearing.speaker_features import speaker_channels
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE, Prosody, Speech, TextStates
from nuanced_core.kokoro.voices import TEST_VOICES, VoiceBank
from nuanced_core.speakers.encoders import SPEAKER_SIZES
from nuanced_core.text.phonemes import Phonemizer

# The settings of a run that the fakes finish in a second.
TINY_RUN: dict[str, dict[str, Any]] = {
    "data": {
        "voices": ["af_heart", "am_fenrir", "am_michael", "af_bella"],
        "val_voices": ["af_sky", "bm_lewis"],
        "sentences": ["Red door.", "A blue window."],
        "val_sentences": ["Green hills.", "No rain."],
    },
    "augment": {"copies": 0},
    "encoder": {"width": 8, "depth": 1},
    "train": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "spoken": 2, "window_frames": 16},
    "objective": {"window_frames": 16},
    "show": {"clips": 0, "people": 0},
}
VOICES = ("af_bella", "af_heart", "af_nicole", "af_sky", "am_fenrir", "am_michael", "bf_alice", "bm_lewis")


class FakeKokoro:
    """Fake Kokoro: 4 frames per token; audio is 8 harmonics with levels from the first 8 style channels, plus noise."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.spoken = 0
        self.vocabulary = {chr(code): code for code in range(32, 127)}

    def encode_text(self, phonemes: list[str]) -> TextStates:
        lengths = tuple(len(p) + 2 for p in phonemes)
        states = torch.zeros(len(lengths), 1, max(lengths))
        return TextStates(states, states, lengths)

    def prosody(
        self, text: TextStates, style: Tensor, token_frames: Tensor | None = None, speed: float = 1.0
    ) -> Prosody:
        if token_frames is None:
            token_frames = pad_sequence([torch.full((n,), round(4 / speed)) for n in text.lengths], batch_first=True)
        frames = tuple(token_frames.sum(dim=1).tolist())
        f0 = (style[:, 128:129] + 2).expand(-1, 2 * max(frames)) * 50
        # About 4 frames per token, changed by one style channel.
        durations = (token_frames > 0) * (4 + style[:, 129:130])
        return Prosody(durations, token_frames, f0, f0 / 100, frames)

    def durations(self, text: TextStates, style: Tensor) -> Tensor:
        return self.prosody(text, style).durations

    def speak(self, text, prosody, style, seeds, windows=None, **_) -> Speech:  # type: ignore[no-untyped-def]
        self.spoken += len(seeds)
        windows = windows or [(0, n) for n in prosody.frames]
        items = []
        for s, seed, f0, (start, frames) in zip(style, seeds, prosody.f0, windows, strict=True):
            time = torch.arange(start * SAMPLES_PER_FRAME, (start + frames) * SAMPLES_PER_FRAME) / 24_000
            harmonics = torch.arange(1, 9)
            waves = torch.sin(2 * torch.pi * f0[:1].detach() * harmonics[:, None] * time)
            noise = torch.randn(len(time), generator=torch.Generator().manual_seed(seed)) * 1e-3
            items.append((s[:8].sigmoid()[:, None] * waves).sum(dim=0) / 8 + noise)
        return Speech(pad_sequence(items, batch_first=True), tuple(n for _, n in windows))


class LivelyKokoro(FakeKokoro):
    """Fake Kokoro whose F0 and energy vary over time, depending on the style; every tenth F0 value is unvoiced."""

    def prosody(
        self, text: TextStates, style: Tensor, token_frames: Tensor | None = None, speed: float = 1.0
    ) -> Prosody:
        plain = super().prosody(text, style, token_frames, speed)
        place = torch.arange(plain.f0.shape[1]) / 7
        height, spread, speed, level = style[:, 128:132].split(1, dim=1)
        f0 = 130 * 2 ** (0.5 * torch.tanh(height) + 0.2 * spread * torch.sin(place))
        f0 = torch.where(torch.arange(f0.shape[1]) % 10 == 9, 0.0, f0)
        energy = level + torch.sin(place) + 0.5 * torch.sin((2 + speed) * place)
        return Prosody(plain.durations, plain.token_frames, f0, energy, plain.frames)


class FakeSpeakerEncoder:
    """Fake speaker encoder, differentiable: the log levels of 24 bands of 100 Hz, projected at random."""

    def __init__(self, name: str) -> None:
        self.name, self.size = name, SPEAKER_SIZES[name]
        self.embedded = 0
        generator = torch.Generator().manual_seed(self.size)
        self._projection = torch.randn(24, self.size, generator=generator)

    def __call__(self, audio: Tensor) -> Tensor:
        power = torch.fft.rfft(audio).abs().square()[:, 1 : int(2400 * audio.shape[1] / WHISPER_RATE) + 1]
        levels = torch.log(torch.nn.functional.adaptive_avg_pool1d(power[:, None], 24)[:, 0] / audio.shape[1] + 1e-4)
        return torch.nn.functional.normalize((levels - levels.mean(dim=1, keepdim=True)) @ self._projection, dim=1)

    @torch.no_grad()
    def embed(self, audio: Tensor, rate: int) -> Tensor:
        self.embedded += 1
        return self(resample(audio, rate, WHISPER_RATE)[None])[0]


class FakeSpeakers:
    """The speaker encoders of a fake ``ModelSet``, made when they are asked for."""

    def __init__(self) -> None:
        self.used: dict[str, FakeSpeakerEncoder] = {}
        self.hashes = {name: f"{name} weights" for name in SPEAKER_SIZES}

    def encoder(self, name: str) -> FakeSpeakerEncoder:
        return self.used.setdefault(name, FakeSpeakerEncoder(name))

    def sha256(self, name: str) -> str:
        return self.hashes[name]

    @property
    def embedded(self) -> int:
        """Number of recordings that were embedded."""
        return sum(encoder.embedded for encoder in self.used.values())


class FakeWhisper:
    """Fake Whisper: 3 layers of 4 channels, the levels of four bands per 20 ms, times the number of the layer."""

    def __init__(self) -> None:
        self.heard = 0

    def blocks(self, audio: Tensor, layers: Sequence[int] | None = None) -> Iterator[Tensor]:
        yield from self(audio, layers).split(1600, dim=1)  # 32 s

    def __call__(self, audio: Tensor, layers: Sequence[int] | None = None) -> Tensor:
        self.heard += 1
        frames = -(-len(audio) // SAMPLES_PER_FEATURE_FRAME)
        padded = torch.nn.functional.pad(audio, (0, frames * SAMPLES_PER_FEATURE_FRAME - len(audio)))
        bands = torch.fft.rfft(padded.view(frames, -1)).abs()[:, :160].view(frames, 4, 40).mean(dim=2)
        return torch.stack([bands * (layer + 1.0) for layer in layers or range(3)])

    def encode_segment(self, audio: Tensor, layers: Sequence[int]) -> Tensor:
        return self(audio, layers)


def fake_models(folder: Path, names: Sequence[str] = VOICES) -> SimpleNamespace:
    """Make a fake ``ModelSet`` with random packs for the given voices, eight by default."""
    folder.mkdir(parents=True, exist_ok=True)
    packs = {}
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        voice = rng.normal(size=(1, 1, STYLE_SIZE)) + 0.1 * rng.normal(size=(PACK_ROWS, 1, STYLE_SIZE))
        packs[name] = folder / f"{name}.npy"
        np.save(packs[name], voice.astype(np.float32))
    speakers = FakeSpeakers()
    return SimpleNamespace(
        kokoro=FakeKokoro(),
        whisper=FakeWhisper(),
        voices=VoiceBank(packs),
        phonemizer=Phonemizer("fake", lambda text: text.lower().strip(".")),
        kokoro_files=SimpleNamespace(sha256="kokoro"),
        whisper_file=SimpleNamespace(sha256="whisper", name="fake"),
        device=torch.device("cpu"),
        speakers=speakers,
        speaker_encoder=speakers.encoder,
        speaker_sha256=speakers.sha256,
    )


def held_out_models(folder: Path) -> SimpleNamespace:
    """Make a fake ``ModelSet`` with test voices, ``LivelyKokoro``, and at most 8 phonemes per sentence, for speed."""
    models = fake_models(folder, VOICES + TEST_VOICES)
    models.kokoro = LivelyKokoro()
    models.phonemizer = Phonemizer("initials", lambda text: "".join(word[0] for word in text.lower().split())[:8])
    return models


def random_encoder(models: SimpleNamespace, run: RunConfig, layers: tuple[int, ...] = (2, 0)) -> StyleEncoder:
    """Make an encoder with random heads for some layers of the fake Whisper, calibrated with three voices."""
    packs = torch.stack([models.voices.pack(name) for name in VOICES[:3]])
    torch.manual_seed(0)
    encoder = StyleEncoder(
        StyleEncoderConfig(
            encoder=run.encoder,
            features=run.features,
            whisper="fake",
            layers=layers,
            channels=4,
            voices=len(packs),
            speaker_channels=speaker_channels(run.features),
        )
    )
    encoder.calibrate(FeatureStatistics(torch.ones(len(layers), 4), torch.full((len(layers), 4), 2.0)), packs)
    for weights in encoder.heads.parameters():
        torch.nn.init.normal_(weights)
    return encoder


def band_embedding(audio: Tensor, rate: int) -> Tensor:
    """Fake speaker encoder: log levels of 24 bands up to 2.4 kHz, minus their mean, normalised to length 1."""
    spectrum = torch.fft.rfft(audio, rate).abs()[:2400].view(24, 100).mean(dim=1)  # of the first second, one bin per Hz
    levels = torch.log(spectrum + 1e-3)
    return torch.nn.functional.normalize(levels - levels.mean(), dim=0)


def loudness_pitch(audio: Tensor) -> Tensor:
    """Fake pitch tracker: the level of each 25 ms, read as Hz, or 0 where it is low."""
    level = 300 * audio[: len(audio) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].view(-1, SAMPLES_PER_FRAME).std(dim=1)
    return torch.where(level > 20, level, 0.0)
