"""Held-out metrics: how a style speaks validation sentences, beside the mean voice and the oracle.

Dimensions: V validation clips, S = 256 style.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from nuanced_core.config.settings import Condition, Objective, RunConfig
from nuanced_core.data.dataset import Clip, Dataset, windows
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hashing import content_key
from nuanced_core.training.losses import MelSTFTLoss, style_loss

__all__ = ["Baselines", "Scores", "Validation", "baseline_pack", "skill", "validation_inputs"]

SPOKEN_AT_ONCE = 4  # clips: bounds the memory of a validation


@dataclass(frozen=True)
class Scores:
    """Means over the validation clips; lower is better."""

    loss: float  # the objective
    stft: float  # multi-resolution mel-STFT loss
    style: float  # 1 - cosine + mean squared error


@dataclass(frozen=True)
class Baselines:
    """What an encoder is measured against."""

    mean: Scores  # the mean voice of all stock voices that may be trained on
    oracle: Scores  # the true style, with another noise seed


def skill(loss: float, baselines: Baselines) -> float:
    """0 is the mean voice, 1 the oracle: ``1 - (L - L_oracle) / (L_mean - L_oracle)``."""
    return 1 - (loss - baselines.oracle.loss) / (baselines.mean.loss - baselines.oracle.loss)


def validation_inputs(voices: Sequence[str], conditions: Sequence[Condition]) -> list[tuple[int, Condition]]:
    """What is heard for each of the utterances with these voices: which utterance, in which condition.

    It is the same voice's next one (for its last one the first): a style is to speak what was never heard in it.
    """
    of_voice: dict[str, list[int]] = {}
    for index, voice in enumerate(voices):
        of_voice.setdefault(voice, []).append(index)
    following = {a: b for own in of_voice.values() for a, b in zip(own, [*own[1:], own[0]], strict=True)}
    return [(following[index], conditions[index % len(conditions)]) for index in range(len(voices))]


class Validation:
    """Validation voices saying validation sentences, a fixed window of each, compared by fixed weights.

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
        """How styles (V, 256) speak the clips; ``noise`` is added to the seeds of the references."""
        losses = []
        for start in range(0, len(self.clips), SPOKEN_AT_ONCE):
            chosen = slice(start, start + SPOKEN_AT_ONCE)
            losses += self._stft(
                self.clips[chosen], self._windows[chosen], self._targets[chosen], styles[chosen], noise
            )
        stft = sum(losses) / len(losses)
        targets = torch.stack([clip.utterance.style for clip in self.clips]).to(styles.device)
        style = float(style_loss(styles, targets))
        return Scores(self.objective.stft * stft + self.objective.style * style, stft, style)

    def baselines(self, mean_pack: Tensor) -> Baselines:
        """Scores of a mean voice's pack (510, 256) and of the oracle; computed once and kept in the cache."""
        style_hash = content_key(mean_pack.flatten().tolist())
        loss = [self.objective.model_dump(), self.mel.resolutions]
        key = content_key([c.key for c in self.clips], self._windows, loss, style_hash)
        kept = self.dataset.cache.load("baselines", key)
        if kept is not None:
            return Baselines(Scores(*kept["mean"].tolist()), Scores(*kept["oracle"].tolist()))
        device = self.dataset.models.device
        counts = [clip.utterance.phoneme_count for clip in self.clips]
        mean = mean_pack[torch.tensor(counts) - 1].to(device)
        true = torch.stack([clip.utterance.style for clip in self.clips]).to(device)
        found = Baselines(self.scores(mean), self.scores(true, noise=1))
        rows = {name: torch.tensor(astuple(row), dtype=torch.float64) for name, row in vars(found).items()}
        self.dataset.cache.save("baselines", key, rows)
        return found

    def _stft(
        self,
        clips: Sequence[Clip],
        chosen: Sequence[tuple[int, int]],
        targets: Sequence[list[Tensor]],
        styles: Tensor,
        noise: int,
    ) -> list[float]:
        speech = self.dataset.speak(clips, styles, chosen, noise)
        return [float(self.mel(self.mel.spectra(speech.item(i)[None]), target)) for i, target in enumerate(targets)]


def _middle(choices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return choices[len(choices) // 2]


def baseline_pack(config: RunConfig, models: ModelSet) -> Tensor:
    """The mean voice, of all voices that may be trained on: the same for every trial, whatever it trains on."""
    voices = models.voices
    return voices.mean_pack(voices.training_voices("all", config.data.val_voices))
