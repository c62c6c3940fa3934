"""The surrogate of a run: fitted once to its training clips, then kept in the cache.

A surrogate is least sure of the styles that look best on it. With ``mixes.found`` it proposes voices for training
people, Kokoro speaks in them, and the surrogate is fitted again to all clips.
"""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nuanced_core.config.settings import PITCH, RunConfig
from nuanced_core.data.dataset import SPEAKERS_FORMAT, Clip, Dataset
from nuanced_core.data.utterances import StyleOf, Utterance, found_utterances, found_voice, voice_group
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.hashing import content_key, derived_seed, hash_bytes
from nuanced_core.kokoro.model import STYLE_SIZE
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.surrogate import SurrogateErrors, VoiceSamples, fit_surrogate
from nuanced_core.people.hearing import Hearing
from nuanced_core.people.recordings import HeardRecording
from nuanced_core.speakers.encoders import SPEAKER_SIZES

__all__ = ["FoundVoices", "Surrogates", "find_voices", "load_frame", "load_surrogate", "load_surrogates"]

logger = logging.getLogger(__name__)

# Voices are found farther from the stock voices than an encoder goes, and scattered, so that it is inside of what the
# surrogate knows.
FOUND_STEPS, FOUND_PRIOR, FOUND_SCATTER = 300, 0.03, 0.1

LEAST_GAIN = 0.01  # of cosine, beside which a surrogate is of use
SURROGATE_FORMAT = "5"  # part of the key: raise it when the network or its fitting change


class Surrogates(NamedTuple):
    """The surrogates that a run needs."""

    encoder: Surrogate | None  # for encoder.surrogate_steps
    loss: Surrogate | None  # for loss.surrogate


def load_surrogates(config: RunConfig, dataset: Dataset, clips: Sequence[Clip]) -> Surrogates:
    """Return the surrogates of a run, from the cache or fitted to its training clips and kept.

    Raises:
        DiskError: the cache cannot be written.
    """

    def load(wanted: float, encoders: Sequence[str]) -> Surrogate | None:
        return load_surrogate(dataset, clips, encoders, config.data.val_voices) if wanted else None

    return Surrogates(
        load(config.encoder.surrogate_steps, config.features.speaker_encoders),
        load(config.loss.surrogate, config.loss.speaker_encoders),
    )


class FoundVoices(NamedTuple):
    """Voices that were found for training people."""

    clips: list[Clip]  # what Kokoro speaks in them, one of each
    styles: dict[str, StyleOf]  # by voice


def find_voices(
    config: RunConfig,
    dataset: Dataset,
    clips: Sequence[Clip],
    hearing: Hearing | None,
    render: Callable[[Sequence[Utterance]], None] = lambda utterances: None,
) -> FoundVoices:
    """Find voices for training people on the surrogate, let Kokoro speak in them, and repeat that with what was heard.

    Args:
        clips: those that the first surrogate is fitted to.
        hearing: the people; needed with ``mixes.found``.
        render: called with the utterances of each round before their clips are loaded, which renders those that the
            cache lacks.

    Raises:
        ConfigError, TextError: see ``plan_utterances``.
        DiskError: the cache cannot be written.
    """
    found = FoundVoices([], {})
    if not config.mixes.found or hearing is None:
        return found
    frame = load_frame(dataset, config.data.val_voices)
    known = list(clips)
    for number in range(config.mixes.found_rounds):
        chosen = _training_recordings(hearing, config.mixes.found, number)
        offsets = _found_offsets(config, dataset, known, chosen, number)
        names = [found_voice(recording.speaker, f"{number}.{i}") for i, recording in enumerate(chosen)]
        styles = {name: _style_of(frame, offset) for name, offset in zip(names, offsets, strict=True)}
        utterances = found_utterances(config.data, styles, dataset.models.phonemizer)
        render(utterances)
        spoken = dataset.clips(utterances)
        known += spoken
        found.clips.extend(spoken)
        found.styles.update(styles)
    return found


def _training_recordings(hearing: Hearing, count: int, number: int) -> list[HeardRecording]:
    """Return recordings of training people, in an order of this round, as often as is needed."""
    recordings = sorted(hearing.of_split("train"), key=lambda recording: content_key("found", number, recording.key))
    return [recordings[i % len(recordings)] for i in range(count)]


