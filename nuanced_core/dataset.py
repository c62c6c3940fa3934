"""Utterances spoken once by Kokoro and heard once by Whisper, kept in a cache that all trials share.

A cache entry's name is the hash of all that it depends on (weights, style, phonemes, noise seed, device), so a
changed setting renders only what it changes. What the hash cannot see, a change of our own code, raises ``HEARING``
or the cache's ``FORMAT``.

Version 0 of a clip, or "clean", is the clip as Kokoro spoke it; version i is what ``augmented`` makes of it the i-th
time; a version with another name is what ``degraded`` makes of it.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, N tokens, S = 256 style.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nuanced_core.audio import KOKORO_RATE, SAMPLES_PER_FRAME, WHISPER_RATE, resample
from nuanced_core.augment import augmented, degraded
from nuanced_core.cache import Cache, content_key
from nuanced_core.config import Augment, Condition, Data, Mixes, WindowFrames
from nuanced_core.errors import ConfigError, TextError
from nuanced_core.kokoro import PACK_ROWS, Prosody, Speech
from nuanced_core.kokoro_decoder import Precision
from nuanced_core.mixes import mixed_voices, style
from nuanced_core.model_set import ModelSet
from nuanced_core.style_encoder import FeatureStatistics
from nuanced_core.text import Phonemizer, load_sentences, spoken_words, test_sentences_in
from nuanced_core.voices import VoiceBank

__all__ = ["CLEAN", "Batch", "Clip", "Dataset", "Utterance", "Version", "content_key", "plan", "styles", "windows"]

HEARING = "2"  # part of features' names: raise it when Whisper's states of a clip, or its augmented sound, change
CLEAN = (0,)  # the version that is not augmented
NO_COPIES = Augment(copies=0)

Version = int | Condition


@dataclass(frozen=True)
class Utterance:
    """A sentence in a voice."""

    voice: str
    text: str
    phonemes: str
    phoneme_count: int  # of which the style is: a voice has one for each
    style: Tensor  # (256,)
    seed: int  # of Kokoro's noise


@dataclass(frozen=True)
class Clip:
    """An utterance as Kokoro spoke it."""

    utterance: Utterance
    key: str
    audio: Tensor  # (samples,) at 24 kHz
    token_frames: Tensor  # (N,) frames of each token

    @property
    def frames(self) -> int:
        """Length in Kokoro frames of 25 ms."""
        return len(self.audio) // SAMPLES_PER_FRAME


@dataclass(frozen=True)
class Batch:
    """What a StyleEncoder sees of some clips, and what it should say."""

    features: Tensor  # (B, L, T, D)
    mask: Tensor  # (B, T), True where a clip has a feature frame
    phoneme_counts: Tensor  # (B,)
    styles: Tensor  # (B, 256)


def plan(
    data: Data, mixes: Mixes, voices: VoiceBank, phonemizer: Phonemizer
) -> tuple[list[Utterance], list[Utterance]]:
    """Who says what: training and validation utterances, with no voice and no sentence in both.

    Made-up voices are mixed of the training voices and speak training sentences; validation does not know of them.

    Raises:
        ConfigError, VoiceError, TextError: a voice or a sentence is missing, unknown, on both sides, or kept for the
            final evaluation; or there are too few voices to mix, or too few validation sentences.
    """
    train_voices = voices.training_voices(data.voices, data.val_voices)
    train_texts = _sentences(data.sentences, "data.sentences", phonemizer, data.max_phonemes)
    val_texts = _sentences(data.val_sentences, "data.val_sentences", phonemizer, data.max_phonemes)
    _refuse_shared(train_texts, val_texts)
    if len(val_texts) < 2:
        raise ConfigError(
            f"data.val_sentences: {next(iter(val_texts))!r} is the only one; at least 2 are needed: a voice is heard "
            "saying another sentence than it speaks"
        )

    def spoken(
        name: str, styled: Callable[[int], Tensor], texts: dict[str, str], count: int, rows: Sequence[int] = ()
    ) -> list[Utterance]:
        rng = random.Random(f"{data.seed}/{name}")
        utterances = []
        for text in rng.sample(list(texts), min(count, len(texts))):
            row = rng.choice(rows) if rows else len(texts[text])
            utterances.append(Utterance(name, text, texts[text], row, styled(row), _seed(data.seed, name, text)))
        return utterances

    def stock(names: Sequence[str], texts: dict[str, str], count: int) -> list[Utterance]:
        return [u for name in names for u in spoken(name, partial(voices.style, name), texts, count)]

    train = stock(train_voices, train_texts, data.sentences_per_voice)
    any_row = _sentences(data.sentences, "data.sentences", phonemizer, PACK_ROWS) if mixes.rows == "any" else {}
    rows = sorted(len(phonemes) for phonemes in any_row.values())
    for name, styled in _mixed_styles(mixes, train_voices, data.seed, voices).items():
        train += spoken(name, styled, train_texts, mixes.sentences, rows)
    return train, stock(data.val_voices, val_texts, data.val_sentences_per_voice)


def styles(data: Data, mixes: Mixes, voices: VoiceBank) -> dict[str, Callable[[int], Tensor]]:
    """Of each training voice, made-up ones included, what style (256,) it has for a phoneme count.

    Raises:
        ConfigError, VoiceError: as ``plan``.
    """
    names = voices.training_voices(data.voices, data.val_voices)
    stock = {name: partial(voices.style, name) for name in names}
    return {**stock, **_mixed_styles(mixes, names, data.seed, voices)}


def _mixed_styles(
    mixes: Mixes, train_voices: Sequence[str], seed: int, voices: VoiceBank
) -> dict[str, Callable[[int], Tensor]]:
    names = sorted(train_voices)  # in whatever order they are listed, their mixes are the same
    packs = torch.stack([voices.pack(name) for name in names])
    return {mix.name: partial(style, mix, packs) for mix in mixed_voices(mixes, names, seed)}


def _refuse_shared(train_texts: Iterable[str], val_texts: Iterable[str]) -> None:
    """Refuse a sentence, whatever its case and punctuation, that is on both sides or in the test split."""
    for setting, texts in (("data.sentences", train_texts), ("data.val_sentences", val_texts)):
        for text in test_sentences_in(texts):
            raise ConfigError(f"{setting}: {text!r} is a test sentence, kept for the final evaluation; take it out")
    train = {spoken_words(text) for text in train_texts}
    for text in val_texts:
        if spoken_words(text) in train:
            raise ConfigError(f"data.val_sentences: {text!r} is a training sentence too; take it out of one of the two")


class Dataset:
    """Clips of utterances, from the cache or rendered into it.

    Args:
        models: Kokoro and Whisper; Whisper is loaded only to hear a clip for the first time.
        folder: the cache.
        augment: what the versions of a clip are.
    """

    def __init__(self, models: ModelSet, folder: Path, augment: Augment = NO_COPIES) -> None:
        self.models = models
        self.folder = folder
        self.augment = augment
        self.cache = Cache(folder)

    @property
    def versions(self) -> tuple[int, ...]:
        """Of each training clip: the clean one and its augmented copies."""
        return tuple(range(1 + self.augment.copies))

    def clips(self, utterances: Iterable[Utterance], versions: Sequence[Version] = CLEAN) -> list[Clip]:
        """Utterances as clips, in order; what is missing of them and of these versions is rendered and heard.

        Raises:
            DiskError: the cache cannot be written.
        """
        clips = []
        for utterance in utterances:
            clips.append(self._clip(utterance))
            for version in versions:
                if not self.cache.has("features", self._features_key(clips[-1].key, version)):
                    self._hear(clips[-1], version)
        return clips

    def missing(self, utterances: Iterable[Utterance], versions: Sequence[Version] = CLEAN) -> list[Utterance]:
        """Those utterances of which the cache lacks the sound, or Whisper's states of one of these versions."""
        keys = {self._clip_key(utterance): utterance for utterance in utterances}
        return [utterance for key, utterance in keys.items() if not self._is_there(key, versions)]

    def layers(self, choice: str | Sequence[int], clip: Clip) -> tuple[int, ...]:
        """The layers that ``features.layers`` means, of those that Whisper has.

        Raises:
            ConfigError: Whisper has no such layer.
        """
        count = len(self.cache.names("features", self._features_key(clip.key, 0)) or self._hear(clip, 0))
        if choice == "all":
            return tuple(range(count))
        layers = (count - 1,) if choice == "last" else tuple(int(layer) for layer in choice)
        if not layers or max(layers) >= count:
            raise ConfigError(
                f"features.layers: {list(layers)}: Whisper {self.models.whisper_file.name} has layers 0 to {count - 1}"
            )
        return layers

    def batch(
        self,
        clips: Sequence[Clip],
        layers: Sequence[int],
        versions: Sequence[Version] | None = None,
        spoken: Sequence[Clip] | None = None,
    ) -> Batch:
        """Features of some of Whisper's layers, padded to the longest clip, and the targets, on the models' device.

        ``versions`` says which version of each clip is heard, by default the clean one; ``spoken`` what is to be said
        in each one's voice, by default what is heard.
        """
        device = self.models.device
        heard = zip(clips, versions or [0] * len(clips), strict=True)
        states = [self._states(clip, layers, version) for clip, version in heard]  # each (L, T, D)
        lengths = torch.tensor([s.shape[1] for s in states])
        features = pad_sequence([s.transpose(0, 1) for s in states], batch_first=True).transpose(1, 2)
        return Batch(
            features.to(device, torch.float32),
            (torch.arange(int(lengths.max())) < lengths[:, None]).to(device),
            torch.tensor([clip.utterance.phoneme_count for clip in spoken or clips], device=device),
            torch.stack([clip.utterance.style for clip in spoken or clips]).to(device),
        )

    def statistics(self, clips: Sequence[Clip], layers: Sequence[int]) -> FeatureStatistics:
        """Mean and spread (L, D) of each feature over all frames of some clips.

        Of each clip one version is heard, in turn: a copy more does not take longer. They are kept in the cache.
        """
        heard = [self._features_key(clip.key, self.versions[i % len(self.versions)]) for i, clip in enumerate(clips)]
        key = content_key("statistics", heard, list(layers))
        kept = self.cache.load("baselines", key)
        if kept is None:
            mean, std = self._statistics(clips, layers)
            kept = self.cache.save("baselines", key, {"mean": mean, "std": std})
        return FeatureStatistics(kept["mean"], kept["std"])

    def _statistics(self, clips: Sequence[Clip], layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        frames = 0
        sums: list[Tensor] = []
        for index, clip in enumerate(clips):
            states = self._states(clip, layers, self.versions[index % len(self.versions)]).double()
            part = [states.sum(dim=1), states.square().sum(dim=1)]
            sums = part if not sums else [a + b for a, b in zip(sums, part, strict=True)]
            frames += states.shape[1]
        mean = sums[0] / frames
        variance = (sums[1] / frames - mean.square()).clamp(min=1e-8)
        return mean.float(), variance.sqrt().float()

    def reference(self, clip: Clip, window: tuple[int, int]) -> Tensor:
        """A window (first frame, frames) of a clip as Kokoro speaks it alone, (samples,) at 24 kHz.

        Kokoro's instance norms look at all that is spoken at once: a window cut from the whole clip would differ
        from a predicted window even for the same style.
        """
        if window == (0, clip.frames):
            return clip.audio
        key = content_key(clip.key, *window)
        found = self.cache.load("windows", key)
        if found is None:
            with torch.no_grad():
                style = clip.utterance.style.unsqueeze(0).to(self.models.device)
                audio = self.speak([clip], style, [window]).item(0).cpu()
            found = self.cache.save("windows", key, {"audio": audio})
        return found["audio"]

    def prosody(self, clips: Sequence[Clip], styles: Tensor) -> Prosody:
        """Durations, F0 and energy of clips in other styles (B, 256), on the clips' alignment, differentiable."""
        text = self.models.kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        token_frames = pad_sequence([clip.token_frames for clip in clips], batch_first=True)
        return self.models.kokoro.prosody(text, styles, token_frames)

    def speak(
        self,
        clips: Sequence[Clip],
        styles: Tensor,
        chosen: Sequence[tuple[int, int]],
        noise: int = 0,
        *,
        prosody: Prosody | None = None,
        precision: Precision = "float32",
        checkpointing: bool = False,
    ) -> Speech:
        """Windows of clips in other styles (B, 256), with the clips' durations; ``noise`` is added to their seeds.

        Differentiable to the styles. ``prosody`` is that of the styles if it is known already; ``precision`` and
        ``checkpointing`` are as in ``DifferentiableKokoro.speak``.
        """
        kokoro = self.models.kokoro
        text = kokoro.encode_text([clip.utterance.phonemes for clip in clips])
        prosody = prosody or self.prosody(clips, styles)
        seeds = [clip.utterance.seed + noise for clip in clips]
        return kokoro.speak(text, prosody, styles, seeds, chosen, precision=precision, checkpointing=checkpointing)

    def _clip(self, utterance: Utterance) -> Clip:
        key = self._clip_key(utterance)
        found = self.cache.load("clips", key)
        if found is None:
            kokoro = self.models.kokoro
            style_batch = utterance.style.unsqueeze(0).to(self.models.device)
            with torch.no_grad():
                text = kokoro.encode_text([utterance.phonemes])
                prosody = kokoro.prosody(text, style_batch)
                audio = kokoro.speak(text, prosody, style_batch, [utterance.seed]).item(0).cpu()
            found = self.cache.save("clips", key, {"audio": audio, "token_frames": prosody.token_frames[0]})
        return Clip(utterance, key, found["audio"], found["token_frames"])

    def _states(self, clip: Clip, layers: Sequence[int], version: Version) -> Tensor:
        """Whisper's states of a version of a clip, (L, T, D) float16."""
        names = [str(layer) for layer in layers]
        found = self.cache.load("features", self._features_key(clip.key, version), names) or self._hear(clip, version)
        return torch.stack([found[name] for name in names])

    def _hear(self, clip: Clip, version: Version) -> dict[str, Tensor]:
        """Whisper's states of a version of a clip by layer, each (T, D) float16, for the first time."""
        audio = resample(clip.audio, KOKORO_RATE, WHISPER_RATE)
        if isinstance(version, str) and version != "clean":
            audio = degraded(audio, WHISPER_RATE, version, _seed(clip.key, version))
        elif isinstance(version, int) and version:
            audio = augmented(audio, WHISPER_RATE, self.augment, _seed(clip.key, version))
        states = self.models.whisper(audio).half()
        key = self._features_key(clip.key, version)
        return self.cache.save("features", key, {str(layer): s for layer, s in enumerate(states)})

    def _is_there(self, clip_key: str, versions: Sequence[Version]) -> bool:
        features = [self.cache.has("features", self._features_key(clip_key, version)) for version in versions]
        return self.cache.has("clips", clip_key) and all(features)

    def _clip_key(self, utterance: Utterance) -> str:
        style_hash = hashlib.sha256(utterance.style.numpy().tobytes()).hexdigest()
        weights = self.models.kokoro_files.sha256
        return content_key(weights, style_hash, utterance.phonemes, utterance.seed, self.models.device.type)

    def _features_key(self, clip_key: str, version: Version) -> str:
        changes: list[object] = []
        if isinstance(version, str):
            changes = [] if version == "clean" else [version]
        elif version:
            changes = [self.augment.model_dump(mode="json", exclude={"copies"}), version]
        return content_key(clip_key, self.models.whisper_file.sha256, HEARING, *changes)


def windows(frames: int, window: WindowFrames) -> list[tuple[int, int]]:
    """The windows (first frame, frames) that cover a clip; the last one overlaps its neighbour rather than be short."""
    if window == "full" or frames <= window:
        return [(0, frames)]
    starts = [*range(0, frames - window, window), frames - window]
    return [(start, window) for start in starts]


def _sentences(
    source: str | tuple[str, ...], setting: str, phonemizer: Phonemizer, max_phonemes: int
) -> dict[str, str]:
    """Sentences and their phonemes, without those that are too long."""
    try:
        texts = load_sentences(source)
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    try:
        phonemes = {text: phonemizer(text) for text in texts}
    except TextError as error:
        raise TextError(f"{setting}: {error}") from None
    kept = {text: p for text, p in phonemes.items() if len(p) <= max_phonemes}
    if not kept:
        shortest = min(len(p) for p in phonemes.values())
        raise ConfigError(
            f"data.max_phonemes: {max_phonemes}: no sentence of {setting} is that short; at least {shortest} is needed"
        )
    return kept


def _seed(*parts: object) -> int:
    """A seed of 31 bits that depends on all of the parts."""
    return int(content_key(*parts)[:8], 16) >> 1
