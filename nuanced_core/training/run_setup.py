"""The stages of a run before its first step: load its data, build its encoder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.config.settings import RunConfig
from nuanced_core.data.dataset import Batch, Clip, Dataset
from nuanced_core.data.model_set import ModelSet
from nuanced_core.data.utterances import Split, Utterance, plan_utterances, voice_styles
from nuanced_core.encoder.style_encoder import StyleEncoder, StyleEncoderConfig
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.exhibits.exhibition import Exhibition, ShownClip
from nuanced_core.hearing.speaker_features import speaker_channels
from nuanced_core.losses.reference import MelSTFTLoss
from nuanced_core.people.hearing import Hearing
from nuanced_core.training.people import PeopleValidation, RunPeople, hear_people
from nuanced_core.training.surrogates import find_voices, load_frame, load_surrogates
from nuanced_core.training.validation import Baselines, FittedBaselines, Validation, baseline_pack

__all__ = ["RunData", "build_encoder", "load_data", "load_validation"]

CALIBRATION_CLIPS = 128  # at most, for the statistics of pooled channels


@dataclass(frozen=True)
class RunData:
    """The data of a run, loaded or computed."""

    dataset: Dataset
    clips: list[Clip]  # training clips; those of mixes come last
    mix_clips: int  # number of training clips of mixes
    voices: tuple[str, ...]  # stock voices that are trained on
    styles: Mapping[str, Callable[[int], Tensor]]  # by training voice: phoneme count to style (256,); for rows "any"
    layers: tuple[int, ...]  # Whisper layers that the encoder reads
    validation: Validation
    baselines: Baselines  # of all that the objective consists of, people included
    validation_batch: Batch  # inputs of the encoder for the validation clips
    encoder_surrogate: Surrogate | None  # for encoder.surrogate_steps
    people: RunPeople | None  # with data.people
    people_validation: PeopleValidation | None
    exhibition: Exhibition


def load_data(config: RunConfig, models: ModelSet, cache: Path) -> RunData:
    """Plan the utterances and load their clips; what the cache lacks is rendered in this process.

    Raises:
        NuancedError: a voice or a sentence is missing or wrong, Whisper lacks a layer, or the cache cannot be written.
    """
    dataset = Dataset(models, cache, config.augment, config.clip_parts)
    voices = models.voices
    utterances = plan_utterances(config.data, config.mixes, voices, models.phonemizer)
    clips = dataset.clips(utterances.train)
    layers = dataset.layers(config.features.layers, clips[0])
    validation, baselines, fitted = load_validation(config, dataset, utterances)
    names = voices.training_voices(config.data.voices, config.data.val_voices)
    any_row = config.train.rows == "any"
    hearing = hear_people(config, dataset)
    found = find_voices(config, dataset, clips, hearing)
    clips += found.clips
    surrogates = load_surrogates(config, dataset, clips)
    people, people_validation = None, None
    if hearing is not None:
        frame = load_frame(dataset, config.data.val_voices).to(models.device)
        sentences = tuple(dict.fromkeys(clip.utterance.phonemes for clip in clips))
        people = RunPeople(hearing, frame, surrogates.loss, sentences)
        people_validation = load_people_validation(config, dataset, hearing, utterances.validation, fitted)
        baselines = people_validation.added_to(baselines)
    return RunData(
        dataset=dataset,
        clips=clips,
        mix_clips=sum(clip.utterance.voice not in names for clip in clips),
        voices=names,
        styles={**voice_styles(config.data, config.mixes, voices), **found.styles} if any_row else {},
        layers=layers,
        validation=validation,
        baselines=baselines,
        validation_batch=_validation_batch(config, dataset, validation, layers),
        encoder_surrogate=surrogates.encoder,
        people=people,
        people_validation=people_validation,
        exhibition=load_exhibition(config, dataset, validation, fitted, people_validation),
    )


def load_people_validation(
    config: RunConfig,
    dataset: Dataset,
    hearing: Hearing,
    utterances: Sequence[Utterance],
    fitted: FittedBaselines,
) -> PeopleValidation:
    """Choose the validation people and their sentences, and score the baselines, or take these from the cache.

    Raises:
        NuancedError: a voice is missing, or the cache cannot be written.
    """
    sentences = tuple(dict.fromkeys(utterance.phonemes for utterance in utterances))
    return PeopleValidation(config, hearing, dataset, sentences, fitted)


def load_validation(
    config: RunConfig, dataset: Dataset, utterances: Split
) -> tuple[Validation, Baselines, FittedBaselines]:
    """Load the validation clips and compute the baselines, or take them from the cache.

    Raises:
        NuancedError: a voice is missing, or the cache cannot be written.
    """
    mel = MelSTFTLoss().to(dataset.models.device)
    validation = Validation(dataset, dataset.clips(utterances.validation), config.objective, mel)
    voices, mean_pack = dataset.models.voices, baseline_pack(config, dataset.models)
    names = voices.training_voices(config.data.voices, config.data.val_voices)
    stock = dataset.clips(utterance for utterance in utterances.train if utterance.voice in names)
    fitted = FittedBaselines(dataset, stock, mean_pack)
    return validation, validation.baselines(mean_pack, fitted), fitted


def load_exhibition(
    config: RunConfig,
    dataset: Dataset,
    validation: Validation,
    fitted: FittedBaselines,
    people: PeopleValidation | None,
) -> Exhibition:
    """Choose the validation clips and people that the run shows: of each voice its shortest clip, voices in order.

    Raises:
        AudioError: the recording of a person can no longer be read.
    """
    settings, clips = config.show, validation.clips
    by_voice: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        by_voice.setdefault(clip.utterance.voice, []).append(index)
    chosen = [min(own, key=lambda i: clips[i].frames) for own in by_voice.values()][: settings.clips]
    nearest = fitted.nearest_of_clips(clips, validation.inputs) if chosen else ()
    shown = []
    for index in chosen:
        heard, condition = validation.inputs[index]
        voice, audio = clips[index].utterance.voice, dataset.heard(clips[heard], condition)
        name = f"{voice}, {condition}"
        shown.append(
            ShownClip(name, voice, condition, audio, clips[index].utterance, nearest[index], clips[heard], clips[index])
        )
    if people is not None:
        shown += people.shown(settings.people, clips, fitted)
    voices = dataset.models.voices
    frame = load_frame(dataset, config.data.val_voices).to(dataset.models.device)
    return Exhibition(settings, dataset, shown, frame, voices.training_voices("all", config.data.val_voices))


def _validation_batch(config: RunConfig, dataset: Dataset, validation: Validation, layers: Sequence[int]) -> Batch:
    input_clips = [validation.clips[index] for index, _ in validation.inputs]
    conditions = [condition for _, condition in validation.inputs]
    return dataset.batch(input_clips, layers, conditions, validation.clips, config.features)


def build_encoder(config: RunConfig, data: RunData) -> StyleEncoder:
    """Build the run's encoder, with weights from ``train.seed``, calibrated on the training clips and voices."""
    dataset, voices = data.dataset, data.dataset.models.voices
    torch.manual_seed(config.train.seed)
    encoder_config = StyleEncoderConfig(
        encoder=config.encoder,
        features=config.features,
        whisper=config.models.whisper,
        layers=data.layers,
        channels=data.validation_batch.features.shape[-1],
        voices=len(data.voices),
        speaker_channels=speaker_channels(config.features),
        surrogate_clips=0 if data.encoder_surrogate is None else len(data.encoder_surrogate.points),
    )
    encoder = StyleEncoder(encoder_config).to(dataset.models.device)
    packs = torch.stack([voices.pack(name) for name in data.voices])  # (V, 510, 256)
    encoder.calibrate(dataset.statistics(data.clips, data.layers), packs)
    encoder.calibrate_pooled(_calibration_features(encoder, data))
    if encoder.surrogate is not None and data.encoder_surrogate is not None:
        encoder.surrogate.load_state_dict(data.encoder_surrogate.state_dict())
    return encoder


@torch.no_grad()
def _calibration_features(encoder: StyleEncoder, data: RunData) -> Tensor:
    """Return pooled features (N, P) of training clips at even intervals, one version of each."""
    clips = data.clips[:: -(-len(data.clips) // CALIBRATION_CLIPS)]
    versions = data.dataset.versions
    pooled = []
    for index, clip in enumerate(clips):
        version = versions[index % len(versions)]
        batch = data.dataset.batch([clip], data.layers, [version], speaker=encoder.config.features)
        pooled.append(encoder.pooled(batch.features, batch.mask, batch.speaker)[0])
    return torch.stack(pooled)
