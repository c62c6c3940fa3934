"""Validation: scores of predicted styles on held-out voices and sentences, with the mean voice and the oracle.

Dimensions: V validation clips, S = 256 style.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from nuanced_core.config.settings import Condition, Objective, RunConfig
from nuanced_core.data.dataset import Clip, Dataset, windows
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hashing import content_key
from nuanced_core.losses.reference import MelSTFTLoss, style_loss

__all__ = ["Baselines", "Scores", "Validation", "baseline_pack", "skill", "standard_error", "validation_inputs"]

logger = logging.getLogger(__name__)

CLIPS_PER_BATCH = 4  # rendered at once, which limits the memory of a validation


@dataclass(frozen=True)
class Scores:
    """Means over the validation clips; lower is better."""

    loss: float  # the objective
    stft: float  # multi-resolution mel-STFT loss
    style: float  # 1 - cosine + mean squared error
    noise: float = 0.0  # standard error of the loss over voices


@dataclass(frozen=True)
class Baselines:
    """Scores that an encoder is compared with."""

    mean: Scores  # of the mean voice of all stock voices that may be trained on
    oracle: Scores  # of the true style with another noise seed


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
        by_voice: dict[str, list[float]] = {}
        for index, clip in enumerate(self.clips):
            one = style_loss(styles[index : index + 1], targets[index : index + 1])
            total = self.objective.stft * losses[index] + self.objective.style * float(one)
            by_voice.setdefault(clip.utterance.voice, []).append(total)
        spread = standard_error([sum(own) / len(own) for own in by_voice.values()])
        return Scores(self.objective.stft * stft + self.objective.style * style, stft, style, spread)

    def baselines(self, mean_pack: Tensor) -> Baselines:
        """Return scores of a mean voice's pack (510, 256) and of the oracle, from the cache or computed and kept."""
        style_hash = content_key(mean_pack.flatten().tolist())
        loss = [self.objective.model_dump(), self.mel.resolutions]
        key = content_key("with noise", [c.key for c in self.clips], self._windows, loss, style_hash)
        kept = self.dataset.cache.load("baselines", key)
        if kept is not None:
            return Baselines(Scores(*kept["mean"].tolist()), Scores(*kept["oracle"].tolist()))
        logger.info("computing baselines on %d validation clips", len(self.clips))
        device = self.dataset.models.device
        counts = [clip.utterance.phoneme_count for clip in self.clips]
        mean = mean_pack[torch.tensor(counts) - 1].to(device)
        true = torch.stack([clip.utterance.style for clip in self.clips]).to(device)
        baselines = Baselines(self.scores(mean), self.scores(true, noise=1))
        rows = {name: torch.tensor(astuple(row), dtype=torch.float64) for name, row in vars(baselines).items()}
        self.dataset.cache.save("baselines", key, rows)
        return baselines

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


def _middle(choices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return choices[len(choices) // 2]


def baseline_pack(config: RunConfig, models: ModelSet) -> Tensor:
    """Return the pack (510, 256) of the mean of all voices that may be trained on, whichever of them a trial uses."""
    voices = models.voices
    return voices.mean_pack(voices.training_voices("all", config.data.val_voices))
