"""nuanced_core.transfer.words: ends of words at loud frames, and the places of given words."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nuanced_core.audio import WHISPER_RATE
from nuanced_core.errors import AudioError
from nuanced_core.transfer.words import Transcriber, Word, place_text, trim_to_loud

HEARD = [Word("The", 0.0, 0.5), Word("old", 0.5, 1.0), Word("door.", 1.5, 2.0)]


def _loud(*spans: tuple[float, float]) -> torch.Tensor:
    loud = torch.zeros(120, dtype=torch.bool)
    for start, end in spans:
        loud[round(start * 40) : round(end * 40)] = True
    return loud


def test_words_end_where_it_is_loud() -> None:
    found = trim_to_loud(HEARD, _loud((0.25, 0.75), (1.5, 1.8)), 3.0)
    assert [word.start for word in found] == pytest.approx([0.25, 0.5, 1.5])
    assert [word.end for word in found] == pytest.approx([0.5, 0.75, 1.8])


def test_a_doubted_word_in_silence_is_left_out_and_a_certain_one_is_not() -> None:
    words = [HEARD[0], Word("you", 2.0, 2.4, 0.1), Word("see", 2.4, 2.8, 0.9)]
    assert [word.text for word in trim_to_loud(words, _loud((0, 0.5)), 3.0)] == ["The", "see"]


def test_hearing_words_leaves_the_number_of_threads() -> None:
    def transcribe(audio: np.ndarray, **settings: Any) -> dict[str, Any]:
        torch.set_num_threads(3)  # as Numba does, at the first times of words in a process
        return {"segments": []}

    transcriber, before = Transcriber(Path("none.pt"), "tiny.en"), torch.get_num_threads()
    transcriber.__dict__["_model"] = SimpleNamespace(transcribe=transcribe)
    assert transcriber.words(torch.zeros(WHISPER_RATE)) == []
    assert torch.get_num_threads() == before


def test_words_neither_overlap_nor_vanish() -> None:
    words = [Word("a", 0.4, 0.4), Word("b", 0.2, 0.45), Word("c", 0.45, 9.0)]
    found = trim_to_loud(words, _loud((0, 3)), 3.0)
    assert all(word.end - word.start >= 0.06 - 1e-9 for word in found)
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert found[-1].end <= 3.0


def test_the_words_of_a_text_get_the_times_of_what_was_heard() -> None:
    found = place_text("The cold and old door.", HEARD)
    assert [word.text for word in found] == ["The", "cold", "and", "old", "door."]
    for place, heard in ((0, 0), (3, 1), (4, 2)):
        assert (found[place].start, found[place].end) == pytest.approx((HEARD[heard].start, HEARD[heard].end), abs=1e-3)
    assert found[1].start == pytest.approx(0.5, abs=1e-3) == found[2].end  # no time was heard for them


def test_other_words_take_the_time_of_those_that_were_heard_and_keep_their_pauses() -> None:
    heard = [Word("Something", 1.0, 2.0), Word("else.", 2.5, 3.1), Word("Now", 5.0, 5.5)]
    found = place_text("A completely other thing now", heard)
    assert (found[0].start, found[3].end) == pytest.approx((1.0, 3.1), abs=0.01)
    assert (found[4].start, found[4].end) == pytest.approx((5.0, 5.5), abs=0.01)
    starts = [word.start for word in found]
    assert starts == sorted(starts)
    assert found[1].end - found[1].start > 2 * (found[0].end - found[0].start)


@pytest.mark.parametrize(
    ("text", "heard_as"),
    [
        ("the the cat sat", {1: 0, 2: 1, 3: 2}),  # by the place of the word: that of what was heard
        ("the cat the the sat", {0: 0, 1: 1, 4: 2}),
        ("the cat sat sat", {0: 0, 1: 1, 3: 2}),
        ("a the the the cat", {3: 0, 4: 1}),
    ],
)
def test_a_word_that_was_heard_gives_its_time_to_one_of_those_that_are_repeated(
    text: str, heard_as: dict[int, int]
) -> None:
    heard = [Word("the", 0.0, 0.3), Word("cat", 0.4, 0.8), Word("sat", 0.9, 1.2)]
    found = place_text(text, heard)
    times = [time for word in found for time in (word.start, word.end)]
    assert all(after - before > -1e-9 for before, after in pairwise(times))
    for place, word in heard_as.items():
        assert (found[place].start, found[place].end) == pytest.approx((heard[word].start, heard[word].end), abs=1e-3)


def test_another_language_is_refused_and_a_doubtful_one_is_not() -> None:
    transcriber = Transcriber(Path("none"), "base")
    found: dict[str, float] = {}
    fake: Any = SimpleNamespace(
        is_multilingual=True, device="cpu", dims=SimpleNamespace(n_mels=80), detect_language=lambda mel: (None, found)
    )
    transcriber.__dict__["_model"] = fake
    found.update(de=0.25, en=0.2)
    transcriber.check_language(torch.zeros(16_000), "a.wav")
    found.update(de=0.9, en=0.05)
    with pytest.raises(AudioError, match=r"a\.wav: the speech sounds like German \(90 %\)"):
        transcriber.check_language(torch.zeros(16_000), "a.wav")
    fake.is_multilingual = False  # of a model for English, which cannot tell
    transcriber.check_language(torch.zeros(16_000), "a.wav")
