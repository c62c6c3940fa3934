"""nuanced_core.transfer.segments: where words are divided."""

from nuanced_core.transfer.segments import MOST_LETTERS, make_segments
from nuanced_core.transfer.words import Word


def _words(text: str, seconds: float = 0.4, pauses: dict[int, float] | None = None) -> list[Word]:
    """Words of equal length; ``pauses`` before some of them."""
    time, found = 0.0, []
    for index, word in enumerate(text.split()):
        time += (pauses or {}).get(index, 0.0)
        found.append(Word(word, time, time + seconds))
        time += seconds
    return found


def test_a_pause_separates_segments() -> None:
    found = make_segments(_words("a b c d e f g h", pauses={4: 0.4}), 6.0)
    assert [segment.text for segment in found] == ["a b c d", "e f g h"]
    assert (found[1].start, found[1].end) == (found[1].words[0].start, found[1].words[-1].end)


def test_a_short_segment_is_joined_over_a_short_pause_only() -> None:
    assert [s.text for s in make_segments(_words("a b c d e", pauses={4: 0.4}), 6.0)] == ["a b c d e"]
    assert [s.text for s in make_segments(_words("a b c d e", pauses={4: 0.9}), 6.0)] == ["a b c d", "e"]


def test_a_long_segment_is_divided_after_punctuation_near_its_middle() -> None:
    text = "a b, c d e f g. h i j k l m n o p"
    found = make_segments(_words(text), 5.0)
    assert [segment.text for segment in found] == ["a b, c d e f g.", "h i j k l m n o p"]
    assert all(segment.end - segment.start <= 2.0 for segment in make_segments(_words(text), 2.0))


def test_no_word_is_lost_or_moved() -> None:
    words = _words(" ".join("abcdefghijklmnop"), pauses={3: 0.35, 4: 0.5, 9: 2.0})
    for window in (1.0, 2.5, 20.0):
        assert [word for segment in make_segments(words, window) for word in segment.words] == words


def test_many_letters_are_divided_however_fast_they_are_said() -> None:
    found = make_segments(_words("incomprehensible " * 40, 0.05), 20.0)
    assert all(len(segment.text) <= MOST_LETTERS for segment in found)
    # Digits are spoken as words.
    assert len(make_segments(_words("1234567 " * 9, 0.05), 20.0)) > 1
