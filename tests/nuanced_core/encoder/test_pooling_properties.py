"""nuanced_core.encoder.pooling under any mask: padding, order and division into blocks do not change what is pooled."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nuanced_core.encoder.pooling import POOLINGS, Pooling

CHANNELS = 5
NAMES = st.sampled_from(sorted(POOLINGS))
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=5)
SEEDS = st.integers(0, 2**31)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def pooling_of(name: str, heads: int, seed: int) -> Pooling:
    torch.manual_seed(seed)
    pooling = POOLINGS[name](CHANNELS, heads).eval()
    for parameter, weights in pooling.named_parameters():
        if parameter in ("attention.score.weight", "queries"):
            torch.nn.init.normal_(weights)  # far from the mean, as training may
    return pooling


def batch(lengths: list[int], padding: int, filling: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames (B, T, C) whose padding holds ``filling``, and their mask."""
    most = max(lengths) + padding
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    generator = torch.Generator().manual_seed(seed)
    frames = torch.full((len(lengths), most, CHANNELS), filling)
    for row, length in enumerate(lengths):
        frames[row, :length] = 3 * torch.randn(length, CHANNELS, generator=generator)
    return frames, mask


@settings(max_examples=60)
@given(
    NAMES,
    st.integers(1, 4),
    LENGTHS,
    st.integers(0, 9),
    st.sampled_from([0.0, -1e9, math.inf, -math.inf, math.nan]),
    SEEDS,
)
@torch.no_grad()
def test_padding_and_the_rest_of_a_batch_change_nothing(
    name: str, heads: int, lengths: list[int], padding: int, filling: float, seed: int
) -> None:
    pooling = pooling_of(name, heads, seed)
    frames, mask = batch(lengths, padding, filling, seed)
    pooled = pooling(frames, mask)
    assert pooled.shape == (len(lengths), pooling.out_channels) and bool(torch.isfinite(pooled).all())
    for row, length in enumerate(lengths):
        alone = pooling(frames[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(pooled[row : row + 1], alone, **CLOSE)


@settings(max_examples=60)
@given(NAMES, st.integers(1, 4), LENGTHS, SEEDS, st.data())
@torch.no_grad()
def test_the_order_of_a_batch_is_that_of_its_results(
    name: str, heads: int, lengths: list[int], seed: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(lengths))))
    pooling = pooling_of(name, heads, seed)
    frames, mask = batch(lengths, 2, math.nan, seed)
    torch.testing.assert_close(pooling(frames[order], mask[order]), pooling(frames, mask)[order], **CLOSE)


@settings(max_examples=60)
@given(NAMES, st.integers(1, 4), st.lists(st.integers(1, 7), min_size=1, max_size=5), SEEDS)
@torch.no_grad()
def test_blocks_of_any_lengths_are_pooled_as_the_whole(name: str, heads: int, blocks: list[int], seed: int) -> None:
    pooling = pooling_of(name, heads, seed)
    frames, mask = batch([sum(blocks)], 0, 0.0, seed)
    torch.testing.assert_close(pooling.blocks(frames.split(blocks, dim=1)), pooling(frames, mask), rtol=1e-3, atol=1e-4)


@settings(max_examples=60)
@given(NAMES, st.integers(1, 4), LENGTHS, st.integers(0, 5), SEEDS)
@torch.no_grad()
def test_attention_is_a_distribution_over_a_clip_s_own_frames(
    name: str, heads: int, lengths: list[int], padding: int, seed: int
) -> None:
    pooling = pooling_of(name, heads, seed)
    frames, mask = batch(lengths, padding, math.nan, seed)
    weights = pooling.attention_weights(frames, mask)
    if weights is None:
        assert name in ("mean", "mean_std", "max", "gru")
        return
    assert weights.shape == (*mask.shape, heads)
    assert bool((weights[~mask] == 0).all()) and bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(lengths), heads))


@settings(max_examples=40)
@given(
    st.sampled_from(["mean", "mean_std", "max", "attentive", "attentive_stats", "queries"]),
    st.integers(1, 9),
    SEEDS,
    st.data(),
)
@torch.no_grad()
def test_the_order_of_frames_does_not_matter_but_to_the_gru(
    name: str, length: int, seed: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(length)))
    pooling = pooling_of(name, 2, seed)
    frames, mask = batch([length], 3, math.nan, seed)
    torch.testing.assert_close(
        pooling(frames[:, [*order, *range(length, length + 3)]], mask), pooling(frames, mask), **CLOSE
    )
