"""nuanced_core.transfer.timing: frames of tokens as words were timed."""

import pytest
import torch

from nuanced_core.transfer.timing import MOST_EDGE_FRAMES, SEGMENT_BOUNDS, speech_frames, timed_frames
from nuanced_core.transfer.words import Word

# A boundary, two words of four phonemes with a space between them, punctuation, and a boundary.
OWNERS = [-1, 0, 0, 0, 0, -1, 1, 1, 1, 1, -1, -1]
DURATIONS = torch.tensor([14.0, 3, 3, 3, 3, 1, 3, 3, 3, 3, 12, 8])


def _frames(first: float, pause: float, second: float, durations: torch.Tensor = DURATIONS) -> torch.Tensor:
    words = [Word("a", 1.0, 1.0 + first), Word("b", 1.0 + first + pause, 1.0 + first + pause + second)]
    return timed_frames(durations, OWNERS, words)


@pytest.mark.parametrize("seconds", [0.2, 0.3, 0.6])
def test_a_segment_takes_the_time_that_it_took(seconds: float) -> None:
    frames = _frames(seconds, 0.0, seconds)
    first, last = speech_frames(frames, OWNERS)
    assert (last - first) / 40 == pytest.approx(2 * seconds, abs=0.05)


def test_a_word_is_drawn_towards_its_own_time() -> None:
    even, uneven = _frames(0.4, 0.0, 0.4), _frames(0.2, 0.0, 0.6)
    assert even[1:5].sum() == pytest.approx(int(even[6:10].sum()), abs=1)
    ratio = float(uneven[6:10].sum() / uneven[1:5].sum())
    assert 1.5 < ratio < 3.0  # between as predicted and as heard, since the times are uncertain


def test_times_that_cannot_be_are_bounded() -> None:
    predicted = float(DURATIONS[1:10].sum())
    for seconds, bound in ((0.01, SEGMENT_BOUNDS[0]), (9.0, SEGMENT_BOUNDS[1])):
        first, last = speech_frames(_frames(seconds, 0.0, seconds), OWNERS)
        assert (last - first) == pytest.approx(bound * predicted, rel=0.15)


def test_a_pause_is_given_to_the_punctuation() -> None:
    owners = [-1, 0, 0, 0, 0, -1, -1, 1, 1, 1, 1, -1]
    durations = torch.tensor([14.0, 3, 3, 3, 3, 4, 2, 3, 3, 3, 3, 8])
    words = [Word("a,", 0.0, 0.3), Word("b", 0.6, 0.9)]
    assert int(timed_frames(durations, owners, words)[5:7].sum()) == pytest.approx(12, abs=1)


def test_silence_at_the_ends_is_short_and_every_token_has_a_frame() -> None:
    frames = _frames(0.1, 0.0, 0.1, 0.4 * DURATIONS)
    assert int(frames.min()) == 1
    frames = _frames(0.3, 0.0, 0.3)
    assert int(frames[0]) == MOST_EDGE_FRAMES
    assert int(frames[10:].sum()) == pytest.approx(MOST_EDGE_FRAMES, abs=1)


def test_without_words_durations_are_as_predicted() -> None:
    assert timed_frames(torch.tensor([3.0, 2.6, 2.6, 4.0]), [-1] * 4, []).tolist() == [3, 3, 2, 4]
    assert speech_frames(torch.tensor([3, 3, 2, 4]), [-1] * 4) == (3, 8)
