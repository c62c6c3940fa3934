"""Kokoro's decoder for a padded batch: the same layers as the package's, with each item's end respected.

Every function takes a mask (B, 1, frames), 1 where an item has a frame, or None where all items are equally long.
Invariant: what a function returns is 0 behind an item's end, as a convolution's own padding would be.

In bf16 the convolutions of the generator's blocks, nine tenths of the work, are rounded; the residual stream, norms,
Snake, source, phase and the inverse STFT stay in float32.

Dimensions: B batch, C channels, F frames of the layer at hand, S' = 128, the half of the style that the layer hears.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nuanced_core.kokoro.stft import RealSTFT

__all__ = ["Precision", "decode", "lengths_mask", "prepare_decoder", "residual_block"]

Precision = Literal["float32", "bf16"]
EPS = 1e-5  # of torch.nn.InstanceNorm1d


def prepare_decoder(decoder: Any) -> None:
    """Note, beside each convolution of the generator's blocks, the weights of its gradient, and all of it in bf16.

    They never change, so nothing of that needs to be done at a step.
    """
    generator = decoder.generator
    for block in [*generator.noise_res, *generator.resblocks]:
        for conv in [*block.convs1, *block.convs2]:
            of_gradient = conv.weight.detach().flip(2).transpose(0, 1).contiguous()
            exact = (conv.weight.detach(), conv.bias.detach(), of_gradient)
            conv.frozen = {conv.weight.dtype: exact, torch.bfloat16: tuple(tensor.bfloat16() for tensor in exact)}


def lengths_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """(B, 1, max(lengths)): 1.0 up to each length; None where all lengths are equal."""
    if len(set(lengths)) == 1:
        return None
    ends = torch.tensor(lengths).view(-1, 1, 1)
    return (torch.arange(max(lengths)) < ends).to(device, torch.get_default_dtype())


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
    precision: Precision = "float32",
    checkpointing: bool = False,
) -> Tensor:
    """Audio (B, 600 * max(frames)) of aligned text (B, 512, F), F0 in Hz and energy (B, 2F each), timbre (B, 128).

    ``frames`` are the items' lengths in Kokoro frames, ``seeds`` their noise. Item by item this is what the
    package's ``Decoder`` computes after ``torch.manual_seed(seed)``. With ``checkpointing`` the generator's blocks
    are computed again for the gradient instead of kept.
    """
    source = _harmonic_source(decoder.generator, f0, frames, seeds)
    mask = lengths_mask(frames, aligned.device)
    curves = [_masked(decoder.F0_conv(f0.unsqueeze(1)), mask), _masked(decoder.N_conv(energy.unsqueeze(1)), mask)]
    aligned = _masked(aligned, mask)
    x, lengths = residual_block(decoder.encode, torch.cat([aligned, *curves], dim=1), style, frames)
    text = _masked(decoder.asr_res(aligned), mask)
    for block in decoder.decode:
        # The last block is the only one that upsamples.
        x, lengths = residual_block(block, torch.cat([x, text, *curves], dim=1), style, lengths)
    x, mask = _generate(decoder.generator, source, x, style, lengths, precision, checkpointing)
    magnitude, phase = _masked(torch.exp(x[:, : stft.bins]), mask), torch.sin(x[:, stft.bins :])
    return stft.inverse(magnitude * torch.cos(phase), magnitude * torch.sin(phase), mask)


def _generate(
    generator: Any,
    source: Tensor,
    x: Tensor,
    style: Tensor,
    lengths: list[int],
    precision: Precision,
    checkpointing: bool,
) -> tuple[Tensor, Tensor | None]:
    """The package's ``Generator`` (iSTFTNet) on x (B, 512, 2F), up to its spectrum (B, 22, 120F + 1), and its mask."""

    def run(block: Any, h: Tensor) -> Tensor:
        if not checkpointing:
            return _snake_block(block, h, style, mask, dtype)
        again: Tensor = checkpoint(
            _snake_block, block, h, style, mask, dtype, use_reentrant=False, preserve_rng_state=False
        )
        return again

    dtype = torch.bfloat16 if precision == "bf16" else x.dtype
    mask = None
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
        x = _masked(x, mask) + run(generator.noise_res[i], from_source)
        kernels = range(i * generator.num_kernels, (i + 1) * generator.num_kernels)
        blocks = [run(generator.resblocks[j], x) for j in kernels]
        x = sum(blocks[1:], blocks[0]) / generator.num_kernels
    return generator.conv_post(F.leaky_relu(x)), mask


