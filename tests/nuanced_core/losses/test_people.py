"""Losses of what Kokoro speaks in the voice of a person."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Loss
from nuanced_core.data.model_set import ModelSet
from nuanced_core.losses.people import (
    HEARING_LAYERS,
    PeopleTargets,
    SpokenPeopleLosses,
    pitch_loss,
    rate_loss,
    speaker_loss,
    spoken_pitch,
    spoken_rate,
)
from tests.fakes import FakeSpeakerEncoder, LivelyKokoro

NAN = torch.nan
PHONEMES = ("abcdefghij", "abcdefg")
BOTH = ("campplus", "resemblyzer")
TERMS = ("speaker", "pitch", "rate", "hearing")
SENTENCE = "ðə ɹˈɛd dˈɔɹ ɪz ˈoʊpən, ænd ðə ɡˈɑɹdən ɪz kwˈaɪət."


def _weights(*names: str, **changes: object) -> Loss:
    return Loss(**dict.fromkeys(names, 1.0), speaker_encoders=BOTH, **changes)  # type: ignore[arg-type]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _styles(count: int = 2, seed: int = 3) -> Tensor:
    return 0.5 * torch.randn(count, 256, generator=_generator(seed))


@pytest.fixture
def lively(fakes: SimpleNamespace) -> SimpleNamespace:
    fakes.kokoro = LivelyKokoro()
    return fakes


def _targets(models: SimpleNamespace, styles: Tensor) -> PeopleTargets:
    """What is heard of voices with given styles."""
    kokoro = models.kokoro
    text = kokoro.encode_text(PHONEMES)
    prosody = kokoro.prosody(text, styles)
    audio = kokoro.speak(text, prosody, styles, [5, 6], [(0, 36)] * 2).audio
    heard = resample(audio, KOKORO_RATE, WHISPER_RATE)
    return PeopleTargets(
        {name: FakeSpeakerEncoder(name)(heard) for name in BOTH},
        spoken_pitch(prosody),
        spoken_rate(prosody, text.lengths),
        torch.stack([models.whisper(clip, HEARING_LAYERS).mean(dim=1) for clip in heard]),
    )


def test_speaker_loss_is_the_sum_over_encoders_of_the_mean_over_people() -> None:
    found = {"a": torch.tensor([[1.0, 0.0], [0.6, 0.8]]), "b": torch.tensor([[0.0, 1.0], [1.0, 0.0]])}
    wanted = {
        "a": torch.tensor([[1.0, 0.0], [1.0, 0.0]]),
        "b": torch.tensor([[0.0, -1.0], [1.0, 0.0]]),
        "c": found["a"],
    }
    # 1 - cosine: a 0 and 0.4, b 2 and 0
    assert float(speaker_loss(found, wanted)) == pytest.approx(0.2 + 1.0)


def test_pitch_and_rate_losses_are_differences_in_octaves() -> None:
    found = torch.tensor([[7.0, 0.2], [8.0, 0.5]])
    wanted = torch.tensor([[7.5, 0.1], [7.0, 0.5]])
    assert float(pitch_loss(found, wanted)) == pytest.approx(((0.5 + 0.5 * 0.1) + 1.0) / 2)
    assert float(rate_loss(torch.tensor([10.0, 24.0]), torch.tensor([20.0, 6.0]))) == pytest.approx((1 + 2) / 2)


def test_unknown_pitch_and_rate_count_0_with_a_finite_gradient() -> None:
    found = torch.tensor([[7.0, NAN], [8.0, 0.5], [NAN, NAN]], requires_grad=True)
    wanted = torch.tensor([[7.5, 0.1], [NAN, 0.3], [7.0, 0.1]])
    loss = pitch_loss(found, wanted)
    (gradient,) = torch.autograd.grad(loss, found)
    assert float(loss.detach()) == pytest.approx((0.5 + 0.5 * 0.2) / 3)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.0], [0.0, 0.5], [0.0, 0.0]]) / 3)

    rates = torch.tensor([10.0, 24.0, NAN], requires_grad=True)
    loss = rate_loss(rates, torch.tensor([NAN, 12.0, 10.0]))
    (gradient,) = torch.autograd.grad(loss, rates)
    assert float(loss.detach()) == pytest.approx(1 / 3)
    assert gradient[0] == 0 and gradient[1] > 0 and torch.isfinite(gradient[:2]).all()


def test_spoken_pitch_and_rate_are_those_of_the_prosody(lively: SimpleNamespace) -> None:
    styles = _styles()
    text = lively.kokoro.encode_text(PHONEMES)
    prosody = lively.kokoro.prosody(text, styles)
    for i, phonemes in enumerate(PHONEMES):
        f0, energy = (curve[i, : 2 * prosody.frames[i]] for curve in (prosody.f0, prosody.energy))
        # The 30 % with the least energy are hardly audible.
        quiet = energy < energy.sort().values[int(0.3 * (len(energy) - 1)) + 1]
        octaves = f0[(f0 > 50) & ~quiet].log2()
        spread = (octaves.quantile(0.84) - octaves.quantile(0.16)) / 2
        torch.testing.assert_close(spoken_pitch(prosody)[i], torch.stack([octaves.quantile(0.5), spread]))
        # Without the tokens at the ends, which are silent: n phonemes in frames of 25 ms.
        seconds = prosody.durations[i, 1 : len(phonemes) + 1].sum() / 40
        torch.testing.assert_close(spoken_rate(prosody, text.lengths)[i], len(phonemes) / seconds)


@pytest.mark.parametrize("name", TERMS)
def test_only_terms_with_a_weight_are_computed(lively: SimpleNamespace, name: str) -> None:
    losses = SpokenPeopleLosses(lively, _weights(name), 20, torch.ones(2, 4))  # type: ignore[arg-type]
    assert losses.wanted
    spoken, heard = lively.kokoro.spoken, lively.whisper.heard
    styles = _styles()
    targets = PeopleTargets({n: torch.ones(2, 1) for n in BOTH}, torch.ones(2, 2), torch.ones(2), torch.ones(2, 2, 4))
    assert set(losses(PHONEMES, styles, targets, _generator())) == {name}
    assert (lively.kokoro.spoken > spoken) == (name in ("speaker", "hearing"))
    assert (lively.whisper.heard > heard) == (name == "hearing")
    assert set(lively.speakers.used) == (set(BOTH) if name == "speaker" else set())


def test_nothing_is_wanted_without_a_weight(lively: SimpleNamespace) -> None:
    assert not SpokenPeopleLosses(lively, _weights(stft=1.0, surrogate=1.0, prior=1.0), 20).wanted  # type: ignore[arg-type]


def test_states_are_needed_for_hearing(lively: SimpleNamespace) -> None:
    losses = SpokenPeopleLosses(lively, _weights("hearing"), 20)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the states of the people, and their standard deviation"):
        losses(PHONEMES, _styles(), _targets(lively, _styles()), _generator())


def test_hearing_is_the_difference_in_deviations_over_people(lively: SimpleNamespace) -> None:
    targets = _targets(lively, _styles(seed=4))
    terms = [
        SpokenPeopleLosses(lively, _weights("hearing"), 20, torch.full((2, 4), std))(  # type: ignore[arg-type]
            PHONEMES, _styles(), targets, _generator()
        )["hearing"]
        for std in (1.0, 4.0)
    ]
    assert float(terms[0]) == pytest.approx(4 * float(terms[1])) and terms[0] > 0


@pytest.mark.parametrize(("frames", "expected"), [(8, 8), (1000, None)])
def test_a_window_of_each_sentence_is_spoken_as_the_settings_say(
    lively: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, frames: int, expected: int | None
) -> None:
    targets = _targets(lively, _styles(seed=4))
    speak, calls = lively.kokoro.speak, []

    def recorded(text: object, prosody: Any, style: Tensor, seeds: list[int], windows: Any, **options: Any) -> object:
        calls.append((prosody.frames, seeds, windows, options))
        return speak(text, prosody, style, seeds, windows, **options)

    monkeypatch.setattr(lively.kokoro, "speak", recorded)
    losses = SpokenPeopleLosses(lively, _weights("speaker"), frames, None, "bfloat16", True)  # type: ignore[arg-type]
    for seed in range(60):
        losses(PHONEMES, _styles(), targets, _generator(seed))
    lengths, _, _, options = calls[0]
    assert options == {"precision": "bfloat16", "checkpointing": True}
    assert {n for call in calls for _, n in call[2]} == {expected or min(lengths)}
    starts = [{call[2][i][0] for call in calls} for i in range(2)]
    for found, length in zip(starts, lengths, strict=True):
        most = length - (expected or min(lengths))
        assert min(found) >= 0 and max(found) <= most
        assert len(found) > most / 2  # from anywhere in the sentence
    assert max(seed for call in calls for seed in call[1]) > 2**29


def test_terms_depend_on_the_generator_alone(lively: SimpleNamespace) -> None:
    losses = SpokenPeopleLosses(lively, _weights(*TERMS), 20, torch.ones(2, 4))  # type: ignore[arg-type]
    targets = _targets(lively, _styles(seed=4))
    runs = []
    for seed, of_others in ((7, 0), (7, 1), (8, 1)):
        torch.manual_seed(of_others)
        state = torch.get_rng_state()
        runs.append(losses(PHONEMES, _styles(), targets, _generator(seed)))
        assert torch.equal(torch.get_rng_state(), state)
    first, same, other = runs
    assert all(torch.equal(first[name], same[name]) for name in TERMS)
    assert {name for name in TERMS if not torch.equal(first[name], other[name])} == {"speaker", "hearing"}


def test_terms_are_lowest_for_the_person_s_own_style(lively: SimpleNamespace) -> None:
    losses = SpokenPeopleLosses(lively, _weights(*TERMS), 36, torch.ones(2, 4))  # type: ignore[arg-type]
    own = _styles(seed=4)
    targets = _targets(lively, own)
    same, other = (losses(PHONEMES, styles, targets, _generator()) for styles in (own, own.flip(0)))
    for name in TERMS:
        assert same[name] < 0.5 * other[name], name
    assert same["pitch"] == same["rate"] == 0


@pytest.mark.parametrize("name", TERMS)
def test_gradient_of_each_term_reaches_each_style(lively: SimpleNamespace, name: str) -> None:
    losses = SpokenPeopleLosses(lively, _weights(name), 20, torch.ones(2, 4))  # type: ignore[arg-type]
    styles = _styles().requires_grad_()
    term = losses(PHONEMES, styles, _targets(lively, _styles(seed=4)), _generator())[name]
    (gradient,) = torch.autograd.grad(term, styles)
    assert torch.isfinite(gradient).all() and (gradient.abs().amax(dim=1) > 1e-5).all()


def _unvoiced(models: SimpleNamespace) -> None:
    prosody = models.kokoro.prosody

    def without_voice(*arguments: object) -> object:
        found = prosody(*arguments)
        return type(found)(found.durations, found.token_frames, 0 * found.f0, found.energy, found.frames)

    models.kokoro.prosody = without_voice


def test_sentence_without_voice_has_no_pitch_to_compare(lively: SimpleNamespace) -> None:
    _unvoiced(lively)
    losses = SpokenPeopleLosses(lively, _weights("pitch", "rate"), 20)  # type: ignore[arg-type]
    styles = _styles().requires_grad_()
    targets = PeopleTargets({}, torch.tensor([[7.0, 0.2]]).expand(2, -1), torch.tensor([12.0, 13.0]))
    terms = losses(PHONEMES, styles, targets, _generator())
    assert terms["pitch"] == 0
    (gradient,) = torch.autograd.grad(terms["pitch"] + terms["rate"], styles)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


@pytest.mark.real
def test_speaker_gradient_of_the_real_models_agrees_with_finite_differences(models: ModelSet) -> None:
    """Of the timbre, through Kokoro's decoder, the channel and CAM++; F0 and its source have no gradient there."""
    style = models.voices.style("af_heart", len(SENTENCE))[None]
    wanted = torch.nn.functional.normalize(torch.randn(1, 192, generator=_generator()), dim=1)
    targets = PeopleTargets({"campplus": wanted}, torch.full((1, 2), NAN), torch.tensor([NAN]))
    losses = SpokenPeopleLosses(models, Loss(speaker=1.0, speaker_encoders=("campplus",)), 40)

    def loss(timbre: Tensor) -> Tensor:
        return losses([SENTENCE], torch.cat([timbre, style[:, 128:]], dim=1), targets, _generator())["speaker"]

    timbre = style[:, :128].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(timbre), timbre)
    direction = gradient / gradient.norm()
    step = 3e-3
    with torch.no_grad():
        slope = (loss(timbre + step * direction) - loss(timbre - step * direction)) / (2 * step)
    # Rounding and rectifiers change the slope by up to 5 %. Along its own direction, any other gradient is too long.
    assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.1)


