"""Utterances spoken once by Kokoro and heard once by Whisper, kept in a cache that all trials share.

A cache entry's name is the hash of all that it depends on (weights, style, phonemes, noise seed, device), so a
changed setting renders only what it changes. What the hash cannot see, a change of our own code, raises ``FORMAT``.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, N tokens, S = 256 style.
"""

import hashlib
import json
import random
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.config import Data, WindowFrames
from nuanced_core.errors import ConfigError, DiskError, TextError
from nuanced_core.kokoro import Speech
from nuanced_core.kokoro_decoder import Precision
from nuanced_core.model_set import ModelSet
from nuanced_core.style_encoder import FeatureStatistics
from nuanced_core.text import Phonemizer, load_sentences
from nuanced_core.voices import VoiceBank

__all__ = ["Batch", "Clip", "Dataset", "Utterance", "content_key", "plan", "windows"]

FORMAT = "1"  # part of every entry's name: raise it when what an entry holds changes


@dataclass(frozen=True)
class Utterance:
    """A sentence in a voice."""

    voice: str
    text: str
    phonemes: str
    style: Tensor  # (256,)
    seed: int  # of Kokoro's noise


@dataclass(frozen=True)
class Clip:
    """An utterance as Kokoro spoke it."""

    utterance: Utterance
    key: str
    audio: Tensor  # (samples,) at 24 kHz
    token_frames: Tensor  # (N,) frames of each token

    @property
    def frames(self) -> int:
        """Length in Kokoro frames of 25 ms."""
        return len(self.audio) // SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Batch:
    """What a StyleEncoder sees of some clips, and what it should say."""

    features: Tensor  # (B, L, T, D)
    mask: Tensor  # (B, T), True where a clip has a feature frame
    phoneme_counts: Tensor  # (B,)
    styles: Tensor  # (B, 256)


def plan(data: Data, voices: VoiceBank, phonemizer: Phonemizer) -> tuple[list[Utterance], list[Utterance]]:
    """Who says what: training and validation utterances, with no voice and no sentence in both.

    Raises:
        ConfigError, VoiceError, TextError: a voice or a sentence is missing, unknown, or on both sides.
    """
    train_voices = voices.training_voices(data.voices, data.val_voices)
    train_texts = _sentences(data.sentences, "data.sentences", phonemizer, data.max_phonemes)
    val_texts = _sentences(data.val_sentences, "data.val_sentences", phonemizer, data.max_phonemes)
    both = [text for text in val_texts if text in train_texts]
    if both:
        raise ConfigError(f"data.val_sentences: {both[0]!r} is a training sentence too; take it out of one of the two")

    def spoken(names: Sequence[str], texts: dict[str, str], count: int) -> list[Utterance]:
        return [
            Utterance(name, text, texts[text], voices.style(name, len(texts[text])), _seed(data.seed, name, text))
            for name in names
            for text in random.Random(f"{data.seed}/{name}").sample(list(texts), min(count, len(texts)))
        ]

    return (
        spoken(train_voices, train_texts, data.sentences_per_voice),
        spoken(data.val_voices, val_texts, data.val_sentences_per_voice),
    )


