"""Validation: scores of predicted styles on held-out voices and sentences, with the mean voice and the oracle.

Dimensions: V validation clips, S = 256 style.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import torch
from torch import Tensor

from nuanced_core.config.settings import Condition, Objective, RunConfig
from nuanced_core.data.dataset import FEATURES_FORMAT, Clip, Dataset, windows
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.versions import Version
from nuanced_core.encoder.baselines import PENALTIES, StyleBaselines, pooled_features
from nuanced_core.hashing import content_key
from nuanced_core.kokoro.voices import voice_traits
from nuanced_core.losses.reference import MelSTFTLoss, style_loss

__all__ = [
    "Baselines",
    "FittedBaselines",
    "Scores",
    "Validation",
    "baseline_pack",
    "skill",
    "standard_error",
    "validation_inputs",
]

logger = logging.getLogger(__name__)

CLIPS_PER_BATCH = 4  # rendered at once, which limits the memory of a validation
FITTED_CLIPS = 256  # at most, at even intervals


@dataclass(frozen=True)
class Scores:
    """Means over the validation clips; lower is better."""

    loss: float  # the objective
    stft: float  # multi-resolution mel-STFT loss
    style: float  # 1 - cosine + mean squared error
    noise: float = 0.0  # standard error of the loss over voices
    clips: tuple[float, ...] = field(default=(), compare=False)  # the objective of each clip; of baselines not kept


@dataclass(frozen=True)
class Baselines:
    """Scores that an encoder is compared with."""

    mean: Scores  # of the mean voice of all stock voices that may be trained on
    oracle: Scores  # of the true style with another noise seed
    nearest: Scores | None = None  # of the training voice whose features are nearest
    ridge: Scores | None = None  # of ridge regression on the training clips


def skill(loss: float, baselines: Baselines) -> float:
    """Return ``1 - (L - L_oracle) / (L_mean - L_oracle)``: 0 for the mean voice, 1 for the oracle."""
    return 1 - (loss - baselines.oracle.loss) / (baselines.mean.loss - baselines.oracle.loss)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of values of different voices: that of a bootstrap over them, without
    its chance. NaN values are ignored."""
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    return float(known.std(correction=0) / len(known) ** 0.5) if len(known) else 0.0


def validation_inputs(voices: Sequence[str], conditions: Sequence[Condition]) -> list[tuple[int, Condition]]:
    """Return the encoder's input for each validation utterance: the number of an utterance, and its condition.

    The input is the same voice's next utterance (for its last one the first), so that a style is scored on a sentence
    that is not the encoder's input.

    Args:
        voices: the voice of each utterance.
        conditions: taken in turn.
    """
    by_voice: dict[str, list[int]] = {}
    for index, voice in enumerate(voices):
        by_voice.setdefault(voice, []).append(index)
    following = {a: b for own in by_voice.values() for a, b in zip(own, [*own[1:], own[0]], strict=True)}
    return [(following[index], conditions[index % len(conditions)]) for index in range(len(voices))]


