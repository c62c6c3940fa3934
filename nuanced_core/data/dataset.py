"""Clips and their Whisper features, each computed once and kept in a cache that all trials share.

The key of a cache entry is the hash of everything that the entry depends on (weights, style, phonemes, noise seed,
device), so a changed setting renders only what it changes. The hash does not cover this project's code: raise
``FEATURES_FORMAT``, or ``KEY_FORMAT`` of ``nuanced_core.hashing``, when the code computes something else.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, E channels of speaker features, N tokens, S = 256
style.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.config.settings import PITCH, Augment, Features, WindowFrames
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.data.versions import CLEAN, NO_COPIES, AugmentedCopy, Version, heard_version, version_key
from nuanced_core.errors import ConfigError
from nuanced_core.hashing import content_key
from nuanced_core.hearing.pitch import clip_pitch
from nuanced_core.hearing.speaker_features import speaker_features
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.kokoro.decoder import Precision
from nuanced_core.kokoro.model import Prosody, Speech

__all__ = ["FEATURES_FORMAT", "SPEAKERS_FORMAT", "Batch", "Clip", "Dataset", "pad_states", "resolve_layers", "windows"]

FEATURES_FORMAT = "2"  # part of features' keys: raise it when augmentation or Whisper's states of a clip change
SPEAKERS_FORMAT = "3"  # part of the keys of speaker embeddings and pitch


@dataclass(frozen=True)
class Clip:
    """An utterance as rendered by Kokoro."""

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
    """Inputs of a StyleEncoder for some clips, and the target styles."""

    features: Tensor  # (B, L, T, D)
    mask: Tensor  # (B, T), True where a clip has a feature frame
    phoneme_counts: Tensor  # (B,)
    styles: Tensor  # (B, 256)
    speaker: Tensor | None = None  # (B, E), if ``features.speaker`` or ``features.pitch`` is set


class Dataset:
    """Clips of utterances and their features, from the cache or computed and added to it.

    Args:
        models: Kokoro and Whisper; Whisper is loaded only to compute features that the cache lacks.
        folder: the cache.
        augment: settings that define the augmented copies of a clip.
        parts: what is computed of each version of a clip beside Whisper's states: names of speaker encoders, and
            ``PITCH``.
    """

    def __init__(self, models: ModelSet, folder: Path, augment: Augment = NO_COPIES, parts: Sequence[str] = ()) -> None:
        self.models = models
        self.folder = folder
        self.augment = augment
        self.parts = tuple(parts)
        self.cache = Cache(folder)

    @property
    def versions(self) -> tuple[int, ...]:
        """Versions of each training clip: the clean one and its augmented copies."""
        return tuple(range(1 + self.augment.copies))

    def with_settings(self, versions: Iterable[Version]) -> tuple[Version, ...]:
        """Return the versions such that they mean the same to a dataset with other augment settings."""
        settings = self.augment.model_copy(update={"copies": 0})  # the number of copies does not change any of them
        return tuple(AugmentedCopy(settings, v) if isinstance(v, int) and v else v for v in versions)

    def clips(self, utterances: Iterable[Utterance], versions: Sequence[Version] = CLEAN) -> list[Clip]:
        """Return the clips of utterances, in order; clips and features of ``versions`` that are missing are computed.

        Raises:
            DiskError: the cache cannot be written.
        """
        clips = []
        for utterance in utterances:
            clips.append(self._clip(utterance))
            for version in versions:
                if not self.cache.has("features", self._features_key(clips[-1].key, version)):
                    self._compute_features(clips[-1], version)
                for part in self.parts:
                    if not self.cache.has("speakers", self._part_key(clips[-1].key, version, part)):
                        self.part(clips[-1], version, part)
        return clips

    def missing(self, utterances: Iterable[Utterance], versions: Sequence[Version] = CLEAN) -> list[Utterance]:
        """Return the utterances, each once, whose clip or features of one of the versions the cache lacks.

        The entries that are there count as used by this process, which keeps them from being pruned.
        """
        keys = {self.clip_key(utterance): utterance for utterance in utterances}
        return [utterance for key, utterance in keys.items() if not self._is_cached(key, versions)]

    def clip_key(self, utterance: Utterance) -> str:
        """Return the key of an utterance's clip in the cache."""
        style_hash = hashlib.sha256(utterance.style.numpy().tobytes()).hexdigest()
        weights = self.models.kokoro_files.sha256
        return content_key(weights, style_hash, utterance.phonemes, utterance.seed, self.models.device.type)

    def layers(self, choice: str | Sequence[int], clip: Clip) -> tuple[int, ...]:
        """Resolve the setting ``features.layers`` to numbers of Whisper's layers.

        Raises:
            ConfigError: Whisper has no such layer.
        """
        count = len(self.cache.names("features", self._features_key(clip.key, 0)) or self._compute_features(clip, 0))
        return resolve_layers(choice, count, self.models.whisper_file.name)

    def batch(
        self,
        clips: Sequence[Clip],
        layers: Sequence[int],
        versions: Sequence[Version] | None = None,
        target_clips: Sequence[Clip] | None = None,
        speaker: Features | None = None,
    ) -> Batch:
        """Return features of some layers, padded to the longest clip, and targets, on the models' device.

        Args:
            speaker: the settings that say which speaker features the batch has.
            versions: the version of each clip whose features are returned; default: the clean one.
            target_clips: the clip whose phoneme count and style are the target of each item; default: ``clips``.
        """
        device = self.models.device
        pairs = [*zip(clips, versions or [0] * len(clips), strict=True)]
        states = [self._features(clip, layers, version) for clip, version in pairs]  # each (L, T, D)
        features, mask = pad_states(states)
        return Batch(
            features.to(device, torch.float32),
            mask.to(device),
            torch.tensor([clip.utterance.phoneme_count for clip in target_clips or clips], device=device),
            torch.stack([clip.utterance.style for clip in target_clips or clips]).to(device),
            torch.stack([self.speaker(*pair, speaker) for pair in pairs]).to(device)
            if speaker and speaker.speaker_parts
            else None,
        )

    def speaker(self, clip: Clip, version: Version, settings: Features) -> Tensor:
        """Return the speaker features (E,) of a version of a clip."""
        return speaker_features(settings, {name: self.part(clip, version, name) for name in settings.speaker_parts})

    def part(self, clip: Clip, version: Version, name: str) -> Tensor:
        """Return the speaker embedding of a version of a clip by an encoder, or for ``PITCH`` the median and the
        spread of its F0 (2,)."""
        key = self._part_key(clip.key, version, name)
        kept = self.cache.load("speakers", key)
        if kept is None:
            audio = self.heard(clip, version)
            if name == PITCH:
                found = clip_pitch(audio, WHISPER_RATE)
            else:
                found = self.models.speaker_encoder(name).embed(audio, WHISPER_RATE)
            kept = self.cache.save("speakers", key, {"part": found})
        return kept["part"]

    def statistics(self, clips: Sequence[Clip], layers: Sequence[int]) -> FeatureStatistics:
        """Return mean and standard deviation (L, D) of each feature over all frames of some clips.

        The i-th clip contributes one version, i modulo their number, so more copies do not take longer. The result is
        kept in the cache.
        """
        versions = [self.versions[i % len(self.versions)] for i in range(len(clips))]
        features = [self._features_key(clip.key, version) for clip, version in zip(clips, versions, strict=True)]
        key = content_key("statistics", features, list(layers))
        kept = self.cache.load("baselines", key)
        if kept is None:
            mean, std = self._statistics(clips, layers, versions)
            kept = self.cache.save("baselines", key, {"mean": mean, "std": std})
        return FeatureStatistics(kept["mean"], kept["std"])

    def _statistics(
        self, clips: Sequence[Clip], layers: Sequence[int], versions: Sequence[Version]
    ) -> tuple[Tensor, Tensor]:
        frames = 0
        sums: list[Tensor] = []
        for clip, version in zip(clips, versions, strict=True):
            states = self._features(clip, layers, version).double()
            part = [states.sum(dim=1), states.square().sum(dim=1)]
            sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
            frames += states.shape[1]
        mean = sums[0] / frames
        variance = (sums[1] / frames - mean.square()).clamp(min=1e-8)
        return mean.float(), variance.sqrt().float()

    def reference(self, clip: Clip, window: tuple[int, int]) -> Tensor:
        """Return a window (first frame, frames) of a clip, rendered by itself: (samples,) at 24 kHz.

        Kokoro's instance norms depend on everything that is rendered at once: a window cut from the whole clip would
        differ from a predicted window even for the same style.
        """
        if window == (0, clip.frames):
            return clip.audio
        key = content_key(clip.key, *window)
        kept = self.cache.load("windows", key)
        if kept is None:
            with torch.no_grad():
                style = clip.utterance.style.unsqueeze(0).to(self.models.device)
                audio = self.speak([clip], style, [window]).item(0).cpu()
            kept = self.cache.save("windows", key, {"audio": audio})
        return kept["audio"]

    def prosody(self, clips: Sequence[Clip], styles: Tensor) -> Prosody:
        """Predict durations, F0 and energy of clips in other styles (B, 256), differentiable in the styles.

        F0 and energy are on the clips' alignment.
        """
        text = self.models.kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        token_frames = pad_sequence([clip.token_frames for clip in clips], batch_first=True)
        return self.models.kokoro.prosody(text, styles, token_frames)

    def speak(
        self,
        clips: Sequence[Clip],
        styles: Tensor,
        windows: Sequence[tuple[int, int]],
        noise: int = 0,
        *,
        prosody: Prosody | None = None,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> Speech:
        """Render a window (first frame, frames) of each clip in another style, differentiable in the styles.

        Args:
            styles: (B, 256).
            noise: added to the clips' noise seeds.
            prosody: that of the styles if it is already computed.
            precision, checkpointing: as in ``DifferentiableKokoro.speak``.

        Returns:
            Speech with the clips' durations.
        """
        kokoro = self.models.kokoro
        text = kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        prosody = prosody or self.prosody(clips, styles)
        seeds = [clip.utterance.seed + noise for clip in clips]
        return kokoro.speak(text, prosody, styles, seeds, windows, precision=precision, checkpointing=checkpointing)

    @torch.no_grad()
    def say(self, phonemes: str, style: Tensor, seed: int = 0) -> Tensor:
        """Speak a sentence in a style (1, 256), with the style's own durations; returns (samples,) at 24 kHz."""
        kokoro, style = self.models.kokoro, style.to(self.models.device)
        text = kokoro.encode_text([phonemes])
        return kokoro.speak(text, kokoro.prosody(text, style), style, [seed]).item(0).cpu()

    def _clip(self, utterance: Utterance) -> Clip:
        key = self.clip_key(utterance)
        kept = self.cache.load("clips", key)
        if kept is None:
            kokoro = self.models.kokoro
            style_batch = utterance.style.unsqueeze(0).to(self.models.device)
            with torch.no_grad():
                text = kokoro.encode_text([utterance.phonemes])
                prosody = kokoro.prosody(text, style_batch)
                audio = kokoro.speak(text, prosody, style_batch, [utterance.seed]).item(0).cpu()
            kept = self.cache.save("clips", key, {"audio": audio, "token_frames": prosody.token_frames[0]})
        return Clip(utterance, key, kept["audio"], kept["token_frames"])

    def _features(self, clip: Clip, layers: Sequence[int], version: Version) -> Tensor:
        """Return Whisper's states of a version of a clip, (L, T, D) float16."""
        names = [str(layer) for layer in layers]
        kept = self.cache.load("features", self._features_key(clip.key, version), names)
        states = kept or self._compute_features(clip, version)
        return torch.stack([states[name] for name in names])

    def _compute_features(self, clip: Clip, version: Version) -> dict[str, Tensor]:
        """Compute and save Whisper's states of a version of a clip, by layer, each (T, D) float16."""
        states = self.models.whisper(self.heard(clip, version)).half()
        key = self._features_key(clip.key, version)
        return self.cache.save("features", key, {str(layer): s for layer, s in enumerate(states)})

    def heard(self, clip: Clip, version: Version) -> Tensor:
        """Return the audio (samples,) at 16 kHz of a version of a clip."""
        audio = resample(clip.audio, KOKORO_RATE, WHISPER_RATE)
        return heard_version(audio, version, self.augment, clip.key)

    def _is_cached(self, clip_key: str, versions: Sequence[Version]) -> bool:
        found = [self.cache.has("features", self._features_key(clip_key, version)) for version in versions]
        found += [
            self.cache.has("speakers", self._part_key(clip_key, v, part)) for v in versions for part in self.parts
        ]
        return self.cache.has("clips", clip_key) and all(found)

    def _features_key(self, clip_key: str, version: Version) -> str:
        return content_key(
            clip_key, self.models.whisper_file.sha256, FEATURES_FORMAT, *version_key(version, self.augment)
        )

    def _part_key(self, clip_key: str, version: Version, part: str) -> str:
        method = "" if part == PITCH else self.models.speaker_sha256(part)
        return content_key(clip_key, part, method, SPEAKERS_FORMAT, *version_key(version, self.augment))


def pad_states(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return Whisper's states of clips, (L, T, D) each, as a batch (B, L, T, D), and its mask (B, T)."""
    lengths = torch.tensor([s.shape[1] for s in states])
    features = pad_sequence([s.transpose(0, 1) for s in states], batch_first=True).transpose(1, 2)
    return features, torch.arange(int(lengths.max())) < lengths[:, None]


def windows(frames: int, window: WindowFrames) -> list[tuple[int, int]]:
    """Return windows (first frame, frames) that cover a clip; the last one overlaps its neighbour to be as long."""
    if window == "full" or frames <= window:
        return [(0, frames)]
    starts = [*range(0, frames - window, window), frames - window]
    return [(start, window) for start in starts]


def resolve_layers(choice: str | Sequence[int], count: int, whisper: str) -> tuple[int, ...]:
    """Resolve the setting ``features.layers`` for a Whisper model with ``count`` layers.

    Raises:
        ConfigError: Whisper has no such layer.
    """
    if choice == "all":
        return tuple(range(count))
    layers = (count - 1,) if choice == "last" else tuple(int(layer) for layer in choice)
    if not layers or max(layers) >= count:
        raise ConfigError(f"features.layers: {list(layers)}: Whisper {whisper} has layers 0 to {count - 1}")
    return layers
