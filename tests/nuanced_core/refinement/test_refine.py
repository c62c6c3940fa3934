"""Refinement of a voice on one person's recording."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nuanced_core.audio import KOKORO_RATE
from nuanced_core.data.model_set import ModelSet
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.errors import TrainingError
from nuanced_core.hearing.pitch import pitch_statistics
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses.people import PeopleTargets
from nuanced_core.losses.surrogate import VoiceSamples, fit_surrogate
from nuanced_core.refinement.refine import RefinedVoice, RefineSettings, refine
from tests.fakes import LivelyKokoro

STOCK = ("af_heart", "am_michael", "af_bella", "bm_lewis")
SENTENCES, HELD_OUT = ("abcdefghij", "abcdefghijkl", "bcdefghijklm"), ("cdefghijklmn", "defghijklm")
REAL_SENTENCES = ("ðə ɹˈɛd dˈɔɹ ɪz ˈoʊpən.", "ə blˈu wˈɪndoʊ fˈeɪsɪz ðə sˈi.")
REAL_HELD_OUT = ("ɡɹˈin hˈɪlz, nˈoʊ ɹˈeɪn.",)


def _start(models: Any, voice: str) -> Callable[[Tensor], Tensor]:
    pack = models.voices.pack(voice)
    return lambda counts: pack[counts - 1]


def _frame(models: Any, names: tuple[str, ...]) -> StyleFrame:
    return StyleFrame(torch.stack([models.voices.pack(name) for name in names]))


def _heard(models: Any, voice: str, phonemes: str, encoders: tuple[str, ...]) -> PeopleTargets:
    """What is heard of a sentence that a stock voice speaks."""
    style = models.voices.style(voice, len(phonemes))[None]
    with torch.no_grad():
        text = models.kokoro.encode_text([phonemes])
        prosody = models.kokoro.prosody(text, style)
        audio = models.kokoro.speak(text, prosody, style, [3]).item(0)
    embeddings = {name: models.speaker_encoder(name).embed(audio, KOKORO_RATE)[None] for name in encoders}
    pitch = torch.stack(pitch_statistics(prosody.f0[0]))[None]
    return PeopleTargets(embeddings, pitch, torch.tensor([torch.nan]))


@pytest.fixture
def refine_with(fakes: SimpleNamespace) -> Callable[..., RefinedVoice]:
    """Refines af_heart towards am_michael, with the fakes."""
    fakes.kokoro = LivelyKokoro()
    target = _heard(fakes, "am_michael", "abcdefghijkl", ("campplus", "resemblyzer"))

    def refine_voice(
        start: Callable[[Tensor], Tensor] | None = None,
        target: PeopleTargets = target,
        held_out: tuple[str, ...] = HELD_OUT,
        seed: int = 0,
        surrogate: Surrogate | None = None,
        **settings: Any,
    ) -> RefinedVoice:
        frame = _frame(fakes, STOCK)
        start = start or _start(fakes, "af_heart")
        chosen = RefineSettings(**{"frames": 40, "learning_rate": 0.1, "check_every": 5, **settings})
        return refine(
            fakes,  # type: ignore[arg-type]
            start, target, frame, SENTENCES, held_out, chosen, surrogate=surrogate, seed=seed,
        )  # fmt: skip

    return refine_voice


def test_loss_on_held_out_sentences_falls_and_the_best_offset_is_kept(
    refine_with: Callable[..., RefinedVoice], fakes: SimpleNamespace
) -> None:
    voice = refine_with(steps=20, batch=2)
    steps, losses = zip(*voice.losses, strict=True)
    assert steps == (0, 5, 10, 15, 20) and voice.steps == 20
    assert min(losses) < 0.7 * losses[0]
    assert voice.best_step == steps[losses.index(min(losses))]
    # Measured again from there, the loss is the same.
    start = _start(fakes, "af_heart")
    again = refine_with(lambda counts: start(counts) + voice.offset, steps=0)
    assert again.losses[0][1] == pytest.approx(min(losses), rel=1e-5)


def test_best_offset_is_not_the_last_one_where_the_loss_rises_again(
    refine_with: Callable[..., RefinedVoice], fakes: SimpleNamespace
) -> None:
    voice = refine_with(steps=30, check_every=1, patience=3, learning_rate=1.0)
    losses = dict(voice.losses)
    assert 0 < voice.best_step == min(losses, key=lambda step: losses[step]) == voice.steps - 3
    start = _start(fakes, "af_heart")
    again = refine_with(lambda counts: start(counts) + voice.offset, steps=0)
    assert again.losses[0][1] == pytest.approx(losses[voice.best_step], rel=1e-5)


def test_patience_stops_where_no_step_helps(refine_with: Callable[..., RefinedVoice]) -> None:
    voice = refine_with(steps=50, learning_rate=100.0, check_every=2, patience=3)
    assert voice.steps == 6 and [step for step, _ in voice.losses] == [0, 2, 4, 6]
    assert voice.best_step == 0 and torch.equal(voice.offset, torch.zeros(256))


def test_last_steps_are_measured_too(refine_with: Callable[..., RefinedVoice]) -> None:
    voice = refine_with(steps=7, check_every=5)
    assert [step for step, _ in voice.losses] == [0, 5, 7]


def test_no_steps_change_nothing(refine_with: Callable[..., RefinedVoice]) -> None:
    voice = refine_with(steps=0)
    assert torch.equal(voice.offset, torch.zeros(256))
    assert (voice.steps, voice.best_step, len(voice.losses)) == (0, 0, 1)


def test_result_depends_on_the_seed_alone(refine_with: Callable[..., RefinedVoice]) -> None:
    voices = []
    for seed, of_others in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(of_others)
        voices.append(refine_with(steps=5, seed=seed))
    first, same, other = voices
    assert torch.equal(first.offset, same.offset) and first.losses == same.losses
    assert not torch.equal(first.offset, other.offset)


def test_prior_keeps_the_voice_near_the_stock_voices(
    refine_with: Callable[..., RefinedVoice], fakes: SimpleNamespace
) -> None:
    frame, counts = _frame(fakes, STOCK), torch.tensor([10])
    start = _start(fakes, "af_heart")(counts)
    free, held = (refine_with(steps=10, prior=prior, patience=9) for prior in (0.0, 5.0))
    before, without, within = (
        float(frame.priors(frame.offsets(start + offset, counts))) for offset in (0.0, free.offset, held.offset)
    )
    assert within < 0.5 * before and within < 0.5 * without


@pytest.fixture
def surrogate(refine_with: Callable[..., RefinedVoice], fakes: SimpleNamespace) -> Surrogate:
    """What CAM++ hears of 60 clips of the fake Kokoro, in styles around af_heart's."""
    frame, count = _frame(fakes, STOCK), torch.tensor([12])
    near = frame.offsets(_start(fakes, "af_heart")(count), count)
    offsets = near + 0.7 * torch.randn(60, 256, generator=torch.Generator().manual_seed(5))
    embeddings, pitch = [], []
    for style in frame.styles(offsets, count.expand(60)):
        with torch.no_grad():
            text = fakes.kokoro.encode_text(["abcdefghijkl"])
            prosody = fakes.kokoro.prosody(text, style[None])
            audio = fakes.kokoro.speak(text, prosody, style[None], [3]).item(0)
        embeddings.append(fakes.speaker_encoder("campplus").embed(audio, KOKORO_RATE))
        pitch.append(torch.stack(pitch_statistics(prosody.f0[0])))
    samples = VoiceSamples(offsets, {"campplus": torch.stack(embeddings)}, torch.stack(pitch))
    return fit_surrogate(frame, samples, [str(i) for i in range(60)])[0]


