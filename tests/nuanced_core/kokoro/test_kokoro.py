"""DifferentiableKokoro beside the package's own KModel, on the real weights."""

import base64
import hashlib
import importlib.metadata
import json
from typing import Any

import kokoro.model
import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import TextError
from nuanced_core.kokoro.decoder import _AdaINSnake, _FrozenConv, decode
from nuanced_core.kokoro.model import DifferentiableKokoro
from nuanced_core.training.losses import MelSTFTLoss

pytestmark = pytest.mark.real

SENTENCES = (("How are you?", "bm_lewis", 5), ("The door is open.", "af_heart", 6))


@pytest.fixture(scope="module")
def plain(models: ModelSet) -> Any:
    """The package's own model, from the same files, beside ours in one process."""
    config = json.loads(models.kokoro_files.config.read_text(encoding="utf-8"))
    return kokoro.model.KModel("hexgrad/Kokoro-82M", config=config, model=str(models.kokoro_files.model)).eval()


@pytest.fixture(scope="module")
def spoken(models: ModelSet) -> tuple[list[str], Tensor]:
    phonemes = [models.phonemizer(text) for text, _, _ in SENTENCES]
    styles = [models.voices.style(v, len(p)) for (_, v, _), p in zip(SENTENCES, phonemes, strict=True)]
    return phonemes, torch.stack(styles)


def test_speaks_as_kmodel_does(models: ModelSet, plain: Any, spoken: tuple[list[str], Tensor]) -> None:
    ours = models.kokoro
    for phonemes, style, (_, _, seed) in zip(*spoken, SENTENCES, strict=True):
        torch.manual_seed(seed)
        expected = plain(phonemes, style[None], return_output=True)
        with torch.no_grad():
            text = ours.encode_text([phonemes])
            prosody = ours.prosody(text, style[None])
            audio = ours.speak(text, prosody, style[None], [seed]).item(0)
        assert torch.equal(prosody.token_frames[0], expected.pred_dur)
        # Rounding in F0 adds up in the phase of the source, so samples agree to 3 % of the peak ...
        assert (audio - expected.audio).abs().max() < 0.03 * expected.audio.abs().max()
        # ... and what is heard agrees far better: the same style with other noise differs by 0.1.
        mel = MelSTFTLoss()
        assert mel(mel.spectra(audio[None]), mel.spectra(expected.audio[None])) < 5e-3


