"""The contract of all pooling strategies, and each strategy against a loop over a clip's own frames."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from nuanced_core.encoder.pooling import (
    GRU_CHANNELS,
    POOLINGS,
    SCORE_CHANNELS,
    AttentivePooling,
    AttentiveStatsPooling,
    GRUPooling,
    MeanPooling,
    MeanStdPooling,
    Pooling,
    QueryPooling,
)

CHANNELS = 6
ATTENTIVE = ("attentive", "attentive_stats", "queries")
Clips = tuple[torch.Tensor, torch.Tensor]


def _with_large_attention(pooling: Pooling) -> Pooling:
    """Give attention large random weights, far from the mean, as training may."""
    for name, weights in pooling.named_parameters():
        if name in ("attention.score.weight", "queries"):
            torch.nn.init.normal_(weights, std=1.0)
    return pooling


@pytest.fixture(
    params=[(name, heads) for name in sorted(POOLINGS) for heads in ((1, 4) if name in ATTENTIVE else (1,))]
)
def pooling(request: pytest.FixtureRequest) -> Pooling:
    torch.manual_seed(0)
    name, heads = request.param
    return _with_large_attention(POOLINGS[name](CHANNELS, heads)).eval()


@pytest.fixture
def clips() -> Clips:
    frames = torch.randn(3, 9, CHANNELS, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    return frames, mask


def test_padding_does_not_change_the_result(pooling: Pooling, clips: Clips) -> None:
    frames, mask = clips
    expected = pooling(frames, mask)
    for padding in (1e6, float("nan"), float("inf")):
        torch.testing.assert_close(pooling(frames.masked_fill(~mask[:, :, None], padding), mask), expected)
    for i, length in enumerate((9, 5, 1)):
        alone = pooling(frames[i : i + 1, :length], mask[i : i + 1, :length])
        torch.testing.assert_close(alone, expected[i : i + 1])


def test_a_clip_in_blocks_is_pooled_as_the_whole(pooling: Pooling) -> None:
    frames = torch.randn(1, 40, CHANNELS, generator=torch.Generator().manual_seed(5)) * 2 + 3
    whole = pooling(frames, torch.ones(1, 40, dtype=torch.bool))
    in_blocks = pooling.blocks(iter(frames.split((15, 15, 9, 1), dim=1)))
    torch.testing.assert_close(in_blocks, whole, rtol=1e-4, atol=1e-4)


def test_items_are_independent(pooling: Pooling, clips: Clips) -> None:
    frames, mask = clips
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(pooling(frames[order], mask[order]), pooling(frames, mask)[order])


@pytest.mark.parametrize("padding", [0.0, float("nan")])
def test_gradients_are_finite_and_reach_frames_and_parameters(pooling: Pooling, clips: Clips, padding: float) -> None:
    frames, mask = clips
    frames = frames.masked_fill(~mask[:, :, None], padding).requires_grad_()
    pooled = pooling(frames, mask)
    assert pooled.shape == (3, pooling.out_channels)
    gradient, *learned = torch.autograd.grad(pooled.square().sum(), [frames, *pooling.parameters()])
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask].abs().amax(dim=1) > 0).sum() > 3  # max pooling may select few frames
    for weights in learned:
        assert torch.isfinite(weights).all() and weights.abs().max() > 1e-6


def test_equal_frames_have_finite_gradients(pooling: Pooling) -> None:
    frames = torch.ones(2, 4, CHANNELS, requires_grad=True)
    (gradient,) = torch.autograd.grad(pooling(frames, torch.ones(2, 4, dtype=torch.bool)).sum(), frames)
    assert torch.isfinite(gradient).all()


def test_mean_and_std_are_over_own_frames(clips: Clips) -> None:
    frames, mask = clips
    own = frames[1, :5]
    torch.testing.assert_close(MeanPooling(CHANNELS)(frames, mask)[1], own.mean(dim=0))
    expected = torch.cat([own.mean(dim=0), own.std(dim=0, correction=0)])
    torch.testing.assert_close(MeanStdPooling(CHANNELS)(frames, mask)[1], expected)


def test_max_is_over_own_frames(clips: Clips) -> None:
    frames, mask = clips
    frames[:, 5:] += 10
    pooled = POOLINGS["max"](CHANNELS, 1)(frames, mask)
    for i, length in enumerate((9, 5, 1)):
        assert pooled[i].tolist() == [max(row) for row in zip(*frames[i, :length].tolist(), strict=True)]


def _attention_weights(score: Callable[[np.ndarray], np.ndarray], own: np.ndarray) -> np.ndarray:
    """Compute the softmax over frames for each head, one frame at a time: (T, H)."""
    exponentials = np.stack([np.exp(score(frame)) for frame in own])
    return exponentials / exponentials.sum(axis=0)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_each_attention_head_weights_its_group_of_channels(clips: Clips, heads: int) -> None:
    frames, mask = clips
    groups = [list(part) for part in np.array_split(np.arange(CHANNELS), heads)]  # 4 heads: 2, 2, 1, 1 channels
    for name, kind in (("attentive", AttentivePooling), ("attentive_stats", AttentiveStatsPooling)):
        torch.manual_seed(2)
        pooling = _with_large_attention(kind(CHANNELS, heads))
        weight, bias = (_array(p) for p in pooling.attention.hidden.parameters())
        out = _array(pooling.attention.score.weight)
        pooled = _array(pooling(frames, mask))
        for i, length in enumerate((9, 5, 1)):
            own = _array(frames[i, :length])
            attention = _attention_weights(lambda x, w=weight, b=bias, o=out: o @ np.tanh(w @ x + b), own)  # type: ignore[misc]
            means, stds = np.zeros(CHANNELS), np.zeros(CHANNELS)
            for head, group in enumerate(groups):
                for channel in group:
                    means[channel] = np.average(own[:, channel], weights=attention[:, head])
                    variance = np.average((own[:, channel] - means[channel]) ** 2, weights=attention[:, head])
                    stds[channel] = np.sqrt(variance)
            expected = means if name == "attentive" else np.concatenate([means, stds])
            np.testing.assert_allclose(pooled[i], expected, rtol=1e-4, atol=2e-4)


def test_each_query_weights_all_channels(clips: Clips) -> None:
    frames, mask = clips
    torch.manual_seed(3)
    pooling = _with_large_attention(QueryPooling(CHANNELS, 3))
    keys, queries = _array(pooling.keys.weight), _array(pooling.queries)
    pooled = _array(pooling(frames, mask))
    for i, length in enumerate((9, 5, 1)):
        own = _array(frames[i, :length])
        attention = _attention_weights(lambda x: queries @ (keys @ x) / np.sqrt(SCORE_CHANNELS), own)
        expected = np.concatenate([np.average(own, axis=0, weights=attention[:, query]) for query in range(3)])
        np.testing.assert_allclose(pooled[i], expected, rtol=1e-4, atol=1e-5)


def test_gru_matches_its_equations(clips: Clips) -> None:
    frames, mask = clips
    torch.manual_seed(4)
    pooling = GRUPooling(CHANNELS)
    w_in, w_state, b_in, b_state = (_array(p) for p in pooling.gru.parameters())
    pooled = _array(pooling(frames, mask))
    for i, length in enumerate((9, 5, 1)):
        state = np.zeros(GRU_CHANNELS)
        for frame in _array(frames[i, :length]):
            r_in, z_in, n_in = np.split(w_in @ frame + b_in, 3)
            r_state, z_state, n_state = np.split(w_state @ state + b_state, 3)
            reset, update = 1 / (1 + np.exp(-(r_in + r_state))), 1 / (1 + np.exp(-(z_in + z_state)))
            state = (1 - update) * np.tanh(n_in + reset * n_state) + update * state
        np.testing.assert_allclose(pooled[i], state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_starts_close_to_the_mean_and_is_finite_for_large_frames(name: str, clips: Clips) -> None:
    frames, mask = clips
    torch.manual_seed(5)
    pooling = POOLINGS[name](CHANNELS, 2)
    plain = "mean_std" if name == "attentive_stats" else "mean"
    expected = POOLINGS[plain](CHANNELS, 1)(frames, mask)
    expected = expected.repeat(1, 2) if name == "queries" else expected
    pooled = pooling(frames, mask)
    assert (pooled - expected).abs().max() < 0.15
    assert (pooled - expected).abs().max() > 1e-4  # not exactly the mean, where the hidden layer would have no gradient
    assert torch.isfinite(_with_large_attention(pooling)(1e4 * frames, mask)).all()


@pytest.mark.parametrize("name", POOLINGS)
def test_attention_weights_are_those_of_the_pooling_or_none(name: str) -> None:
    torch.manual_seed(0)
    pooling = POOLINGS[name](12, 3)
    frames = torch.randn(2, 7, 12)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    weights = pooling.attention_weights(frames, mask)
    assert (weights is not None) == (name in ("attentive", "attentive_stats", "queries"))
    if weights is None:
        return
    assert weights.shape == (2, 7, 3)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 3))
    assert not weights[1, 4:].any()
    pooled = pooling(frames, mask)[:, : 36 if name == "queries" else 12]
    weighted = torch.einsum("bth,btc->bhc", weights, frames)  # (B, H, C)
    expected = (
        weighted.flatten(1)
        if name == "queries"
        else torch.cat([weighted[:, h, 4 * h : 4 * h + 4] for h in range(3)], dim=1)
    )
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("name", ["mean_std", "attentive_stats"])
def test_blocks_without_variance_have_the_deviation_of_the_whole_clip(name: str) -> None:
    pooling, frames = POOLINGS[name](CHANNELS, 1).eval(), torch.ones(1, 4, CHANNELS)
    whole = pooling(torch.cat([frames, frames], dim=1), torch.ones(1, 8, dtype=torch.bool))
    torch.testing.assert_close(pooling.blocks([frames, frames]), whole)
