"""nuanced_core.speakers.encoders: the contract of every speaker encoder, with the real parameters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nuanced_core.audio import resample
from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import AudioError, ConfigError, WeightsError
from nuanced_core.speakers.encoders import SPEAKER_ENCODERS, SpeakerEncoder, load_speaker_encoder
from nuanced_core.weights.fetch import fetch_speaker_encoder
from tests.nuanced_core.speakers.directional import slopes
from tests.nuanced_core.speakers.sounds import voice
from tests.nuanced_core.stock_speech import cosines_of_voices

LOW, HIGH = voice(110, 1.2, 0.95), voice(205, 1.2, 1.15)
SIZES = {"campplus": 192, "resemblyzer": 256}


@pytest.fixture(scope="module", params=SPEAKER_ENCODERS)
def encoder(request: pytest.FixtureRequest, encoders: Callable[[str], SpeakerEncoder]) -> SpeakerEncoder:
    return encoders(request.param)


def test_embeddings_have_norm_1_and_a_batch_equals_its_clips(encoder: SpeakerEncoder) -> None:
    found = encoder(torch.stack([LOW, HIGH]))
    assert found.shape == (2, encoder.size) and encoder.size == SIZES[encoder.name]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    for clip, embedding in zip((LOW, HIGH), found, strict=True):
        torch.testing.assert_close(encoder(clip[None])[0], embedding, atol=1e-5, rtol=0)
    assert float(found[0] @ found[1]) < 0.8


def test_the_level_changes_nothing(encoder: SpeakerEncoder) -> None:
    clips = torch.stack([LOW, HIGH])
    expected = encoder(clips)
    for gain in (0.01, 20.0):
        torch.testing.assert_close(encoder(gain * clips), expected, atol=1e-4, rtol=0)


def test_the_gradient_is_right_and_asks_for_no_other_level(encoder: SpeakerEncoder) -> None:
    exact = load_speaker_encoder(fetch_speaker_encoder(encoder.name).path, encoder.name).double()
    weights = torch.randn(encoder.size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def score(audio: Tensor) -> Tensor:
        return exact(audio)[0] @ weights

    audio = voice(150, 0.6)[None].double()
    gradient, difference = slopes(score, audio)
    assert abs(difference) > 1e-3
    assert gradient == pytest.approx(difference, rel=1e-3)
    point = audio.clone().requires_grad_()
    (slope,) = torch.autograd.grad(score(point), point)
    assert abs(float((slope * audio).sum())) < 1e-9 * float(slope.norm() * audio.norm())


def test_it_is_frozen(encoder: SpeakerEncoder) -> None:
    assert list(encoder.parameters())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_short_clip_is_an_error_and_half_a_second_is_not(encoder: SpeakerEncoder) -> None:
    assert encoder(torch.stack([LOW[:8_000], HIGH[:8_000]])).isfinite().all()
    with pytest.raises(AudioError, match=r"^a clip of 0\.49 s is too short for a speaker embedding; give 0\.5 s$"):
        encoder(LOW[None, :7_900])
    with pytest.raises(AudioError, match=r"^a recording of 0\.25 s is too short .*; record at least 0\.5 s of speech$"):
        encoder.embed(LOW[:4_000], 16_000)


def test_silence_is_finite_in_training_and_an_error_as_a_recording(encoder: SpeakerEncoder) -> None:
    silence = torch.zeros(1, 16_000, requires_grad=True)
    found = encoder(silence)
    found.sum().backward()
    assert found.isfinite().all() and silence.grad is not None and silence.grad.isfinite().all()
    with pytest.raises(AudioError, match=r"^a recording of 1\.00 s is silent, so it has no speaker embedding; record"):
        encoder.embed(torch.zeros(16_000), 16_000)


def test_a_recording_s_rate_and_the_silence_around_it_matter_little(encoder: SpeakerEncoder) -> None:
    speech = voice(110, 2.4, 0.95, rate=24_000)
    plain = encoder.embed(speech, 24_000)
    assert plain.shape == (encoder.size,) and not plain.requires_grad
    other = float(plain @ encoder.embed(voice(205, 2.4, 1.15), 16_000))
    padded = torch.nn.functional.pad(speech, (48_000, 72_000))
    for same in (encoder.embed(resample(speech, 24_000, 16_000), 16_000), encoder.embed(padded, 24_000)):
        assert float(plain @ same) > max(0.93, other + 0.1)


class _Recorder(nn.Module):
    """A network that keeps what it hears; its embedding says how much of it is of one sign."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Tensor] = []
        self.register_buffer("here", torch.zeros(()))

    def forward(self, audio: Tensor) -> Tensor:
        self.heard += list(audio)
        return torch.stack([audio.clamp(min=0).sum(dim=1), -audio.clamp(max=0).sum(dim=1)], dim=1)


def test_a_long_recording_is_heard_for_30_s_in_windows_of_10_s() -> None:
    network = _Recorder()
    encoder = SpeakerEncoder("recorder", network, 2)
    seconds = torch.arange(16_000 * 120) / 16_000
    tone = torch.sin(2 * torch.pi * 200 * seconds)
    embedding = encoder.embed(torch.cat([torch.zeros(16_000 * 60), tone]), 16_000)
    assert [len(clip) / 16_000 for clip in network.heard] == [10, 10, 10]
    assert embedding.norm() == pytest.approx(1)
    # The clip's silence is not heard, but for the 0.3 s before speech.
    assert sum(int((clip == 0).sum()) for clip in network.heard) < 0.35 * 16_000 + 3 * 16_000 * 10 / 40


@pytest.mark.parametrize(("seconds", "windows"), [(0.6, 1), (10.0, 1), (10.5, 2), (25.0, 3), (31.0, 3)])
def test_windows_of_a_recording_are_equally_long(seconds: float, windows: int) -> None:
    network = _Recorder()
    SpeakerEncoder("recorder", network, 2).embed(torch.sin(0.1 * torch.arange(int(16_000 * seconds))), 16_000)
    assert len(network.heard) == windows
    assert {len(clip) for clip in network.heard} == {int(min(seconds, 30) * 16_000) // windows}


def test_a_name_or_a_file_of_another_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^'dvector' is not a speaker encoder; choose one of: campplus, resemblyzer$"
    ):
        load_speaker_encoder(tmp_path / "absent", "dvector")
    text, other = tmp_path / "text.pt", tmp_path / "other.pt"
    text.write_text("hello")
    torch.save({"model_state": {"lstm.weight_ih_l0": torch.zeros(3)}}, other)
    for name in SPEAKER_ENCODERS:
        for file in (text, other):
            with pytest.raises(WeightsError, match=rf"^{file}: not the speaker encoder {name} \(.*\); fetch it again$"):
                load_speaker_encoder(file, name)


@pytest.mark.real
def test_same_voice_has_a_higher_cosine_than_any_other_voice(encoder: SpeakerEncoder, models: ModelSet) -> None:
    _, same, others = cosines_of_voices(models, encoder.embed)
    assert same.min() > others.max()