@torch.no_grad()
def _harmonic_source(generator: Any, f0: Tensor, frames: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Magnitude and phase (B, 22, 120F + 1) of the source signal of f0 (B, 2F); no gradient, as in the package."""
    f0, spectra = f0.detach(), []
    for item, (n, seed) in enumerate(zip(frames, seeds, strict=True)):
        up = generator.f0_upsamp(f0[item : item + 1, None, : 2 * n]).transpose(1, 2)
        # The package draws its noise from the global generator: lend it one with this item's seed.
        with torch.random.fork_rng(devices=[f0.device] if f0.is_cuda else []):
            torch.manual_seed(seed)
            signal, _, _ = generator.m_source(up)
        # Of the package: the first frame is symmetric, so the sign of its angles (pi or -pi) is that of a rounding
        # error, and only the same FFT makes the same one.
        spectra.append(torch.cat(generator.stft.transform(signal.transpose(1, 2).squeeze(1)), dim=1)[0].T)
    return nn.utils.rnn.pad_sequence(spectra, batch_first=True).transpose(1, 2)


def _snake_block(block: Any, x: Tensor, style: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """An ``AdaINResBlock1`` on x (B, C, F): three times adaptive norm, Snake, convolution in ``dtype``, twice each."""
    layers = zip(block.convs1, block.convs2, block.adain1, block.adain2, block.alpha1, block.alpha2, strict=True)
    for conv1, conv2, norm1, norm2, alpha1, alpha2 in layers:
        h = _masked(_frozen_conv(conv1, _adain_snake(norm1, x, style, alpha1, mask, dtype)), mask)
        x = x + _masked(_frozen_conv(conv2, _adain_snake(norm2, h, style, alpha2, mask, dtype)), mask)
    return x


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x.dtype)


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


def _adain_snake(norm: Any, x: Tensor, style: Tensor, alpha: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    scale, shift = _affine(norm, style)
    apply: Callable[..., Tensor] = _AdaINSnake.apply
    return apply(x, scale, shift, alpha, mask, dtype)


def _frozen_conv(conv: Any, x: Tensor) -> Tensor:
    apply: Callable[..., Tensor] = _FrozenConv.apply
    return apply(x, *conv.frozen[x.dtype], conv.padding[0], conv.dilation[0])


class _FrozenConv(torch.autograd.Function):
    """A convolution of stride 1 that keeps its size and whose weights never learn: its input need not be kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, of_gradient: Tensor, padding: int, dilation: int
    ) -> Tensor:
        ctx.of_gradient, ctx.padding, ctx.dilation = of_gradient, padding, dilation
        return F.conv1d(x, weight, bias, padding=padding, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return (
            F.conv1d(grads[0], ctx.of_gradient, padding=ctx.padding, dilation=ctx.dilation),
            None,
            None,
            None,
            None,
            None,
        )


class _AdaINSnake(torch.autograd.Function):
    """Adaptive instance norm, then Snake (y + sin²(αy) / α, Ziyin et al. 2020), as one step that keeps only its input.

    These two run 48 times a render on its largest tensors. Written as plain operations they keep six tensors of
    that size each for the backward pass; here all is computed again from x. The result is of ``dtype``. With z = 2αy,
    Snake is (z - cos z + 1) / 2α and its slope 1 + sin z.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        alpha: Tensor,
        mask: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        wide = x.to(gamma.dtype)
        count = float(x.shape[2]) if mask is None else mask.sum(dim=2, keepdim=True)
        mean = wide.sum(dim=2, keepdim=True) / count
        centred = wide - mean
        if mask is not None:
            centred.mul_(mask)
        # torch.var_mean takes three times as long: it is not vectorized over the last dimension.
        rstd = torch.rsqrt(_dot(centred, centred) / count + EPS)
        ctx.save_for_backward(x, gamma, beta, alpha, mask, mean, rstd)
        z = torch.addcmul(2 * alpha * beta, centred, 2 * alpha * gamma * rstd, out=centred)
        half = 0.5 / alpha
        out = torch.addcmul(half, z.sub_(torch.cos(z)), half, out=z)
        return (out if mask is None else out.mul_(mask)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        x, gamma, beta, alpha, mask, mean, rstd = ctx.saved_tensors
        wide = x.to(gamma.dtype)
        scale = 2 * alpha * gamma * rstd
        dy = torch.addcmul(2 * alpha * beta - mean * scale, wide, scale).sin_().add_(1).mul_(grads[0])
        if mask is not None:
            dy.mul_(mask)
        d_beta = dy.sum(dim=2, keepdim=True)
        d_gamma = (_dot(dy, wide) - mean * d_beta) * rstd
        if not ctx.needs_input_grad[0]:
            return None, d_gamma, d_beta, None, None, None
        count = float(x.shape[2]) if mask is None else mask.sum(dim=2, keepdim=True)
        scale = gamma * rstd
        slope = -scale * rstd * d_gamma / count
        offset = -scale * d_beta / count - mean * slope
        dx = dy.mul_(scale).add_(torch.addcmul(offset, wide, slope))
        return (dx if mask is None else dx.mul_(mask)).to(x.dtype), d_gamma, d_beta, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sums over time, (B, C, 1), of the products of a and b, (B, C, F) each."""
    return torch.einsum("bct,bct->bc", a, b).unsqueeze(2)
