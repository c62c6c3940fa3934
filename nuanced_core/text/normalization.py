"""Expansion of numbers, money, dates, times, units and abbreviations to the words that are spoken.

The rules are those of damga, whose English grammars are weighted finite-state transducers. What it leaves as it is, or
reads as a European would, is rewritten before to a form that it expands.
"""

import functools
import re
import unicodedata
from collections.abc import Callable

__all__ = ["expand", "hyphenate_initialisms"]

_AMOUNT = r"\d[\d,]*(?:\.\d+)?"
_SCALES = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}
_TITLES = {
    "Capt": "Captain",
    "Col": "Colonel",
    "Fr": "Father",
    "Gen": "General",
    "Gov": "Governor",
    "Hon": "Honorable",
    "Lt": "Lieutenant",
    "Pres": "President",
    "Rep": "Representative",
    "Rev": "Reverend",
    "Sen": "Senator",
    "Sgt": "Sergeant",
}
_NUMBERED = {"Ch": "Chapter", "ch": "chapter", "Eq": "Equation", "Fig": "Figure", "fig": "figure", "no": "number"}
_NUMBERED |= {"p": "page", "pp": "pages", "Sec": "Section", "Vol": "Volume", "vol": "volume"}
_ADDRESS_SIGNS = {"?": " question mark ", "=": " equals ", "&": " and ", "#": " hash ", "%": " percent "}

# Text without any of these is not changed: digits, currencies, addresses, Roman numerals, abbreviations.
_EXPANDABLE = re.compile(
    r"[0-9$£€¥₹\u00bc-\u00be\u2150-\u215e]|\w@\w|\w\.\w|\bI[IVX]|\b[VX][IVX]"
    r"|\b(?:Mrs?|Ms|Dr|Prof|vs|etc|approx|[JS]r|Mt|St|" + "|".join(_TITLES) + r")\b"
)
_LINK = re.compile(r"(\[[^\]]*\]\([^)]*\))")  # misaki's notation for a given pronunciation, [word](/phonemes/)
_Rules = tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]
_FIRST_RULES: _Rules = (
    (re.compile(r"(?:https?://|\bwww\.)\S+[\w/]"), lambda m: _address(m[0])),
    (re.compile(r"(\d ?)?([\u00bc-\u00be\u2150-\u215e])"), lambda m: _fraction(m[1], m[2])),
    # American dates, month first.
    (
        re.compile(r"(?<![\d/])(0?[1-9]|1[0-2])/(0?[1-9]|[12]\d|3[01])/((?:1[5-9]|20)\d\d)(?![\d/])"),
        lambda m: f"{m[3]}-{m[1]:0>2}-{m[2]:0>2}",
    ),
    (re.compile(r"(?<=\d) ?° ?C\b"), " degrees Celsius"),
    (re.compile(r"(?<!\S)#(?=\d)"), "number "),
    (re.compile(rf"([$£€])({_AMOUNT}) ?[-\u2013\u2014] ?\1?(?={_AMOUNT})"), r"\2 to \1"),
    (re.compile(rf"(?<![\w.,$£€])({_AMOUNT}) ?([£€])(?!\d)"), r"\2\1"),
    (re.compile(r"(?<![\w)])-(?=[$£€¥₹]\d)"), "minus "),
    (re.compile(r"(?<![\w.,$£€])(\d+\.\d+) ?([kKMB])\b"), lambda m: f"{m[1]} {_SCALES[m[2]]}"),
    (re.compile(r"(?<![\d.,])(\d+),(\d{1,2})(?![\d,])"), r"\1.\2"),  # a decimal comma
    (re.compile(r"(\d+\.\d+)s\b|(\d) s\b"), r"\1\2 seconds"),
    (re.compile(r"(?<!\d)(\d{3})[ .](\d{3})[ .](\d{4})(?!\d)"), r"\1-\2-\3"),  # a telephone number
    (re.compile(r"(?<![\d:])(\d+):(\d(?!\d)|[6-9]\d|\d{3,})(?![\d:])"), r"\1 to \2"),  # no time, but a ratio
    (re.compile(r"\b(\d+)' ?(\d{1,2})\""), r"\1 feet \2 inches"),
    (re.compile(r"\b(\d{3,4})p\b"), r"\1 p"),  # lines of a screen, not pence
    (re.compile(rf"\b({'|'.join(_TITLES)})\.(?= [A-Z])"), lambda m: _TITLES[m[1]]),
    (re.compile(rf"\b({'|'.join(_NUMBERED)})\. ?(?=\d)"), lambda m: _NUMBERED[m[1]] + " "),
    (re.compile(r"\betc\.(?= [A-Z])"), "et cetera."),  # damga drops the period, here the end of a sentence
)
_LAST_RULES: _Rules = (
    (re.compile(r"(?<=[a-z]) ([ap]) m\b(?!')"), lambda m: f" {m[1].upper()}M"),
    (re.compile(r"(?<=\d),(?=\d{3})"), ""),
    (re.compile(r"(?<=\d)\.(?=\d)"), " point "),
)
_INITIALISM = re.compile(r"(?<![\w.])[A-Za-z](?:\.[A-Za-z])+\b\.?(?!\w)")


def expand(text: str) -> str:
    """Replace numbers, money, dates, times, units, addresses and abbreviations by words.

    Text without them is returned unchanged.
    """
    if not _EXPANDABLE.search(text):
        return text
    return "".join(part if index % 2 else _expand(part) for index, part in enumerate(_LINK.split(text)))


def hyphenate_initialisms(text: str) -> str:
    """Write U.S. as U-S, which espeak reads letter by letter without pausing at each period.

    The letter A becomes "eh", which espeak reads as its name: it would read L-A as "ella".
    """
    return _INITIALISM.sub(lambda m: _without_periods(m[0], text[m.end() :]), text)


def _expand(text: str) -> str:
    if not _EXPANDABLE.search(text):
        return text
    for pattern, replacement in _FIRST_RULES:
        text = pattern.sub(replacement, text)
    words = text.strip()
    start = text.index(words)
    expanded = text[:start] + _grammar()(words) + text[start + len(words) :]  # the grammar strips outer spaces
    for pattern, replacement in _LAST_RULES:
        expanded = pattern.sub(replacement, expanded)
    return expanded


@functools.cache
def _grammar() -> Callable[[str], str]:
    from damga import Normalizer

    # "native" are the grammars that the package ships; otherwise it would prefer pynini where that is installed.
    normalize: Callable[[str], str] = Normalizer(mode="tn", lang="en", backend="native").normalize
    return normalize


def _address(address: str) -> str:
    address = re.sub(r"^https?://", "", address)
    return "".join(_ADDRESS_SIGNS.get(character, character) for character in address.rstrip("/"))


def _fraction(whole: str | None, fraction: str) -> str:
    plain = unicodedata.normalize("NFKC", fraction).replace("\u2044", "/")
    return f"{whole.strip()} and {plain}" if whole else plain


def _without_periods(initialism: str, rest: str) -> str:
    letters = "-".join("eh" if letter in "Aa" else letter for letter in initialism.rstrip(".").split("."))
    return letters + "." if initialism.endswith(".") and not rest.strip(" \"'\u201d\u2019)") else letters
