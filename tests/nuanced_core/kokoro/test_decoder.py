"""The decoder against the package's decoder, its own unbatched output, and the formulas of its operations."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.kokoro.decoder import _AdaINSnake, _FrozenConv, decode
from tests.nuanced_core.kokoro.sentences import Sentences


@pytest.mark.real
def test_decoder_matches_the_package_for_equal_f0(models: ModelSet, reference: Any, sentences: Sentences) -> None:
    phonemes, styles = sentences
    ours = models.kokoro
    with torch.no_grad():
        text = ours.encode_text(phonemes[:1])
        prosody = ours.prosody(text, styles[:1])
        aligned = text.acoustic[0].repeat_interleave(prosody.token_frames[0], dim=1)[None]
        timbre = styles[:1, :128]
        torch.manual_seed(3)
        expected = reference.decoder(aligned, prosody.f0, prosody.energy, timbre)[:, 0]
        audio = decode(ours.model.decoder, ours.stft, aligned, prosody.f0, prosody.energy, timbre, prosody.frames, [3])
    assert (audio - expected).abs().max() < 1e-4


@pytest.mark.real
def test_padded_batch_matches_single_items(models: ModelSet, sentences: Sentences) -> None:
    """With the same F0, samples and gradients agree closely for items of very different lengths."""
    phonemes, styles = sentences
    ours = models.kokoro
    with torch.no_grad():
        text = ours.encode_text(phonemes)
        prosody = ours.prosody(text, styles)
    lengths = [30, 9]
    rows = [t.repeat_interleave(n, dim=1)[:, 5:35] for t, n in zip(text.acoustic, prosody.token_frames, strict=True)]
    aligned = torch.stack(rows)
    curves = [curve[:, 10:70] for curve in (prosody.f0, prosody.energy)]
    weights = torch.randn(2, 30 * 600, generator=torch.Generator().manual_seed(0))

    def decoded(items: list[int]) -> tuple[Tensor, Tensor]:
        longest = max(lengths[i] for i in items)
        timbre = styles[items, :128].clone().requires_grad_()
        padded = [
            torch.stack([x[i].clone().index_fill(-1, torch.arange(lengths[i] * r, x.shape[-1]), 0.0) for i in items])
            for x, r in ((aligned, 1), (curves[0], 2), (curves[1], 2))
        ]
        audio = decode(
            ours.model.decoder,
            ours.stft,
            *(x[..., : longest * r] for x, r in zip(padded, (1, 2, 2), strict=True)),
            timbre,
            [lengths[i] for i in items],
            [7 + i for i in items],
        )
        loss = sum((audio[n, : lengths[i] * 600] * weights[i, : lengths[i] * 600]).sum() for n, i in enumerate(items))
        return audio.detach(), torch.autograd.grad(loss, timbre)[0]

    audio, gradients = decoded([0, 1])
    for i in (0, 1):
        alone, gradient = decoded([i])
        assert (audio[i, : lengths[i] * 600] - alone[0]).abs().max() < 1e-4
        torch.testing.assert_close(gradients[i], gradient[0], rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))


@pytest.mark.parametrize("masked", [False, True])
def test_adain_snake_matches_its_formula_and_numerical_gradient(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(7) < torch.tensor([7, 4])[:, None, None]).double() if masked else None
    x = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) * (1 if mask is None else mask)
    gamma, beta = (torch.randn(2, 3, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    alpha = torch.rand(1, 3, 1, generator=generator, dtype=torch.float64) + 0.5
    inputs = [t.requires_grad_() for t in (x, gamma, beta)]

    def masked_step(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        x = x if mask is None else x * mask
        result: Tensor = _AdaINSnake.apply(x, gamma, beta, alpha, mask, torch.float64)
        return result

    assert torch.autograd.gradcheck(masked_step, inputs)
    item = x[1:, :, : 4 if masked else 7]
    y = torch.nn.functional.instance_norm(item) * gamma[1:] + beta[1:]
    expected = y + torch.sin(alpha * y).square() / alpha
    torch.testing.assert_close(masked_step(*inputs)[1:, :, : item.shape[2]], expected)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (7, 3), (11, 5)])
def test_frozen_convolution_matches_conv1d_with_its_gradient(kernel: int, dilation: int) -> None:
    conv = torch.nn.Conv1d(4, 4, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation)
    x = torch.randn(2, 4, 80, generator=torch.Generator().manual_seed(0), requires_grad=True)
    of_gradient = conv.weight.detach().flip(2).transpose(0, 1).contiguous()
    frozen = _FrozenConv.apply(x, conv.weight.detach(), conv.bias.detach(), of_gradient, conv.padding[0], dilation)
    reference = conv(x)
    torch.testing.assert_close(frozen, reference)
    weights = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(
        torch.autograd.grad((frozen * weights).sum(), x),
        torch.autograd.grad((reference * weights).sum(), x),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
