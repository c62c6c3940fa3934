"""Fitting of a surrogate, on a made-up smooth map from styles to what is heard of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from nuanced_core.encoder.surrogate import KERNEL_WIDTH, PENALTY, Surrogate
from nuanced_core.kokoro.style_frame import StyleFrame
from nuanced_core.losses import surrogate as surrogate_module
from nuanced_core.losses.surrogate import VoiceSamples, fit_surrogate

SIZES = {"campplus": 6, "resemblyzer": 10}
VOICES, CLIPS = 60, 3  # of each voice
GROUPS = [f"voice {i // CLIPS}" for i in range(VOICES * CLIPS)]


@pytest.fixture(scope="module")
def frame() -> StyleFrame:
    return StyleFrame(torch.randn(6, 510, 256, generator=torch.Generator().manual_seed(0)))


def _heard(offsets: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A smooth map of the first 12 channels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.tanh(offsets[:, :12] @ torch.randn(12, 18, generator=generator) / 4)
    first, second, pitch = x.split([*SIZES.values(), 2], dim=1)
    mean = torch.linspace(0, 1, 10)
    embeddings = {"campplus": first, "resemblyzer": second + mean}
    normalised = {name: torch.nn.functional.normalize(vectors, dim=1) for name, vectors in embeddings.items()}
    return normalised, torch.tensor([7.5, 0.2]) + pitch * torch.tensor([0.4, 0.05])


def _samples(seed: int = 2) -> VoiceSamples:
    generator = torch.Generator().manual_seed(seed)
    voices = torch.randn(VOICES, 256, generator=generator) * (torch.arange(256) < 20)
    clips = voices.repeat_interleave(CLIPS, dim=0) + 0.1 * torch.randn(VOICES * CLIPS, 256, generator=generator)
    return VoiceSamples(clips, *_heard(clips))


def _weights(surrogate: Surrogate) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in surrogate.state_dict().values()])


def test_it_beats_the_mean_on_voices_that_it_was_not_fitted_to(frame: StyleFrame) -> None:
    surrogate, errors = fit_surrogate(frame, _samples(), GROUPS)
    others = _samples(seed=3)
    embeddings, pitch = surrogate(others.offsets)
    seen = _samples()
    for name in SIZES:
        mean = torch.nn.functional.normalize(seen.embeddings[name].mean(dim=0), dim=0)
        of_mean = (others.embeddings[name] @ mean).mean()
        found = (embeddings[name] * others.embeddings[name]).sum(dim=1).mean()
        assert 1 - found < 0.5 * (1 - of_mean), name
        # The reported errors are of other voices of the same kind.
        assert errors.cosine[name] == pytest.approx(float(found), abs=0.1)
        assert errors.mean_cosine[name] == pytest.approx(float(of_mean), abs=0.15)
    semitones = 12 * (pitch - others.pitch)[:, 0].abs().median()
    assert semitones < 0.6 * 12 * (seen.pitch[:, 0].median() - others.pitch[:, 0]).abs().median()
    assert errors.semitones < 0.8 * errors.mean_semitones


def test_error_is_that_of_whole_voices_that_were_left_out(frame: StyleFrame) -> None:
    """With an embedding that only the voice's clips share, and nothing of its style tells."""
    samples = _samples()
    random = torch.nn.functional.normalize(torch.randn(VOICES, 6, generator=torch.Generator().manual_seed(4)), dim=1)
    embeddings = {"campplus": random.repeat_interleave(CLIPS, dim=0)}
    surrogate, errors = fit_surrogate(frame, samples._replace(embeddings=embeddings), GROUPS)
    found, _ = surrogate(samples.offsets)
    assert (found["campplus"] * embeddings["campplus"]).sum(dim=1).mean() > 0.6  # known by heart
    assert errors.cosine["campplus"] < 0.3