class Dataset:
    """Clips of utterances, from the cache or rendered into it.

    Args:
        models: Kokoro and Whisper; Whisper is loaded only to hear a clip for the first time.
        folder: the cache.
    """

    def __init__(self, models: ModelSet, folder: Path) -> None:
        self.models = models
        self.folder = folder

    def clips(self, utterances: Iterable[Utterance]) -> list[Clip]:
        """Utterances as clips, in order; those that are missing are rendered and heard.

        Raises:
            DiskError: the cache cannot be written.
        """
        clips = []
        for utterance in utterances:
            clips.append(self._clip(utterance))
            self._states(clips[-1], (0,))
        return clips

    def missing(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """Those utterances of which the cache lacks the sound or Whisper's states."""
        keys = {self._clip_key(utterance): utterance for utterance in utterances}
        return [
            utterance
            for key, utterance in keys.items()
            if not (self._path("clips", key).is_file() and self._path("features", self._features_key(key)).is_file())
        ]

    def layers(self, choice: str | Sequence[int], clip: Clip) -> tuple[int, ...]:
        """The layers that ``features.layers`` means, of those that Whisper has.

        Raises:
            ConfigError: Whisper has no such layer.
        """
        with safe_open(self._path("features", self._features_key(clip.key)), framework="pt") as file:
            count = len(file.keys())
        if choice == "all":
            return tuple(range(count))
        layers = (count - 1,) if choice == "last" else tuple(int(layer) for layer in choice)
        if not layers or max(layers) >= count:
            raise ConfigError(
                f"features.layers: {list(layers)}: Whisper {self.models.whisper_file.name} has layers 0 to {count - 1}"
            )
        return layers

    def batch(self, clips: Sequence[Clip], layers: Sequence[int]) -> Batch:
        """Features of some of Whisper's layers, padded to the longest clip, and the targets, on the models' device."""
        device = self.models.device
        states = [self._states(clip, layers) for clip in clips]  # each (L, T, D)
        lengths = torch.tensor([s.shape[1] for s in states])
        features = pad_sequence([s.transpose(0, 1) for s in states], batch_first=True).transpose(1, 2)
        return Batch(
            features.to(device, torch.float32),
            (torch.arange(int(lengths.max())) < lengths[:, None]).to(device),
            torch.tensor([len(clip.utterance.phonemes) for clip in clips], device=device),
            torch.stack([clip.utterance.style for clip in clips]).to(device),
        )

    def statistics(self, clips: Sequence[Clip], layers: Sequence[int]) -> FeatureStatistics:
        """Mean and spread (L, D) of each feature over all frames of some clips."""
        total = torch.zeros(3, dtype=torch.float64)
        sums: list[Tensor] = []
        for clip in clips:
            states = self._states(clip, layers).double()
            part = [states.sum(dim=1), states.square().sum(dim=1)]
            sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
            total[0] += states.shape[1]
        mean = sums[0] / total[0]
        variance = (sums[1] / total[0] - mean.square()).clamp(min=1e-8)
        return FeatureStatistics(mean.float(), variance.sqrt().float())

    def reference(self, clip: Clip, window: tuple[int, int]) -> Tensor:
        """A window (first frame, frames) of a clip as Kokoro speaks it alone, (samples,) at 24 kHz.

        Kokoro's instance norms look at all that is spoken at once: a window cut from the whole clip would differ
        from a predicted window even for the same style.
        """
        if window == (0, clip.frames):
            return clip.audio
        key = content_key(clip.key, *window)
        found = self._load("windows", key)
        if found is None:
            with torch.no_grad():
                style = clip.utterance.style.unsqueeze(0).to(self.models.device)
                audio = self.speak([clip], style, [window]).item(0).cpu()
            found = self._save("windows", key, {"audio": audio})
        return found["audio"]

    def speak(
        self,
        clips: Sequence[Clip],
        styles: Tensor,
        chosen: Sequence[tuple[int, int]],
        noise: int = 0,
        *,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> Speech:
        """Windows of clips in other styles (B, 256), with the clips' durations; ``noise`` is added to their seeds.

        Differentiable to the styles; ``precision`` and ``checkpointing`` as in ``DifferentiableKokoro.speak``.
        """
        kokoro = self.models.kokoro
        text = kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        token_frames = pad_sequence([clip.token_frames for clip in clips], batch_first=True)
        prosody = kokoro.prosody(text, styles, token_frames)
        seeds = [clip.utterance.seed + noise for clip in clips]
        return kokoro.speak(text, prosody, styles, seeds, chosen, precision=precision, checkpointing=checkpointing)

    def _clip(self, utterance: Utterance) -> Clip:
        key = self._clip_key(utterance)
        found = self._load("clips", key)
        if found is None:
            kokoro = self.models.kokoro
            style_batch = utterance.style.unsqueeze(0).to(self.models.device)
            with torch.no_grad():
                text = kokoro.encode_text([utterance.phonemes])
                prosody = kokoro.prosody(text, style_batch)
                audio = kokoro.speak(text, prosody, style_batch, [utterance.seed]).item(0).cpu()
            found = self._save("clips", key, {"audio": audio, "token_frames": prosody.token_frames[0]})
        return Clip(utterance, key, found["audio"], found["token_frames"])

    def _states(self, clip: Clip, layers: Sequence[int]) -> Tensor:
        """Whisper's states of a clip, (L, T, D) float16."""
        key = self._features_key(clip.key)
        names = [str(layer) for layer in layers]
        found = self._load("features", key, names)
        if found is None:
            states = self.models.whisper(resample(clip.audio, KOKORO_RATE, WHISPER_RATE)).half()
            found = self._save("features", key, {str(i): s.contiguous() for i, s in enumerate(states)})
        return torch.stack([found[name] for name in names])

    def _clip_key(self, utterance: Utterance) -> str:
        style = hashlib.sha256(utterance.style.numpy().tobytes()).hexdigest()
        weights = self.models.kokoro_files.sha256
        return content_key(weights, style, utterance.phonemes, utterance.seed, self.models.device.type)

    def _features_key(self, clip_key: str) -> str:
        return content_key(clip_key, self.models.whisper_file.sha256)

    def _load(self, kind: str, key: str, names: Sequence[str] | None = None) -> dict[str, Tensor] | None:
        try:
            with safe_open(self._path(kind, key), framework="pt") as file:
                found = [n for n in file.keys() if names is None or n in names]  # noqa: SIM118 (no mapping)
                return {name: file.get_tensor(name) for name in found}
        except FileNotFoundError:
            return None
        except SafetensorError:
            return None  # damaged: rendered again and replaced

    def _save(self, kind: str, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        path = self._path(kind, key)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
            part.replace(path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise DiskError(f"{path.parent}: the cache cannot be written: {error}; free some disk") from None
        return tensors

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / kind / key[:2] / f"{key}.safetensors"


def windows(frames: int, window: WindowFrames) -> list[tuple[int, int]]:
    """The windows (first frame, frames) that cover a clip; the last one overlaps its neighbour rather than be short."""
    if window == "full" or frames <= window:
        return [(0, frames)]
    starts = [*range(0, frames - window, window), frames - window]
    return [(start, window) for start in starts]


def _sentences(
    source: str | tuple[str, ...], setting: str, phonemizer: Phonemizer, max_phonemes: int
) -> dict[str, str]:
    """Sentences and their phonemes, without those that are too long."""
    try:
        texts = load_sentences(source)
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    try:
        phonemes = {text: phonemizer(text) for text in texts}
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    kept = {text: p for text, p in phonemes.items() if len(p) <= max_phonemes}
    if not kept:
        shortest = min(len(p) for p in phonemes.values())
        raise ConfigError(
            f"data.max_phonemes: {max_phonemes}: no sentence of {setting} is that short; at least {shortest} is needed"
        )
    return kept


def _seed(*parts: object) -> int:
    """A seed of 31 bits that depends on all of the parts."""
    return int(content_key(*parts)[:8], 16) >> 1


def content_key(*parts: object) -> str:
    """The name of what depends on all of the parts (anything that JSON can say)."""
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()
