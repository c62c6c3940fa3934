"""In which style each row of an evaluation's table would speak a clip that it hears.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, S = 256 style.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nuanced_core.config.settings import Data, Mixes, RunConfig
from nuanced_core.data.dataset import CLEAN, Clip, Dataset
from nuanced_core.data.rendering import RenderRequest, render, worker_count
from nuanced_core.data.utterances import Utterance, plan
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.evaluation.baselines import NearestVoice, Ridge, pooled_features

__all__ = ["HEARING_PREDICTORS", "StylePredictors", "rendered"]

HEARING_PREDICTORS = ("nearest", "ridge", "encoder")  # whose style depends on the clip; "mean" is always the same
FEWEST_SENTENCES = 4  # of each training voice, that nearest and ridge learn from


class StylePredictors:
    """The mean voice, the nearest voice, ridge regression, and the encoder that should beat them.

    The first three learn from all stock voices that may be trained on, whichever of them the encoder's run took, and
    from as many training sentences of each as the run had, four at least.

    Args:
        encoder: of ``run``; taken to the dataset's device, in eval mode.
        run: the settings of the run that trained the encoder.

    Raises:
        NuancedError: a clip cannot be rendered, or Whisper lacks a layer that the encoder reads.
    """

    def __init__(self, encoder: StyleEncoder, run: RunConfig, dataset: Dataset) -> None:
        self.encoder = encoder.to(dataset.models.device).eval()
        self.voices = dataset.models.voices
        data = Data(
            voices="all",
            val_voices=run.data.val_voices,
            sentences_per_voice=max(FEWEST_SENTENCES, run.data.sentences_per_voice),
            max_phonemes=run.data.max_phonemes,
            seed=run.data.seed,
        )
        utterances, _ = plan(data, Mixes(), self.voices, dataset.models.phonemizer)
        clips = rendered(dataset, utterances)
        self.layers = dataset.layers("all", clips[0])
        dataset.layers(self.encoder.config.layers, clips[0])  # refused here rather than when a clip is heard
        batches = (dataset.batch([clip], self.layers) for clip in clips)
        features = torch.cat([pooled_features(batch.features, batch.mask).cpu() for batch in batches])
        names = [clip.utterance.voice for clip in clips]
        self.mean_pack = self.voices.mean_pack(tuple(dict.fromkeys(names)))  # (510, 256)
        offsets = [clip.utterance.style - self._mean([clip.utterance.phoneme_count])[0] for clip in clips]
        self.nearest = NearestVoice.fit(features, names)
        self.ridge = Ridge.fit(features, torch.stack(offsets), names)

    @torch.no_grad()
    def __call__(self, features: Tensor, mask: Tensor, phoneme_counts: Sequence[int]) -> dict[str, Tensor]:
        """Styles (B, 256) by row, each for a phoneme count, of all of Whisper's layers (B, L, T, D), mask (B, T)."""
        device = self.encoder.mean_pack.device
        pooled = pooled_features(features, mask).cpu()
        nearest = zip(self.nearest(pooled), phoneme_counts, strict=True)
        heard = features[:, list(self.encoder.config.layers)].to(device)
        encoded = self.encoder(heard, mask.to(device), torch.tensor(phoneme_counts, device=device))
        mean = self._mean(phoneme_counts)
        return {
            "mean": mean,
            "nearest": torch.stack([self.voices.style(name, count) for name, count in nearest]),
            "ridge": mean + self.ridge(pooled),
            "encoder": encoded.cpu(),
        }

    def distance(self, features: Tensor, mask: Tensor) -> Tensor:
        """How far clips (B) lie from the training clips, whose own distance from their mean is 1."""
        return self.nearest.scale.distance(pooled_features(features, mask).cpu())

    def _mean(self, phoneme_counts: Sequence[int]) -> Tensor:
        return self.mean_pack[torch.tensor(phoneme_counts) - 1]


def rendered(dataset: Dataset, utterances: Iterable[Utterance]) -> list[Clip]:
    """Utterances as clips, rendered by several processes where many are missing.

    Raises:
        NuancedError: one cannot be rendered, or the cache cannot be written.
    """
    wanted = list(utterances)
    orders = [RenderRequest(utterance, CLEAN) for utterance in dataset.missing(wanted)]
    workers = worker_count(len(orders), dataset.models) if orders else 1
    # Workers load the models themselves: what this process has loaded is left out.
    unloaded = partial(Dataset, replace(dataset.models), dataset.folder) if workers > 1 else lambda: dataset
    render(orders, unloaded, workers)
    return dataset.clips(wanted)