class Validation:
    """Scores of styles on a fixed window of each validation clip, with the fixed weights of the objective.

    Args:
        clips: V validation clips.
        mel: the audio loss.
    """

    def __init__(self, dataset: Dataset, clips: Sequence[Clip], objective: Objective, mel: MelSTFTLoss) -> None:
        self.dataset = dataset
        self.clips = tuple(clips)
        self.objective = objective
        self.mel = mel
        self.device = dataset.models.device
        self.inputs = validation_inputs([clip.utterance.voice for clip in clips], objective.conditions)
        self._windows = [_middle(windows(clip.frames, objective.window_frames)) for clip in clips]
        self._targets = [
            mel.spectra(dataset.reference(clip, window).unsqueeze(0).to(dataset.models.device))
            for clip, window in zip(self.clips, self._windows, strict=True)
        ]

    @torch.no_grad()
    def scores(self, styles: Tensor, noise: int = 0) -> Scores:
        """Render the clips in styles (V, 256) and compare them; ``noise`` is added to the clips' noise seeds."""
        losses = []
        for start in range(0, len(self.clips), CLIPS_PER_BATCH):
            part = slice(start, start + CLIPS_PER_BATCH)
            losses += self._stft(self.clips[part], self._windows[part], self._targets[part], styles[part], noise)
        stft = sum(losses) / len(losses)
        targets = torch.stack([clip.utterance.style for clip in self.clips]).to(styles.device)
        style = float(style_loss(styles, targets))
        each = [float(style_loss(styles[i : i + 1], targets[i : i + 1])) for i in range(len(self.clips))]
        weights = self.objective
        totals = [weights.stft * a + weights.style * b for a, b in zip(losses, each, strict=True)]
        spread = standard_error([*_means_by((clip.utterance.voice for clip in self.clips), totals).values()])
        return Scores(weights.stft * stft + weights.style * style, stft, style, spread, tuple(totals))

    def by_group(self, scores: Scores) -> dict[str, float]:
        """Return the mean objective of the clips of each group, such as ``sex_female`` or ``condition_room``.

        Groups are by sex and accent of a clip's voice, as far as its name tells them, and by the condition of what the
        encoder heard.
        """
        groups: dict[str, float] = {}
        if not scores.clips:
            return groups
        traits = [voice_traits(clip.utterance.voice) for clip in self.clips]
        conditions = [{"condition": condition} for _, condition in self.inputs]
        for kind in ("sex", "accent", "condition"):
            names = [
                f"{kind}_{(own | heard).get(kind, 'other')}" for own, heard in zip(traits, conditions, strict=True)
            ]
            groups |= _means_by(names, scores.clips)
        return groups

    def baselines(self, mean_pack: Tensor, fitted: "FittedBaselines | None" = None) -> Baselines:
        """Return the scores of the baselines, from the cache or computed and kept.

        Args:
            mean_pack: (510, 256) of the mean voice.
            fitted: nearest voice and ridge; None: these are not scored.
        """
        counts = torch.tensor([clip.utterance.phoneme_count for clip in self.clips])
        true = torch.stack([clip.utterance.style for clip in self.clips])
        mean = self._kept("mean", mean_pack.flatten().tolist(), lambda: mean_pack[counts - 1])
        oracle = self._kept("oracle", None, lambda: true, noise=1)
        if fitted is None:
            return Baselines(mean, oracle)
        styles = lru_cache(partial(fitted.of_clips, self.clips, self.inputs))
        return Baselines(
            mean,
            oracle,
            self._kept("nearest", fitted.key, lambda: styles()["nearest"]),
            self._kept("ridge", fitted.key, lambda: styles()["ridge"]),
        )

    def _kept(self, name: str, key_part: object, styles: Callable[[], Tensor], noise: int = 0) -> Scores:
        """Return the scores of a baseline's styles (V, 256), from the cache or computed and kept."""
        loss = [self.objective.model_dump(), self.mel.resolutions]
        key = content_key("baseline", name, key_part, [clip.key for clip in self.clips], self._windows, loss)
        kept = self.dataset.cache.load("baselines", key)
        if kept is not None:
            return Scores(*kept["scores"].tolist())
        logger.info("computing the baseline %s on %d validation clips", name, len(self.clips))
        found = self.scores(styles().to(self.device), noise)
        row = torch.tensor([found.loss, found.stft, found.style, found.noise], dtype=torch.float64)
        self.dataset.cache.save("baselines", key, {"scores": row})
        return found

    def _stft(
        self,
        clips: Sequence[Clip],
        windows: Sequence[tuple[int, int]],
        targets: Sequence[list[Tensor]],
        styles: Tensor,
        noise: int,
    ) -> list[float]:
        """Return the mel-STFT loss of each clip."""
        speech = self.dataset.speak(clips, styles, windows, noise)
        return [float(self.mel(self.mel.spectra(speech.item(i)[None]), target)) for i, target in enumerate(targets)]


