from collections.abc import Callable, Sequence
from dataclasses import dataclass

import auraloss
import numpy as np
import pytest
import scipy.signal
import torch
from torch import Tensor

from nuanced_core.losses.reference import (
    FLOOR,
    RESOLUTIONS,
    MelSTFTLoss,
    Resolution,
    STFTLoss,
    duration_loss,
    energy_loss,
    f0_loss,
    style_loss,
)


@pytest.fixture(scope="module")
def mel() -> MelSTFTLoss:
    return MelSTFTLoss()


def _audio(seed: int, items: int = 2) -> torch.Tensor:
    return torch.randn(items, 6000, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_mel_stft_loss_is_0_for_equal_audio_and_grows_with_the_difference(mel: MelSTFTLoss) -> None:
    reference = mel.spectra(_audio(0))
    losses = [float(mel(mel.spectra(_audio(0) + level * _audio(1)), reference)) for level in (0.0, 0.1, 0.5, 1.0)]
    assert losses[0] == 0
    assert losses == sorted(losses)


def test_mel_stft_loss_equals_the_formula_computed_with_scipy() -> None:
    resolution = Resolution(512, 128, 512, 40)
    mel = MelSTFTLoss([resolution])
    x, y = (_audio(s, 1) for s in (0, 1))
    bank = mel.mel_0.numpy()

    def spectrum(audio: torch.Tensor) -> np.ndarray:
        padded = np.pad(audio[0].numpy(), 256)
        frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::128]
        return bank @ np.abs(np.fft.rfft(frames * scipy.signal.get_window("hann", 512))).T

    a, b = spectrum(x), spectrum(y)
    expected = np.linalg.norm(a - b) / np.linalg.norm(b) + np.abs(np.log(a + FLOOR) - np.log(b + FLOOR)).mean()
    assert float(mel(mel.spectra(x), mel.spectra(y))) == pytest.approx(expected, rel=1e-4)


def test_mel_bands_are_slaney_s(mel: MelSTFTLoss) -> None:
    """Malcolm Slaney's Auditory Toolbox: linear below 1 kHz, 15 bands; then 27 for each factor of 6.4; equal areas."""

    def hz(mels: np.ndarray) -> np.ndarray:
        return np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))

    highest = 15 + 27 * np.log(12.0) / np.log(6.4)  # of 12 kHz, half the sampling rate
    for i, resolution in enumerate(RESOLUTIONS):
        edges = hz(np.linspace(0, highest, resolution.mels + 2))
        bins = np.linspace(0, 12000, resolution.n_fft // 2 + 1)
        bank = [
            np.interp(bins, (low, centre, high), (0, 2 / (high - low), 0), left=0, right=0)
            for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False)
        ]
        np.testing.assert_allclose(getattr(mel, f"mel_{i}").numpy(), bank, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [MelSTFTLoss(), STFTLoss()])
def test_stft_losses_store_nothing_and_refuse_spectra_of_other_resolutions(loss: MelSTFTLoss | STFTLoss) -> None:
    assert not loss.state_dict()
    spectra = loss.spectra(_audio(0))
    with pytest.raises(ValueError, match="shorter"):
        loss(spectra, spectra[:-1])


def test_one_voiced_value_counts_as_many() -> None:
    reference = torch.tensor([[200.0, 0.0, 0.0, 0.0]])
    assert float(f0_loss(torch.full((1, 4), 100.0), reference, [2])) == pytest.approx(1.0)


def test_octaves_go_on_straight_below_50_hz() -> None:
    reference = torch.full((1, 2), 100.0)
    for hz in (50.0, 25.0, 0.0, -50.0):
        # The tangent of log2 at 50 Hz has a slope of 1 / (50 ln 2).
        expected = 1 + (50 - hz) / (50 * np.log(2))
        assert float(f0_loss(torch.full((1, 2), hz), reference, [1])) == pytest.approx(expected, rel=1e-5)


def test_no_mel_band_is_empty(mel: MelSTFTLoss) -> None:
    for i in range(len(RESOLUTIONS)):
        assert (getattr(mel, f"mel_{i}").sum(dim=1) > 0).all()


@pytest.mark.parametrize("loss", [MelSTFTLoss(), STFTLoss()])
def test_gradient_is_finite_in_silence(loss: MelSTFTLoss | STFTLoss) -> None:
    silence = torch.zeros(1, 6000, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(loss.spectra(silence), loss.spectra(_audio(0, 1))), silence)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("resolutions", [RESOLUTIONS[:1], RESOLUTIONS[1:2], RESOLUTIONS[2:], RESOLUTIONS])
