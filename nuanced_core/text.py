"""Text to sentences to phonemes: what Kokoro is given to say, in American English.

    phonemizer = make_phonemizer()
    phonemes = [phonemizer(sentence) for sentence in split_sentences("Hello there. How are you?")]

One phoneme is one character of the string; Kokoro says at most `MAX_PHONEMES` of them at once.
"""

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal

from nuanced_core.errors import ConfigError, TextError, WeightsError

__all__ = [
    "MAX_PHONEMES",
    "SENTENCE_SPLITS",
    "Phonemizer",
    "PhonemizerKind",
    "load_sentences",
    "make_phonemizer",
    "split_sentences",
    "spoken_words",
    "test_sentences_in",
]

MAX_PHONEMES = 510  # phonemes, punctuation and spaces included; Kokoro's context is 512 with both ends
MAX_COST = 300  # letters; measured: at most 1.32 espeak phonemes a letter in our 240 sentences
SPELLED_OUT_COST = 12  # letters; a digit or a symbol is read as a word or more ("7": "seven hundred")
SENTENCE_SPLITS = ("train", "validation", "test")

PhonemizerKind = Literal["auto", "misaki", "espeak"]

_SPACY_MODEL = "en_core_web_sm"
_PLAIN = frozenset(" .,;:!?'\"-()[]\u2014\u2013\u2026\u2018\u2019\u201c\u201d")
_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[^\W_a-z])")
_CLAUSE_END = re.compile(r"[,;:.!?\u2026\u2014\u2013][\"'\u201d\u2019)\]]*\s+|\s(?=[\u2014\u2013-]\s)")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"'])(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|No|Mt|Gen|Capt|Lt|e\.g|i\.e|[A-Z])\.\s+$")


class Phonemizer:
    """Turns one sentence into Kokoro's phonemes, and remembers what it has turned.

    `name` ("misaki" or "espeak") says whose phonemes they are: the two differ, so record it with results.
    """

    def __init__(self, name: str, convert: Callable[[str], str]) -> None:
        self.name = name
        self._convert = convert
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Return the phonemes of `text`, 1 to `MAX_PHONEMES` characters.

        Characters that Kokoro's vocabulary lacks are kept; Kokoro drops them itself. Raises TextError if
        there is nothing to say or more than Kokoro can say at once.
        """
        sentence = " ".join(text.split())
        if sentence not in self._known:
            phonemes = self._convert(sentence).strip() if sentence else ""
            _check_phonemes(phonemes, sentence)
            self._known[sentence] = phonemes
        return self._known[sentence]


def make_phonemizer(kind: PhonemizerKind = "auto") -> Phonemizer:
    """Return a phonemizer for American English that never downloads anything.

    "auto" takes misaki's dictionary if its spaCy model is installed, and espeak otherwise. Raises
    WeightsError if "misaki" is asked for and its spaCy model is not installed, ConfigError if `kind` is
    unknown.
    """
    if kind not in ("auto", "misaki", "espeak"):
        raise ConfigError(f"phonemizer {kind!r} is unknown: choose auto, misaki or espeak")
    if kind == "espeak":
        return Phonemizer("espeak", _espeak())
    if _spacy_model_installed():
        return Phonemizer("misaki", _misaki())
    if kind == "misaki":
        raise WeightsError(
            f"phonemizer 'misaki' needs the spaCy model {_SPACY_MODEL}, which is not installed: "
            f"run 'python -m spacy download {_SPACY_MODEL}', or choose espeak"
        )
    return Phonemizer("espeak", _espeak())


def load_sentences(source: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return the sentences of `source`, each once, in order.

    `source` is a built-in split ("train", "validation", "test"), a UTF-8 text file with one sentence a line
    (blank lines and lines starting with # are skipped), or the sentences themselves. Raises TextError if the
    file cannot be read as UTF-8, or if there is no sentence.
    """
    if isinstance(source, str) and source in SENTENCE_SPLITS:
        place = f"the built-in split {source!r}"
        split = resources.files("nuanced_core") / "sentences" / f"{source}.txt"
        lines = _sentence_lines(split.read_text(encoding="utf-8"))
    elif isinstance(source, str | Path):
        place = f"the file {str(source)!r}"
        lines = _sentence_lines(_read_file(Path(source)))
    else:
        place = "the list given"
        lines = [_checked_item(item, index) for index, item in enumerate(source)]
    sentences = tuple(dict.fromkeys(line for line in lines if line))
    if not sentences:
        raise TextError(f"sentences: {place} holds no sentence: give at least one, one a line")
    return sentences