class FittedBaselines:
    """Nearest voice and ridge regression, fitted to a run's clips of stock voices, clean and augmented, when needed.

    Pooled features of all of Whisper's layers are read, so that trials of the same voices have the same baselines.

    Args:
        clips: of stock voices.
        mean_pack: (510, 256) of the mean voice.

    Attributes:
        key: hash of everything that they depend on.
    """

    def __init__(self, dataset: Dataset, clips: Sequence[Clip], mean_pack: Tensor) -> None:
        self.dataset, self.mean_pack = dataset, mean_pack
        pairs = [(clip, version) for clip in clips for version in dataset.versions]
        self._pairs = pairs[:: -(-len(pairs) // FITTED_CLIPS)]
        versions = [str(version) for version in dataset.with_settings(dataset.versions)]
        whisper = dataset.models.whisper_file.sha256
        keys = [clip.key for clip, _ in self._pairs]
        self.key = content_key(keys, versions, whisper, FEATURES_FORMAT, mean_pack.flatten().tolist())

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All of Whisper's layers."""
        return self.dataset.layers("all", self._pairs[0][0])

    @cached_property
    def fitted(self) -> StyleBaselines:
        """The baselines, fitted."""
        clips, voices = [clip for clip, _ in self._pairs], self.dataset.models.voices
        logger.info("fitting the nearest voice and ridge regression to %d clips", len(clips))
        names = [clip.utterance.voice for clip in clips]
        return StyleBaselines.fit(
            self.features(self._pairs),
            torch.stack([clip.utterance.style for clip in clips]),
            torch.tensor([clip.utterance.phoneme_count for clip in clips]),
            names,
            {name: voices.pack(name) for name in names},
            self.mean_pack,
            PENALTIES[::2],
        )

    def nearest(self, key: str, features: Callable[[], Tensor]) -> tuple[str, ...]:
        """Return the names of the training voices nearest to features (N, C), from the cache or computed and kept.

        Args:
            key: hash of everything that the features depend on.
        """
        names = sorted({clip.utterance.voice for clip, _ in self._pairs})
        kept = self.dataset.cache.load("baselines", key := content_key("nearest", self.key, key))
        if kept is None:
            indices = [names.index(name) for name in self.fitted.nearest(features())]
            kept = self.dataset.cache.save("baselines", key, {"nearest": torch.tensor(indices)})
        return tuple(names[i] for i in kept["nearest"].tolist())

    def features(self, pairs: Sequence[tuple[Clip, Version]]) -> Tensor:
        """Return pooled features (N, C) of versions of clips."""
        batches = (self.dataset.batch([clip], self.layers, [version]) for clip, version in pairs)
        return torch.cat([pooled_features(batch.features, batch.mask).cpu() for batch in batches])

    def of_clips(self, clips: Sequence[Clip], inputs: Sequence[tuple[int, Condition]]) -> dict[str, Tensor]:
        """Return the styles (V, 256) by baseline for validation clips, from what the encoder hears of their voices."""
        counts = torch.tensor([clip.utterance.phoneme_count for clip in clips])
        return self.fitted.styles(self.features(_heard(clips, inputs)), counts)

    def nearest_of_clips(self, clips: Sequence[Clip], inputs: Sequence[tuple[int, Condition]]) -> tuple[str, ...]:
        """Return the names of the training voices nearest to what the encoder hears for each validation clip."""
        heard = _heard(clips, inputs)
        key = content_key([(clip.key, str(version)) for clip, version in heard])
        return self.nearest(key, lambda: self.features(heard))


def _heard(clips: Sequence[Clip], inputs: Sequence[tuple[int, Condition]]) -> list[tuple[Clip, Version]]:
    return [(clips[index], condition) for index, condition in inputs]


def _means_by(names: Iterable[str], values: Sequence[float]) -> dict[str, float]:
    """Return the mean of the values of each name."""
    own: dict[str, list[float]] = {}
    for name, value in zip(names, values, strict=True):
        own.setdefault(name, []).append(value)
    return {name: sum(some) / len(some) for name, some in own.items()}


def _middle(choices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return choices[len(choices) // 2]


def baseline_pack(config: RunConfig, models: ModelSet) -> Tensor:
    """Return the pack (510, 256) of the mean of all voices that may be trained on, whichever of them a trial uses."""
    voices = models.voices
    return voices.mean_pack(voices.training_voices("all", config.data.val_voices))