@pytest.mark.real
def test_prosody_gradients_of_the_real_models_agree_with_finite_differences(models: ModelSet) -> None:
    style = models.voices.style("af_heart", len(SENTENCE))[None]
    targets = PeopleTargets({}, torch.tensor([[7.0, 0.1]]), torch.tensor([9.0]))
    losses = SpokenPeopleLosses(models, _weights("pitch", "rate"), 40)
    for name in ("pitch", "rate"):

        def loss(style: Tensor, name: str = name) -> Tensor:
            return losses([SENTENCE], style, targets, _generator())[name]

        point = style.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point), point)
        direction, step = gradient / gradient.norm(), 1e-4  # farther away, the median is that of another frame
        with torch.no_grad():
            slope = (loss(style + step * direction) - loss(style - step * direction)) / (2 * step)
        assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.05), name


@pytest.mark.real
def test_hearing_of_the_real_whisper_is_0_for_the_clip_s_own_states(lively: SimpleNamespace, models: ModelSet) -> None:
    lively.whisper = models.whisper
    styles = _styles()
    said: list[Tensor] = []
    speak = lively.kokoro.speak

    def record(*arguments: object, **options: object) -> object:
        speech = speak(*arguments, **options)
        said.append(resample(speech.audio.detach(), KOKORO_RATE, WHISPER_RATE))
        return speech

    lively.kokoro.speak = record
    losses = SpokenPeopleLosses(lively, _weights("hearing"), 20, torch.full((2, 384), 0.5))  # type: ignore[arg-type]
    nothing = PeopleTargets({}, torch.ones(2, 2), torch.ones(2), torch.zeros(2, 2, 384))
    losses(PHONEMES, styles, nothing, _generator())
    with torch.no_grad():
        states = torch.stack([models.whisper.encode_segment(clip, HEARING_LAYERS).mean(dim=1) for clip in said[0]])
    own = PeopleTargets({}, torch.ones(2, 2), torch.ones(2), states)
    assert float(losses(PHONEMES, styles, own, _generator())["hearing"]) == pytest.approx(0, abs=1e-6)

    others = PeopleTargets({}, torch.ones(2, 2), torch.ones(2), states.flip(0))
    moved = styles.clone().requires_grad_()
    term = losses(PHONEMES, moved, others, _generator())["hearing"]
    expected = ((states - states.flip(0)) / 0.5).abs().mean()
    torch.testing.assert_close(term.detach(), expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(term, moved)
    assert torch.isfinite(gradient).all() and (gradient[:, :8].abs().amax(dim=1) > 1e-5).all()
