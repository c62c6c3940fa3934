"""nuanced_core.encoder.baselines against NumPy."""

import numpy as np
import pytest
import torch

from nuanced_core.encoder.baselines import (
    PENALTIES,
    FeatureScaler,
    NearestVoice,
    Ridge,
    StyleBaselines,
    pooled_blocks,
    pooled_features,
)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_pooled_features_are_mean_and_standard_deviation_of_valid_frames(random: torch.Generator) -> None:
    features = torch.randn(2, 3, 10, 4, generator=random)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    features[1, :, 6:] = torch.nan
    pooled = pooled_features(features, mask)
    for i, frames in enumerate((10, 6)):
        clip = features[i, :, :frames].double().numpy()
        expected = np.concatenate([clip.mean(axis=1).ravel(), clip.std(axis=1).ravel()])
        np.testing.assert_allclose(pooled[i], expected, rtol=1e-5, atol=1e-6)


def test_scaled_features_have_mean_0_and_variance_1_and_constant_channels_stay_finite(random: torch.Generator) -> None:
    features = torch.randn(50, 6, generator=random) * torch.arange(1, 7) + 100
    features[:, 2] = 7.3
    scaler = FeatureScaler.fit(features)
    varying = scaler(features)[:, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(varying.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(varying.std(dim=0, correction=0), torch.ones(5))
    assert scaler(features)[:, 2].abs().max() < 1e-3


def test_distance_has_root_mean_square_1_over_training_clips_and_is_in_standard_deviations(
    random: torch.Generator,
) -> None:
    features = torch.randn(40, 8, generator=random)
    scaler = FeatureScaler.fit(features)
    assert scaler.distance(features).square().mean().sqrt() == pytest.approx(1)
    assert scaler.distance(features.mean(dim=0, keepdim=True) + 5 * features.std(dim=0, correction=0)) == pytest.approx(
        5
    )


def test_nearest_voice_has_the_nearest_centroid_of_scaled_features(random: torch.Generator) -> None:
    voices = ["b", "a", "c"] * 4
    features = torch.randn(12, 5, generator=random) * torch.tensor([1, 10, 0.1, 3, 1])
    queries = torch.randn(7, 5, generator=random) * torch.tensor([1, 10, 0.1, 3, 1])
    found = NearestVoice.fit(features, voices)(queries)
    x, q = features.numpy(), queries.numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    centroids = {v: ((x[[u == v for u in voices]] - mean) / std).mean(axis=0) for v in "abc"}
    expected = [min(centroids, key=lambda v: np.linalg.norm((row - mean) / std - centroids[v])) for row in q]
    assert found == expected and len(set(found)) == 3


def _ridge(features: np.ndarray, targets: np.ndarray, penalty: float, queries: np.ndarray) -> np.ndarray:
    """Ridge regression in the primal form."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    x, y = (features - mean) / std, targets - targets.mean(axis=0)
    strength = penalty * (x**2).sum(axis=1).mean() * np.eye(x.shape[1])
    return (queries - mean) / std @ np.linalg.solve(x.T @ x + strength, x.T @ y) + targets.mean(axis=0)


def test_ridge_matches_the_primal_closed_form(random: torch.Generator) -> None:
    features, targets = torch.randn(30, 6, generator=random), torch.randn(30, 256, generator=random)
    queries = torch.randn(4, 6, generator=random)
    voices = [str(i % 5) for i in range(30)]
    found = Ridge.fit(features, targets, voices, [0.3])(queries)
    expected = _ridge(features.double().numpy(), targets.double().numpy(), 0.3, queries.double().numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ridge_selects_the_penalties_with_the_least_error_on_held_out_voices(
    random: torch.Generator,
) -> None:
    features = torch.randn(48, 6, generator=random)
    targets = 0.3 * torch.randn(48, 256, generator=random)
    targets[:, :128] += features @ torch.randn(6, 128, generator=random)  # the prosody half stays noise
    voices = [f"v{i % 12:02}" for i in range(48)]
    ridge = Ridge.fit(features, targets, voices)
    errors = np.zeros((2, len(PENALTIES)))
    x, y = features.double().numpy(), targets.double().numpy()
    for fold in range(8):
        out = np.array([int(v[1:]) % 8 == fold for v in voices])
        for i, penalty in enumerate(PENALTIES):
            squared = (_ridge(x[~out], y[~out], penalty, x[out]) - y[out]) ** 2
            errors[:, i] += squared[:, :128].sum(), squared[:, 128:].sum()
    assert ridge.penalties == tuple(PENALTIES[i] for i in errors.argmin(axis=1))
    assert ridge.penalties[0] < 0.1 < 10 <= ridge.penalties[1]


def test_ridge_selects_large_penalties_when_features_do_not_generalise_across_voices(random: torch.Generator) -> None:
    # Clips of a voice have similar features and equal targets, but voices are unrelated. Leaving out single clips
    # instead of voices would select the smallest penalty.
    centres, styles = torch.randn(16, 40, generator=random), torch.randn(16, 256, generator=random)
    voices = [f"v{i:02}" for i in range(16) for _ in range(4)]
    features = centres.repeat_interleave(4, dim=0) + 0.01 * torch.randn(64, 40, generator=random)
    ridge = Ridge.fit(features, styles.repeat_interleave(4, dim=0), voices)
    assert min(ridge.penalties) >= 10


def test_a_clip_in_blocks_is_pooled_as_the_whole(random: torch.Generator) -> None:
    clip = torch.randn(3, 50, 4, generator=random) * 2 + 5
    whole = pooled_features(clip[None], torch.ones(1, 50, dtype=torch.bool))
    assert torch.equal(pooled_blocks([clip]), whole)
    torch.testing.assert_close(pooled_blocks(clip.split((20, 20, 10), dim=1)), whole, rtol=1e-5, atol=1e-5)


def test_baselines_predict_whole_styles_for_a_phoneme_count() -> None:
    generator = torch.Generator().manual_seed(0)
    voice = {name: torch.randn(1, 256, generator=generator) for name in "abc"}
    packs = {name: voice[name] + 0.1 * torch.randn(510, 256, generator=generator) for name in "abc"}
    mean = torch.stack([*packs.values()]).mean(dim=0)
    voices = [name for name in "abc" for _ in range(4)]
    counts = torch.randint(1, 511, (12,), generator=generator)
    centres = torch.randn(3, 6, generator=generator) * 5
    features = centres.repeat_interleave(4, dim=0) + 0.1 * torch.randn(12, 6, generator=generator)
    styles = torch.stack([packs[name][count - 1] for name, count in zip(voices, counts.tolist(), strict=True)])
    fitted = StyleBaselines.fit(features, styles, counts, voices, packs, mean, [1e-6])
    found = fitted.styles(centres[[1, 0]], torch.tensor([7, 600]))  # counts beyond 510 use the last row
    assert torch.equal(found["mean"], torch.stack([mean[6], mean[509]]))
    assert torch.equal(found["nearest"], torch.stack([packs["b"][6], packs["a"][509]]))
    torch.testing.assert_close(found["ridge"], found["mean"] + fitted.ridge(centres[[1, 0]]))
    cosine = torch.nn.functional.cosine_similarity(found["ridge"][0] - mean[6], packs["b"][6] - mean[6], dim=0)
    assert float(cosine) > 0.9


def test_two_voices_with_a_clip_each_have_a_ridge() -> None:
    """A fold then holds a single clip, whose centred features are 0."""
    features, offsets = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[1.0] * 256, [3.0] * 256])
    found = Ridge.fit(features, offsets, ["a", "b"])(features)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.mean(dim=0), offsets.mean(dim=0))
