"""The StyleEncoder: maps Whisper features of a clip to the Kokoro style of its voice.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, C channels of a frame before pooling, P channels
after pooling, V training voices, K knots, S = 256 style (timbre, then prosody, 128 each).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nuanced_core.config.settings import Encoder, Features, Settings
from nuanced_core.config.validation import validate
from nuanced_core.encoder.pooling import EPSILON, POOLINGS, mean_over_time, std_over_time, whole_mask
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.hearing.whisper_features import FeatureStatistics
from nuanced_core.kokoro.model import PACK_ROWS, STYLE_SIZE, TIMBRE_SIZE

__all__ = ["StyleEncoder", "StyleEncoderConfig"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
KNOTS = 32  # rows stored of each training voice; the others are interpolated
COUNT_CHANNELS = 8  # channels of the embedding of a phoneme count
MIN_SPREAD = 1e-3  # least standard deviation of a channel; that of a single training voice is 0


class StyleEncoderConfig(Settings):
    """Configuration from which a StyleEncoder is built before its weights are loaded."""

    encoder: Encoder
    features: Features
    whisper: str = Field(description="name of the model whose features it reads")
    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="what features.layers means")
    channels: Annotated[int, Field(ge=1)] = Field(description="D")
    voices: Annotated[int, Field(ge=1)] = Field(description="V")

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
            self.register_buffer("knot_weights", _knot_weights().clone(), persistent=False)  # (510, K)

        mixes_layers = config.features.combine == "mix" and len(config.layers) > 1
        self.layer_logits = nn.Parameter(torch.zeros(len(config.layers))) if mixes_layers else None
        width = config.channels if mixes_layers else len(config.layers) * config.channels
        self.projection: nn.Module | None = None
        if settings.frame_width:
            activation = ACTIVATIONS[settings.activation]()
            self.projection = nn.Sequential(nn.Linear(width, settings.frame_width), activation)
            width = settings.frame_width
        self.pooling = POOLINGS[settings.pooling](width, settings.heads)

        self.register_buffer("pooled_mean", torch.zeros(self.pooling.out_channels))
        self.register_buffer("pooled_std", torch.ones(self.pooling.out_channels))
        width = self.pooling.out_channels + (COUNT_CHANNELS if settings.phoneme_count == "embedding" else 0)
        halves = (slice(0, TIMBRE_SIZE), slice(TIMBRE_SIZE, STYLE_SIZE))
        self._parts = halves if settings.trunk == "separate" else (slice(0, STYLE_SIZE),)  # of a style, one per trunk
        self.trunks = nn.ModuleList(_trunk(width, settings) for _ in self._parts)
        self.heads = nn.ModuleList(
            nn.Linear(settings.width, self._head_channels(part.stop - part.start)) for part in self._parts
        )
        for weights in self.heads.parameters():
            nn.init.zeros_(weights)

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
            self.voice_offsets.copy_(offsets[:, _knots()])

    @torch.no_grad()
    def calibrate_pooled(self, pooled: Tensor) -> None:
        """Store mean and standard deviation of N pooled training clips (N, P), if ``encoder.standardise`` is set."""
        if self.config.encoder.standardise:
            self.pooled_mean.copy_(pooled.mean(dim=0))
            self.pooled_std.copy_(pooled.std(dim=0, correction=0).clamp(min=MIN_SPREAD))

    def forward(self, features: Tensor, mask: Tensor, phoneme_counts: Tensor) -> Tensor:
        """Predict styles (B, 256) for phoneme counts (B,).

        Args:
            features: (B, L, T, D).
            mask: (B, T), True at a clip's frames.
            phoneme_counts: (B,), clamped to 1 to 510.
        """
        return self.styles(self.pooled(features, mask), phoneme_counts)

    def pack(self, features: Tensor, mask: Tensor) -> Tensor:
        """Predict a pack (510, 1, 256) from the features (1, L, T, D) and mask (1, T) of one clip.

        Call it in eval mode.
        """
        pooled = self.pooled(features, mask).expand(PACK_ROWS, -1)
        return self.styles(pooled, torch.arange(1, PACK_ROWS + 1, device=pooled.device)).unsqueeze(1)

    @property
    def has_fixed_pooling(self) -> bool:
        """Whether ``pooled`` has no learned parameters, so that its result for a clip never changes in training."""
        learned = (self.layer_logits, self.projection, *self.pooling.parameters())
        return all(part is None for part in learned)

    def pooled(self, features: Tensor, mask: Tensor) -> Tensor:
        """Normalise and pool features (B, L, T, D) to (B, P), independent of phoneme counts."""
        return self.pooling(self.frames(features, mask), mask)  # type: ignore[no-any-return]

    @torch.no_grad()
    def pooled_blocks(self, blocks: Callable[[], Iterable[Tensor]]) -> Tensor:
        """Normalise and pool the features of one clip to (1, P) as ``pooled`` does, without all of them in memory.

        The result is that of the whole clip, except for rounding if there are several blocks.

        Args:
            blocks: returns the clip's features in blocks (L, t, D); it is called twice if ``features.channel`` is set.
        """
        channel = None if self.config.features.channel == "none" else self._channel_of_blocks(blocks())
        frames = self._frames_of_blocks(blocks(), channel)
        first, second = next(frames), next(frames, None)
        if second is None:
            return self.pooling(first, whole_mask(first))  # type: ignore[no-any-return]
        return self.pooling.blocks(chain((first, second), frames))

    def _frames_of_blocks(self, blocks: Iterable[Tensor], channel: tuple[Tensor, Tensor] | None) -> Iterator[Tensor]:
        for block in blocks:
            features = block[None].to(self.mean_pack.device)
            mask = whole_mask(features[:, 0])
            yield self._process(self._normalise(features, mask), mask, channel)

    def styles(self, pooled: Tensor, phoneme_counts: Tensor) -> Tensor:
        """Predict styles (B, 256) from pooled features (B, P) for phoneme counts (B,)."""
        return self._styles_of_rows(pooled, phoneme_counts.clamp(1, PACK_ROWS) - 1)

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
        """Predict styles (B, S) from pooled features (B, P) for rows (B,) of a pack."""
        x = (pooled - self.pooled_mean) / self.pooled_std
        if self.config.encoder.phoneme_count == "embedding":
            x = torch.cat([x, _embed_counts(rows).to(x.dtype)], dim=1)
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
            halves = voices.reshape(len(y), count, -1, TIMBRE_SIZE)  # one or both halves, as in y (B, halves * V)
            return torch.einsum("bhv,bvhs->bhs", y.reshape(len(y), -1, count), halves).flatten(1)
        # The offsets' mean is 0 except for rounding; this makes equal weights exactly the mean voice.
        weights = y[:, :count].softmax(dim=1) - 1 / count
        residual = settings.residual_bound * torch.tanh(y[:, count:]) * std if settings.residual_bound else 0
        return torch.einsum("bv,bvs->bs", weights, voices) + residual

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "StyleEncoder":
        """Load a StyleEncoder from a folder written by ``nuanced export``, in eval mode.

        Raises:
            WeightsError: a file is missing, or the weights do not fit the configuration.
            ConfigError: the configuration is invalid.
        """
        folder = Path(folder)
        config_file, weights_file = folder / "config.json", folder / "model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise WeightsError(f"{file}: no such file; give a folder that 'nuanced export' wrote")
        try:
            data = json.loads(config_file.read_text(encoding="utf-8"))
            encoder = cls(StyleEncoderConfig.from_dict(data["style_encoder"], str(config_file)))
            encoder.load_state_dict(load_file(weights_file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{config_file}: not a StyleEncoder's configuration: {error!r}") from None
        except (RuntimeError, SafetensorError) as error:
            raise WeightsError(f"{weights_file}: does not fit {config_file.name}: {str(error)[:200]}") from None
        return encoder.eval()


class _HiddenLayer(nn.Module):
    """Linear layer, normalisation, activation, dropout; with a residual connection if ``encoder.residual`` is set.

    The residual connection requires as many input channels as ``encoder.width``.
    """

    def __init__(self, channels: int, settings: Encoder) -> None:
        super().__init__()
        norms = {"none": nn.Identity, "layer": nn.LayerNorm, "batch": _BatchNorm}
        # Batch normalisation would cancel a bias.
        self.linear = nn.Linear(channels, settings.width, bias=settings.normalisation != "batch")
        self.normalisation = norms[settings.normalisation](settings.width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout)
        self.residual = settings.residual and channels == settings.width

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels) to (B, width)."""
        y: Tensor = self.dropout(self.activation(self.normalisation(self.linear(x))))
        return x + y if self.residual else y


