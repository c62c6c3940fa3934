"""Styles compared by how they speak the same utterances, each against the true voice.

Dimensions: V voices, U sentences a voice, B = V * U utterances, F Kokoro frames, P pitch frames, S = 256 style,
E channels of a speaker embedding.
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
from nuanced_core.training.losses import MelSTFTLoss, style_loss

__all__ = ["Comparison", "Embed", "Floats", "Measures", "Pitch"]

SPOKEN_AT_ONCE = 4  # utterances: bounds the memory
FORMAT = 2  # raise it when what is measured changes: kept measures are then made again

Embed = Callable[[Tensor, int], Tensor]  # audio (samples,), rate in Hz → a speaker embedding (E,) of norm 1
Pitch = Callable[[Tensor], Tensor]  # audio (samples,) at 24 kHz → (P,) Hz, 0 where unvoiced
Floats = NDArray[np.floating[Any]]
Measures = dict[str, Floats]  # name → (V, U)


@dataclass(frozen=True)
class _Reference:
    """What the true voice does with a sentence."""

    spectra: list[Tensor]
    f0: Tensor  # (2F,) Hz
    energy: Tensor  # (2F,)
    length: float  # frames, predicted, before rounding
    pitch: Tensor | None  # (P,) Hz, of the sound


class Comparison:
    """Each voice speaks each sentence as it is heard saying the next one (for the last one the first).

    Args:
        clips: the true voices, each voice's sentences together.
        sentences: U, at least 2.
        embed, pitch: what measures whose voice it is and how high it is, or None.
    """

    def __init__(
        self,
        dataset: Dataset,
        clips: Sequence[Clip],
        sentences: int,
        embed: Embed | None = None,
        pitch: Pitch | None = None,
    ) -> None:
        self.dataset, self.embed, self.pitch = dataset, embed, pitch
        self.shape = len(clips) // sentences, sentences
        self.clips = tuple(clips)
        self._next = torch.arange(len(clips)).view(self.shape).roll(-1, dims=1).flatten()  # (B,)
        self.heard = tuple(clips[i] for i in self._next.tolist())
        self.styles = torch.stack([clip.utterance.style for clip in clips])
        self.counts = [clip.utterance.phoneme_count for clip in clips]
        self.mel = MelSTFTLoss().to(dataset.models.device)

    def measure(self, styles: Tensor, noise: int = 0) -> Measures:
        """How the utterances sound in other styles (B, 256), on the true voices' alignment and, but for ``noise``,
        with their noise.

        ``stft``, ``style`` (losses), ``style_cosine``, ``timbre_cosine``, ``prosody_cosine``, ``f0_semitones``,
        ``f0_spread``, ``energy_correlation``, ``duration_error``; with ``pitch`` ``f0_crepe_semitones``, with ``embed``
        ``heard_cosine``, that of the speaker embeddings of what is said and of the clip that was heard. They are kept
        in the cache: most rows of a table are the same for every encoder.
        """
        digest = hashlib.sha256(styles.numpy().tobytes()).hexdigest()
        extras = [_name(self.embed), _name(self.pitch)]
        clips = [clip.key for clip in self.clips]
        key = content_key("comparison", FORMAT, clips, self.shape, digest, noise, extras, self.mel.resolutions)
        kept = self.dataset.cache.load("baselines", key)
        if kept is None:
            measured = self._of_styles(styles) | self._of_sound(styles, noise)
            tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in measured.items()}
            kept = self.dataset.cache.save("baselines", key, tensors)
        return {name: values.view(self.shape).numpy() for name, values in kept.items()}

    def bounds(self) -> Measures:
        """Of the true voices: ``f0_spread``, and with ``embed`` ``same_cosine`` and ``stranger_cosine``.

        The latter are speaker cosines to the clip that was heard: of the voice itself saying the next sentence, and
        the mean of the other voices saying it.
        """
        spreads = [metrics.f0_spread(reference.f0) for reference in self._references]
        found = {"f0_spread": np.array(spreads).reshape(self.shape)}
        if self.embed is not None:
            said = self._said.view(*self.shape, -1)  # (V, U, E)
            cosines = torch.einsum("vue,wue->vwu", said.roll(-1, dims=1), said)  # (V heard, V saying, U)
            same = cosines.diagonal().T  # (V, U)
            strangers = (cosines.sum(dim=1) - same) / (self.shape[0] - 1)
            found |= {"same_cosine": same.numpy(), "stranger_cosine": strangers.numpy()}
        return found

    def _of_styles(self, styles: Tensor) -> dict[str, list[float]]:
        halves = {"style": slice(None), "timbre": slice(0, TIMBRE_SIZE), "prosody": slice(TIMBRE_SIZE, None)}
        found = {
            f"{name}_cosine": F.cosine_similarity(styles[:, half], self.styles[:, half]).tolist()
            for name, half in halves.items()
        }
        found["style"] = [float(style_loss(a[None], b[None])) for a, b in zip(styles, self.styles, strict=True)]
        return found

    @torch.no_grad()
    def _of_sound(self, styles: Tensor, noise: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for start in range(0, len(self.clips), SPOKEN_AT_ONCE):
            chosen = slice(start, start + SPOKEN_AT_ONCE)
            clips, some = self.clips[chosen], styles[chosen].to(self.dataset.models.device)
            text, prosody = self._prosody(clips, some)
            speech = self.dataset.models.kokoro.speak(
                text, prosody, some, [clip.utterance.seed + noise for clip in clips]
            )
            for i in range(len(clips)):
                for name, value in self._of_one(start + i, speech.item(i), prosody, i).items():
                    found.setdefault(name, []).append(value)
        return found

    def _of_one(self, index: int, audio: Tensor, prosody: Prosody, item: int) -> dict[str, float]:
        """Of utterance ``index``, which is ``item`` of a batch."""
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
        if self.pitch is not None and reference.pitch is not None:
            found["f0_crepe_semitones"] = metrics.f0_error(self.pitch(audio.cpu()), reference.pitch)
        if self.embed is not None:
            heard = self._said[self._next[index]]
            found["heard_cosine"] = float(self.embed(audio.cpu(), KOKORO_RATE).double() @ heard)
        return found

    @cached_property
    def _references(self) -> list[_Reference]:
        references = []
        for clip in self.clips:
            _, prosody = self._prosody([clip], clip.utterance.style[None].to(self.dataset.models.device))
            spectra = self.mel.spectra(clip.audio[None].to(self.dataset.models.device))
            pitch = None if self.pitch is None else self.pitch(clip.audio)
            length = float(prosody.durations[0].sum())
            references.append(_Reference(spectra, prosody.f0[0].cpu(), prosody.energy[0].cpu(), length, pitch))
        return references

    @cached_property
    def _said(self) -> Tensor:
        """Speaker embeddings of the true voices' clips, (B, E)."""
        if self.embed is None:
            raise ValueError("a comparison without embed has no embeddings")
        return torch.stack([self.embed(clip.audio, KOKORO_RATE).double() for clip in self.clips])

    @torch.no_grad()
    def _prosody(self, clips: Sequence[Clip], styles: Tensor) -> tuple[TextStates, Prosody]:
        kokoro = self.dataset.models.kokoro
        text = kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        token_frames = pad_sequence([clip.token_frames for clip in clips], batch_first=True)
        return text, kokoro.prosody(text, styles, token_frames)


def _name(extra: Embed | Pitch | None) -> str | None:
    """What a kept measure depends on of what measured it."""
    return None if extra is None else str(getattr(extra, "name", getattr(extra, "__qualname__", type(extra).__name__)))
