"""DifferentiableKokoro compared with the package's KModel on the real weights."""

import base64
import hashlib
import importlib.metadata
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import TextError
from nuanced_core.kokoro.model import DifferentiableKokoro
from nuanced_core.losses.reference import MelSTFTLoss
from tests.nuanced_core.kokoro.sentences import SENTENCES, Sentences

pytestmark = pytest.mark.real


def test_audio_matches_kmodel(models: ModelSet, reference: Any, sentences: Sentences) -> None:
    ours = models.kokoro
    for phonemes, style, (_, _, seed) in zip(*sentences, SENTENCES, strict=True):
        torch.manual_seed(seed)
        expected = reference(phonemes, style[None], return_output=True)
        with torch.no_grad():
            text = ours.encode_text([phonemes])
            prosody = ours.prosody(text, style[None])
            audio = ours.speak(text, prosody, style[None], [seed]).item(0)
        assert torch.equal(prosody.token_frames[0], expected.pred_dur)
        # Rounding of F0 accumulates in the phase of the source, so samples agree only to 3 % of the peak;
        assert (audio - expected.audio).abs().max() < 0.03 * expected.audio.abs().max()
        # spectra agree much better: the same style with other noise differs by 0.1.
        mel = MelSTFTLoss()
        assert mel(mel.spectra(audio[None]), mel.spectra(expected.audio[None])) < 5e-3


@pytest.mark.parametrize("item_by_item", [True, False])
def test_batch_matches_single_items_with_gradients(
    models: ModelSet, sentences: Sentences, item_by_item: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    phonemes, styles = sentences
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


def test_batch_of_whole_sentences_matches_single_items(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
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


@pytest.fixture(scope="module")
def gradient(models: ModelSet, sentences: Sentences) -> Any:
    """Compute the gradient of an audio loss with respect to the style, given options of ``speak``."""
    phonemes, styles = sentences
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


def test_gradient_is_reproducible(gradient: Any) -> None:
    assert torch.equal(gradient(), gradient())


def test_checkpointing_does_not_change_the_gradient(gradient: Any) -> None:
    torch.testing.assert_close(gradient(checkpointing=True), gradient())


def test_bf16_keeps_the_direction_of_the_gradient(gradient: Any) -> None:
    exact, rounded = gradient(), gradient(precision="bf16")
    assert not torch.equal(exact, rounded)
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) >= 0.99


def test_window_of_all_frames_equals_the_sentence_and_a_part_is_close(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
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
        # Norms over fewer frames and different noise: close to the sentence but not equal; another voice is farther.
        cut = mel.spectra(whole[:, first * 600 : (first + count) * 600])
        other = models.voices.style("af_nicole", len(phonemes[0]))[None]
        near = mel(mel.spectra(window), cut)
        far = mel(mel.spectra(ours.speak(text, prosody, other, [0], [(first, count)]).audio), cut)
    assert window.shape == (1, count * 600)
    assert 0 < near < 0.6 * far


def test_timbre_gradient_matches_finite_differences(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
    ours = models.kokoro
    mel = MelSTFTLoss()
    text = ours.encode_text(phonemes[:1])
    with torch.no_grad():
        token_frames = ours.prosody(text, styles[:1]).token_frames
        reference = mel.spectra(torch.randn(1, 24 * 600, generator=torch.Generator().manual_seed(0)) * 0.05)
    # The source signal has no gradient, in the package as here: keep F0 fixed, so that it does not vary.
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


def test_prosody_gradients_match_finite_differences(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
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


def test_weights_stay_frozen(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
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


def test_package_is_unmodified(models: ModelSet, reference: Any, sentences: Sentences) -> None:
    """Files on disk have the hashes that the wheel recorded; loading ours does not change a KModel in memory."""
    files = [f for f in importlib.metadata.files("kokoro") or [] if f.suffix == ".py" and f.hash is not None]
    assert len(files) > 4
    for file in files:
        digest = hashlib.sha256(file.read_binary()).digest()
        assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value, file
    phonemes, styles = sentences
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    torch.manual_seed(0)
    before = reference(phonemes[0], styles[:1])
    DifferentiableKokoro.load(models.kokoro_files.config, models.kokoro_files.model)
    torch.manual_seed(0)
    assert torch.equal(reference(phonemes[0], styles[:1]), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in reference.state_dict().items())
    assert any(name.endswith("weight_g") for name in state)


def test_seed_determines_the_samples_without_global_state(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
    ours = models.kokoro
    with torch.no_grad():
        text = ours.encode_text(phonemes[:1])
        prosody = ours.prosody(text, styles[:1])
        state = torch.get_rng_state()
        a, b, c = (ours.speak(text, prosody, styles[:1], [seed], [(0, 16)]).audio for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_text_without_known_phonemes_or_too_long_raises(models: ModelSet) -> None:
    with pytest.raises(TextError, match="none is in Kokoro's vocabulary"):
        models.kokoro.encode_text(["漢字"])
    with pytest.raises(TextError, match="511 are more than the 510"):
        models.kokoro.encode_text(["a" * 511])


def test_speed_scales_durations(models: ModelSet, sentences: Sentences) -> None:
    phonemes, styles = sentences
    text = models.kokoro.encode_text(phonemes[:1])
    with torch.no_grad():
        normal = models.kokoro.prosody(text, styles[:1])
        fast = models.kokoro.prosody(text, styles[:1], speed=2.0)
    torch.testing.assert_close(fast.durations * 2, normal.durations)
    assert fast.frames[0] < normal.frames[0]


def test_loading_needs_no_network(models: ModelSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_to_connect(*_: object, **__: object) -> None:
        raise AssertionError("attempted a connection")

    monkeypatch.setattr("socket.socket.connect", fail_to_connect)
    files = models.kokoro_files
    assert DifferentiableKokoro.load(files.config, files.model).max_phonemes == 510
