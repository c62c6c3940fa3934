"""People in a run: recordings whose voices an encoder learns to find, and others by which it is scored.

Nobody knows the true style of a person, so the losses compare voices: by the surrogate at every step, and by what
Kokoro speaks at some. Validation people are heard in the first half of a recording and compared with the second.

Dimensions: B people, P pooled channels, E channels of speaker features, L layers, D Whisper channels, S = 256 style.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.config.settings import RunConfig
from nuanced_core.data.cache import Cache
from nuanced_core.data.dataset import Clip, Dataset, pad_states
from nuanced_core.data.versions import Version
from nuanced_core.encoder.baselines import pooled_features
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.exhibits.exhibition import ShownClip
from nuanced_core.hashing import content_key
from nuanced_core.hearing.speaker_features import speaker_features
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.people import (
    HEARING_LAYERS,
    PeopleTargets,
    SpokenPeopleLosses,
    pitch_loss,
    speaker_loss,
    spoken_pitch,
)
from nuanced_core.people.corpus import find_people
from nuanced_core.people.hearing import Hearing, hear
from nuanced_core.people.recordings import HeardRecording
from nuanced_core.training.validation import Baselines, FittedBaselines, Scores, standard_error

__all__ = ["PeopleLosses", "PeopleScores", "PeopleValidation", "RunPeople", "hear_people"]

logger = logging.getLogger(__name__)

SEMITONES = 12
MIN_STD = 1e-3  # of a channel of Whisper's states


@dataclass(frozen=True)
class RunPeople:
    """The people of a run."""

    hearing: Hearing
    frame: StyleFrame
    surrogate: Surrogate | None  # for loss.surrogate
    sentences: tuple[str, ...]  # phonemes of training sentences


def hear_people(config: RunConfig, dataset: Dataset) -> Hearing | None:
    """Hear the people of ``data.people``, or find them in the cache; None if the run has none.

    Raises:
        AudioError: the folder is gone, or too few recordings in it can be used.
        DiskError, WeightsError: the cache cannot be written, or a speaker encoder is not available.
    """
    if config.data.people is None:
        return None
    encoders = dict.fromkeys(
        (*config.features.speaker_encoders, *config.loss.speaker_encoders, config.objective.people_encoder)
    )
    return hear(
        find_people(config.data.people).of_splits("train", "validation"),
        dataset.models,
        Cache(dataset.folder),
        config.data,
        augment=config.augment,
        encoders=tuple(encoders),
        parts=config.features.speaker_parts,
    )


class PeopleLosses:
    """The terms of a training loss of recordings of people, drawn anew at each step.

    Args:
        encoder: the one that is trained; pooled features are kept if its pooling has no parameters.
    """

    def __init__(self, config: RunConfig, people: RunPeople, dataset: Dataset, encoder: StyleEncoder) -> None:
        self.config, self.people, self.encoder = config, people, encoder
        self.device = dataset.models.device
        self._recordings = people.hearing.of_split("train")
        versions = range(1 + config.augment.copies)
        self._inputs = [(recording, version) for recording in self._recordings for version in versions]
        self._kept: dict[tuple[str, Version], Tensor] | None = {} if encoder.has_fixed_pooling else None
        weights = config.loss
        if people.surrogate is not None:  # it knows the pitch at every step
            weights = weights.model_copy(update={"pitch": 0.0})
        self._mean_states = self._means_of_states() if config.loss.hearing else {}
        means = [*self._mean_states.values()]
        states_std = torch.stack(means).std(dim=0).clamp(min=MIN_STD) if means else None
        self._spoken = SpokenPeopleLosses(
            dataset.models,
            weights,
            config.train.people_frames,
            states_std,
            config.train.precision,
            config.train.checkpointing,
        )

    def __call__(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute each term of a step, unweighted.

        Args:
            generator: of the step; decides about recordings, sentences and all that Kokoro needs.
        """
        settings = self.config
        order = torch.randperm(len(self._inputs), generator=generator)[: settings.train.people].tolist()
        chosen = [self._inputs[i] for i in order]
        drawn = torch.randint(len(self.people.sentences), (len(chosen),), generator=generator).tolist()
        phonemes = [self.people.sentences[i] for i in drawn]
        counts = torch.tensor([len(p) for p in phonemes], device=self.device)
        styles = self.encoder.styles(self._pooled(chosen), counts)
        targets = self._targets([recording for recording, _ in chosen])
        terms: dict[str, Tensor] = {}
        offsets = self.people.frame.offsets(styles, counts)
        if settings.loss.prior:
            terms["prior"] = self.people.frame.priors(offsets).mean()
        if self.people.surrogate is not None:
            embeddings, pitch = self.people.surrogate(offsets)
            terms["surrogate"] = speaker_loss(embeddings, targets.embeddings)
            if settings.loss.pitch:
                terms["pitch"] = pitch_loss(pitch, targets.pitch)
        if self._spoken.wanted and step % settings.train.speak_every == 0:
            few = slice(0, settings.train.people_spoken)
            terms |= self._spoken(phonemes[few], styles[few], _part(targets, few), generator)
        return terms

    def _pooled(self, chosen: Sequence[tuple[HeardRecording, Version]]) -> Tensor:
        if self._kept is None:
            return self.encoder.pooled(*_inputs(self.people.hearing, chosen, self.encoder, self.device))
        for recording, version in chosen:
            if (recording.key, version) not in self._kept:
                with torch.no_grad():
                    one = _inputs(self.people.hearing, [(recording, version)], self.encoder, self.device)
                    self._kept[recording.key, version] = self.encoder.pooled(*one)[0]
        return torch.stack([self._kept[recording.key, version] for recording, version in chosen])

    def _targets(self, recordings: Sequence[HeardRecording]) -> PeopleTargets:
        names = self.config.loss.speaker_encoders
        return PeopleTargets(
            {name: torch.stack([r.embeddings[name] for r in recordings]).to(self.device) for name in names},
            torch.tensor([[r.f0_median, r.f0_spread] for r in recordings], device=self.device),
            torch.tensor([r.rate for r in recordings], device=self.device),
            torch.stack([self._mean_states[r.key] for r in recordings]) if self._mean_states else None,
        )

    def _means_of_states(self) -> dict[str, Tensor]:
        """Return the means over time (L, D) of Whisper's early states, by the recording's key."""
        states = ((r.key, self.people.hearing.states(r, HEARING_LAYERS)) for r in self._recordings)
        return {key: one.float().mean(dim=1).to(self.device) for key, one in states}


