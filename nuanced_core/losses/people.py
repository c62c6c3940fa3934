"""Losses of what Kokoro speaks in a person's voice, whose true style nobody knows: voice, pitch, rate and sound.

Between Kokoro and the speaker encoders lies a random channel. Without it, gradient steps find sounds that one speaker
encoder takes for the person and another one does not.

Dimensions: B people, F Kokoro frames, N tokens, L layers, D Whisper channels, E speaker embedding, S = 256 style.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.config.settings import Loss
from nuanced_core.data.model_set import ModelSet
from nuanced_core.hearing.pitch import known_difference, pitch_statistics
from nuanced_core.kokoro.decoder import Precision
from nuanced_core.kokoro.model import Prosody
from nuanced_core.losses.reference import LOWEST_PITCH_HZ
from nuanced_core.speakers.channel import random_channel
from nuanced_core.speakers.encoders import SpeakerEncoder

__all__ = [
    "HEARING_LAYERS",
    "PeopleTargets",
    "SpokenPeopleLosses",
    "pitch_loss",
    "rate_loss",
    "speaker_loss",
    "spoken_pitch",
]

HEARING_LAYERS = (1, 2)  # of Whisper: early ones, which hear the voice more than the words
# Against the pitch of the rendered audio, the median's mean error is then 0.5 semitones instead of 1.2 (docs/LOG.md).
INAUDIBLE_SHARE = 0.3  # of the frames of a sentence
SPREAD_WEIGHT = 0.5  # of the spread of F0 in the pitch loss; the median has 1


@dataclass(frozen=True)
class PeopleTargets:
    """What is known of the voices of B people."""

    embeddings: Mapping[str, Tensor]  # (B, E) of norm 1, by the speaker encoder's name
    pitch: Tensor  # (B, 2) median in log2 Hz and spread in octaves of F0; NaN if unknown
    rate: Tensor  # (B,) phonemes per second; NaN if unknown
    states: Tensor | None = None  # (B, L, D) means over time of Whisper's HEARING_LAYERS


class SpokenPeopleLosses:
    """The terms of a training loss that need Kokoro to speak in the voices of people.

    Args:
        weights: a term with weight 0 is not computed.
        frames: Kokoro frames that are spoken of each sentence for the terms that need audio.
        state_std: (L, D) standard deviation over clips of the means of Whisper's states, for the term hearing.
        precision, checkpointing: as in ``DifferentiableKokoro.speak``.
    """

    def __init__(
        self,
        models: ModelSet,
        weights: Loss,
        frames: int,
        state_std: Tensor | None = None,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> None:
        self.models, self.weights, self.frames, self.state_std = models, weights, frames, state_std
        self.precision, self.checkpointing = precision, checkpointing
        self._encoders: dict[str, SpeakerEncoder] = {
            name: models.speaker_encoder(name) for name in weights.speaker_encoders if weights.speaker
        }

    @property
    def wanted(self) -> bool:
        """Whether there are any terms."""
        return self._needs_audio or bool(self.weights.pitch or self.weights.rate)

    @property
    def _needs_audio(self) -> bool:
        return bool(self._encoders or self.weights.hearing)

    def __call__(
        self, phonemes: Sequence[str], styles: Tensor, targets: PeopleTargets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute each term, unweighted, of B sentences spoken in styles (B, S) with the styles' own durations.

        Args:
            phonemes: of the sentences.
            generator: source of the windows, of Kokoro's noise and of the channel.
        """
        kokoro = self.models.kokoro
        text = kokoro.encode_text(phonemes)
        prosody = kokoro.prosody(text, styles)
        terms = {}
        if self.weights.pitch:
            terms["pitch"] = pitch_loss(spoken_pitch(prosody), targets.pitch)
        if self.weights.rate:
            terms["rate"] = rate_loss(spoken_rate(prosody, text.lengths), targets.rate)
        if self._needs_audio:
            frames = min(self.frames, *prosody.frames)
            starts = [int(torch.randint(n - frames + 1, (), generator=generator)) for n in prosody.frames]
            seeds = torch.randint(2**31, (len(starts),), generator=generator).tolist()
            speech = kokoro.speak(
                text,
                prosody,
                styles,
                seeds,
                [(start, frames) for start in starts],
                precision=self.precision,
                checkpointing=self.checkpointing,
            )
            audio = resample(speech.audio[:, : frames * SAMPLES_PER_FRAME], KOKORO_RATE, WHISPER_RATE)
            if self._encoders:
                heard = random_channel(audio, generator)
                found = {name: encoder(heard) for name, encoder in self._encoders.items()}
                terms["speaker"] = speaker_loss(found, targets.embeddings)
            if self.weights.hearing:
                terms["hearing"] = self._hearing(audio, targets)
        return terms

    def _hearing(self, audio: Tensor, targets: PeopleTargets) -> Tensor:
        """Compute the mean absolute difference of the means over time of Whisper's states, in standard deviations."""
        if targets.states is None or self.state_std is None:
            raise ValueError("the term hearing needs the states of the people, and their standard deviation")
        whisper = self.models.whisper
        spoken = torch.stack([whisper.encode_segment(clip, HEARING_LAYERS).mean(dim=1) for clip in audio])
        return ((spoken - targets.states) / self.state_std).abs().mean()


def speaker_loss(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Compute the sum over speaker encoders of the mean over people of ``1 - cosine`` of embeddings (B, E)."""
    return torch.stack([(1 - (vectors * wanted[name]).sum(dim=1)).mean() for name, vectors in found.items()]).sum()


def pitch_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Compute the mean over people of the difference in octaves of median F0, plus half that of its spread.

    Args:
        found, wanted: (B, 2) median in log2 Hz and spread in octaves; where one of them is NaN, it counts 0.
    """
    difference = known_difference(found, wanted)
    return (difference[:, 0] + SPREAD_WEIGHT * difference[:, 1]).mean()


def rate_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """Compute the mean over people of the difference in octaves of rates (B,); where one is NaN, it counts 0."""
    return known_difference(found.log2(), wanted.log2()).mean()


def spoken_pitch(prosody: Prosody) -> Tensor:
    """Return the median in log2 Hz and the spread in octaves of Kokoro's F0 of B sentences, (B, 2), differentiable.

    Kokoro gives F0 to many frames that are hardly audible: those with the least energy do not count.
    """
    statistics = []
    for f0, energy, frames in zip(prosody.f0, prosody.energy, prosody.frames, strict=True):
        curve, loudness = f0[: 2 * frames], energy[: 2 * frames].detach()
        audible = loudness >= loudness.quantile(INAUDIBLE_SHARE)
        statistics.append(torch.stack(pitch_statistics(curve[audible & (curve > LOWEST_PITCH_HZ)])))
    return torch.stack(statistics)


def spoken_rate(prosody: Prosody, lengths: Sequence[int]) -> Tensor:
    """Return phonemes per second of B sentences of ``lengths`` tokens, without the silence at the ends: (B,)."""
    phonemes = torch.tensor([n - 2 for n in lengths], device=prosody.durations.device)
    inner = torch.stack([d[1 : n - 1].sum() for d, n in zip(prosody.durations, lengths, strict=True)])
    return phonemes * FRAMES_PER_SECOND / inner
