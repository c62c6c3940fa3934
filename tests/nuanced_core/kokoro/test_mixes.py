"""Mixes: reproducible draws, their weights, and the styles that result from them."""

import pytest
import torch
from torch import Tensor

from nuanced_core.config.settings import Mixes
from nuanced_core.errors import ConfigError
from nuanced_core.kokoro.mixes import MixedVoice, mixed_style, mixed_voices

VOICES = 6
NAMES = [f"af_{i}" for i in range(VOICES)]
ALL = Mixes(blends=3, half_blends=3, swaps=3, steps=3, half_steps=3)


@pytest.fixture(scope="module")
def packs() -> Tensor:
    return torch.randn(VOICES, 510, 256, generator=torch.Generator().manual_seed(0))


def _mixes(**settings: float) -> list[MixedVoice]:
    return mixed_voices(Mixes(**settings), NAMES, seed=0)  # type: ignore[arg-type]


def _same(a: MixedVoice, b: MixedVoice) -> bool:
    return a.name == b.name and torch.equal(a.timbre, b.timbre) and torch.equal(a.prosody, b.prosody)


def test_mixes_do_not_depend_on_their_number_or_on_other_kinds() -> None:
    more = {v.name: v for v in mixed_voices(ALL.model_copy(update={"blends": 9, "steps": 20, "swaps": 0}), NAMES, 0)}
    few = [v for v in mixed_voices(ALL, NAMES, 0) if not v.name.startswith("swap")]
    assert len(few) == 12
    assert all(_same(voice, more[voice.name]) for voice in few)
    assert len(more) == 35 and list(more)[:2] == ["blend-0000", "blend-0001"]


def test_mixes_depend_on_seed_and_voices() -> None:
    first = mixed_voices(ALL, NAMES, 0)
    assert all(_same(a, b) for a, b in zip(first, mixed_voices(ALL, NAMES, 0), strict=True))
    for other in (mixed_voices(ALL, NAMES, 1), mixed_voices(ALL, [*NAMES[:-1], "bm_x"], 0)):
        # There are few possible swaps, so that two draws may coincide.
        assert not any(_same(a, b) for a, b in zip(first, other, strict=True) if not a.name.startswith("swap"))
    assert mixed_voices(Mixes(), NAMES, 0) == []


def test_draws_equal_recorded_values() -> None:
    """Other draws would require every clip of every mix to be rendered again."""
    expected = {
        "blend-0000": ([0.369516, 0.0, 0.0, 0.427981, 0.0, 0.202504], [0.0, 0.0]),
        "half-blend-0000": ([0.475522, 0.157265, 0.0, 0.0, 0.0, 0.367213], [0.0, 0.0]),
        "swap-0000": ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0]),
        "step-0000": ([-0.0245, 0.027661, 0.770278, 0.535604, 0.12551, 0.486955], [-0.022056, -0.059203]),
        "half-step-0000": ([-0.037834, 0.166671, 0.625316, 0.248382, -0.011906, 0.083671], [-0.092817, -0.027733]),
    }
    found = _mixes(blends=1, half_blends=1, swaps=1, steps=1, half_steps=1, beyond=0.5)
    assert [voice.name for voice in found] == list(expected)
    for voice in found:
        timbre, beyond = expected[voice.name]
        assert voice.timbre.tolist() == pytest.approx(timbre, abs=1e-5)
        assert voice.beyond[:2].tolist() == pytest.approx(beyond, abs=1e-5)


def test_blends_are_convex_and_have_at_most_the_given_members() -> None:
    for voice in _mixes(blends=50, half_blends=50, members=4):
        for weights in (voice.timbre, voice.prosody):
            assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1)
            assert (weights > 0).sum() <= 4
        assert torch.equal(voice.timbre, voice.prosody) == voice.name.startswith("blend")
    counts = [(v.timbre > 0).sum().item() for v in _mixes(blends=50, members=4, concentration=5.0)]
    assert counts == [4] * 50


def test_every_training_voice_is_drawn() -> None:
    for settings in ({"blends": 100}, {"half_blends": 100}, {"swaps": 100}, {"steps": 100}):
        voices = _mixes(**settings)
        for half in ("timbre", "prosody"):
            assert (torch.stack([getattr(v, half) for v in voices]).abs().sum(dim=0) > 0).all()


@pytest.mark.parametrize("count", [1, 7, 510, 600])
def test_blend_is_the_weighted_mean_of_the_rows_of_its_members(packs: Tensor, count: int) -> None:
    rows = packs[:, min(count, 510) - 1].double()
    for voice in _mixes(blends=2, half_blends=2):
        expected = torch.cat(
            [
                sum(w * row[:128] for w, row in zip(voice.timbre, rows, strict=True)),
                sum(w * row[128:] for w, row in zip(voice.prosody, rows, strict=True)),
            ]
        )
        torch.testing.assert_close(mixed_style(voice, packs, count), expected.float())