def test_weights_are_those_of_the_closed_form_of_all_clips(frame: StyleFrame) -> None:
    samples = _samples()
    surrogate, _ = fit_surrogate(frame, samples, GROUPS)
    x = samples.offsets.double().numpy()
    y = torch.cat([*samples.embeddings.values(), samples.pitch], dim=1).double().numpy()
    squares = ((x[:, None] - x[None]) ** 2).mean(axis=2)
    kernel = x @ x.T / 256 + np.exp(-squares / (2 * KERNEL_WIDTH**2))
    dual = np.linalg.inv(kernel + PENALTY * np.eye(len(x))) @ (y - y.mean(axis=0))
    expected = kernel @ dual + y.mean(axis=0)
    embeddings, pitch = surrogate(samples.offsets)
    np.testing.assert_allclose(pitch, expected[:, 16:], atol=3e-3)
    for name, part in (("campplus", expected[:, :6]), ("resemblyzer", expected[:, 6:16])):
        np.testing.assert_allclose(embeddings[name], part / np.linalg.norm(part, axis=1, keepdims=True), atol=3e-3)


def test_seed_chooses_the_voices_that_measure_the_error(frame: StyleFrame) -> None:
    fits = []
    for seed, of_others in ((0, 1), (0, 2), (1, 2)):
        torch.manual_seed(of_others)
        state = torch.get_rng_state()
        fits.append(fit_surrogate(frame, _samples(), GROUPS, seed))
        assert torch.equal(torch.get_rng_state(), state)
    (first, errors), (same, same_errors), (other, other_errors) = fits
    assert torch.equal(_weights(first), _weights(same)) and torch.equal(_weights(first), _weights(other))
    assert errors == same_errors != other_errors


def test_one_voice_is_refused(frame: StyleFrame) -> None:
    with pytest.raises(ValueError, match="at least two voices, not 1"):
        fit_surrogate(frame, _samples(), ["af_heart"] * len(GROUPS))


@pytest.mark.parametrize("unvoiced", [slice(0, 40), slice(0, 180), slice(1, 180)])
def test_unvoiced_clips_do_no_harm(frame: StyleFrame, unvoiced: slice) -> None:
    samples = _samples()
    pitch = samples.pitch.clone()
    pitch[unvoiced] = torch.nan
    surrogate, errors = fit_surrogate(frame, samples._replace(pitch=pitch), GROUPS)
    assert torch.isfinite(_weights(surrogate)).all()
    for name in SIZES:
        assert 1 - errors.cosine[name] < 0.8 * (1 - errors.mean_cosine[name])
    if unvoiced.stop < 180:
        assert errors.semitones < errors.mean_semitones
    embeddings, found = surrogate(samples.offsets)
    moved = surrogate.approach(samples.offsets[:2], {n: x[5:7] for n, x in embeddings.items()}, pitch[:2], steps=2)
    assert torch.isfinite(found).all() and torch.isfinite(moved).all()


def test_two_voices_of_one_clip_are_enough(frame: StyleFrame) -> None:
    samples = surrogate_module._take(_samples(), torch.tensor([0, CLIPS]))
    surrogate, errors = fit_surrogate(frame, samples, ["a", "b"])
    assert torch.isfinite(_weights(surrogate)).all()
    assert all(-1 <= cosine <= 1 for cosine in errors.cosine.values())


def test_the_scales_find_the_channels_that_decide(frame: StyleFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, count: int) -> VoiceSamples:
        offsets = torch.randn(count, 256, generator=torch.Generator().manual_seed(seed)) * (torch.arange(256) < 60)
        return VoiceSamples(offsets, *_heard(offsets))

    samples, others = drawn(5, 300), drawn(6, 100)
    groups = [str(i) for i in range(300)]
    learned, _ = fit_surrogate(frame, samples, groups)
    again, _ = fit_surrogate(frame, samples, groups)
    assert torch.equal(_weights(learned), _weights(again))
    assert learned.scales[:12].mean() > 1.5 * learned.scales[12:60].mean()
    monkeypatch.setattr(surrogate_module, "SCALE_STEPS", 0)
    plain, _ = fit_surrogate(frame, samples, groups)
    assert torch.equal(plain.scales, torch.ones(256)) and plain.linear == 1

    def error(surrogate: Surrogate) -> float:
        embeddings, _ = surrogate(others.offsets)
        return float(sum((1 - (x * others.embeddings[name]).sum(dim=1)).mean() for name, x in embeddings.items()))

    assert error(learned) < 0.8 * error(plain)
