"""nuanced_core.judges.words: Whisper on Kokoro's speech, and word errors against the package jiwer."""

import random
import re

import jiwer
import pytest
from torch import Tensor

from nuanced_core.data.model_set import ModelSet
from nuanced_core.errors import TextError
from nuanced_core.judges.words import SpokenWords, word_errors
from tests.nuanced_core.judges.conftest import SENTENCE


@pytest.fixture(scope="module")
def words(models: ModelSet) -> SpokenWords:
    return SpokenWords(models.whisper_file.path)


@pytest.mark.real
def test_what_kokoro_speaks_is_heard_without_errors(words: SpokenWords, spoken: Tensor) -> None:
    assert words.transcribe(spoken, 24_000) == SENTENCE
    assert words(spoken, 24_000, "she opened THE old door") == 0
    assert words(spoken, 24_000, "She closed the old door!") == pytest.approx(0.2)


@pytest.mark.real
def test_more_than_half_a_minute_is_heard(words: SpokenWords, spoken: Tensor) -> None:
    times = 20
    assert len(spoken) * times > 24_000 * 35
    assert words(spoken.repeat(times), 24_000, " ".join([SENTENCE] * times)) < 0.1


@pytest.mark.parametrize(
    ("heard", "text", "expected"),
    [
        ("He's got two colours.", "he is got 2 colors", (1, 5)),
        ("a b c d", "a b c d", (0, 4)),
        ("", "a b", (2, 2)),
        ("b", "a b", (1, 2)),
        ("a b c", "a b", (1, 2)),
        ("A b… c!", "a b c", (0, 3)),
        ("x y z w v", "a", (5, 1)),
    ],
)
def test_word_errors(heard: str, text: str, expected: tuple[int, int]) -> None:
    assert word_errors(heard, text) == expected


def test_word_errors_equal_jiwer_s() -> None:
    draw = random.Random(0)
    for _ in range(50):
        heard, text = (" ".join(draw.choices(["red", "door", "hill"], k=draw.randint(1, 12))) for _ in range(2))
        errors, count = word_errors(heard, text)
        assert errors / count == pytest.approx(jiwer.wer(text, heard))


def test_a_text_without_words_is_an_error() -> None:
    for text in ("", "?!", "…"):
        with pytest.raises(TextError, match=rf"^{re.escape(repr(text))} has no words whose errors could be counted"):
            word_errors("a", text)
