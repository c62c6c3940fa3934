"""Kokoro's decoder for a padded batch: the same layers as the package's, with each item's end respected.

Every function takes a mask (B, 1, frames), 1 where an item has a frame, or None where all items are equally long.
Invariant: what a function returns is 0 behind an item's end, as a convolution's own padding would be.

Dimensions: B batch, C channels, F frames of the layer at hand, S' = 128, the half of the style that the layer hears.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nuanced_core.stft import RealSTFT

__all__ = ["decode", "lengths_mask", "residual_block"]

EPS = 1e-5  # of torch.nn.InstanceNorm1d


def lengths_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """(B, 1, max(lengths)): 1.0 up to each length; None where all lengths are equal."""
    if len(set(lengths)) == 1:
        return None
    ends = torch.tensor(lengths, device=device).view(-1, 1, 1)
    return (torch.arange(max(lengths), device=device) < ends).float()


def residual_block(block: Any, x: Tensor, style: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
    """An ``AdainResBlk1d`` (StyleTTS 2) on x (B, C, F): its output and the lengths, doubled where it upsamples."""
    upsamples = block.upsample_type != "none"
    ends = [2 * n for n in lengths] if upsamples else list(lengths)
    mask, out_mask = lengths_mask(lengths, x.device), lengths_mask(ends, x.device)
    h = F.leaky_relu(_adain(block.norm1, x, style, mask), 0.2)
    h = _masked(block.conv1(_masked(block.pool(h), out_mask)), out_mask)
    h = F.leaky_relu(_adain(block.norm2, h, style, out_mask), 0.2)
    h = block.conv2(h)
    return _masked((h + block._shortcut(x)) * 0.5**0.5, out_mask), ends


def decode(
    decoder: Any,
    stft: RealSTFT,
    aligned: Tensor,
    f0: Tensor,
    energy: Tensor,
    style: Tensor,
    frames: Sequence[int],
    seeds: Sequence[int],
) -> Tensor:
    """Audio (B, 600 * max(frames)) of aligned text (B, 512, F), F0 in Hz and energy (B, 2F each), timbre (B, 128).

    ``frames`` are the items' lengths in Kokoro frames, ``seeds`` their noise. Item by item this is what the
    package's ``Decoder`` computes after ``torch.manual_seed(seed)``.
    """
    mask = lengths_mask(frames, aligned.device)
    f0_down = _masked(decoder.F0_conv(f0.unsqueeze(1)), mask)
    energy_down = _masked(decoder.N_conv(energy.unsqueeze(1)), mask)
    aligned = _masked(aligned, mask)
    x, lengths = residual_block(decoder.encode, torch.cat([aligned, f0_down, energy_down], dim=1), style, frames)
    text = _masked(decoder.asr_res(aligned), mask)
    for block in decoder.decode:
        # The last block is the only one that upsamples.
        x, lengths = residual_block(block, torch.cat([x, text, f0_down, energy_down], dim=1), style, lengths)
    return _generate(decoder.generator, stft, x, f0, style, lengths, seeds)


def _generate(
    generator: Any,
    stft: RealSTFT,
    x: Tensor,
    f0: Tensor,
    style: Tensor,
    lengths: list[int],
    seeds: Sequence[int],
) -> Tensor:
    """The package's ``Generator`` on x (B, 512, 2F): harmonic source, two upsamplings, inverse STFT (iSTFTNet)."""
    source = _harmonic_source(generator, f0, lengths, seeds)
    for i in range(generator.num_upsamples):
        last = i == generator.num_upsamples - 1
        rate = generator.ups[i].stride[0]
        # The last upsampling is padded by one frame, so that the inverse STFT gives whole hops.
        lengths = [n * rate + int(last) for n in lengths]
        mask = lengths_mask(lengths, x.device)
        x = generator.ups[i](F.leaky_relu(x, 0.1))
        if last:
            x = generator.reflection_pad(x)
        from_source = _masked(generator.noise_convs[i](source), mask)
        x = _masked(x, mask) + _snake_block(generator.noise_res[i], from_source, style, mask)
        kernels = range(i * generator.num_kernels, (i + 1) * generator.num_kernels)
        blocks = [_snake_block(generator.resblocks[j], x, style, mask) for j in kernels]
        x = sum(blocks[1:], blocks[0]) / generator.num_kernels
    x = generator.conv_post(F.leaky_relu(x))
    magnitude, phase = torch.exp(x[:, : stft.bins]), torch.sin(x[:, stft.bins :])
    magnitude = _masked(magnitude, mask)
    return stft.inverse(magnitude * torch.cos(phase), magnitude * torch.sin(phase), mask)


