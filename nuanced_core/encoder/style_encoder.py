"""The StyleEncoder: maps Whisper features of a clip to the Kokoro style of its voice.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, C channels of a frame before pooling, P channels
after pooling, E channels of the speaker's description, V training voices, K knots, S = 256 style (timbre, then prosody,
128 each).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from nuanced_core.config.settings import Encoder, Features, Settings
from nuanced_core.config.validation import validate
from nuanced_core.encoder.layers import (
    ACTIVATIONS,
    COUNT_CHANNELS,
    KNOTS,
    embed_counts,
    knot_weights,
    knots,
    make_trunk,
)
from nuanced_core.encoder.pooling import EPSILON, POOLINGS, mean_over_time, std_over_time, whole_mask
from nuanced_core.encoder.pretrained import CONFIG_FILE, WEIGHTS_FILE, pretrained_folder, read_pretrained
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.errors import ConfigError, WeightsError, one_line
from nuanced_core.hearing.speaker_features import heard_voice
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE, TIMBRE_SIZE
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.speakers.encoders import SPEAKER_SIZES

__all__ = ["StyleEncoder", "StyleEncoderConfig"]

APPROACHED_ROW = 39  # of a pack, for 40 phonemes: where the steps on the surrogate begin

MIN_SPREAD = 1e-3  # least standard deviation of a channel; that of a single training voice is 0


class StyleEncoderConfig(Settings):
    """Configuration from which a StyleEncoder is built before its weights are loaded."""

    encoder: Encoder
    features: Features
    whisper: str = Field(description="name of the model whose features it reads")
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="what features.layers means")
    channels: Annotated[int, Field(ge=1)] = Field(description="D")
    voices: Annotated[int, Field(ge=1)] = Field(description="V")
    speaker_channels: Annotated[int, Field(ge=0)] = Field(0, description="E, of features.speaker and features.pitch")
    surrogate_clips: Annotated[int, Field(ge=0)] = Field(0, description="clips that the surrogate is fitted to")

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, as stored in ``config.json`` and in checkpoints."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: dict[str, object], place: str) -> "StyleEncoderConfig":
        """Build a configuration from the output of ``to_dict``; errors name ``place``.

        Raises:
            ConfigError: a value is missing, unknown or invalid.
        """
        try:
            return validate(cls, data, place)
        except ConfigError as error:
            raise ConfigError(f"{error}; not a StyleEncoder of this version: train and export it again") from None


class StyleEncoder(nn.Module):
    """Small network that maps Whisper features of a clip, pooled over time, to a style for a phoneme count.

    ``encoder.output`` selects how the output y of the last layer is turned into a style. The last layer is initialised
    to 0, for which every style is that of the mean voice: the mean of the training voices, row by row, so that a style
    fits its phoneme count.

    - offset: y is the offset from the mean voice, in standard deviations of the training voices.
    - blend: y holds the logits of a convex blend of the training voices, and a bounded residual. With separate trunks
      timbre and prosody have separate blends.
    - span: y holds the weights ``w`` of ``mean + sum_v w_v (voice_v - mean)``, separately for timbre and prosody.

    If ``encoder.phoneme_count`` is none, each voice is a single style, the mean of its rows. All settings are in
    ``config``, for example ``config.encoder.pooling``.
    """

    feature_mean: Tensor
    feature_std: Tensor
    pooled_mean: Tensor
    pooled_std: Tensor
    mean_pack: Tensor
    style_std: Tensor
    voice_offsets: Tensor
    knot_weights: Tensor

    def __init__(self, config: StyleEncoderConfig) -> None:
        super().__init__()
        self.config = config
        settings = config.encoder
        shape = (len(config.layers), config.channels)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(shape))
        self.register_buffer("mean_pack", torch.zeros(PACK_ROWS, STYLE_SIZE))
        self.register_buffer("style_std", torch.ones(STYLE_SIZE))
        self._combines_voices = settings.output in ("blend", "span")
        if self._combines_voices:
            # Rows change slowly, fastest for few phonemes. For 41 stock voices, 32 knots in float16 (0.7 MB; the packs
            # take 21 MB) reproduce each half of each row with a cosine above 0.9997, 0.999999 on average.
            self.register_buffer("voice_offsets", torch.zeros(config.voices, KNOTS, STYLE_SIZE, dtype=torch.float16))
            self.register_buffer("knot_weights", knot_weights().clone(), persistent=False)  # (510, K)

        mixes_layers = config.features.combine == "mix" and len(config.layers) > 1
        self.layer_logits = nn.Parameter(torch.zeros(len(config.layers))) if mixes_layers else None
        width = config.channels if mixes_layers else len(config.layers) * config.channels
        self.projection: nn.Module | None = None
        if settings.frame_width:
            activation = ACTIVATIONS[settings.activation]()
            self.projection = nn.Sequential(nn.Linear(width, settings.frame_width), activation)
            width = settings.frame_width
        self.pooling = POOLINGS[settings.pooling](width, settings.heads)

        width = self.pooling.out_channels + config.speaker_channels
        self.register_buffer("pooled_mean", torch.zeros(width))
        self.register_buffer("pooled_std", torch.ones(width))
        width += COUNT_CHANNELS if settings.phoneme_count == "embedding" else 0
        halves = (slice(0, TIMBRE_SIZE), slice(TIMBRE_SIZE, STYLE_SIZE))
        self._parts = halves if settings.trunk == "separate" else (slice(0, STYLE_SIZE),)  # of a style, one per trunk
        self.trunks = nn.ModuleList(make_trunk(width, settings) for _ in self._parts)
        self.heads = nn.ModuleList(
            nn.Linear(settings.width, self._head_channels(part.stop - part.start)) for part in self._parts
        )
        for weights in self.heads.parameters():
            nn.init.zeros_(weights)
        self.surrogate: Surrogate | None = None
        if settings.surrogate_steps:
            frame = StyleFrame(torch.zeros(1, PACK_ROWS, STYLE_SIZE))
            sizes: dict[str, int] = {name: SPEAKER_SIZES[name] for name in config.features.speaker_encoders}
            self.surrogate = Surrogate(frame, sizes, config.surrogate_clips)

    @torch.no_grad()
    def calibrate(self, features: FeatureStatistics, packs: Tensor) -> None:
        """Store the training set's feature statistics (L, D) and the packs of its voices (V, 510, 256).

        Raises:
            ConfigError: ``packs`` has another shape.
        """
        shape = (self.config.voices, PACK_ROWS, STYLE_SIZE)
        if packs.shape != shape:
            raise ConfigError(f"packs: shape {tuple(packs.shape)} is not {shape}, that of the training voices' packs")
        if self.config.encoder.phoneme_count == "none":
            packs = packs.mean(dim=1, keepdim=True).expand(shape)
        offsets = packs - packs.mean(dim=0)
        self.feature_mean.copy_(features.mean)
        self.feature_std.copy_(features.std)
        self.mean_pack.copy_(packs.mean(dim=0))
        self.style_std.copy_(offsets.square().mean(dim=(0, 1)).sqrt().clamp(min=MIN_SPREAD))
        if self._combines_voices:
            self.voice_offsets.copy_(offsets[:, knots()])

    @torch.no_grad()
    def calibrate_pooled(self, pooled: Tensor) -> None:
        """Store mean and standard deviation of pooled training clips (N, P + E), if ``encoder.standardise`` is set."""
        if self.config.encoder.standardise:
            self.pooled_mean.copy_(pooled.mean(dim=0))
            self.pooled_std.copy_(pooled.std(dim=0, correction=0).clamp(min=MIN_SPREAD))

    def forward(self, features: Tensor, mask: Tensor, phoneme_counts: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Predict styles (B, 256) for phoneme counts (B,).

        Args:
            features: (B, L, T, D).
            mask: (B, T), True at a clip's frames.
            phoneme_counts: (B,), clamped to 1 to 510.
            speaker: (B, E), see ``nuanced_core.hearing.speaker_features``; None if E is 0.
        """
        return self.styles(self.pooled(features, mask, speaker), phoneme_counts)

    def pack(self, features: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Predict a pack (510, 1, 256) from features (1, L, T, D), mask (1, T) and speaker (1, E) of one clip.

        Call it in eval mode.
        """
        return self.pack_of(self.pooled(features, mask, speaker))

    def pack_of(self, pooled: Tensor) -> Tensor:
        """Predict a pack (510, 1, 256) from the pooled features (1, P + E) of one clip."""
        styles = self._styles_of_rows(pooled.expand(PACK_ROWS, -1), torch.arange(PACK_ROWS, device=pooled.device))
        if self.surrogate is not None:
            styles = styles + self._approach(pooled)
        return styles.unsqueeze(1)

    @property
    def has_fixed_pooling(self) -> bool:
        """Whether ``pooled`` has no learned parameters, so that its result for a clip never changes in training."""
        learned = (self.layer_logits, self.projection, *self.pooling.parameters())
        return all(part is None for part in learned)

    def pooled(self, features: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        """Normalise and pool features (B, L, T, D), followed by speaker (B, E): (B, P + E).

        The result does not depend on phoneme counts.
        """
        return self._with_speaker(self.pooling(self.frames(features, mask), mask), speaker)

    def attention_weights(self, features: Tensor, mask: Tensor) -> Tensor | None:
        """Return how each head of the pooling weights the frames (B, T, H); None for a pooling without attention."""
        found: Tensor | None = self.pooling.attention_weights(self.frames(features, mask), mask)
        return found

    @property
    def layer_weights(self) -> dict[int, float]:
        """The weight of each Whisper layer in a learned mix, by layer; empty without one."""
        if self.layer_logits is None:
            return {}
        return dict(zip(self.config.layers, self.layer_logits.detach().softmax(dim=0).tolist(), strict=True))

    @torch.no_grad()
    def pooled_blocks(self, blocks: Callable[[], Iterable[Tensor]], speaker: Tensor | None = None) -> Tensor:
        """Normalise and pool the features of one clip as ``pooled`` does, without all of them in memory: (1, P + E).

        The result is that of the whole clip, except for rounding if there are several blocks.

        Args:
            blocks: returns the clip's features in blocks (L, t, D); it is called twice if ``features.channel`` is set.
            speaker: (1, E).
        """
        return self._with_speaker(self._pooled_blocks(blocks), speaker)

    def _with_speaker(self, pooled: Tensor, speaker: Tensor | None) -> Tensor:
        found = 0 if speaker is None else speaker.shape[1]
        if found != self.config.speaker_channels:
            raise ConfigError(
                f"speaker: {found} channels are not the {self.config.speaker_channels} that features.speaker "
                f"{self.config.features.speaker} and features.pitch {self.config.features.pitch} mean; "
                "give what nuanced_core.hearing.speaker_features computes for them"
            )
        return pooled if speaker is None else torch.cat([pooled, speaker.to(pooled)], dim=1)

    def _pooled_blocks(self, blocks: Callable[[], Iterable[Tensor]]) -> Tensor:
        channel = None if self.config.features.channel == "none" else self._channel_of_blocks(blocks())
        frames = self._frames_of_blocks(blocks(), channel)
        first, second = next(frames), next(frames, None)
        if second is None:
            pooled: Tensor = self.pooling(first, whole_mask(first))
            return pooled
        return self.pooling.blocks(chain((first, second), frames))

    def _frames_of_blocks(self, blocks: Iterable[Tensor], channel: tuple[Tensor, Tensor] | None) -> Iterator[Tensor]:
        for block in blocks:
            features = block[None].to(self.mean_pack.device)
            mask = whole_mask(features[:, 0])
            yield self._process(self._normalise(features, mask), mask, channel)

    def styles(self, pooled: Tensor, phoneme_counts: Tensor) -> Tensor:
        """Predict styles (B, 256) from pooled features (B, P + E) for phoneme counts (B,)."""
        styles = self._styles_of_rows(pooled, phoneme_counts.clamp(1, PACK_ROWS) - 1)
        return styles if self.training or self.surrogate is None else styles + self._approach(pooled)

    def _approach(self, pooled: Tensor) -> Tensor:
        """Return what ``encoder.surrogate_steps`` steps add to the styles of clips with pooled features (B, P + E).

        It has no gradient: that of the styles is as if it were constant.
        """
        assert self.surrogate is not None
        frame, settings = self.surrogate.frame, self.config
        rows = torch.full((pooled.shape[0],), APPROACHED_ROW, device=pooled.device)
        start = frame.offsets(self._styles_of_rows(pooled, rows), rows + 1).detach()
        heard = heard_voice(settings.features, pooled[:, -settings.speaker_channels :])
        encoder = settings.encoder
        weights = encoder.surrogate_prior, encoder.surrogate_anchor
        return (self.surrogate.approach(start, *heard, encoder.surrogate_steps, *weights) - start) * frame.std

    def frames(self, features: Tensor, mask: Tensor) -> Tensor:
        """Compute the frames to pool (B, T, C) from features (B, L, T, D) and mask (B, T).

        They are normalised by the training set's statistics and processed as ``config.features`` and
        ``encoder.frame_width`` define. Padding of ``features`` may hold any value, including NaN; padding of the result
        is undefined.
        """
        return self._process(self._normalise(features, mask), mask)

    def _normalise(self, features: Tensor, mask: Tensor) -> Tensor:
        """Normalise features (B, L, T, D) by the training set's statistics to (B, T, L * D), 0 in the padding."""
        x = features.transpose(1, 2).flatten(2)
        x = (x - self.feature_mean.flatten()) / self.feature_std.flatten()
        return x.masked_fill(~mask.unsqueeze(2), 0)

    def _process(self, x: Tensor, mask: Tensor, channel: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Process normalised features (B, T, L * D) to the frames to pool (B, T, C).

        ``channel`` is the mean and standard deviation (B, L * D) of the clips, if ``x`` is not all of them.
        """
        settings = self.config.features
        if settings.channel != "none":
            mean, std = channel or self._channel(x, mask)
            x = (x - mean.unsqueeze(1)) / std.unsqueeze(1)
        if settings.bound:
            x = settings.bound * torch.tanh(x / settings.bound)
        if self.layer_logits is not None:
            layers = x.reshape(*mask.shape, *self.feature_mean.shape)  # (B, T, L, D)
            x = torch.einsum("btld,l->btd", layers, self.layer_logits.softmax(dim=0))
        return x if self.projection is None else self.projection(x)

    def _channel(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation (B, L * D) that ``features.channel`` removes from clips."""
        mean = mean_over_time(x, mask)
        with_std = self.config.features.channel == "mean_std"
        return mean, std_over_time(x, mask, mean) if with_std else torch.ones_like(mean)

    def _channel_of_blocks(self, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
        """Return the same as ``_channel`` for one clip in blocks (L, t, D), or None if there is only one block."""
        parts = []
        for block in blocks:
            features = block[None].to(self.mean_pack.device)
            x = self._normalise(features, whole_mask(features[:, 0])).double()
            parts.append((block.shape[1], x.sum(dim=1), x.square().sum(dim=1)))
        if len(parts) == 1:
            return None
        count, total, squares = (sum(column) for column in zip(*parts, strict=True))
        mean = total / count
        if self.config.features.channel == "mean":
            return mean.float(), torch.ones_like(mean).float()
        return mean.float(), torch.sqrt(squares / count - mean.square() + EPSILON).float()

    def _head_channels(self, part_size: int) -> int:
        settings, voices = self.config.encoder, self.config.voices
        if settings.output == "span":
            return voices * (part_size // TIMBRE_SIZE)
        if settings.output == "blend":
            return voices + (part_size if settings.residual_bound else 0)
        return part_size

    def _styles_of_rows(self, pooled: Tensor, rows: Tensor) -> Tensor:
        """Predict styles (B, S) from pooled features (B, P + E) for rows (B,) of a pack."""
        x = (pooled - self.pooled_mean) / self.pooled_std
        if self.config.encoder.phoneme_count == "embedding":
            x = torch.cat([x, embed_counts(rows).to(x.dtype)], dim=1)
        outputs = [head(trunk(x)) for trunk, head in zip(self.trunks, self.heads, strict=True)]
        if self._combines_voices:
            voices = torch.einsum("bk,vks->bvs", self.knot_weights[rows], self.voice_offsets.to(x.dtype))
            outputs = [
                self._combine_voices(y, voices[:, :, part], self.style_std[part])
                for y, part in zip(outputs, self._parts, strict=True)
            ]
            return self.mean_pack[rows] + torch.cat(outputs, dim=1)
        return self.mean_pack[rows] + torch.cat(outputs, dim=1) * self.style_std

    def _combine_voices(self, y: Tensor, voices: Tensor, std: Tensor) -> Tensor:
        """Combine the training voices' offsets (B, V, part of S) as the output y of a head defines: (B, part of S).

        ``std`` (part of S,) scales the residual of a blend.
        """
        settings, count = self.config.encoder, self.config.voices
        if settings.output == "span":
            halves = voices.reshape(y.shape[0], count, -1, TIMBRE_SIZE)  # one or both halves, as in y (B, halves * V)
            return torch.einsum("bhv,bvhs->bhs", y.reshape(y.shape[0], -1, count), halves).flatten(1)
        # The offsets' mean is 0 except for rounding; this makes equal weights exactly the mean voice.
        weights = y[:, :count].softmax(dim=1) - 1 / count
        residual = settings.residual_bound * torch.tanh(y[:, count:]) * std if settings.residual_bound else 0
        return torch.einsum("bv,bvs->bs", weights, voices) + residual

    @classmethod
    def from_pretrained(cls, place: str | Path, revision: str | None = None) -> "StyleEncoder":
        """Load a StyleEncoder in eval mode, from a folder that ``nuanced export`` wrote or from the Hugging Face hub.

        Args:
            place: the folder, or OWNER/NAME on the hub.
            revision: on the hub.

        Raises:
            WeightsError: a file is missing, cut off or changed, or the weights do not fit the configuration.
            ConfigError: the configuration is invalid.
        """
        folder = pretrained_folder(place, revision)
        found = read_pretrained(folder)
        config = StyleEncoderConfig.from_dict(found.config["style_encoder"], str(folder / CONFIG_FILE))
        try:
            return cls.from_weights(config, found.weights)
        except ValueError as error:
            raise WeightsError(f"{folder / WEIGHTS_FILE}: does not fit {CONFIG_FILE}: {error}") from None

    @classmethod
    def from_weights(cls, config: StyleEncoderConfig, weights: Mapping[str, Tensor]) -> "StyleEncoder":
        """Build a StyleEncoder in eval mode; nothing of the size that ``config`` says is allocated unless it fits.

        Raises:
            ValueError: the weights do not fit the configuration.
        """
        try:
            with torch.device("meta"):
                cls(config).load_state_dict(weights, assign=True)
            encoder = cls(config)
            encoder.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:  # TypeError of sizes beyond 64 bits
            raise ValueError(one_line(error)) from None
        return encoder.eval()