def test_swap_combines_timbre_and_prosody_of_two_voices(packs: Tensor) -> None:
    pairs = set()
    for voice in _mixes(swaps=60):
        timbre, prosody = int(voice.timbre.argmax()), int(voice.prosody.argmax())
        assert timbre != prosody
        found_style = mixed_style(voice, packs, 20)
        torch.testing.assert_close(found_style[:128], packs[timbre, 19, :128])
        torch.testing.assert_close(found_style[128:], packs[prosody, 19, 128:])
        pairs.add((timbre, prosody))
    assert len(pairs) > 20


def test_steps_have_the_covariance_of_the_voices(packs: Tensor) -> None:
    size, number = 0.5, 3000
    blends = {v.name: v for v in _mixes(steps=number, members=1, step_size=0)}
    moved = torch.stack([v.timbre - blends[v.name].timbre for v in _mixes(steps=number, members=1, step_size=size)])
    offsets = (packs[:, 9, :8] - packs[:, 9, :8].mean(dim=0)).double()  # (V, 8)
    found = torch.cov((moved @ offsets).T) / size**2
    expected = offsets.T @ offsets / VOICES
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_step_size_scales_a_step_and_keeps_its_direction() -> None:
    start, near, far = (_mixes(half_steps=5, step_size=s) for s in (0.0, 0.5, 1.0))
    for a, b, c in zip(start, near, far, strict=True):
        torch.testing.assert_close(c.prosody - a.prosody, 2 * (b.prosody - a.prosody), rtol=1e-6, atol=1e-8)
        assert not torch.allclose(b.prosody - a.prosody, b.timbre - a.timbre)


def test_steps_share_weights_between_halves_and_half_steps_do_not() -> None:
    for voice in _mixes(steps=5):
        assert torch.equal(voice.timbre, voice.prosody)
    for voice in _mixes(half_steps=5):
        assert not torch.allclose(voice.timbre, voice.prosody, atol=0.05)


def test_beyond_adds_an_isotropic_offset_of_the_given_length(packs: Tensor) -> None:
    number, length = 400, 0.5
    inside, outside = _mixes(steps=number), _mixes(steps=number, beyond=length)
    rows = packs[:, 29].double()
    offsets = rows - rows.mean(dim=0)
    moved = torch.stack(
        [mixed_style(b, packs, 30) - mixed_style(a, packs, 30) for a, b in zip(inside, outside, strict=True)]
    ).double()  # (number, 256)
    for half in (slice(0, 128), slice(128, 256)):
        distance = offsets[:, half].square().sum(dim=1).mean().sqrt()
        lengths = moved[:, half].norm(dim=1) / distance
        assert lengths.square().mean().sqrt() == pytest.approx(length, rel=0.02)
        span = torch.linalg.qr(offsets[:, half].T).Q[:, : VOICES - 1]
        share = (moved[:, half] @ span).square().sum() / moved[:, half].square().sum()
        assert share == pytest.approx((VOICES - 1) / 128, rel=0.2)  # the share in the voices' span is that of chance
    assert all(_same(a, b) for a, b in zip(inside, outside, strict=True))


def test_mixes_without_beyond_lie_in_the_span_of_the_voices(packs: Tensor) -> None:
    for voice in mixed_voices(ALL, NAMES, 0):
        for half in (slice(0, 128), slice(128, 256)):
            rows = packs[:, 29, half].double()
            offsets = rows - rows.mean(dim=0)
            target = mixed_style(voice, packs, 30)[half].double() - rows.mean(dim=0)
            solution = torch.linalg.lstsq(offsets.T, target.unsqueeze(1), driver="gelsd").solution
            assert (offsets.T @ solution - target.unsqueeze(1)).norm() < 1e-5 * target.norm()


def test_concentration_moves_blends_from_one_voice_to_the_mean() -> None:
    largest = [
        torch.stack([v.timbre.max() for v in _mixes(blends=200, members=4, concentration=c)]).mean().item()
        for c in (1e-6, 0.6, 100.0)
    ]
    assert largest[0] > 0.99 > largest[1] > 0.4 > largest[2] > 0.25


@pytest.mark.parametrize("kind", ["blends", "half_blends", "steps", "half_steps"])
def test_more_members_than_voices_raise(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"mixes\.members: 7: there are 6 training voices"):
        _mixes(**{kind: 1, "members": 7})
    assert len(_mixes(**{kind: 1, "members": 6})) == 1


def test_members_are_checked_only_if_voices_are_blended() -> None:
    assert mixed_voices(Mixes(), NAMES[:1], 0) == []
    assert len(mixed_voices(Mixes(swaps=4), NAMES[:2], 0)) == 4
    with pytest.raises(ConfigError, match=r"mixes\.swaps: 1: there is one training voice"):
        mixed_voices(Mixes(swaps=1), NAMES[:1], 0)