def test_linear_stft_loss_equals_auraloss(resolutions: Sequence[Resolution]) -> None:
    theirs = auraloss.freq.MultiResolutionSTFTLoss(
        fft_sizes=[r.n_fft for r in resolutions],
        hop_sizes=[r.hop for r in resolutions],
        win_lengths=[r.window for r in resolutions],
        w_sc=1.0,
        w_log_mag=1.0,
        w_lin_mag=0.0,
    )
    ours = STFTLoss(resolutions)
    # auraloss pads with the mirror image, which is silent for silent ends; its norms are over a batch, hence one item.
    x, y = (torch.nn.functional.pad(_audio(seed, 3), (2048, 2048)) for seed in (0, 1))
    y = y * torch.tensor([[1.0], [0.01], [3.0]])
    expected = [float(theirs(x[i : i + 1, None], y[i : i + 1, None])) for i in range(3)]
    for i in range(3):
        found = ours(ours.spectra(x[i : i + 1]), ours.spectra(y[i : i + 1]))
        assert float(found) == pytest.approx(expected[i], rel=1e-4)
    assert float(ours(ours.spectra(x), ours.spectra(y))) == pytest.approx(np.mean(expected), rel=1e-4)


def test_style_loss_takes_the_cosine_over_the_style_dimensions() -> None:
    a = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
    b = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    cosines = [
        float(np.dot(x, y) / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    expected = 1 - np.mean(cosines) + float(((a - b) ** 2).mean())
    assert float(style_loss(a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(style_loss(a, a)) == pytest.approx(0, abs=1e-6)


def _curve(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def test_f0_loss_is_in_octaves_over_voiced_parts_of_the_reference() -> None:
    reference = _curve(100, 200, 0, 9.9, 400, 150)
    predicted = _curve(200, 100, 300, 500, 400, 300)
    assert float(f0_loss(predicted, reference, [3])) == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert float(f0_loss(predicted, reference, [2])) == pytest.approx((1 + 1) / 2)
    assert float(f0_loss(2**0.25 * reference, reference, [2])) == pytest.approx(0.25)


def test_f0_loss_and_its_gradient_are_0_without_voiced_parts() -> None:
    predicted = _curve(100, 200, -3, 0).requires_grad_()
    loss = f0_loss(predicted, _curve(0, -1, 5, 10), [2])
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert float(loss.detach()) == 0
    assert not gradient.any()


def test_item_without_voiced_parts_counts_0_in_the_mean() -> None:
    reference = torch.tensor([[100.0, 100.0], [0.0, 0.0]])
    assert float(f0_loss(2 * reference, reference, [1, 1])) == pytest.approx(0.5)


def test_f0_gradient_points_to_the_reference_even_from_unvoiced_predictions() -> None:
    predicted = _curve(-20, -1, 0, 1, 49, 51, 150, 199).requires_grad_()
    loss = f0_loss(predicted, torch.full_like(predicted, 200), [4])
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (gradient < 0).all()  # upwards, everywhere
    assert (gradient.abs() <= 1 / (8 * 50 * np.log(2)) + 1e-6).all()
    losses = [float(f0_loss(_curve(f0, f0), _curve(200, 200), [1])) for f0 in predicted[0].tolist()]
    assert losses == sorted(losses, reverse=True)


def test_f0_gradient_equals_finite_differences() -> None:
    predicted = torch.tensor([[120.0, 30.0, -5.0, 210.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[100.0, 150.0, 40.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f0: f0_loss(f0, reference, [2]), predicted)


def test_energy_loss_is_the_mean_difference_without_padding() -> None:
    predicted, reference = _curve(1, 2, 3, 4, 9, 9), _curve(2, 2, 1, 4.5, -9, 0)
    assert float(energy_loss(predicted, reference, [2])) == pytest.approx((1 + 0 + 2 + 0.5) / 4)


def test_duration_loss_is_in_frames_per_phoneme_without_first_and_last_token() -> None:
    predicted, reference = _curve(9, 2, 3, 4.5, 8, 7), _curve(1, 2.5, 5, 4, 1, 0)
    assert float(duration_loss(predicted, reference, [5])) == pytest.approx((0.5 + 2 + 0.5) / 3)
    assert float(duration_loss(predicted, reference, [4])) == pytest.approx((0.5 + 2) / 2)


@dataclass(frozen=True)
class Contract:
    """A loss and its inputs, for tests that every loss must pass."""

    items: Callable[[int], list[Tensor]]  # seed → tensors (T,) of items
    loss: Callable[[Tensor, Tensor, list[int]], Tensor]  # predicted and reference (B, T), T of each item


def _items(lengths: Sequence[int], scale: float, offset: float = 0.0) -> Callable[[int], list[Tensor]]:
    def drawn(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [offset + scale * torch.randn(n, generator=generator) for n in lengths]

    return drawn


def _audio_contract(loss: MelSTFTLoss | STFTLoss) -> Contract:
    return Contract(_items([4800] * 3, 0.1), lambda x, y, lengths: loss(loss.spectra(x), loss.spectra(y)))


def _frames(lengths: Sequence[int]) -> list[int]:
    return [n // 2 for n in lengths]


CONTRACTS = {
    "mel_stft": _audio_contract(MelSTFTLoss()),
    "linear_stft": _audio_contract(STFTLoss()),
    "style": Contract(_items([256] * 3, 0.3), lambda x, y, lengths: style_loss(x, y)),
    "f0": Contract(_items([8, 20, 14], 80, 90), lambda x, y, lengths: f0_loss(x, y, _frames(lengths))),
    "energy": Contract(_items([8, 20, 14], 2), lambda x, y, lengths: energy_loss(x, y, _frames(lengths))),
    "duration": Contract(_items([5, 12, 9], 3, 6), duration_loss),
}
contracts = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)


def _padded(items: Sequence[Tensor], longer: int = 0, padding: float = 0.0) -> Tensor:
    longest = max(len(item) for item in items) + longer
    return torch.stack([torch.nn.functional.pad(item, (0, longest - len(item)), value=padding) for item in items])


def _value_and_gradient(
    contract: Contract, predicted: Tensor, reference: Tensor, lengths: list[int]
) -> tuple[float, Tensor]:
    predicted = predicted.clone().requires_grad_()
    loss = contract.loss(predicted, reference, lengths)
    assert loss.shape == ()
    (gradient,) = torch.autograd.grad(loss, predicted)
    return float(loss.detach()), gradient


@contracts
def test_every_loss_is_0_for_equal_items_and_positive_otherwise_with_a_finite_gradient(contract: Contract) -> None:
    x, y = contract.items(0), contract.items(1)
    lengths = [len(item) for item in x]
    value, gradient = _value_and_gradient(contract, _padded(y), _padded(y), lengths)
    assert value == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(gradient).all()
    near, gradient = _value_and_gradient(
        contract, _padded([b + (a - b) / 10 for a, b in zip(x, y, strict=True)]), _padded(y), lengths
    )
    assert near > 1e-4
    assert torch.isfinite(gradient).all()
    far, gradient = _value_and_gradient(contract, _padded(x), _padded(y), lengths)
    assert far > near
    assert torch.isfinite(gradient).all()
    assert all(row.any() for row in gradient)


@contracts
def test_every_loss_of_a_batch_is_the_mean_over_its_items_in_any_order(contract: Contract) -> None:
    x, y = contract.items(0), contract.items(1)
    alone = [float(contract.loss(a[None], b[None], [len(a)])) for a, b in zip(x, y, strict=True)]
    for order in ([0, 1, 2], [2, 0, 1], [1, 0]):
        found = contract.loss(
            _padded([x[i] for i in order]), _padded([y[i] for i in order]), [len(x[i]) for i in order]
        )
        assert float(found) == pytest.approx(np.mean([alone[i] for i in order]), rel=1e-5)


@pytest.mark.parametrize("name", ["f0", "energy", "duration"])
def test_padding_has_no_weight_and_no_gradient(name: str) -> None:
    contract = CONTRACTS[name]
    x, y = contract.items(0), contract.items(1)
    lengths = [len(item) for item in x]
    value, gradient = _value_and_gradient(contract, _padded(x), _padded(y), lengths)
    filled, longer = _value_and_gradient(contract, _padded(x, 7, 321.0), _padded(y, 7, 123.0), lengths)
    assert filled == pytest.approx(value, rel=1e-6)
    for i, n in enumerate(lengths):
        torch.testing.assert_close(longer[i, :n], gradient[i, :n])
        assert not longer[i, n:].any()
