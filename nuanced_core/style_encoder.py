"""The StyleEncoder: Whisper features of a clip to the Kokoro style in which its voice speaks.

Dimensions: B batch, L layers, T feature frames, D Whisper channels, S = 256 style.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nuanced_core.config import Encoder, validate
from nuanced_core.errors import ConfigError, WeightsError
from nuanced_core.kokoro import PACK_ROWS, STYLE_SIZE
from nuanced_core.pooling import POOLINGS

__all__ = ["FeatureStatistics", "StyleEncoder", "StyleEncoderConfig"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class FeatureStatistics:
    """Of the training clips' features: what normalises them."""

    mean: Tensor  # (L, D)
    std: Tensor  # (L, D)


@dataclass(frozen=True)
class StyleEncoderConfig:
    """Everything needed to build a StyleEncoder before its weights are loaded."""

    encoder: Encoder
    whisper: str  # name of the model whose features it reads
    layers: tuple[int, ...]  # which of its layers
    channels: int  # D

    def to_dict(self) -> dict[str, object]:
        """As JSON, in ``config.json`` and in checkpoints."""
        return {**asdict(self), "encoder": self.encoder.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, data: dict[str, object], place: str) -> "StyleEncoderConfig":
        """From what ``to_dict`` gave; ``place`` is named in errors.

        Raises:
            ConfigError: something is missing or wrong.
        """
        try:
            encoder = validate(Encoder, data["encoder"], place)  # type: ignore[arg-type]
            layers = tuple(int(n) for n in data["layers"])  # type: ignore[attr-defined]
            return cls(encoder, str(data["whisper"]), layers, int(data["channels"]))  # type: ignore[call-overload]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{place}: not a StyleEncoder's configuration: {error!r}; export it again") from None


class StyleEncoder(nn.Module):
    """Normalised features, pooled over time, through a small network, to an offset from the mean voice.

    The mean voice is that of the training voices, row by row, so a style fits its phoneme count. The last layer
    starts at 0: an untrained encoder is the mean voice.
    """

    feature_mean: Tensor
    feature_std: Tensor
    mean_pack: Tensor
    style_std: Tensor

    def __init__(self, config: StyleEncoderConfig) -> None:
        super().__init__()
        self.config = config
        settings = config.encoder
        shape = (len(config.layers), config.channels)
        self.register_buffer("feature_mean", torch.zeros(shape))
        self.register_buffer("feature_std", torch.ones(shape))
        self.register_buffer("mean_pack", torch.zeros(PACK_ROWS, STYLE_SIZE))
        self.register_buffer("style_std", torch.ones(STYLE_SIZE))
        self.pooling = POOLINGS[settings.pooling](len(config.layers) * config.channels)
        layers: list[nn.Module] = []
        width = self.pooling.out_channels
        for _ in range(settings.depth):
            layers += [
                nn.Linear(width, settings.width),
                ACTIVATIONS[settings.activation](),
                nn.Dropout(settings.dropout),
            ]
            width = settings.width
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(width, STYLE_SIZE)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def calibrate(self, features: FeatureStatistics, mean_pack: Tensor, style_std: Tensor) -> None:
        """Take over the training set's statistics: features' (L, D), mean pack (510, 256), spread of styles (256,)."""
        self.feature_mean.copy_(features.mean)
        self.feature_std.copy_(features.std)
        self.mean_pack.copy_(mean_pack)
        self.style_std.copy_(style_std)

    def forward(self, features: Tensor, mask: Tensor, phoneme_counts: Tensor) -> Tensor:
        """Styles (B, 256) of features (B, L, T, D), mask (B, T) True where a clip has a frame, counts (B,)."""
        return self.mean_pack[self._rows(phoneme_counts)] + self.offset(features, mask)

    def offset(self, features: Tensor, mask: Tensor) -> Tensor:
        """How far the clips' styles lie from the mean voice, (B, 256)."""
        x = (features - self.feature_mean.unsqueeze(1)) / self.feature_std.unsqueeze(1)
        x = x.transpose(1, 2).flatten(2)  # (B, T, L * D)
        offset: Tensor = self.head(self.trunk(self.pooling(x, mask))) * self.style_std
        return offset

    def pack(self, features: Tensor, mask: Tensor) -> Tensor:
        """One clip's voice as a pack (510, 1, 256), of its features (1, L, T, D) and mask (1, T)."""
        return (self.mean_pack + self.offset(features, mask)).unsqueeze(1)

    def _rows(self, phoneme_counts: Tensor) -> Tensor:
        return phoneme_counts.clamp(1, PACK_ROWS) - 1

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "StyleEncoder":
        """A StyleEncoder that ``nuanced export`` wrote, in eval mode.

        Raises:
            WeightsError: the folder holds no such encoder, or its weights do not fit its configuration.
            ConfigError: its configuration is wrong.
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
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{config_file}: not a StyleEncoder's configuration: {error!r}") from None
        except (RuntimeError, SafetensorError) as error:
            raise WeightsError(f"{weights_file}: does not fit {config_file.name}: {str(error)[:200]}") from None
        return encoder.eval()
