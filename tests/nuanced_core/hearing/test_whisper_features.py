"""WhisperFeatures compared with Whisper's own encoder; layers and memory with a small one of random weights."""

import weakref

import pytest
import torch
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.hearing import whisper_features
from nuanced_core.hearing.whisper_features import BLOCK, SEGMENT, WhisperFeatures

LAYERS = 5


@pytest.fixture(scope="module")
def small() -> WhisperFeatures:
    from whisper.model import ModelDimensions, Whisper

    torch.manual_seed(0)
    return WhisperFeatures(Whisper(ModelDimensions(80, 1500, 32, 2, LAYERS - 1, 100, 8, 32, 2, 1)))


def _noise(seconds: float) -> Tensor:
    return torch.randn(int(seconds * 16_000), generator=torch.Generator().manual_seed(2)) * 0.05


@pytest.mark.parametrize("layers", [(0,), (LAYERS - 1,), (2, 0, 3), (1, 1), tuple(range(LAYERS))])
def test_layers_are_those_of_all_in_the_given_order(small: WhisperFeatures, layers: tuple[int, ...]) -> None:
    audio = _noise(5)
    assert torch.equal(small(audio, layers), small(audio)[list(layers)])


def test_layers_above_the_last_one_read_are_not_computed(small: WhisperFeatures) -> None:
    calls: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, layer=layer: calls.append(layer))
        for layer, block in enumerate(small.encoder.blocks, start=1)
    ]
    small(_noise(5), (0, 2))
    for hook in hooks:
        hook.remove()
    assert calls == [1, 2] * 2


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let segments be 0.1 s and blocks 0.8 s, for speed."""
    assert BLOCK * SEGMENT == 32 * 16_000
    monkeypatch.setattr(whisper_features, "SEGMENT", 1600)


@pytest.mark.parametrize(("seconds", "count"), [(0.01, 1), (0.1, 1), (0.8, 1), (0.81, 2), (1.9, 3)])
def test_blocks_have_a_limited_length_and_are_together_the_whole(
    small: WhisperFeatures, short_segments: None, seconds: float, count: int
) -> None:
    audio = _noise(seconds)
    blocks = list(small.blocks(audio, (1, 4)))
    assert len(blocks) == count
    assert max(block.shape[1] for block in blocks) <= 40
    assert torch.equal(torch.cat(blocks, dim=1), small(audio, (1, 4)))


def test_states_of_a_long_clip_are_not_all_in_memory(
    small: WhisperFeatures, short_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    encode = small.encode_segment

    def watched(audio: Tensor, layers: tuple[int, ...]) -> Tensor:
        nonlocal most
        states = encode(audio, layers)
        assert states.shape[0] == len(layers)  # and none of the others is kept by a view
        assert states.untyped_storage().nbytes() == 4 * states.numel()
        alive.append(weakref.ref(states))
        most = max(most, sum(reference() is not None for reference in alive))
        return states

    monkeypatch.setattr(small, "encode_segment", watched)
    frames = sum(block.shape[1] for block in small.blocks(_noise(3), (3,)))
    assert (frames, len(alive)) == (150, 30)
    assert most <= BLOCK + 1
    most = 0
    small(_noise(3), (3,))
    assert most <= 2


@pytest.mark.real
def test_last_layer_matches_whispers_encoder(models: ModelSet) -> None:
    from whisper.audio import log_mel_spectrogram

    audio = torch.randn(30 * 16_000, generator=torch.Generator().manual_seed(0)) * 0.05
    states = models.whisper.encode_segment(audio, range(5))  # Whisper's own encoder requires 30 s
    assert states.shape == (5, 1500, 384)
    with torch.no_grad():
        expected = models.whisper.encoder(log_mel_spectrogram(audio)[None])[0]
    torch.testing.assert_close(states[-1], expected, atol=1e-3, rtol=1e-3)


@pytest.mark.real
def test_long_clip_is_encoded_in_equal_segments(models: ModelSet) -> None:
    audio = torch.randn(9 * 16_000, generator=torch.Generator().manual_seed(1)) * 0.05
    states = models.whisper(audio)
    assert states.shape[1] == 9 * 50
    for start in range(0, 9, 3):
        alone = models.whisper(audio[start * 16_000 : (start + 3) * 16_000])
        torch.testing.assert_close(states[:, start * 50 : (start + 3) * 50], alone)


@pytest.mark.real
def test_number_of_frames_is_rounded_up(models: ModelSet) -> None:
    for samples in (1, 320, 321, 64_000, 64_001, 100_007):
        assert models.whisper(torch.zeros(samples)).shape[1] == -(-samples // 320)