@torch.no_grad()
def _harmonic_source(generator: Any, f0: Tensor, lengths: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Magnitude and phase (B, 22, 60F' + 1) of the source signal of f0 (B, F'); no gradient, as in the package."""
    spectra = []
    for item, (n, seed) in enumerate(zip(lengths, seeds, strict=True)):
        up = generator.f0_upsamp(f0[item : item + 1, None, :n]).transpose(1, 2)
        # The package draws its noise from the global generator: lend it one with this item's seed.
        with torch.random.fork_rng(devices=[f0.device] if f0.is_cuda else []):
            torch.manual_seed(seed)
            signal, _, _ = generator.m_source(up)
        # Of the package: the first frame is symmetric, so the sign of its angles (pi or -pi) is that of a rounding
        # error, and only the same FFT makes the same one.
        spectra.append(torch.cat(generator.stft.transform(signal.transpose(1, 2).squeeze(1)), dim=1)[0].T)
    return nn.utils.rnn.pad_sequence(spectra, batch_first=True).transpose(1, 2)


def _snake_block(block: Any, x: Tensor, style: Tensor, mask: Tensor | None) -> Tensor:
    """An ``AdaINResBlock1`` on x (B, C, F): three times adaptive norm, Snake, convolution, twice each."""
    layers = zip(block.convs1, block.convs2, block.adain1, block.adain2, block.alpha1, block.alpha2, strict=True)
    for conv1, conv2, norm1, norm2, alpha1, alpha2 in layers:
        h = _masked(conv1(_adain_snake(norm1, x, style, alpha1, mask)), mask)
        x = x + _masked(conv2(_adain_snake(norm2, h, style, alpha2, mask)), mask)
    return x


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def _affine(norm: Any, style: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, (B, C, 1) each, of an ``AdaIN1d``: its style's, with the instance norm's own folded in."""
    gamma, beta = norm.fc(style).unsqueeze(-1).chunk(2, dim=1)
    inner = norm.norm
    gamma = 1 + gamma
    return gamma * inner.weight.view(1, -1, 1), gamma * inner.bias.view(1, -1, 1) + beta


def _adain(norm: Any, x: Tensor, style: Tensor, mask: Tensor | None) -> Tensor:
    """Adaptive instance norm (Huang and Belongie 2017) over each item's own frames."""
    scale, shift = _affine(norm, style)
    if mask is None:
        var, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
        return (x - mean) * (scale * torch.rsqrt(var + EPS)) + shift
    count = mask.sum(dim=2, keepdim=True)
    mean = x.sum(dim=2, keepdim=True) / count
    centred = (x - mean) * mask
    var = centred.square().sum(dim=2, keepdim=True) / count
    return (centred * (scale * torch.rsqrt(var + EPS)) + shift) * mask


def _adain_snake(norm: Any, x: Tensor, style: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
    scale, shift = _affine(norm, style)
    apply: Callable[..., Tensor] = _AdaINSnake.apply
    return apply(x, scale, shift, alpha, mask)


class _AdaINSnake(torch.autograd.Function):
    """Adaptive instance norm, then Snake (y + sin²(αy) / α, Ziyin et al. 2020), as one step that keeps only its input.

    These two run 48 times a render on its largest tensors. Written as plain operations they keep six tensors of
    that size each for the backward pass; here y is computed again from x instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, alpha: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            count: Tensor | float = float(x.shape[2])
            var, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
        else:
            count = mask.sum(dim=2, keepdim=True)
            mean = x.sum(dim=2, keepdim=True) / count
            var = ((x - mean) * mask).square_().sum(dim=2, keepdim=True) / count
        rstd = torch.rsqrt(var + EPS)
        scale = gamma * rstd
        y = torch.addcmul(beta - mean * scale, x, scale)
        wave = torch.sin(y * alpha).square_()
        out = wave.div_(alpha).add_(y)
        ctx.save_for_backward(x, gamma, beta, alpha, mask, mean, rstd)
        ctx.count = count
        return out if mask is None else out.mul_(mask)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, gamma, beta, alpha, mask, mean, rstd = ctx.saved_tensors
        scale = gamma * rstd
        y = torch.addcmul(beta - mean * scale, x, scale)
        # d/dy (y + sin²(αy) / α) = 1 + sin(2αy)
        dy = y.mul_(2 * alpha).sin_().add_(1).mul_(grads[0])
        if mask is not None:
            dy.mul_(mask)
        d_beta = dy.sum(dim=2, keepdim=True)
        d_gamma = ((dy * x).sum(dim=2, keepdim=True) - mean * d_beta) * rstd
        slope = -scale * rstd * d_gamma / ctx.count
        offset = -scale * d_beta / ctx.count - mean * slope
        dx = dy.mul_(scale).add_(torch.addcmul(offset, x, slope))
        return dx if mask is None else dx.mul_(mask), d_gamma, d_beta, None, None
