"""Comparison of predicted styles with the true style, by the same utterances spoken in both.

Dimensions: V voices, U sentences per voice, B = V * U utterances, F Kokoro frames, P pitch frames, S = 256 style,
E speaker embedding.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.evaluation import metrics
from nuanced_core.hashing import content_key
from nuanced_core.kokoro.model import TIMBRE_SIZE, Prosody, TextStates
from nuanced_core.losses.reference import MelSTFTLoss, style_loss

__all__ = ["Comparison", "Floats", "Measures", "PitchTracker", "SpeakerEmbedder"]

BATCH_SIZE = 4  # utterances spoken at once; limits memory
MEASURES_VERSION = 2  # part of the cache key; increase it when the measures change

SpeakerEmbedder = Callable[[Tensor, int], Tensor]  # audio (samples,), rate in Hz → speaker embedding (E,) of norm 1
PitchTracker = Callable[[Tensor], Tensor]  # audio (samples,) at 24 kHz → (P,) Hz, 0 where unvoiced
Floats = NDArray[np.floating[Any]]
Measures = dict[str, Floats]  # name → (V, U)


@dataclass(frozen=True)
class _Reference:
    """An utterance in the true style, as the measures need it."""

    spectra: list[Tensor]
    f0: Tensor  # (2F,) Hz
    energy: Tensor  # (2F,)
    length: float  # frames, predicted, before rounding
    tracked_pitch: Tensor | None  # (P,) Hz, of the audio


class Comparison:
    """Utterances of some voices in predicted styles, compared with the same utterances in the true style.

    The style for a sentence is predicted from the same voice's next sentence (for the last one, from the first).

    Args:
        clips: target clips, in the true styles; the sentences of each voice are adjacent.
        sentences: U, at least 2.
        embed: speaker encoder, or None to leave its measures out.
        track_pitch: pitch tracker, or None to leave its measure out.

    Attributes:
        shape: (V, U).
        target_clips: (B) clips in the true styles.
        input_clips: (B) clips that each utterance's style is predicted from.
        styles: (B, S) true styles.
        phoneme_counts: (B) of the target clips.
    """

    def __init__(
        self,
        dataset: Dataset,
        clips: Sequence[Clip],
        sentences: int,
        embed: SpeakerEmbedder | None = None,
        track_pitch: PitchTracker | None = None,
    ) -> None:
        self.dataset, self.embed, self.track_pitch = dataset, embed, track_pitch
        self.shape = len(clips) // sentences, sentences
        self.target_clips = tuple(clips)
        self._input_index = torch.arange(len(clips)).view(self.shape).roll(-1, dims=1).flatten()  # (B,)
        self.input_clips = tuple(clips[i] for i in self._input_index.tolist())
        self.styles = torch.stack([clip.utterance.style for clip in clips])
        self.phoneme_counts = [clip.utterance.phoneme_count for clip in clips]
        self.mel = MelSTFTLoss().to(dataset.models.device)

    def measure(self, styles: Tensor, noise: int = 0) -> Measures:
        """Measure the utterances in other styles, spoken on the target clips' alignment.

        Results are cached, since most predictors are the same for every encoder.

        Args:
            styles: (B, S).
            noise: added to the seeds of the target clips' noise; 0 uses the same noise.

        Returns:
            ``stft`` and ``style`` (losses), ``style_cosine``, ``timbre_cosine``, ``prosody_cosine``, ``f0_semitones``,
            ``f0_spread``, ``energy_correlation``, ``duration_error``; with a pitch tracker ``f0_crepe_semitones``; with
            a speaker encoder ``heard_cosine``, the cosine of the speaker embeddings of the utterance and of its input
            clip.
        """
        digest = hashlib.sha256(styles.numpy().tobytes()).hexdigest()
        tools = [_tool_name(self.embed), _tool_name(self.track_pitch)]
        clips = [clip.key for clip in self.target_clips]
        key = content_key("comparison", MEASURES_VERSION, clips, self.shape, digest, noise, tools, self.mel.resolutions)
        cached = self.dataset.cache.load("baselines", key)
        if cached is None:
            measured = self._measure_styles(styles) | self._measure_speech(styles, noise)
            tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in measured.items()}
            cached = self.dataset.cache.save("baselines", key, tensors)
        return {name: values.view(self.shape).numpy() for name, values in cached.items()}

    def bounds(self) -> Measures:
        """Measure the target clips themselves.

        Returns:
            ``f0_spread``; with a speaker encoder also ``same_speaker_cosine`` and ``other_speaker_cosine``, the cosines
            of the speaker embeddings of the input clip and of the target clip in the same voice, and the mean of those
            of the input clip and of the target sentence in each other voice.
        """
        spreads = [metrics.f0_spread(reference.f0) for reference in self._references]
        found = {"f0_spread": np.array(spreads).reshape(self.shape)}
        if self.embed is not None:
            targets = self._target_embeddings.view(*self.shape, -1)  # (V, U, E)
            inputs = targets.roll(-1, dims=1)
            cosines = torch.einsum("vue,wue->vwu", inputs, targets)  # (V of the input, V of the target, U)
            same = cosines.diagonal().T  # (V, U)
            other = (cosines.sum(dim=1) - same) / (self.shape[0] - 1)
            found |= {"same_speaker_cosine": same.numpy(), "other_speaker_cosine": other.numpy()}
        return found

    def _measure_styles(self, styles: Tensor) -> dict[str, list[float]]:
        halves = {"style": slice(None), "timbre": slice(0, TIMBRE_SIZE), "prosody": slice(TIMBRE_SIZE, None)}
        found = {
            f"{name}_cosine": F.cosine_similarity(styles[:, half], self.styles[:, half]).tolist()
            for name, half in halves.items()
        }
        found["style"] = [float(style_loss(a[None], b[None])) for a, b in zip(styles, self.styles, strict=True)]
        return found

    @torch.no_grad()
    def _measure_speech(self, styles: Tensor, noise: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for start in range(0, len(self.target_clips), BATCH_SIZE):
            batch = slice(start, start + BATCH_SIZE)
            clips, batch_styles = self.target_clips[batch], styles[batch].to(self.dataset.models.device)
            text, prosody = self._prosody(clips, batch_styles)
            speech = self.dataset.models.kokoro.speak(
                text, prosody, batch_styles, [clip.utterance.seed + noise for clip in clips]
            )
            for i in range(len(clips)):
                for name, value in self._measure_utterance(start + i, speech.item(i), prosody, i).items():
                    found.setdefault(name, []).append(value)
        return found

    def _measure_utterance(self, index: int, audio: Tensor, prosody: Prosody, item: int) -> dict[str, float]:
        """Measure utterance ``index``, whose prosody is item ``item`` of a batch."""
        reference = self._references[index]
        values = 2 * prosody.frames[item]
        f0, energy = prosody.f0[item, :values].cpu(), prosody.energy[item, :values].cpu()
        found = {
            "stft": float(self.mel(self.mel.spectra(audio[None]), reference.spectra)),
            "f0_semitones": metrics.f0_error(f0, reference.f0),
            "f0_spread": metrics.f0_spread(f0),
            "energy_correlation": metrics.energy_correlation(energy, reference.energy),
            "duration_error": metrics.relative_error(float(prosody.durations[item].sum()), reference.length),
        }
        if self.track_pitch is not None and reference.tracked_pitch is not None:
            found["f0_crepe_semitones"] = metrics.f0_error(self.track_pitch(audio.cpu()), reference.tracked_pitch)
        if self.embed is not None:
            input_embedding = self._target_embeddings[self._input_index[index]]
            found["heard_cosine"] = float(self.embed(audio.cpu(), KOKORO_RATE).double() @ input_embedding)
        return found

    @cached_property
    def _references(self) -> list[_Reference]:
        references = []
        for clip in self.target_clips:
            _, prosody = self._prosody([clip], clip.utterance.style[None].to(self.dataset.models.device))
            spectra = self.mel.spectra(clip.audio[None].to(self.dataset.models.device))
            pitch = None if self.track_pitch is None else self.track_pitch(clip.audio)
            length = float(prosody.durations[0].sum())
            references.append(_Reference(spectra, prosody.f0[0].cpu(), prosody.energy[0].cpu(), length, pitch))
        return references

    @cached_property
    def _target_embeddings(self) -> Tensor:
        """Speaker embeddings of the target clips, (B, E)."""
        if self.embed is None:
            raise ValueError("speaker embeddings need a speaker encoder; pass embed")
        return torch.stack([self.embed(clip.audio, KOKORO_RATE).double() for clip in self.target_clips])

    @torch.no_grad()
    def _prosody(self, clips: Sequence[Clip], styles: Tensor) -> tuple[TextStates, Prosody]:
        kokoro = self.dataset.models.kokoro
        text = kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        token_frames = pad_sequence([clip.token_frames for clip in clips], batch_first=True)
        return text, kokoro.prosody(text, styles, token_frames)


def _tool_name(tool: SpeakerEmbedder | PitchTracker | None) -> str | None:
    """Return the name and version of a speaker encoder or pitch tracker, for the cache key."""
    return None if tool is None else str(getattr(tool, "name", getattr(tool, "__qualname__", type(tool).__name__)))
