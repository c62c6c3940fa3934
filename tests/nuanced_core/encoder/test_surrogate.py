"""The surrogate of Kokoro and the speaker encoders, and the steps on it."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from nuanced_core.encoder.surrogate import KERNEL_WIDTH, LEARNING_RATE, PITCH_WEIGHTS, Surrogate
from nuanced_core.kokoro.style_frame import StyleFrame

SIZES = {"campplus": 12, "resemblyzer": 20}
PEOPLE = 4


@pytest.fixture
def surrogate() -> Surrogate:
    """A surrogate with random coefficients, so that it is anything but linear."""
    generator = torch.Generator().manual_seed(0)
    packs = torch.randn(6, 510, 256, generator=generator)
    surrogate = Surrogate(StyleFrame(packs), SIZES, clips=40)
    for buffer in (surrogate.points, surrogate.coefficients, surrogate.mean):
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    return surrogate


@pytest.fixture
def offsets() -> Tensor:
    return 0.5 * torch.randn(PEOPLE, 256, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def heard(surrogate: Surrogate) -> tuple[dict[str, Tensor], Tensor]:
    """What is heard of voices that the surrogate could predict."""
    return surrogate(torch.randn(PEOPLE, 256, generator=torch.Generator().manual_seed(2)))


def test_prediction_is_a_kernel_regression(surrogate: Surrogate, offsets: Tensor) -> None:
    """Of the clips, by the scalar product of the styles and a Gaussian of their distance."""
    embeddings, pitch = surrogate(offsets)
    weights = torch.empty(PEOPLE, 40)
    for i, j in itertools.product(range(PEOPLE), range(40)):
        product = (offsets[i] * surrogate.points[j]).mean()
        distance = (offsets[i] - surrogate.points[j]).square().mean().sqrt()
        weights[i, j] = product + torch.exp(-(distance**2) / (2 * KERNEL_WIDTH**2))
    expected = weights @ surrogate.coefficients.float() + surrogate.mean
    torch.testing.assert_close(pitch, expected[:, 32:], rtol=1e-3, atol=1e-4)
    for name, part in (("campplus", expected[:, :12]), ("resemblyzer", expected[:, 12:32])):
        normalised = part / part.norm(dim=1, keepdim=True)
        torch.testing.assert_close(embeddings[name], normalised, rtol=1e-3, atol=1e-4)


def test_loss_is_the_unlikeness_of_voices_and_pitch(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    embeddings, pitch = heard
    found, found_pitch = surrogate(offsets)
    expected = sum(1 - torch.cosine_similarity(found[name], embeddings[name]) for name in SIZES)
    difference = (found_pitch - pitch).abs()
    expected = expected + (difference * torch.tensor(PITCH_WEIGHTS)).sum(dim=1)
    torch.testing.assert_close(surrogate.loss(offsets, embeddings, pitch), expected)
    torch.testing.assert_close(surrogate.loss(offsets, *surrogate(offsets)), torch.zeros(PEOPLE), rtol=0, atol=1e-5)
    one = {"resemblyzer": embeddings["resemblyzer"]}
    without = expected - (1 - torch.cosine_similarity(found["campplus"], embeddings["campplus"]))
    torch.testing.assert_close(surrogate.loss(offsets, one, pitch), without)


def test_steps_lower_the_loss_of_each_voice(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    before = surrogate.loss(offsets, *heard)
    after = surrogate.loss(surrogate.approach(offsets, *heard, steps=20), *heard)
    assert (after < 0.8 * before).all()
    fewer = surrogate.loss(surrogate.approach(offsets, *heard, steps=5), *heard)
    assert (after < fewer).all() and (fewer < before).all()


@pytest.mark.parametrize("anchor", [0.0, 0.5])
@pytest.mark.parametrize("names", [("campplus", "resemblyzer"), ("resemblyzer",)])
def test_steps_are_those_of_torch_with_its_gradients(
    surrogate: Surrogate,
    offsets: Tensor,
    heard: tuple[dict[str, Tensor], Tensor],
    names: tuple[str, ...],
    anchor: float,
) -> None:
    embeddings, pitch = {name: heard[0][name] for name in names}, heard[1].clone()
    pitch[1] = torch.nan
    offsets[2] = 1.2 * surrogate.frame.highest  # where the prior has another slope
    moved = offsets.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=LEARNING_RATE)
    for _ in range(6):
        optimizer.zero_grad()
        prior = 0.1 * surrogate.frame.priors(moved) + anchor * surrogate.frame.priors(moved, offsets)
        (surrogate.loss(moved, embeddings, pitch) + prior).sum().backward()
        optimizer.step()
    found = surrogate.approach(offsets, embeddings, pitch, 6, 0.1, anchor)
    torch.testing.assert_close(found, moved.detach(), rtol=0, atol=1e-3)


def test_each_voice_moves_as_it_would_alone(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    embeddings, pitch = heard
    pitch = torch.where(torch.tensor([[False], [True], [False], [False]]), torch.nan, pitch)
    together = surrogate.approach(offsets, embeddings, pitch, steps=8)
    for i in range(PEOPLE):
        item = slice(i, i + 1)
        alone = surrogate.approach(offsets[item], {n: x[item] for n, x in embeddings.items()}, pitch[item], steps=8)
        torch.testing.assert_close(alone, together[item], rtol=0, atol=5e-3)  # a step is 30e-3
        assert (alone - offsets[item]).abs().mean() > 0.05


def test_unknown_pitch_counts_nothing(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    embeddings, pitch = heard
    unknown = torch.full_like(pitch, torch.nan)
    found, _ = surrogate(offsets)
    expected = sum(1 - torch.cosine_similarity(found[name], embeddings[name]) for name in SIZES)
    torch.testing.assert_close(surrogate.loss(offsets, embeddings, unknown), expected)
    moved = surrogate.approach(offsets, embeddings, unknown, steps=5)
    assert torch.isfinite(moved).all()
    assert (surrogate.loss(moved, embeddings, unknown) < surrogate.loss(offsets, embeddings, unknown)).all()


def test_steps_stay_where_stock_voices_are(surrogate: Surrogate, heard: tuple[dict[str, Tensor], Tensor]) -> None:
    """From far outside, the prior outweighs what is heard."""
    far = 20 * surrogate.frame.highest.expand(PEOPLE, -1)
    moved = surrogate.approach(far, *heard, steps=10)
    assert (surrogate.frame.priors(moved) < surrogate.frame.priors(far)).all()


def test_an_anchor_keeps_the_steps_near_their_start(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    surrogate.frame.lowest.fill_(-100)  # so that no offset is outside
    surrogate.frame.highest.fill_(100)
    free, anchored, tight = (surrogate.approach(offsets, *heard, 60, 0.0, anchor) for anchor in (0.0, 0.3, 30.0))
    distances = [float((moved - offsets).square().mean()) for moved in (free, anchored, tight)]
    assert distances[0] > 1.1 * distances[1] > 2 * distances[2] > 0
    assert (surrogate.loss(anchored, *heard) < surrogate.loss(offsets, *heard)).all()


def test_steps_need_no_gradient_around_them_and_leave_none(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    kept = offsets.clone().requires_grad_()
    with torch.no_grad():
        inside = surrogate.approach(kept, *heard, steps=5)
    outside = surrogate.approach(kept, *heard, steps=5)
    assert not inside.requires_grad and not outside.requires_grad
    assert torch.equal(inside, outside)
    assert torch.equal(kept, offsets) and kept.grad is None


def test_no_steps_change_nothing(
    surrogate: Surrogate, offsets: Tensor, heard: tuple[dict[str, Tensor], Tensor]
) -> None:
    assert torch.equal(surrogate.approach(offsets, *heard, steps=0), offsets)


def test_it_is_nothing_that_an_optimizer_could_change(surrogate: Surrogate, offsets: Tensor) -> None:
    before = surrogate(offsets)
    whole = nn.ModuleDict({"surrogate": surrogate, "trunk": nn.Linear(2, 2)}).train()
    assert sum(1 for _ in whole.parameters()) == 2
    after = surrogate(offsets)
    assert torch.equal(before[1], after[1]) and all(torch.equal(before[0][n], after[0][n]) for n in SIZES)
