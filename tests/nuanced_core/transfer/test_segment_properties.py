"""nuanced_core.transfer.segments with any words: none is lost, and a segment is as short as it can be made."""

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nuanced_core.transfer.segments import MOST_LETTERS, PAUSE, make_segments
from nuanced_core.transfer.words import Word


@st.composite
def spoken(draw: st.DrawFn) -> list[Word]:
    """Words in rising order, with pauses between some of them."""
    time, found = 0.0, []
    for _ in range(draw(st.integers(1, 40))):
        time += draw(st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.2, PAUSE, 0.5, 0.7, 3.0]))
        seconds = draw(st.floats(0.0, 3.0))
        text = draw(st.text("abcdef019", min_size=1, max_size=30)) + draw(
            st.sampled_from(["", "", ",", ".", '."', "?"])
        )
        found.append(Word(text, time, time + seconds))
        time += seconds
    return found


@settings(max_examples=60)
@given(spoken(), st.floats(1.0, 20.0))
@example([Word("a", 0.0, 9.0)], 1.0)
@example([Word("a", 0.1 * index, 0.1 * index) for index in range(2_000)], 1.0)
def test_all_words_are_in_segments_of_at_most_the_window(words: list[Word], window: float) -> None:
    found = make_segments(words, window)
    assert [word for segment in found for word in segment.words] == words
    for segment in found:
        if len(segment.words) > 1:
            assert segment.end - segment.start <= window
            assert len(segment.text) <= MOST_LETTERS
    for before, after in pairwise(found):
        assert before.end <= after.start