@dataclass(frozen=True)
class PeopleScores:
    """Scores of spoken validation people."""

    identities: tuple[float, ...]  # of each: 0 another person, 1 the same
    pitch_errors: tuple[float, ...]  # of the median F0 of each, semitones; NaN if voiceless

    @property
    def identity(self) -> float:
        """Mean identity."""
        return sum(self.identities) / len(self.identities)

    @property
    def pitch(self) -> float:
        """Mean pitch error of those with a voice."""
        known = [error for error in self.pitch_errors if not math.isnan(error)]
        return sum(known) / max(1, len(known))


class PeopleValidation:
    """Scores of styles on validation people, each speaking one sentence, judged by an encoder that no loss consists of.

    Args:
        sentences: phonemes of the validation sentences, taken in turn.
        fitted: the baselines that are fitted to clips, with the mean voice.

    Attributes:
        baselines: scores of ``mean``, ``nearest`` and ``ridge``, from the cache or computed and kept.
    """

    def __init__(
        self,
        config: RunConfig,
        hearing: Hearing,
        dataset: Dataset,
        sentences: Sequence[str],
        fitted: FittedBaselines,
    ) -> None:
        self.config, self.hearing, self.dataset = config, hearing, dataset
        self.judge = config.objective.people_encoder
        by_speaker = {recording.speaker: recording for recording in reversed(hearing.of_split("validation"))}
        speakers = sorted(by_speaker, key=partial(content_key, "validation people"))
        self.recordings = [by_speaker[name] for name in speakers[: config.objective.people_count]]
        self.phonemes = [sentences[i % len(sentences)] for i in range(len(self.recordings))]
        self.counts = torch.tensor([len(p) for p in self.phonemes], device=dataset.models.device)
        halves = torch.stack([recording.half_embeddings[self.judge] for recording in self.recordings])  # (B, 2, E)
        self._compared = halves[:, 1]
        cosines = halves[:, 0] @ self._compared.T
        self._same = float(cosines.diagonal().mean())
        others = ~torch.eye(len(cosines), dtype=torch.bool)
        self._other = float(cosines[others].mean()) if others.any() else 0.0
        self.baselines = self._score_baselines(fitted)

    @torch.no_grad()
    def styles(self, encoder: StyleEncoder) -> Tensor:
        """Predict the styles (B, S) of the people from the first halves of their recordings, in eval mode."""
        device = self.dataset.models.device
        inputs = _inputs(self.hearing, [(r, 0) for r in self.recordings], encoder, device, first_half=True)
        return encoder.eval().styles(encoder.pooled(*inputs), self.counts)

    @torch.no_grad()
    def scores(self, styles: Tensor) -> PeopleScores:
        """Let Kokoro speak in styles (B, S) and compare voices and pitch."""
        models, cosines, errors = self.dataset.models, [], []
        judge = models.speaker_encoder(self.judge)
        for i, (recording, phonemes) in enumerate(zip(self.recordings, self.phonemes, strict=True)):
            text, style = models.kokoro.encode_text([phonemes]), styles[i : i + 1]
            prosody = models.kokoro.prosody(text, style)
            frames = prosody.frames[0]
            length = min(self.config.objective.people_frames, frames)
            window = [((frames - length) // 2, length)]
            speech = models.kokoro.speak(text, prosody, style, [i], window).audio[:, : length * SAMPLES_PER_FRAME]
            embedding = judge(resample(speech, KOKORO_RATE, WHISPER_RATE))[0].cpu()
            cosines.append(float(embedding @ self._compared[i]))
            errors.append(abs(float(spoken_pitch(prosody)[0, 0]) - recording.f0_median) * SEMITONES)
        identities = ((cosine - self._other) / (self._same - self._other) for cosine in cosines)
        return PeopleScores(tuple(identities), tuple(errors))

    def loss(self, scores: PeopleScores) -> float:
        """Return the part of the objective that people decide."""
        return self._loss(scores.identity, scores.pitch)

    def noise(self, scores: PeopleScores) -> float:
        """Return the standard error of ``loss`` over people."""
        pairs = zip(scores.identities, scores.pitch_errors, strict=True)
        return standard_error([self._loss(*pair) for pair in pairs])

    def _loss(self, identity: float, pitch: float) -> float:
        objective = self.config.objective
        return objective.people * (1 - identity) + objective.pitch * pitch / SEMITONES

    def added_to(self, baselines: Baselines) -> Baselines:
        """Return baselines that are scored on people too, but for the oracle: that would be the people themselves."""
        added: dict[str, Scores] = {}
        for name, of_people in self.baselines.items():
            of_clips: Scores | None = getattr(baselines, name)
            if of_clips is not None:
                added[name] = replace(of_clips, loss=of_clips.loss + self.loss(of_people))
        return replace(baselines, **added)

    def _score_baselines(self, fitted: FittedBaselines) -> dict[str, PeopleScores]:
        names = ("mean", "nearest", "ridge")
        key = content_key(
            "baselines of people", [r.key for r in self.recordings], self.phonemes, self.judge, fitted.key,
            self.config.objective.people_frames, self.dataset.models.kokoro_files.sha256,
        )  # fmt: skip
        kept = self.dataset.cache.load("baselines", key)
        if kept is None:
            logger.info("computing the baselines %s on %d validation people", ", ".join(names), len(self.recordings))
            styles = fitted.fitted.styles(self._first_halves(fitted.layers), self.counts.cpu())
            scores = {name: self.scores(styles[name].to(self.counts.device)) for name in names}
            tensors = {name: torch.tensor(astuple(one), dtype=torch.float64) for name, one in scores.items()}
            kept = self.dataset.cache.save("baselines", key, tensors)
        return {name: PeopleScores(*(tuple(row) for row in kept[name].tolist())) for name in names}

    def shown(self, count: int, clips: Sequence[Clip], fitted: FittedBaselines) -> list[ShownClip]:
        """Return the first people as they are shown: the first half of a recording, and the sentence of a clip.

        Raises:
            AudioError: a recording can no longer be read.
        """
        shown = []
        utterances = list({clip.utterance.phonemes: clip.utterance for clip in clips}.values())
        nearest = self.nearest(fitted) if count else ()
        for index, recording in enumerate(self.recordings[:count]):
            name, audio = f"person {recording.speaker}", self.hearing.audio(recording).tensor_split(2)[0]
            sentence = utterances[index % len(utterances)]
            shown.append(ShownClip(name, recording.speaker, "recording", audio, sentence, nearest[index]))
        return shown

    def nearest(self, fitted: FittedBaselines) -> tuple[str, ...]:
        """Return the names of the training voices nearest to what is heard of each person."""
        key = content_key("people", [r.key for r in self.recordings], self.dataset.models.whisper_file.sha256)
        return fitted.nearest(key, lambda: self._first_halves(fitted.layers))

    def _first_halves(self, layers: Sequence[int]) -> Tensor:
        """Return pooled features (B, C) of the first halves of the recordings."""
        halves = [_first_half(self.hearing.states(recording, layers)) for recording in self.recordings]
        return torch.cat([pooled_features(*pad_states([states.float()])) for states in halves])


def _first_half(states: Tensor) -> Tensor:
    """Return the first half of the frames of states (L, T, D)."""
    return states[:, : max(1, states.shape[1] // 2)]


def _inputs(
    hearing: Hearing,
    chosen: Sequence[tuple[HeardRecording, Version]],
    encoder: StyleEncoder,
    device: torch.device,
    *,
    first_half: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return features (B, L, T, D), mask (B, T) and speaker (B, E) of versions of recordings, or of first halves."""
    settings = encoder.config.features
    states = [hearing.states(recording, encoder.config.layers, version) for recording, version in chosen]
    features, mask = pad_states([_first_half(s) if first_half else s for s in states])
    speaker = None
    if settings.speaker_parts:
        rows = []
        for recording, version in chosen:
            parts = {name: hearing.part(recording, name, version) for name in settings.speaker_parts}
            if first_half:
                parts |= {name: recording.half_embeddings[name][0] for name in settings.speaker_encoders}
            rows.append(speaker_features(settings, parts))
        speaker = torch.stack(rows).to(device)
    return features.to(device, torch.float32), mask.to(device), speaker


def _part(targets: PeopleTargets, index: slice) -> PeopleTargets:
    return PeopleTargets(
        {name: x[index] for name, x in targets.embeddings.items()},
        targets.pitch[index],
        targets.rate[index],
        None if targets.states is None else targets.states[index],
    )
