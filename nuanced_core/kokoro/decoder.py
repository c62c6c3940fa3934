"""Kokoro's decoder for padded batches: the layers of the package, masked so that padding never affects an item.

Masks have shape (B, 1, F), 1 at an item's frames and 0 in its padding; None where all items are equally long.
Invariant: every function returns 0 in the padding, as the zero padding of a convolution would be.

In bf16 only the convolutions of the generator's blocks, nine tenths of the work, are rounded; the residual stream,
norms, Snake, source, phase and inverse STFT stay in float32.

Dimensions: B batch, C channels, F frames of the current layer, S' = 128, the half of the style that a layer reads.
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
EPS = 1e-5  # as in torch.nn.InstanceNorm1d


def prepare_decoder(decoder: Any) -> None:
    """Store constant tensors on each convolution of the generator's blocks, by dtype, as ``frozen_tensors``.

    They are the weight, the bias and the weight of the input gradient (flipped in time, channels swapped), in the
    weight's dtype and in bf16. The weights are frozen, so that no training step has to compute these.
    """
    generator = decoder.generator
    for block in [*generator.noise_res, *generator.resblocks]:
        for conv in [*block.convs1, *block.convs2]:
            gradient_weight = conv.weight.detach().flip(2).transpose(0, 1).contiguous()
            exact = (conv.weight.detach(), conv.bias.detach(), gradient_weight)
            conv.frozen_tensors = {
                conv.weight.dtype: exact,
                torch.bfloat16: tuple(tensor.bfloat16() for tensor in exact),
            }


def lengths_mask(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Return a mask of shape (B, 1, max(lengths)), 1.0 up to each length, or None if all lengths are equal."""
    if len(set(lengths)) == 1:
        return None
    ends = torch.tensor(lengths).view(-1, 1, 1)
    return (torch.arange(max(lengths)) < ends).to(device, torch.get_default_dtype())


