"""The phonemizer that the tests of all modules use."""

import pytest

from nuanced_core.text.phonemes import Phonemizer, make_phonemizer


@pytest.fixture(scope="session")
def espeak() -> Phonemizer:
    return make_phonemizer("espeak")