class _BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that uses the running statistics for a batch of one, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, channels)."""
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(x)


def _trunk(channels: int, settings: Encoder) -> nn.Sequential:
    widths = [channels, *[settings.width] * (settings.depth - 1)]
    return nn.Sequential(*(_HiddenLayer(width, settings) for width in widths))


def _embed_counts(rows: Tensor) -> Tensor:
    """Embed the phoneme counts of rows (B,) as the first terms of a cosine series in their logarithm, (B, 8)."""
    log_count = torch.log(rows + 1.0) / math.log(PACK_ROWS)  # 0 for 1 phoneme, 1 for 510
    return torch.cos(torch.pi * log_count.unsqueeze(1) * torch.arange(1, COUNT_CHANNELS + 1, device=rows.device))


def _knots() -> Tensor:
    """Return the stored rows (K,): from 0 to 509, closer together for few phonemes."""
    linear_rows = 10  # knots are evenly spaced below this row; above it, their distance grows with the row
    end = math.log1p((PACK_ROWS - 1) / linear_rows)
    return (torch.linspace(0, end, KNOTS, dtype=torch.float64).expm1() * linear_rows).round().long()


@cache
def _knot_weights() -> Tensor:
    """Return the weight of each knot for each row, (510, K): linear interpolation between neighbours."""
    with torch.device("cpu"):  # on the meta device, where parameters are counted, this loads TorchDynamo for seconds
        knots, rows = _knots(), torch.arange(PACK_ROWS)
        right = torch.searchsorted(knots, rows, right=True).clamp(max=KNOTS - 1)
        left = right - 1
        fraction = ((rows - knots[left]) / (knots[right] - knots[left])).unsqueeze(1)
        identity = torch.eye(KNOTS)
        return identity[left] * (1 - fraction) + identity[right] * fraction