def test_decoder_equals_kmodels_for_the_same_f0(models: ModelSet, plain: Any, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    with torch.no_grad():
        text = ours.encode_text(phonemes[:1])
        prosody = ours.prosody(text, styles[:1])
        aligned = text.acoustic[0].repeat_interleave(prosody.token_frames[0], dim=1)[None]
        timbre = styles[:1, :128]
        torch.manual_seed(3)
        expected = plain.decoder(aligned, prosody.f0, prosody.energy, timbre)[:, 0]
        audio = decode(ours.model.decoder, ours.stft, aligned, prosody.f0, prosody.energy, timbre, prosody.frames, [3])
    assert (audio - expected).abs().max() < 1e-4


@pytest.mark.parametrize("item_by_item", [True, False])
def test_batch_equals_single_calls_with_gradients(
    models: ModelSet, spoken: tuple[list[str], Tensor], item_by_item: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    monkeypatch.setattr(ours, "item_by_item", item_by_item)
    mel = MelSTFTLoss()
    seeds = [s for _, _, s in SENTENCES]
    windows = [(3, 24), (5, 16)]

    def loss(indices: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        style = styles[indices].clone().requires_grad_()
        text = ours.encode_text([phonemes[i] for i in indices])
        prosody = ours.prosody(text, style)
        speech = ours.speak(text, prosody, style, [seeds[i] for i in indices], [windows[i] for i in indices])
        total = sum(sum(s.log1p().mean() for s in mel.spectra(speech.item(i)[None])) for i in range(len(indices)))
        total = total + prosody.f0.sum() / 1e4 + prosody.energy.sum() / 1e3 + prosody.durations.sum() / 1e2
        (gradient,) = torch.autograd.grad(total, style)
        return gradient, prosody.f0.detach(), prosody.durations.detach(), speech.audio.detach()

    together = loss([0, 1])
    for i in (0, 1):
        gradient, f0, durations, audio = loss([i])
        torch.testing.assert_close(together[1][i : i + 1, : f0.shape[1]], f0, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(together[2][i : i + 1, : durations.shape[1]], durations, atol=1e-4, rtol=1e-4)
        assert (together[1][i, f0.shape[1] :] == 0).all()
        assert (together[3][i : i + 1, : audio.shape[1]] - audio).abs().max() < 0.03 * audio.abs().max()
        assert torch.nn.functional.cosine_similarity(together[0][i], gradient[0], dim=0) > 0.999


def test_a_batch_of_whole_sentences_equals_single_calls(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    with torch.no_grad():
        text = ours.encode_text(phonemes)
        prosody = ours.prosody(text, styles)
        assert prosody.frames[0] != prosody.frames[1]
        speech = ours.speak(text, prosody, styles, [5, 6])
        for i, one in enumerate(text.items()):
            alone = ours.speak(one, ours.prosody(one, styles[i : i + 1]), styles[i : i + 1], [5 + i]).item(0)
            assert (speech.item(i) - alone).abs().max() < 0.03 * alone.abs().max()
            assert (speech.audio[i, len(alone) :] == 0).all()


def test_a_padded_batch_decodes_as_its_items_do(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    """With F0 held still, samples and gradients agree closely, however different the lengths."""
    phonemes, styles = spoken
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


@pytest.fixture(scope="module")
def gradient(models: ModelSet, spoken: tuple[list[str], Tensor]) -> Any:
    """The gradient of an audio loss to the style, with the options of ``speak``."""
    phonemes, styles = spoken
    ours = models.kokoro
    text = ours.encode_text(phonemes[:1])
    mel = MelSTFTLoss()
    with torch.no_grad():
        other = models.voices.style("af_nicole", len(phonemes[0]))[None]
        prosody = ours.prosody(text, other)
        reference = mel.spectra(ours.speak(text, prosody, other, [1], [(4, 24)]).audio)

    def compute(**options: Any) -> Tensor:
        style = styles[:1].clone().requires_grad_()
        speech = ours.speak(text, ours.prosody(text, style, prosody.token_frames), style, [1], [(4, 24)], **options)
        (found,) = torch.autograd.grad(mel(mel.spectra(speech.audio), reference), style)
        return found[0]

    return compute


def test_the_gradient_is_the_same_each_time(gradient: Any) -> None:
    assert torch.equal(gradient(), gradient())


def test_checkpointing_changes_no_gradient(gradient: Any) -> None:
    torch.testing.assert_close(gradient(checkpointing=True), gradient())


def test_bf16_keeps_the_gradients_direction(gradient: Any) -> None:
    exact, rounded = gradient(), gradient(precision="bf16")
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) >= 0.99


def test_a_window_is_spoken_as_the_whole_where_it_is_the_whole(
    models: ModelSet, spoken: tuple[list[str], Tensor]
) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    mel = MelSTFTLoss()
    with torch.no_grad():
        text = ours.encode_text(phonemes[:1])
        prosody = ours.prosody(text, styles[:1])
        whole = ours.speak(text, prosody, styles[:1], [0]).audio
        frames = prosody.frames[0]
        assert torch.equal(ours.speak(text, prosody, styles[:1], [0], [(0, frames)]).audio, whole)
        first, count = 8, frames - 16
        window = ours.speak(text, prosody, styles[:1], [0], [(first, count)]).audio
        # Norms over fewer frames and other noise: near the whole, not the same; another voice is much farther.
        cut = mel.spectra(whole[:, first * 600 : (first + count) * 600])
        other = models.voices.style("af_nicole", len(phonemes[0]))[None]
        near = mel(mel.spectra(window), cut)
        far = mel(mel.spectra(ours.speak(text, prosody, other, [0], [(first, count)]).audio), cut)
    assert window.shape == (1, count * 600)
    assert 0 < near < 0.6 * far


def test_style_gradient_agrees_with_finite_differences(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    mel = MelSTFTLoss()
    text = ours.encode_text(phonemes[:1])
    with torch.no_grad():
        token_frames = ours.prosody(text, styles[:1]).token_frames
        reference = mel.spectra(torch.randn(1, 24 * 600, generator=torch.Generator().manual_seed(0)) * 0.05)
    # The source is computed without gradient, in the package as here: hold F0 still, so that both see the same.
    fixed = ours.prosody(text, styles[:1], token_frames)

    def loss(timbre: Tensor) -> Tensor:
        style = torch.cat([timbre, styles[:1, 128:]], dim=1)
        return mel(mel.spectra(ours.speak(text, fixed, style, [1], [(4, 24)]).audio), reference)

    timbre = styles[:1, :128].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(timbre), timbre)
    directions = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    for direction in [gradient[0], *directions]:
        step = 1e-2 * direction / direction.norm()
        with torch.no_grad():
            slope = (loss(timbre + step) - loss(timbre - step)) / 2e-2
        expected = (gradient[0] * direction / direction.norm()).sum()
        assert abs(slope - expected) < 0.03 * gradient.norm()


def test_prosody_gradients_agree_with_finite_differences(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    text = ours.encode_text(phonemes[:1])
    with torch.no_grad():
        token_frames = ours.prosody(text, styles[:1]).token_frames
    for name, scale in (("durations", 1.0), ("f0", 100.0), ("energy", 1.0)):

        def mean_square(style: Tensor, name: str = name, scale: float = scale) -> Tensor:
            outputs: Tensor = getattr(ours.prosody(text, style, token_frames), name)
            return (outputs / scale).square().mean()

        style = styles[:1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(mean_square(style), style)
        assert (gradient[:, :128] == 0).all()
        step = 2e-2 * gradient / gradient.norm()
        with torch.no_grad():
            slope = (mean_square(styles[:1] + step) - mean_square(styles[:1] - step)) / 4e-2
        assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.03), name


def test_frozen_for_good(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    before = {name: hashlib.sha256(p.numpy().tobytes()).digest() for name, p in ours.model.named_parameters()}
    style = styles[:1].clone().requires_grad_()
    text = ours.encode_text(phonemes[:1])
    ours.speak(text, ours.prosody(text, style), style, [0], [(0, 16)]).audio.square().sum().backward()
    assert style.grad is not None
    assert style.grad.abs().sum() > 0
    for name, parameter in ours.model.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None, name
        assert hashlib.sha256(parameter.numpy().tobytes()).digest() == before[name], name
    assert not [name for name, module in ours.model.named_modules() if module.training]
    assert not [name for name in ours.model.state_dict() if name.endswith(("weight_g", "weight_v"))]


def test_the_package_is_untouched(models: ModelSet, plain: Any, spoken: tuple[list[str], Tensor]) -> None:
    """On disk every file has the hash that its wheel recorded; in memory a KModel beside ours is as before."""
    files = [f for f in importlib.metadata.files("kokoro") or [] if f.suffix == ".py" and f.hash is not None]
    assert len(files) > 4
    for file in files:
        digest = hashlib.sha256(file.read_binary()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
    phonemes, styles = spoken
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    torch.manual_seed(0)
    before = plain(phonemes[0], styles[:1])
    DifferentiableKokoro.load(models.kokoro_files.config, models.kokoro_files.model)
    torch.manual_seed(0)
    assert torch.equal(plain(phonemes[0], styles[:1]), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())
    assert any(name.endswith("weight_g") for name in state)


def test_same_seed_same_samples_other_seed_other_samples(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    ours = models.kokoro
    with torch.no_grad():
        text = ours.encode_text(phonemes[:1])
        prosody = ours.prosody(text, styles[:1])
        state = torch.get_rng_state()
        a, b, c = (ours.speak(text, prosody, styles[:1], [seed], [(0, 16)]).audio for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_text_that_kokoro_cannot_say(models: ModelSet) -> None:
    with pytest.raises(TextError, match="knows none"):
        models.kokoro.encode_text(["漢字"])
    with pytest.raises(TextError, match="511 are more than the 510"):
        models.kokoro.encode_text(["a" * 511])


def test_speed_scales_durations(models: ModelSet, spoken: tuple[list[str], Tensor]) -> None:
    phonemes, styles = spoken
    text = models.kokoro.encode_text(phonemes[:1])
    with torch.no_grad():
        normal = models.kokoro.prosody(text, styles[:1])
        fast = models.kokoro.prosody(text, styles[:1], speed=2.0)
    torch.testing.assert_close(fast.durations * 2, normal.durations)
    assert fast.frames[0] < normal.frames[0]


@pytest.mark.parametrize("masked", [False, True])
def test_adain_snake_has_the_gradient_of_its_formula(masked: bool) -> None:
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
def test_a_frozen_convolution_has_the_gradient_of_a_convolution(kernel: int, dilation: int) -> None:
    conv = torch.nn.Conv1d(4, 4, kernel, padding=dilation * (kernel - 1) // 2, dilation=dilation)
    x = torch.randn(2, 4, 80, generator=torch.Generator().manual_seed(0), requires_grad=True)
    of_gradient = conv.weight.detach().flip(2).transpose(0, 1).contiguous()
    frozen = _FrozenConv.apply(x, conv.weight.detach(), conv.bias.detach(), of_gradient, conv.padding[0], dilation)
    plain = conv(x)
    torch.testing.assert_close(frozen, plain)
    weights = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    for found, expected in zip(
        torch.autograd.grad((frozen * weights).sum(), x), torch.autograd.grad((plain * weights).sum(), x), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_loading_does_not_depend_on_the_network(models: ModelSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)
    files = models.kokoro_files
    assert DifferentiableKokoro.load(files.config, files.model).max_phonemes == 510
