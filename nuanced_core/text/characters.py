"""Characters of a text: variants of the same character unified, and those found that English cannot speak."""

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["foreign_characters", "has_latin_letters", "script_name", "unify_characters", "without_foreign_characters"]

# Compatibility forms that NFKC replaces by plain ones; it would also change an ellipsis, ½ and ², which have a meaning.
_VARIANT_FORMS = ("<wide>", "<narrow>", "<font>", "<noBreak>", "<circle>", "<initial>", "<medial>", "<final>")
_REPLACED = str.maketrans(
    {
        "\u00b4": "'",  # acute accent, typed as an apostrophe
        "\u02bc": "'",  # modifier letter apostrophe
        "\u2010": "-",  # hyphen
        "\u2116": "No.",  # numero sign
        "\u2212": "-",  # minus sign
        "\u2015": "\u2014",  # horizontal bar
        "\u3001": ",",
        "\u3002": ".",
        "\u2044": "/",  # fraction slash
        "\u202f": "\u00a0",  # narrow space
        "\u2009": "\u00a0",  # thin space
    }
)
_GROUPED_DIGITS = re.compile(r"(?<=\d)\u00a0(?=\d{3}(?!\d))")  # 10 000, with a space that does not break
# An en dash between words is a pause, for which Kokoro knows only the em dash; between numbers it means "to".
_EN_DASH = re.compile("(?<!\\S)(?:(?<!\\d )\u2013|\u2013(?! \\d))(?!\\S)")
_GREEK_LETTER = re.compile(r"(?<![\u0370-\u03ff])[\u0391-\u03c9](?![\u0370-\u03ff])")  # "π" has an English name
_SPOKEN_NAMES = ("LATIN", "MODIFIER", "COMBINING", "FEMININE ORDINAL", "MASCULINE ORDINAL", "MICRO SIGN")
_SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana"}
_FIRST_ARROW = 0x2190  # symbols before it, such as ° and ©, have English names


def unify_characters(text: str) -> str:
    """Replace variants of a character by the plain one, and remove what is invisible.

    Full-width and mathematical letters and digits, ligatures, and digits of other scripts become Latin ones; accents
    are composed; spaces of all kinds become a space; zero-width characters, soft hyphens, direction marks and control
    characters are removed. Other text, quotes, dashes and ellipses included, is returned unchanged.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _GROUPED_DIGITS.sub(",", unicodedata.normalize("NFC", text).translate(_REPLACED))
    text = "".join(map(_unify, text)).translate(_REPLACED)
    return _EN_DASH.sub("\u2014", text)


def foreign_characters(text: str) -> list[str]:
    """Return the runs of characters in a text that American English cannot speak, in order.

    These are letters, marks and digits of other scripts than Latin, emoji and other pictures, and characters that
    Unicode does not define. A single Greek letter, as in a formula, is spoken by its name.
    """
    spoken_greek = {match.start() for match in _GREEK_LETTER.finditer(text)}
    runs: list[str] = []
    last = -2
    for index, character in enumerate(text):
        if _is_foreign(character) and index not in spoken_greek:
            if last == index - 1:
                runs[-1] += character
            else:
                runs.append(character)
            last = index
    return runs


def without_foreign_characters(text: str, foreign: Iterable[str]) -> str:
    """Return a text without the given runs of characters."""
    for run in sorted(set(foreign), key=len, reverse=True):
        text = text.replace(run, " ")
    return re.sub(r" +([,.;:!?\u2026)\u201d]|$)", r"\1", " ".join(text.split()))


def has_latin_letters(text: str) -> bool:
    """Return whether a text has a Latin letter."""
    return any(unicodedata.name(character, "").startswith("LATIN") for character in text if character.isalpha())


def script_name(character: str) -> str:
    """Return the name of a foreign character's script, such as Cyrillic, or what it is otherwise."""
    if unicodedata.category(character)[0] not in "LMN":
        return "symbol"
    name = unicodedata.name(character, "unknown").partition(" ")[0]
    return _SCRIPTS.get(name, name.capitalize())


def _unify(character: str) -> str:
    category = unicodedata.category(character)
    if category in ("Zs", "Zl", "Zp") or character in "\t\n\r\v\f\x85":
        return " "
    if category in ("Cc", "Cf", "Me") or "\ufe00" <= character <= "\ufe0f":  # the last are variation selectors
        return ""
    if category == "Nd":
        return str(unicodedata.digit(character))
    form = unicodedata.decomposition(character)
    if form.startswith(_VARIANT_FORMS) or (
        form.startswith("<compat>") and category[0] in "LNS" and character != "\u00b5"
    ):
        return unicodedata.normalize("NFKC", character)
    return character


def _is_foreign(character: str) -> bool:
    if character.isascii():
        return False
    category = unicodedata.category(character)
    if category[0] in "LM" or category == "Nl":
        return not unicodedata.name(character, "").startswith(_SPOKEN_NAMES)
    if category in ("So", "Sk"):
        return ord(character) >= _FIRST_ARROW
    return category in ("Cn", "Co", "Cs")
