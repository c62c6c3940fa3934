"""nuanced_core.kokoro.mixes with any settings: what is drawn are weights of the training voices, the same each time."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nuanced_core.config.settings import Mixes
from nuanced_core.errors import ConfigError
from nuanced_core.kokoro.mixes import MixedVoice, mixed_style, mixed_voices

KINDS = ("blends", "half_blends", "swaps", "steps", "half_steps")
SEEDS = st.integers(0, 2**40)
VOICES = st.lists(st.text("abcdefgh_", min_size=1, max_size=8), min_size=1, max_size=9, unique=True)


@st.composite
def mixes(draw: st.DrawFn) -> Mixes:
    counts = {kind: draw(st.integers(0, 3)) for kind in KINDS}
    return Mixes(
        **counts,  # type: ignore[arg-type]
        members=draw(st.integers(2, 4)),
        concentration=draw(st.floats(0.05, 20.0)),
        step_size=draw(st.floats(0.0, 2.0)),
        beyond=draw(st.floats(0.0, 1.0)),
    )


def drawn(settings: Mixes, voices: list[str], seed: int) -> list[MixedVoice]:
    """The mixes; settings that do not fit the voices are refused, and not tried."""
    blended = settings.blends or settings.half_blends or settings.steps or settings.half_steps
    if (blended and settings.members > len(voices)) or (settings.swaps and len(voices) < 2):
        with pytest.raises(ConfigError, match=r"mixes\.(members|swaps)"):
            mixed_voices(settings, voices, seed)
        assume(False)
    return mixed_voices(settings, voices, seed)


@settings(max_examples=80)
@given(mixes(), VOICES, SEEDS)
def test_weights_are_those_of_the_kind(mixed: Mixes, voices: list[str], seed: int) -> None:
    found = drawn(mixed, voices, seed)
    assert len(found) == sum(getattr(mixed, kind) for kind in KINDS)
    assert len({voice.name for voice in found}) == len(found)
    for voice in found:
        kind = re.sub(r"-\d+$", "", voice.name)
        for weights in (voice.timbre, voice.prosody):
            assert weights.shape == (len(voices),) and bool(torch.isfinite(weights).all())
            if kind.endswith("step"):
                continue
            assert bool((weights >= 0).all()) and float(weights.sum()) == pytest.approx(1)
            assert int((weights > 0).sum()) <= (1 if kind == "swap" else mixed.members)
        if kind == "swap":
            assert int(voice.timbre.argmax()) != int(voice.prosody.argmax())
        if not kind.startswith("half") and kind != "swap":
            assert torch.equal(voice.timbre, voice.prosody)
        assert kind.endswith("step") or not voice.beyond.any()


@settings(max_examples=60)
@given(mixes(), VOICES, SEEDS, st.data())
def test_a_mix_depends_on_its_kind_the_voices_and_the_seed_alone(
    mixed: Mixes, voices: list[str], seed: int, data: st.DataObject
) -> None:
    first = drawn(mixed, voices, seed)
    again = mixed_voices(mixed, list(voices), seed)
    for a, b in zip(first, again, strict=True):
        assert a.name == b.name
        assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in ("timbre", "prosody", "beyond"))
    # More of a kind, or none of the others, changes none that were there.
    kind = data.draw(st.sampled_from(KINDS))
    alone = Mixes(**{**mixed.model_dump(), **dict.fromkeys(KINDS, 0), kind: getattr(mixed, kind)})
    by_name = {voice.name: voice for voice in first}
    for voice in mixed_voices(alone, voices, seed):
        assert torch.equal(voice.timbre, by_name[voice.name].timbre)


@settings(max_examples=40)
@given(mixes(), st.integers(2, 6), SEEDS, st.integers(1, 600))
def test_a_blend_lies_between_its_training_voices(mixed: Mixes, count: int, seed: int, phonemes: int) -> None:
    voices = [f"v{index}" for index in range(count)]
    generator = torch.Generator().manual_seed(seed % 1000)
    packs = torch.randn(count, 510, 256, generator=generator)
    rows = packs[:, min(phonemes, 510) - 1]
    for voice in drawn(mixed, voices, seed):
        style = mixed_style(voice, packs, phonemes)
        assert style.shape == (256,) and bool(torch.isfinite(style).all())
        if voice.name.endswith("step") or "step-" in voice.name:
            continue
        for half, weights in ((slice(0, 128), voice.timbre), (slice(128, None), voice.prosody)):
            torch.testing.assert_close(style[half], (weights.float() @ rows[:, half]), atol=1e-4, rtol=1e-4)
            assert bool((style[half] <= rows[:, half].amax(dim=0) + 1e-4).all())
            assert bool((style[half] >= rows[:, half].amin(dim=0) - 1e-4).all())
