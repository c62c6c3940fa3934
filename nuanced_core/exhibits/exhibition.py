"""What a run shows of its encoder: some validation clips as they are heard, and as Kokoro speaks them.

What is spoken goes the way that a user's recording goes: the sound is heard by Whisper, the StyleEncoder predicts a
style, and Kokoro speaks the sentence with the durations of that style. Pictures compare sentences on the reference's
durations, as the losses do.

Dimensions: S = 256 style.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nuanced_core.audio import FRAMES_PER_SECOND, KOKORO_RATE, WHISPER_RATE
from nuanced_core.config.settings import Show
from nuanced_core.data.dataset import Clip, Dataset
from nuanced_core.data.utterances import Utterance
from nuanced_core.encoder.pooling import whole_mask
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.exhibits.exhibit import Exhibit, Picture, Sound
from nuanced_core.exhibits.listening import ListeningClip, write_listening
from nuanced_core.exhibits.pictures import Curves, attention, curves, spectrograms, split_words, style_map
from nuanced_core.kokoro.style_frame import StyleFrame

__all__ = ["Exhibition", "Exhibits", "ShownClip", "StylePoint"]

MAP_COUNT = 40  # phonemes: the row of the packs on the map
FACTOR = 4  # between the epochs that are shown if ``show.every`` is 0


@dataclass(frozen=True, eq=False)
class ShownClip:
    """A validation clip or the recording of a validation person, and the sentence that is spoken."""

    name: str  # of the voice or person and of the condition
    voice: str
    condition: str
    heard: Tensor  # (samples,) at 16 kHz: the input of the encoder
    utterance: Utterance  # what is spoken; of a person only the sentence counts
    nearest: str  # the stock voice that is nearest to what is heard
    heard_clip: Clip | None = None  # None: a recording of a person
    reference: Clip | None = None  # the utterance in the true voice


@dataclass(frozen=True, eq=False)
class StylePoint:
    """A predicted style on the map of styles, and the true one, if it is known."""

    label: str
    predicted: Tensor  # (S,)
    phoneme_count: int
    true: Tensor | None = None  # (S,)


@dataclass(frozen=True)
class Exhibits:
    """What an encoder shows of the clips at one time."""

    clips: tuple[ListeningClip, ...]
    pictures: tuple[Picture, ...]

    def all(self, *, with_fixed: bool) -> list[Exhibit]:
        """Return sounds and pictures, with those that do not depend on the encoder or without them."""
        sounds = [
            Sound(f"{clip.name}/{kind}", *sound)
            for clip in self.clips
            for kind, sound in clip.sounds.items()
            if with_fixed or kind == "spoken"
        ]
        return [*sounds, *self.pictures]

    def write(self, folder: Path, *, epoch: int, step: int, val_loss: float) -> None:
        """Write the sounds and small spectrograms of them to a folder, see ``write_listening``."""
        write_listening(folder, self.clips, epoch=epoch, step=step, val_loss=val_loss)


@dataclass(frozen=True, eq=False)
class Exhibition:
    """Shows a few clips of a run at the ends of some epochs.

    Args:
        frame: its mean voice is the one that is heard beside the encoder's.
    """

    settings: Show
    dataset: Dataset
    clips: Sequence[ShownClip]
    frame: StyleFrame
    stock: Sequence[str]  # names of the voices on the map
    _fixed: dict[str, dict[str, tuple[Tensor, int]]] = field(default_factory=dict)  # sounds by clip, computed once

    def is_due(self, epoch: int) -> bool:
        """Whether the epoch, counted from 1, is shown."""
        if not self.clips:
            return False
        if self.settings.every:
            return epoch % self.settings.every == 0
        while epoch % FACTOR == 0:
            epoch //= FACTOR
        return epoch == 1

    @torch.no_grad()
    def show(self, encoder: StyleEncoder, points: Sequence[StylePoint]) -> Exhibits:
        """Let the encoder hear the clips, and Kokoro speak them.

        Args:
            encoder: in eval mode.
            points: of the map of styles.
        """
        found, pictures = [], []
        for clip in self.clips:
            pooled = pooled_recording(encoder, self.dataset.models, clip.heard.to(self.dataset.models.device))
            counts = torch.tensor([clip.utterance.phoneme_count], device=pooled.device)
            style = encoder.styles(pooled, counts)
            utterance = clip.utterance
            spoken = self.dataset.say(utterance.phonemes, style, utterance.seed)
            sounds = {**self._fixed_sounds(clip), "spoken": (spoken, KOKORO_RATE)}
            listening = ListeningClip(clip.name, clip.voice, clip.condition, utterance.text, clip.nearest, sounds)
            found.append(listening)
            pictures += self._pictures(encoder, clip, style)
        return Exhibits(tuple(found), (*pictures, self._map(points)))

    def _fixed_sounds(self, clip: ShownClip) -> dict[str, tuple[Tensor, int]]:
        """Return what is heard, the reference, the mean voice and the nearest voice: sound and rate by name."""
        if clip.name not in self._fixed:
            rows = min(clip.utterance.phoneme_count, len(self.frame.mean_pack)) - 1
            mean = self.frame.mean_pack[rows].cpu()
            nearest = self.dataset.models.voices.style(clip.nearest, clip.utterance.phoneme_count)
            sounds = {"heard": (clip.heard.cpu(), WHISPER_RATE)}
            if clip.reference is not None:
                sounds["reference"] = (clip.reference.audio, KOKORO_RATE)
            for name, style in (("mean", mean), ("nearest", nearest)):
                sounds[name] = (self._spoken_once(clip.utterance, name, style), KOKORO_RATE)
            self._fixed[clip.name] = sounds
        return self._fixed[clip.name]

    def _spoken_once(self, utterance: Utterance, voice: str, style: Tensor) -> Tensor:
        """Return a sentence in a style (S,), from the cache or rendered and kept: all trials hear the same."""
        spoken = Utterance(
            voice, utterance.text, utterance.phonemes, utterance.phoneme_count, style.contiguous(), utterance.seed
        )
        (clip,) = self.dataset.clips([spoken], versions=())
        return clip.audio

    def _pictures(self, encoder: StyleEncoder, clip: ShownClip, style: Tensor) -> list[Picture]:
        pictures = []
        if clip.reference is not None:
            reference, true = clip.reference, clip.reference.utterance.style[None].to(style.device)
            window = (0, reference.frames)
            predicted, wanted = (self.dataset.prosody([reference], one) for one in (style, true))
            audio = self.dataset.speak([reference], style, [window], prosody=predicted).item(0)
            pictures.append(spectrograms(f"{clip.name}/spectrograms", audio.cpu(), reference.audio))
            both = (Curves(one.f0[0], one.energy[0]) for one in (predicted, wanted))
            pictures.append(curves(f"{clip.name}/F0 and energy", *both))
        seen = self._attention(encoder, clip)
        return pictures if seen is None else [*pictures, seen]

    def _attention(self, encoder: StyleEncoder, clip: ShownClip) -> Picture | None:
        """Draw the attention of the encoder's pooling; None if it has none."""
        if clip.heard_clip is None:
            return None
        states = self.dataset.models.whisper(clip.heard.to(self.dataset.models.device))
        features = states[list(encoder.config.layers)][None].to(encoder.mean_pack.device, torch.float32)
        weights = encoder.attention_weights(features, whole_mask(features[:, 0]))
        if weights is None:
            return None
        seconds = [frames / FRAMES_PER_SECOND for frames in clip.heard_clip.token_frames.tolist()]
        known = self.dataset.models.kokoro.vocabulary
        phonemes = "".join(p for p in clip.heard_clip.utterance.phonemes if p in known)
        words = split_words(phonemes, clip.heard_clip.utterance.text, seconds)
        return attention(f"{clip.name}/attention", weights[0], words, len(clip.heard) / WHISPER_RATE)

    def _map(self, points: Sequence[StylePoint]) -> Picture:
        voices, frame, device = self.dataset.models.voices, self.frame, self.frame.mean_pack.device

        def offset(style: Tensor, count: int) -> Tensor:
            return frame.offsets(style[None].to(device), torch.tensor([count], device=device))[0].cpu()

        stock = {name: offset(voices.style(name, MAP_COUNT), MAP_COUNT) for name in self.stock}
        pairs = [
            (
                point.label,
                offset(point.predicted, point.phoneme_count),
                None if point.true is None else offset(point.true, point.phoneme_count),
            )
            for point in points
        ]
        return style_map("styles/map", stock, pairs)
