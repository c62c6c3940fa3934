"""The words of a text, as the tests count and compare them."""

import re


def words(text: str) -> list[str]:
    """Return the lower-case words of a text; a word can contain hyphens and apostrophes."""
    return re.findall(r"\w+(?:['-]\w+)*", text.lower())
