"""nuanced_core.speech.speaking: pieces of a text, their joints, speed, and what cannot be spoken."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nuanced_core.errors import ConfigError, TextError
from nuanced_core.speech.speaking import Speaker, shaped
from nuanced_core.text.phonemes import Phonemizer

PACK = torch.zeros(510, 1, 256)


@pytest.fixture
def speaker(fakes: SimpleNamespace) -> Speaker:
    return Speaker(SimpleNamespace(models=fakes))


def test_each_sentence_is_a_piece_that_begins_and_ends_in_silence(speaker: Speaker) -> None:
    pieces = list(speaker.say("Red door. A blue window! No rain.", PACK))
    assert len(pieces) == 3
    for piece in pieces:
        assert piece[0] == 0 and piece[-1] == 0 and piece.abs().max() > 0.1
    # A sentence's pause follows all but the last piece, which ends with its own fade.
    assert all(int((piece != 0).nonzero()[-1]) < len(piece) - 0.29 * 24_000 for piece in pieces[:-1])
    assert int((pieces[-1] != 0).nonzero()[-1]) > len(pieces[-1]) - 10


def test_pieces_are_rendered_when_they_are_asked_for(speaker: Speaker, fakes: SimpleNamespace) -> None:
    pieces = speaker.say("Red door. A blue window! No rain.", PACK)
    next(pieces)
    assert fakes.kokoro.spoken == 1


def test_the_row_of_the_phoneme_count_speaks(speaker: Speaker) -> None:
    pack = torch.zeros(510, 1, 256)
    pack[len("red door") - 1] = 4.0
    plain, other = next(speaker.say("Red door.", PACK)), next(speaker.say("Red door.", pack))
    assert other.square().mean() > 2 * plain.square().mean()
    assert torch.equal(next(speaker.say("No rain, no.", pack)), next(speaker.say("No rain, no.", PACK)))


def test_a_sentence_that_is_too_long_is_split_at_spaces(fakes: SimpleNamespace, speaker: Speaker) -> None:
    spoken: list[str] = []

    def spelled(text: str) -> str:
        spoken.append(text)
        return text.lower().strip(".") * 4  # four phonemes for each letter

    fakes.phonemizer = Phonemizer("spelled", spelled)
    words = [f"word{chr(97 + i)}" for i in range(26)] * 2
    pieces = list(speaker.say(" ".join(words), PACK))
    heard = [text for text in spoken if len(text) * 4 <= 510]
    assert " ".join(heard).split() == words and len(pieces) == len(heard) >= 3


def test_speed_divides_the_duration(speaker: Speaker) -> None:
    lengths = [len(next(speaker.say("A blue window", PACK, speed=speed))) for speed in (0.5, 1.0, 2.0)]
    assert lengths[0] > 1.8 * lengths[1] and lengths[2] < 0.6 * lengths[1]


@pytest.mark.parametrize("speed", [0.0, 0.49, 2.01, float("nan")])
def test_a_speed_out_of_range_is_refused(speaker: Speaker, speed: float) -> None:
    with pytest.raises(ConfigError, match=r"is not between 0\.5 and 2"):
        speaker.say("Red door.", PACK, speed=speed)


@pytest.mark.parametrize("text", ["", " \n", "... !", "你好。", "你好。Привет."])
def test_a_text_with_nothing_to_speak_is_refused_before_the_first_piece(speaker: Speaker, text: str) -> None:
    with pytest.raises(TextError, match="nothing to speak"):
        speaker.say(text, PACK)


def test_a_sentence_in_another_script_is_left_out(speaker: Speaker, caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(speaker.say("Red door. 你好。\n\nПривет.\n\nNo rain.", PACK))) == 2
    assert "left out" in caplog.text


def test_silence_at_the_ends_is_shortened_and_faded() -> None:
    tone = 0.3 * torch.sin(2 * torch.pi * 200 * torch.arange(12_000) / 24_000)
    audio = torch.cat([torch.full((9_600,), 1e-4), tone, torch.full((14_400,), -1e-4)])
    found = shaped(audio)
    assert abs(len(found) - (12_000 + 0.14 * 24_000)) <= 240
    assert found[0] == 0 and found[-1] == 0
    start = round(0.04 * 24_000)
    torch.testing.assert_close(found[start : start + 12_000], audio[9_600 : 9_600 + 12_000])
    assert _largest_step(found) <= _largest_step(tone) + 1e-6


@pytest.mark.parametrize("audio", [torch.zeros(24_000), torch.full((7,), 0.5), torch.zeros(1)])
def test_silent_and_very_short_audio_has_a_shape_too(audio: Tensor) -> None:
    assert torch.isfinite(shaped(audio.clone())).all()


def test_audio_beyond_full_scale_is_scaled_down() -> None:
    assert shaped(3 * torch.sin(torch.arange(24_000) / 20)).abs().max() <= 1


def _largest_step(audio: Tensor) -> float:
    return float(audio.diff().abs().max())
