"""The surrogate of a run: fitted once to its training clips, then kept in the cache."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nuanced_core.config.settings import PITCH, RunConfig
from nuanced_core.data.dataset import SPEAKERS_FORMAT, Clip, Dataset
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.hashing import content_key
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.surrogate import SurrogateErrors, VoiceSamples, fit_surrogate
from nuanced_core.speakers.encoders import SPEAKER_SIZES

__all__ = ["Surrogates", "load_frame", "load_surrogate", "load_surrogates"]

logger = logging.getLogger(__name__)

LEAST_GAIN = 0.01  # of cosine, beside which a surrogate is of use
SURROGATE_FORMAT = "3"  # part of the key: raise it when the network or its fitting change


class Surrogates(NamedTuple):
    """The surrogates that a run needs."""

    encoder: Surrogate | None  # for encoder.surrogate_steps
    loss: Surrogate | None  # for loss.surrogate


def load_surrogates(config: RunConfig, dataset: Dataset, clips: Callable[[], Sequence[Clip]]) -> Surrogates:
    """Return the surrogates of a run, from the cache or fitted to its training clips and kept.

    Args:
        clips: returns the clips; called only if there is a surrogate.

    Raises:
        DiskError: the cache cannot be written.
    """

    def load(wanted: float, encoders: Sequence[str]) -> Surrogate | None:
        return load_surrogate(dataset, clips(), encoders, config.data.val_voices) if wanted else None

    return Surrogates(
        load(config.encoder.surrogate_steps, config.features.speaker_encoders),
        load(config.loss.surrogate, config.loss.speaker_encoders),
    )


def load_frame(dataset: Dataset, val_voices: tuple[str, ...]) -> StyleFrame:
    """Return the coordinates of styles, of all stock voices that may be trained on, whichever a run uses."""
    voices = dataset.models.voices
    return StyleFrame(torch.stack([voices.pack(name) for name in voices.training_voices("all", val_voices)]))


def load_surrogate(
    dataset: Dataset, clips: Sequence[Clip], encoders: Sequence[str], val_voices: tuple[str, ...]
) -> Surrogate:
    """Return the surrogate of some speaker encoders, from the cache or fitted to clips and kept.

    A clip's embedding is the mean over its versions, which is what is heard through rooms and noise.

    Raises:
        DiskError: the cache cannot be written.
    """
    frame = load_frame(dataset, val_voices)
    hashes = [dataset.models.speaker_sha256(name) for name in encoders]
    augment = dataset.augment.model_dump(mode="json")
    key = content_key(
        SURROGATE_FORMAT, SPEAKERS_FORMAT, [clip.key for clip in clips], [*encoders], hashes, augment, [*val_voices]
    )
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
    return [clip.utterance.voice for clip in clips]


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
