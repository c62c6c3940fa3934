"""A surrogate corrected by clips that are added to it."""

import pytest
import torch
from torch import Tensor

from nuanced_core.encoder.surrogate import PENALTY, Surrogate, kernel
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.refinement import corrections
from nuanced_core.refinement.corrections import CorrectedSurrogate

SIZES = {"campplus": 6, "resemblyzer": 10}
CLIPS, ADDED = 50, 5
NOWHERE = torch.full((2,), torch.nan)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _fit(points: Tensor, outputs: Tensor, mean: Tensor) -> Surrogate:
    """Fit a surrogate to all clips in closed form, with scales and a linear part as if they had been learned."""
    surrogate = Surrogate(StyleFrame(_random(6, 510, 256, seed=0)), SIZES, len(points))
    surrogate.scales.copy_(0.5 + torch.arange(256) / 256)
    surrogate.linear.fill_(1.5)
    surrogate.mean.copy_(mean)
    surrogate.points.copy_(points)
    scaled = surrogate.points * surrogate.scales
    similarity = kernel(scaled, scaled, surrogate.linear) + PENALTY * torch.eye(len(points))
    surrogate.coefficients.copy_(torch.linalg.solve(similarity, outputs - mean))
    return surrogate


@pytest.fixture
def clips() -> tuple[Tensor, Tensor]:
    """Offsets that float16 holds exactly, and what is heard of them."""
    return _random(CLIPS + ADDED, 256, seed=1).half().float(), 0.3 * _random(CLIPS + ADDED, 18, seed=2)


@pytest.fixture
def surrogate(clips: tuple[Tensor, Tensor]) -> Surrogate:
    """Fitted to all clips but the last ones."""
    offsets, outputs = clips
    return _fit(offsets[:CLIPS], outputs[:CLIPS], outputs[:CLIPS].mean(dim=0))


def _heard(outputs: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    first, second, pitch = outputs.split([6, 10, 2])
    return {"resemblyzer": second, "campplus": first}, pitch  # in another order: names decide


def test_corrected_surrogate_is_one_that_was_fitted_to_the_added_clips_too(
    surrogate: Surrogate, clips: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corrections, "ADDED_PENALTY", PENALTY)
    offsets, outputs = clips
    before = {name: value.clone() for name, value in surrogate.state_dict().items()}
    corrected = CorrectedSurrogate(surrogate)
    for i in range(CLIPS, CLIPS + ADDED):
        corrected.add(offsets[i], *_heard(outputs[i]))
    wanted = _fit(offsets, outputs, surrogate.mean)
    elsewhere = _random(20, 256, seed=3)
    found, true = corrected.corrected().outputs(elsewhere), wanted.outputs(elsewhere)
    torch.testing.assert_close(found, true, rtol=0, atol=2e-3)  # coefficients are float16
    assert (true - surrogate.outputs(elsewhere)).abs().max() > 0.02  # which is more than nothing
    for name, value in surrogate.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_was_heard_there_counts_more_the_less_the_penalty(
    surrogate: Surrogate, clips: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    offset, outputs = clips[0][-1], clips[1][-1]
    errors = [float((surrogate.outputs(offset[None])[0] - outputs).norm())]
    for penalty in (1.0, 0.1, 0.001):
        monkeypatch.setattr(corrections, "ADDED_PENALTY", penalty)
        corrected = CorrectedSurrogate(surrogate)
        corrected.add(offset, *_heard(outputs))
        errors.append(float((corrected.corrected().outputs(offset[None])[0] - outputs).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05 * errors[0]


def test_unknown_pitch_corrects_the_embeddings_alone(surrogate: Surrogate, clips: tuple[Tensor, Tensor]) -> None:
    offset, outputs = clips[0][-1], clips[1][-1]
    corrected = CorrectedSurrogate(surrogate)
    corrected.add(offset, _heard(outputs)[0], NOWHERE)
    before, after = (one.outputs(offset[None])[0] for one in (surrogate, corrected.corrected()))
    torch.testing.assert_close(after[-2:], before[-2:], rtol=0, atol=2e-3)
    assert (after[:-2] - outputs[:-2]).norm() < 0.6 * (before[:-2] - outputs[:-2]).norm()
