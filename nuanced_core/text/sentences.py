"""Sentences from the built-in splits, from text files or from lists, and comparison of their words."""

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from nuanced_core.errors import TextError
from nuanced_core.paths import user_path

__all__ = ["SENTENCE_SPLITS", "load_sentences", "spoken_words", "test_sentences_in"]

SENTENCE_SPLITS = ("train", "validation", "test")


def load_sentences(source: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Load sentences in order, without repetitions.

    Args:
        source: a built-in split ("train", "validation" or "test"), a UTF-8 text file with one sentence per line (blank
            lines and lines that start with # are skipped), or the sentences themselves.

    Raises:
        TextError: the file cannot be read as UTF-8, an item of the list is not a string, or there are no sentences.
    """
    if isinstance(source, str) and source in SENTENCE_SPLITS:
        place = f"the built-in split {source!r}"
        split = resources.files("nuanced_core.text") / "sentences" / f"{source}.txt"
        lines = _sentence_lines(split.read_text(encoding="utf-8"))
    elif isinstance(source, str | Path):
        place = f"the file {str(source)!r}"
        lines = _sentence_lines(_read_file(user_path(source)))
    else:
        place = "the list given"
        lines = [_checked_item(item, index) for index, item in enumerate(source)]
    sentences = tuple(dict.fromkeys(line for line in lines if line))
    if not sentences:
        raise TextError(f"sentences: {place} has no sentences: give at least one, one per line")
    return sentences


def spoken_words(text: str) -> str:
    """Return the lower-case words of a text: equal for texts that differ only in case, punctuation and spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))


def test_sentences_in(texts: Iterable[str]) -> list[str]:
    """Return the texts whose words are those of a sentence of the built-in test split."""
    test = {spoken_words(text) for text in load_sentences("test")}
    return [text for text in texts if spoken_words(text) in test]


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(
            f"sentences: the file {str(path)!r} is not UTF-8 (byte {error.start}): save it as UTF-8"
        ) from error
    except OSError as error:
        raise TextError(
            f"sentences: cannot read the file {str(path)!r} ({error.strerror}): give a readable text file, "
            f"or one of the built-in splits {', '.join(SENTENCE_SPLITS)}"
        ) from error


def _sentence_lines(content: str) -> list[str]:
    lines = (line.strip() for line in content.splitlines())
    return [line for line in lines if not line.startswith("#")]


def _checked_item(item: object, index: int) -> str:
    if not isinstance(item, str):
        raise TextError(f"sentences: item {index} of the list is {item!r}: give a string")
    return item.strip()