def residual_block(block: Any, x: Tensor, style: Tensor, lengths: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Apply an ``AdainResBlk1d`` (StyleTTS 2) to x (B, C, F) with style (B, S').

    Returns its output and the items' lengths, doubled if the block upsamples.
    """
    upsamples = block.upsample_type != "none"
    out_lengths = [2 * n for n in lengths] if upsamples else list(lengths)
    mask, out_mask = lengths_mask(lengths, x.device), lengths_mask(out_lengths, x.device)
    h = F.leaky_relu(_adain(block.norm1, x, style, mask), 0.2)
    h = _apply_mask(block.conv1(_apply_mask(block.pool(h), out_mask)), out_mask)
    h = F.leaky_relu(_adain(block.norm2, h, style, out_mask), 0.2)
    h = block.conv2(h)
    return _apply_mask((h + block._shortcut(x)) * 0.5**0.5, out_mask), out_lengths


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
    """Synthesise audio of shape (B, 600 * max(frames)) at 24 kHz.

    Each item equals the output of the package's ``Decoder`` after ``torch.manual_seed(seed)``.

    Args:
        aligned: text states, (B, 512, F).
        f0: Hz, (B, 2F).
        energy: (B, 2F).
        style: the timbre half, (B, 128).
        frames: length of each item in Kokoro frames.
        seeds: seed of each item's noise.
        checkpointing: recompute the generator's blocks in the backward pass instead of keeping their activations.
    """
    source = _harmonic_source(decoder.generator, f0, frames, seeds)
    mask = lengths_mask(frames, aligned.device)
    curves = [
        _apply_mask(decoder.F0_conv(f0.unsqueeze(1)), mask),
        _apply_mask(decoder.N_conv(energy.unsqueeze(1)), mask),
    ]
    aligned = _apply_mask(aligned, mask)
    x, lengths = residual_block(decoder.encode, torch.cat([aligned, *curves], dim=1), style, frames)
    text = _apply_mask(decoder.asr_res(aligned), mask)
    for block in decoder.decode:
        # The last block is the only one that upsamples.
        x, lengths = residual_block(block, torch.cat([x, text, *curves], dim=1), style, lengths)
    x, mask = _run_generator(decoder.generator, source, x, style, lengths, precision, checkpointing)
    magnitude, phase = _apply_mask(torch.exp(x[:, : stft.bins]), mask), torch.sin(x[:, stft.bins :])
    return stft.inverse(magnitude * torch.cos(phase), magnitude * torch.sin(phase), mask)


def _run_generator(
    generator: Any,
    source: Tensor,
    x: Tensor,
    style: Tensor,
    lengths: list[int],
    precision: Precision,
    checkpointing: bool,
) -> tuple[Tensor, Tensor | None]:
    """Apply the package's ``Generator`` (iSTFTNet) to x (B, 512, 2F), all but its inverse STFT.

    Returns the output of the last convolution, (B, 22, 120F + 1), and its mask.
    """

    def apply_block(block: Any, h: Tensor) -> Tensor:
        if not checkpointing:
            return _snake_block(block, h, style, mask, dtype)
        output: Tensor = checkpoint(
            _snake_block, block, h, style, mask, dtype, use_reentrant=False, preserve_rng_state=False
        )
        return output

    dtype = torch.bfloat16 if precision == "bf16" else x.dtype
    mask = None
    for i in range(generator.num_upsamples):
        last = i == generator.num_upsamples - 1
        rate = generator.ups[i].stride[0]
        # The last upsampling is padded by one frame, so that the inverse STFT returns a whole number of hops.
        lengths = [n * rate + int(last) for n in lengths]
        mask = lengths_mask(lengths, x.device)
        x = generator.ups[i](F.leaky_relu(x, 0.1))
        if last:
            x = generator.reflection_pad(x)
        source_features = _apply_mask(generator.noise_convs[i](source), mask)
        x = _apply_mask(x, mask) + apply_block(generator.noise_res[i], source_features)
        kernels = range(i * generator.num_kernels, (i + 1) * generator.num_kernels)
        blocks = [apply_block(generator.resblocks[j], x) for j in kernels]
        x = sum(blocks[1:], blocks[0]) / generator.num_kernels
    return generator.conv_post(F.leaky_relu(x)), mask


@torch.no_grad()
def _harmonic_source(generator: Any, f0: Tensor, frames: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Return magnitude and phase (B, 22, 120F + 1) of the source signal for f0 (B, 2F).

    No gradient passes through it, as in the package.
    """
    f0, spectra = f0.detach(), []
    for item, (n, seed) in enumerate(zip(frames, seeds, strict=True)):
        up = generator.f0_upsamp(f0[item : item + 1, None, : 2 * n]).transpose(1, 2)
        # The package draws noise from the global generator: seed that for this item, and restore it afterwards.
        with torch.random.fork_rng(devices=[f0.device] if f0.is_cuda else []):
            torch.manual_seed(seed)
            signal, _, _ = generator.m_source(up)
        # Use the package's STFT: the first frame is symmetric, so that the sign of its angles (pi or -pi) depends on
        # a rounding error, which only the same FFT reproduces.
        spectra.append(torch.cat(generator.stft.transform(signal.transpose(1, 2).squeeze(1)), dim=1)[0].T)
    return nn.utils.rnn.pad_sequence(spectra, batch_first=True).transpose(1, 2)


def _snake_block(block: Any, x: Tensor, style: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Apply an ``AdaINResBlock1`` to x (B, C, F), with its convolutions in ``dtype``.

    It has three residual layers; each applies adaptive norm, Snake and a convolution, twice.
    """
    layers = zip(block.convs1, block.convs2, block.adain1, block.adain2, block.alpha1, block.alpha2, strict=True)
    for conv1, conv2, norm1, norm2, alpha1, alpha2 in layers:
        h = _apply_mask(_frozen_conv(conv1, _adain_snake(norm1, x, style, alpha1, mask, dtype)), mask)
        x = x + _apply_mask(_frozen_conv(conv2, _adain_snake(norm2, h, style, alpha2, mask, dtype)), mask)
    return x


def _apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask.to(x.dtype)


def _scale_and_shift(norm: Any, style: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (B, C, 1) each, of an ``AdaIN1d``, with the instance norm's own affine folded in."""
    gamma, beta = norm.fc(style).unsqueeze(-1).chunk(2, dim=1)
    inner = norm.norm
    gamma = 1 + gamma
    return gamma * inner.weight.view(1, -1, 1), gamma * inner.bias.view(1, -1, 1) + beta


def _adain(norm: Any, x: Tensor, style: Tensor, mask: Tensor | None) -> Tensor:
    """Apply adaptive instance norm (Huang and Belongie 2017) to x (B, C, F), over each item's own frames."""
    scale, shift = _scale_and_shift(norm, style)
    if mask is None:
        var, mean = torch.var_mean(x, dim=2, correction=0, keepdim=True)
        return (x - mean) * (scale * torch.rsqrt(var + EPS)) + shift
    count = mask.sum(dim=2, keepdim=True)
    mean = x.sum(dim=2, keepdim=True) / count
    centred = (x - mean) * mask
    var = centred.square().sum(dim=2, keepdim=True) / count
    return (centred * (scale * torch.rsqrt(var + EPS)) + shift) * mask


def _adain_snake(norm: Any, x: Tensor, style: Tensor, alpha: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    scale, shift = _scale_and_shift(norm, style)
    apply: Callable[..., Tensor] = _AdaINSnake.apply
    return apply(x, scale, shift, alpha, mask, dtype)


def _frozen_conv(conv: Any, x: Tensor) -> Tensor:
    apply: Callable[..., Tensor] = _FrozenConv.apply
    return apply(x, *conv.frozen_tensors[x.dtype], conv.padding[0], conv.dilation[0])


class _FrozenConv(torch.autograd.Function):
    """Convolution of stride 1 and equal length with frozen weights: the backward pass does not need its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gradient_weight: Tensor, padding: int, dilation: int
    ) -> Tensor:
        ctx.gradient_weight, ctx.padding, ctx.dilation = gradient_weight, padding, dilation
        return F.conv1d(x, weight, bias, padding=padding, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        return (
            F.conv1d(grads[0], ctx.gradient_weight, padding=ctx.padding, dilation=ctx.dilation),
            None,
            None,
            None,
            None,
            None,
        )


class _AdaINSnake(torch.autograd.Function):
    """Adaptive instance norm followed by Snake (y + sin²(αy) / α, Ziyin et al. 2020), saving only its input.

    A render runs this 48 times on its largest tensors. Written as plain operations, each would save six tensors of
    that size for the backward pass; here the backward pass recomputes them from x. The output has type ``dtype``.
    With z = 2αy, Snake is (z - cos z + 1) / 2α and its derivative is 1 + sin z.
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
        x_wide = x.to(gamma.dtype)
        count = float(x.shape[2]) if mask is None else mask.sum(dim=2, keepdim=True)
        mean = x_wide.sum(dim=2, keepdim=True) / count
        centred = x_wide - mean
        if mask is not None:
            centred.mul_(mask)
        # torch.var_mean takes three times as long: it is not vectorised over the last dimension.
        rstd = torch.rsqrt(_dot_over_time(centred, centred) / count + EPS)
        ctx.save_for_backward(x, gamma, beta, alpha, mask, mean, rstd)
        z = torch.addcmul(2 * alpha * beta, centred, 2 * alpha * gamma * rstd, out=centred)
        half = 0.5 / alpha
        out = torch.addcmul(half, z.sub_(torch.cos(z)), half, out=z)
        return (out if mask is None else out.mul_(mask)).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None, None]:
        x, gamma, beta, alpha, mask, mean, rstd = ctx.saved_tensors
        x_wide = x.to(gamma.dtype)
        scale = 2 * alpha * gamma * rstd
        dy = torch.addcmul(2 * alpha * beta - mean * scale, x_wide, scale).sin_().add_(1).mul_(grads[0])
        if mask is not None:
            dy.mul_(mask)
        d_beta = dy.sum(dim=2, keepdim=True)
        d_gamma = (_dot_over_time(dy, x_wide) - mean * d_beta) * rstd
        if not ctx.needs_input_grad[0]:
            return None, d_gamma, d_beta, None, None, None
        count = float(x.shape[2]) if mask is None else mask.sum(dim=2, keepdim=True)
        scale = gamma * rstd
        slope = -scale * rstd * d_gamma / count
        offset = -scale * d_beta / count - mean * slope
        dx = dy.mul_(scale).add_(torch.addcmul(offset, x_wide, slope))
        return (dx if mask is None else dx.mul_(mask)).to(x.dtype), d_gamma, d_beta, None, None, None


def _dot_over_time(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot product over time, (B, C, 1), of a and b, (B, C, F) each."""
    return torch.einsum("bct,bct->bc", a, b).unsqueeze(2)