def test_rounds_on_a_surrogate_find_a_nearer_voice_without_gradient_steps(
    refine_with: Callable[..., RefinedVoice], surrogate: Surrogate, fakes: SimpleNamespace
) -> None:
    voice = refine_with(surrogate=surrogate, rounds=8, steps=0, pitch=0.0, speaker_encoders=("campplus",))
    (first, before), (last, after) = voice.losses
    assert (first, last, voice.steps, voice.best_step) == (0, 8, 8, 8)
    assert after < 0.9 * before
    start = _start(fakes, "af_heart")
    again = refine_with(lambda counts: start(counts) + voice.offset, steps=0, pitch=0.0, speaker_encoders=("campplus",))
    assert again.losses[0][1] == pytest.approx(after, rel=1e-5)


def test_gradient_steps_go_on_from_what_the_rounds_found(
    refine_with: Callable[..., RefinedVoice], surrogate: Surrogate
) -> None:
    both = refine_with(surrogate=surrogate, rounds=8, steps=5, speaker_encoders=("campplus",))
    alone = refine_with(surrogate=surrogate, rounds=0, steps=5, speaker_encoders=("campplus",))
    assert [step for step, _ in both.losses] == [0, 8, 13] and [step for step, _ in alone.losses] == [0, 5]
    assert both.losses[-1][1] < both.losses[1][1] and both.losses[-1][1] < alone.losses[-1][1]


def test_surrogate_that_misleads_is_not_followed(
    refine_with: Callable[..., RefinedVoice], surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    surrogate.coefficients.neg_()  # the best on it is the worst
    monkeypatch.setattr("nuanced_core.refinement.corrections.ADDED_PENALTY", 1e6)  # and nothing is corrected
    voice = refine_with(surrogate=surrogate, steps=0, pitch=0.0, speaker_encoders=("campplus",))
    assert voice.losses[1][1] > voice.losses[0][1]
    assert voice.best_step == 0 and torch.equal(voice.offset, torch.zeros(256))


def test_surrogate_of_other_speaker_encoders_is_left_out(
    refine_with: Callable[..., RefinedVoice], surrogate: Surrogate
) -> None:
    voice = refine_with(surrogate=surrogate, steps=0, speaker_encoders=("resemblyzer",))
    assert (voice.steps, len(voice.losses)) == (0, 1)


def test_loss_that_is_not_finite_is_an_error(refine_with: Callable[..., RefinedVoice], fakes: SimpleNamespace) -> None:
    nothing = PeopleTargets(
        {name: torch.full((1, size), torch.nan) for name, size in (("campplus", 192), ("resemblyzer", 256))},
        torch.full((1, 2), torch.nan),
        torch.tensor([torch.nan]),
    )
    for steps in (0, 3):
        with pytest.raises(TrainingError, match=r"refinement, .*: the loss is nan"):
            refine_with(target=nothing, steps=steps)


def test_sentences_are_needed(refine_with: Callable[..., RefinedVoice]) -> None:
    with pytest.raises(ValueError, match="sentences for its steps, and others"):
        refine_with(held_out=())


@pytest.mark.real
def test_two_steps_through_the_real_models_bring_a_voice_nearer(models: ModelSet) -> None:
    target = _heard(models, "am_michael", REAL_SENTENCES[0], ("campplus",))
    frame = _frame(models, models.voices.training_voices("all", ("af_sky", "am_puck")))
    settings = RefineSettings(steps=2, check_every=2, frames=40, learning_rate=0.13, speaker_encoders=("campplus",))
    voice = refine(models, _start(models, "bm_lewis"), target, frame, REAL_SENTENCES, REAL_HELD_OUT, settings)
    (_, before), (_, after) = voice.losses
    assert after < before - 0.01
    assert voice.best_step == 2 and 0 < (voice.offset / frame.std).abs().max() < 0.25