def spoken_words(text: str) -> str:
    """The words of a text alone: equal for texts that differ in nothing but case, punctuation and spaces."""
    return " ".join(re.findall(r"\w+", text.lower()))


def test_sentences_in(texts: Iterable[str]) -> list[str]:
    """Those texts that say what a sentence of the built-in test split says."""
    test = {spoken_words(text) for text in load_sentences("test")}
    return [text for text in texts if spoken_words(text) in test]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of free text, each short enough for Kokoro.

    A sentence ends at its punctuation or at a blank line. A long one is cut after clause punctuation, else at
    a space, else (no space for 300 letters) anywhere; no word is lost, pieces of punctuation alone are left
    out. Lengths are estimated in letters: what espeak spells out letter by letter can still be too long,
    which the phonemizer then says. Raises TextError if `text` holds no letter or digit.
    """
    pieces = [
        piece
        for paragraph in re.split(r"\n\s*\n", text)
        for sentence in _sentences(" ".join(paragraph.split()))
        for piece in _short_pieces(sentence)
        if any(character.isalnum() for character in piece)
    ]
    if not pieces:
        raise TextError(f"text {_excerpt(text)} holds nothing to say: give at least one word")
    return pieces


def _check_phonemes(phonemes: str, sentence: str) -> None:
    if not any(character.isalpha() for character in phonemes):
        raise TextError(f"text {_excerpt(sentence)} holds nothing to say: give at least one word")
    if len(phonemes) > MAX_PHONEMES:
        raise TextError(
            f"sentence {_excerpt(sentence)} has {len(phonemes)} phonemes, Kokoro says at most {MAX_PHONEMES} "
            "at once: make it shorter or pass the text through split_sentences"
        )


def _spacy_model_installed() -> bool:
    if importlib.util.find_spec(_SPACY_MODEL) is None:
        return False
    import spacy.util

    # misaki asks exactly this, and downloads the model at run time if the answer is no
    return bool(spacy.util.is_package(_SPACY_MODEL))


def _misaki() -> Callable[[str], str]:
    from misaki.en import G2P
    from misaki.espeak import EspeakFallback

    # as Kokoro's own pipeline does: a word outside the dictionary is asked of espeak
    g2p = G2P(british=False, fallback=EspeakFallback(british=False), unk="")
    return lambda text: str(g2p(text)[0])


def _espeak() -> Callable[[str], str]:
    from misaki.espeak import EspeakG2P

    g2p = EspeakG2P("en-us")
    return lambda text: str(g2p(text)[0])


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


def _sentences(paragraph: str) -> Iterator[str]:
    start = 0
    for match in _SENTENCE_END.finditer(paragraph):
        sentence = paragraph[start : match.end()]
        if not _ABBREVIATION.search(sentence):
            yield sentence.strip()
            start = match.end()
    yield paragraph[start:]


def _short_pieces(sentence: str) -> Iterator[str]:
    rest = sentence
    while (fits := _fitting_length(rest)) < len(rest):
        cut = _cut_position(rest, fits)
        yield rest[:cut].strip()
        rest = rest[cut:].strip()
    yield rest


def _fitting_length(text: str) -> int:
    """How many leading characters of `text` cost no more than `MAX_COST`."""
    cost = 0
    for index, character in enumerate(text):
        cost += 1 if character.isalpha() or character in _PLAIN else SPELLED_OUT_COST
        if cost > MAX_COST:
            return index
    return len(text)


def _cut_position(text: str, fits: int) -> int:
    # a cut in the first third would leave a scrap that is spoken without its sentence's melody
    clauses = [end.end() for end in _CLAUSE_END.finditer(text, 0, fits) if end.end() > fits // 3]
    if clauses:
        return clauses[-1]
    space = text.rfind(" ", 0, fits + 1)
    return space if space > 0 else fits


def _excerpt(text: str, length: int = 60) -> str:
    return repr(text if len(text) <= length else text[: length - 3] + "...")