def _found_offsets(
    config: RunConfig, dataset: Dataset, clips: Sequence[Clip], recordings: Sequence[HeardRecording], number: int
) -> Tensor:
    """Return the offsets (B, S) of the voices of recordings on a surrogate of clips, from the cache or found."""
    encoders: tuple[str, ...] = config.loss.speaker_encoders
    heard = [recording.key for recording in recordings]
    key = content_key("found", _surrogate_key(dataset, clips, encoders, config.data.val_voices), heard, number)
    kept = dataset.cache.load("surrogates", key)
    if kept is None:
        surrogate = load_surrogate(dataset, clips, encoders, config.data.val_voices)
        device = dataset.models.device
        embeddings = {name: torch.stack([r.embeddings[name] for r in recordings]).to(device) for name in encoders}
        pitch = torch.tensor([[r.f0_median, r.f0_spread] for r in recordings], device=device)
        start = torch.zeros(len(recordings), STYLE_SIZE, device=device)
        offsets = surrogate.approach(start, embeddings, pitch, FOUND_STEPS, FOUND_PRIOR).cpu()
        generator = torch.Generator().manual_seed(derived_seed(config.data.seed, "found", number))
        offsets += FOUND_SCATTER * torch.randn(offsets.shape, generator=generator)
        kept = dataset.cache.save("surrogates", key, {"offsets": offsets})
    return kept["offsets"]


def _style_of(frame: StyleFrame, offset: Tensor) -> StyleOf:
    return lambda count: frame.styles(offset[None], torch.tensor([count]))[0]


def load_frame(dataset: Dataset, val_voices: tuple[str, ...]) -> StyleFrame:
    """Return the coordinates of styles, of all stock voices that may be trained on, whichever a run uses."""
    return StyleFrame(_frame_packs(dataset, val_voices))


def _frame_packs(dataset: Dataset, val_voices: tuple[str, ...]) -> Tensor:
    voices = dataset.models.voices
    return torch.stack([voices.pack(name) for name in voices.training_voices("all", val_voices)])


def load_surrogate(
    dataset: Dataset, clips: Sequence[Clip], encoders: Sequence[str], val_voices: tuple[str, ...]
) -> Surrogate:
    """Return the surrogate of some speaker encoders, from the cache or fitted to clips and kept.

    A clip's embedding is the mean over its versions, which is what is heard through rooms and noise.

    Raises:
        DiskError: the cache cannot be written.
    """
    frame = load_frame(dataset, val_voices)
    key = _surrogate_key(dataset, clips, encoders, val_voices)
    kept = dataset.cache.load("surrogates", key)
    if kept is None:
        logger.info("fitting a surrogate of %s to %d clips", " and ".join(encoders), len(clips))
        surrogate, errors = fit_surrogate(frame, _samples(frame, dataset, clips, encoders), _voices(clips))
        _log(errors, len(clips))
        dataset.cache.save("surrogates", key, surrogate.state_dict())
    else:
        surrogate = Surrogate(frame, {name: SPEAKER_SIZES[name] for name in encoders}, len(clips))
        surrogate.load_state_dict(kept)
    return surrogate.to(dataset.models.device)


def _surrogate_key(
    dataset: Dataset, clips: Sequence[Clip], encoders: Sequence[str], val_voices: tuple[str, ...]
) -> str:
    hashes = [dataset.models.speaker_sha256(name) for name in encoders]
    augment = dataset.augment.model_dump(mode="json")
    # Of the packs, not of the frame, whose last digits may be another machine's.
    frame = hash_bytes(_frame_packs(dataset, val_voices).numpy().tobytes())
    keys = [clip.key for clip in clips]
    return content_key(SURROGATE_FORMAT, SPEAKERS_FORMAT, keys, [*encoders], hashes, augment, [*val_voices], frame)


def _samples(frame: StyleFrame, dataset: Dataset, clips: Sequence[Clip], encoders: Sequence[str]) -> VoiceSamples:
    styles = torch.stack([clip.utterance.style for clip in clips])
    counts = torch.tensor([clip.utterance.phoneme_count for clip in clips])
    embeddings = {}
    for name in encoders:
        versions = [torch.stack([dataset.part(clip, v, name) for v in dataset.versions]) for clip in clips]
        embeddings[name] = F.normalize(torch.stack(versions).mean(dim=1), dim=1)
    pitch = torch.stack([dataset.part(clip, 0, PITCH) for clip in clips])
    return VoiceSamples(frame.offsets(styles, counts), embeddings, pitch)


def _voices(clips: Sequence[Clip]) -> list[str]:
    return [voice_group(clip.utterance.voice) for clip in clips]


def _log(errors: SurrogateErrors, clips: int) -> None:
    for name, cosine in errors.cosine.items():
        logger.info(
            "surrogate of %s: cosine %.2f on voices that it was not fitted to (%.2f for the mean voice)",
            name,
            cosine,
            errors.mean_cosine[name],
        )
        if cosine < errors.mean_cosine[name] + LEAST_GAIN:
            logger.warning(
                "the surrogate of %s hardly knows more than the mean voice: %d clips are too few; raise mixes.steps or "
                "data.sentences_per_voice, or set encoder.surrogate_steps to 0",
                name,
                clips,
            )
    logger.info(
        "surrogate of F0: error of the median %.1f semitones (%.1f for the mean voice)",
        errors.semitones,
        errors.mean_semitones,
    )
