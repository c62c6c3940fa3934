import numpy as np
import pytest
import torch

from nuanced_core.evaluation.baselines import PENALTIES, NearestVoice, Ridge, Scale, pooled_features


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_pooled_features_are_mean_and_deviation_of_each_clip_s_own_frames(random: torch.Generator) -> None:
    features = torch.randn(2, 3, 10, 4, generator=random)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    features[1, :, 6:] = torch.nan
    pooled = pooled_features(features, mask)
    for i, frames in enumerate((10, 6)):
        clip = features[i, :, :frames].double().numpy()
        expected = np.concatenate([clip.mean(axis=1).ravel(), clip.std(axis=1).ravel()])
        np.testing.assert_allclose(pooled[i], expected, rtol=1e-5, atol=1e-6)


def test_scaled_features_have_mean_0_and_variance_1_and_constants_stay_finite(random: torch.Generator) -> None:
    features = torch.randn(50, 6, generator=random) * torch.arange(1, 7) + 100
    features[:, 2] = 7.3
    scale = Scale.fit(features)
    varying = scale(features)[:, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(varying.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(varying.std(dim=0, correction=0), torch.ones(5))
    assert scale(features)[:, 2].abs().max() < 1e-3


def test_the_distance_of_training_clips_is_1_in_the_mean_and_grows_with_what_is_foreign(
    random: torch.Generator,
) -> None:
    features = torch.randn(40, 8, generator=random)
    scale = Scale.fit(features)
    assert scale.distance(features).square().mean().sqrt() == pytest.approx(1)
    assert scale.distance(features.mean(dim=0, keepdim=True) + 5 * features.std(dim=0, correction=0)) == pytest.approx(
        5
    )


def test_the_nearest_voice_is_the_one_with_the_nearest_mean(random: torch.Generator) -> None:
    voices = ["b", "a", "c"] * 4
    features = torch.randn(12, 5, generator=random) * torch.tensor([1, 10, 0.1, 3, 1])
    asked = torch.randn(7, 5, generator=random) * torch.tensor([1, 10, 0.1, 3, 1])
    found = NearestVoice.fit(features, voices)(asked)
    x, q = features.numpy(), asked.numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    centres = {v: ((x[[u == v for u in voices]] - mean) / std).mean(axis=0) for v in "abc"}
    expected = [min(centres, key=lambda v: np.linalg.norm((row - mean) / std - centres[v])) for row in q]
    assert found == expected and len(set(found)) == 3


def _ridge(features: np.ndarray, targets: np.ndarray, penalty: float, asked: np.ndarray) -> np.ndarray:
    """In the primal, where there are fewer channels than clips."""
    mean, std = features.mean(axis=0), features.std(axis=0)
    x, y = (features - mean) / std, targets - targets.mean(axis=0)
    strength = penalty * (x**2).sum(axis=1).mean() * np.eye(x.shape[1])
    return (asked - mean) / std @ np.linalg.solve(x.T @ x + strength, x.T @ y) + targets.mean(axis=0)


def test_ridge_is_the_closed_form(random: torch.Generator) -> None:
    features, targets = torch.randn(30, 6, generator=random), torch.randn(30, 256, generator=random)
    asked = torch.randn(4, 6, generator=random)
    voices = [str(i % 5) for i in range(30)]
    found = Ridge.fit(features, targets, voices, [0.3])(asked)
    expected = _ridge(features.double().numpy(), targets.double().numpy(), 0.3, asked.double().numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ridge_finds_a_linear_map_and_its_penalties_are_those_of_least_error_on_left_out_voices(
    random: torch.Generator,
) -> None:
    features = torch.randn(48, 6, generator=random)
    targets = 0.3 * torch.randn(48, 256, generator=random)
    targets[:, :128] += features @ torch.randn(6, 128, generator=random)  # the prosody half is noise
    voices = [f"v{i % 12:02}" for i in range(48)]
    ridge = Ridge.fit(features, targets, voices)
    errors = np.zeros((2, len(PENALTIES)))
    x, y = features.double().numpy(), targets.double().numpy()
    for fold in range(8):
        out = np.array([int(v[1:]) % 8 == fold for v in voices])
        for i, penalty in enumerate(PENALTIES):
            wrong = (_ridge(x[~out], y[~out], penalty, x[out]) - y[out]) ** 2
            errors[:, i] += wrong[:, :128].sum(), wrong[:, 128:].sum()
    assert ridge.penalties == tuple(PENALTIES[i] for i in errors.argmin(axis=1))
    assert ridge.penalties[0] < 0.1 < 10 <= ridge.penalties[1]


def test_what_belongs_to_single_voices_is_not_taken_for_something_that_can_be_learned(random: torch.Generator) -> None:
    # Clips of a voice are alike and so are their targets, but one voice says nothing of another: were single clips
    # left out, the least penalty would be best.
    centres, styles = torch.randn(16, 40, generator=random), torch.randn(16, 256, generator=random)
    voices = [f"v{i:02}" for i in range(16) for _ in range(4)]
    features = centres.repeat_interleave(4, dim=0) + 0.01 * torch.randn(64, 40, generator=random)
    ridge = Ridge.fit(features, styles.repeat_interleave(4, dim=0), voices)
    assert min(ridge.penalties) >= 10
