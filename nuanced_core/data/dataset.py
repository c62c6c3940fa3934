"""Utterances spoken once by Kokoro and heard once by Whisper, kept in a cache that all trials share.

A cache entry's name is the hash of all that it depends on (weights, style, phonemes, noise seed, device), so a
changed setting renders only what it changes. What the hash cannot see, a change of our own code, raises ``HEARING``
or the cache's ``FORMAT``.

Version 0 of a clip, or "clean", is the clip as Kokoro spoke it; version i is what ``augmented`` makes of it the i-th
time; a version with another name is what ``degraded`` makes of it.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, N tokens, S = 256 style.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.config.settings import Augment, Condition, WindowFrames
from nuanced_core.data.cache import Cache
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Utterance
from nuanced_core.errors import ConfigError
from nuanced_core.hashing import content_key, derived_seed
from nuanced_core.hearing.augmentation import augmented, degraded
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.kokoro.decoder import Precision
from nuanced_core.kokoro.model import Prosody, Speech

__all__ = ["CLEAN", "Batch", "Clip", "Dataset", "Version", "windows"]

HEARING = "2"  # part of features' names: raise it when Whisper's states of a clip, or its augmented sound, change
CLEAN = (0,)  # the version that is not augmented
NO_COPIES = Augment(copies=0)

Version = int | Condition


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


class Dataset:
    """Clips of utterances, from the cache or rendered into it.

    Args:
        models: Kokoro and Whisper; Whisper is loaded only to hear a clip for the first time.
        folder: the cache.
        augment: what the versions of a clip are.
    """

    def __init__(self, models: ModelSet, folder: Path, augment: Augment = NO_COPIES) -> None:
        self.models = models
        self.folder = folder
        self.augment = augment
        self.cache = Cache(folder)

    @property
    def versions(self) -> tuple[int, ...]:
        """Of each training clip: the clean one and its augmented copies."""
        return tuple(range(1 + self.augment.copies))

    def clips(self, utterances: Iterable[Utterance], versions: Sequence[Version] = CLEAN) -> list[Clip]:
        """Utterances as clips, in order; what is missing of them and of these versions is rendered and heard.

        Raises:
            DiskError: the cache cannot be written.
        """
        clips = []
        for utterance in utterances:
            clips.append(self._clip(utterance))
            for version in versions:
                if not self.cache.has("features", self._features_key(clips[-1].key, version)):
                    self._hear(clips[-1], version)
        return clips

    def missing(self, utterances: Iterable[Utterance], versions: Sequence[Version] = CLEAN) -> list[Utterance]:
        """Those utterances of which the cache lacks the sound, or Whisper's states of one of these versions."""
        keys = {self._clip_key(utterance): utterance for utterance in utterances}
        return [utterance for key, utterance in keys.items() if not self._is_there(key, versions)]

    def layers(self, choice: str | Sequence[int], clip: Clip) -> tuple[int, ...]:
        """The layers that ``features.layers`` means, of those that Whisper has.

        Raises:
            ConfigError: Whisper has no such layer.
        """
        count = len(self.cache.names("features", self._features_key(clip.key, 0)) or self._hear(clip, 0))
        if choice == "all":
            return tuple(range(count))
        layers = (count - 1,) if choice == "last" else tuple(int(layer) for layer in choice)
        if not layers or max(layers) >= count:
            raise ConfigError(
                f"features.layers: {list(layers)}: Whisper {self.models.whisper_file.name} has layers 0 to {count - 1}"
            )
        return layers

    def batch(
        self,
        clips: Sequence[Clip],
        layers: Sequence[int],
        versions: Sequence[Version] | None = None,
        spoken: Sequence[Clip] | None = None,
    ) -> Batch:
        """Features of some of Whisper's layers, padded to the longest clip, and the targets, on the models' device.

        ``versions`` says which version of each clip is heard, by default the clean one; ``spoken`` what is to be said
        in each one's voice, by default what is heard.
        """
        device = self.models.device
        heard = zip(clips, versions or [0] * len(clips), strict=True)
        states = [self._states(clip, layers, version) for clip, version in heard]  # each (L, T, D)
        lengths = torch.tensor([s.shape[1] for s in states])
        features = pad_sequence([s.transpose(0, 1) for s in states], batch_first=True).transpose(1, 2)
        return Batch(
            features.to(device, torch.float32),
            (torch.arange(int(lengths.max())) < lengths[:, None]).to(device),
            torch.tensor([clip.utterance.phoneme_count for clip in spoken or clips], device=device),
            torch.stack([clip.utterance.style for clip in spoken or clips]).to(device),
        )

    def statistics(self, clips: Sequence[Clip], layers: Sequence[int]) -> FeatureStatistics:
        """Mean and spread (L, D) of each feature over all frames of some clips.

        Of each clip one version is heard, in turn: a copy more does not take longer. They are kept in the cache.
        """
        heard = [self._features_key(clip.key, self.versions[i % len(self.versions)]) for i, clip in enumerate(clips)]
        key = content_key("statistics", heard, list(layers))
        kept = self.cache.load("baselines", key)
        if kept is None:
            mean, std = self._statistics(clips, layers)
            kept = self.cache.save("baselines", key, {"mean": mean, "std": std})
        return FeatureStatistics(kept["mean"], kept["std"])

    def _statistics(self, clips: Sequence[Clip], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        frames = 0
        sums: list[Tensor] = []
        for index, clip in enumerate(clips):
            states = self._states(clip, layers, self.versions[index % len(self.versions)]).double()
            part = [states.sum(dim=1), states.square().sum(dim=1)]
            sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
            frames += states.shape[1]
        mean = sums[0] / frames
        variance = (sums[1] / frames - mean.square()).clamp(min=1e-8)
        return mean.float(), variance.sqrt().float()

    def reference(self, clip: Clip, window: tuple[int, int]) -> Tensor:
        """A window (first frame, frames) of a clip as Kokoro speaks it alone, (samples,) at 24 kHz.

        Kokoro's instance norms look at all that is spoken at once: a window cut from the whole clip would differ
        from a predicted window even for the same style.
        """
        if window == (0, clip.frames):
            return clip.audio
        key = content_key(clip.key, *window)
        found = self.cache.load("windows", key)
        if found is None:
            with torch.no_grad():
                style = clip.utterance.style.unsqueeze(0).to(self.models.device)
                audio = self.speak([clip], style, [window]).item(0).cpu()
            found = self.cache.save("windows", key, {"audio": audio})
        return found["audio"]

    def prosody(self, clips: Sequence[Clip], styles: Tensor) -> Prosody:
        """Durations, F0 and energy of clips in other styles (B, 256), on the clips' alignment, differentiable."""
        text = self.models.kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        token_frames = pad_sequence([clip.token_frames for clip in clips], batch_first=True)
        return self.models.kokoro.prosody(text, styles, token_frames)

    def speak(
        self,
        clips: Sequence[Clip],
        styles: Tensor,
        chosen: Sequence[tuple[int, int]],
        noise: int = 0,
        *,
        prosody: Prosody | None = None,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> Speech:
        """Windows of clips in other styles (B, 256), with the clips' durations; ``noise`` is added to their seeds.

        Differentiable to the styles. ``prosody`` is that of the styles if it is known already; ``precision`` and
        ``checkpointing`` are as in ``DifferentiableKokoro.speak``.
        """
        kokoro = self.models.kokoro
        text = kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        prosody = prosody or self.prosody(clips, styles)
        seeds = [clip.utterance.seed + noise for clip in clips]
        return kokoro.speak(text, prosody, styles, seeds, chosen, precision=precision, checkpointing=checkpointing)

    def _clip(self, utterance: Utterance) -> Clip:
        key = self._clip_key(utterance)
        found = self.cache.load("clips", key)
        if found is None:
            kokoro = self.models.kokoro
            style_batch = utterance.style.unsqueeze(0).to(self.models.device)
            with torch.no_grad():
                text = kokoro.encode_text([utterance.phonemes])
                prosody = kokoro.prosody(text, style_batch)
                audio = kokoro.speak(text, prosody, style_batch, [utterance.seed]).item(0).cpu()
            found = self.cache.save("clips", key, {"audio": audio, "token_frames": prosody.token_frames[0]})
        return Clip(utterance, key, found["audio"], found["token_frames"])

    def _states(self, clip: Clip, layers: Sequence[int], version: Version) -> Tensor:
        """Whisper's states of a version of a clip, (L, T, D) float16."""
        names = [str(layer) for layer in layers]
        found = self.cache.load("features", self._features_key(clip.key, version), names) or self._hear(clip, version)
        return torch.stack([found[name] for name in names])

    def _hear(self, clip: Clip, version: Version) -> dict[str, Tensor]:
        """Whisper's states of a version of a clip by layer, each (T, D) float16, for the first time."""
        audio = resample(clip.audio, KOKORO_RATE, WHISPER_RATE)
        if isinstance(version, str) and version != "clean":
            audio = degraded(audio, WHISPER_RATE, version, derived_seed(clip.key, version))
        elif isinstance(version, int) and version:
            audio = augmented(audio, WHISPER_RATE, self.augment, derived_seed(clip.key, version))
        states = self.models.whisper(audio).half()
        key = self._features_key(clip.key, version)
        return self.cache.save("features", key, {str(layer): s for layer, s in enumerate(states)})

    def _is_there(self, clip_key: str, versions: Sequence[Version]) -> bool:
        features = [self.cache.has("features", self._features_key(clip_key, version)) for version in versions]
        return self.cache.has("clips", clip_key) and all(features)

    def _clip_key(self, utterance: Utterance) -> str:
        style_hash = hashlib.sha256(utterance.style.numpy().tobytes()).hexdigest()
        weights = self.models.kokoro_files.sha256
        return content_key(weights, style_hash, utterance.phonemes, utterance.seed, self.models.device.type)

    def _features_key(self, clip_key: str, version: Version) -> str:
        changes: list[object] = []
        if isinstance(version, str):
            changes = [] if version == "clean" else [version]
        elif version:
            changes = [self.augment.model_dump(mode="json", exclude={"copies"}), version]
        return content_key(clip_key, self.models.whisper_file.sha256, HEARING, *changes)


def windows(frames: int, window: WindowFrames) -> list[tuple[int, int]]:
    """The windows (first frame, frames) that cover a clip; the last one overlaps its neighbour rather than be short."""
    if window == "full" or frames <= window:
        return [(0, frames)]
    starts = [*range(0, frames - window, window), frames - window]
    return [(start, window) for start in starts]
