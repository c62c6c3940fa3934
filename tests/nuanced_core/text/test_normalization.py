"""nuanced_core.text.normalization: what is written is spoken as words, and other text is left alone."""

import subprocess
import sys

import pytest

from nuanced_core.text.normalization import expand, hyphenate_initialisms
from nuanced_core.text.phonemes import Phonemizer
from nuanced_core.text.sentences import SENTENCE_SPLITS, load_sentences

SPOKEN = {
    "It costs $100,000.": "It costs one hundred thousand dollars.",
    "He paid $1.5 million.": "He paid one point five million dollars.",
    "It was $3.99.": "It was three dollars ninety nine cents.",
    "It takes $5-10 each.": "It takes five to ten dollars each.",
    "A loss of -$5.": "A loss of minus five dollars.",
    "About €1,000.50 in all.": "About one thousand euros fifty cents in all.",
    "It costs £20 or 5 €.": "It costs twenty pounds or five euros.",
    "It costs 1,5 euros.": "It costs one point five euros.",
    "Pi is 3.14.": "Pi is three point one four.",
    "Use Python 3.10.2 now.": "Use Python three point ten point two now.",
    "There were 1,234,567 people.": "There were one million two hundred and thirty four thousand five hundred and "
    "sixty seven people.",
    "There were 10\u00a0000 people.": "There were ten thousand people.",
    "It has 1.5M users.": "It has one point five million users.",
    "Sales rose 12.5% today.": "Sales rose twelve point five percent today.",
    "The 1st and the 22nd of May.": "The first and the twenty second of May.",
    "In 1999 we met.": "In nineteen ninety nine we met.",
    "In 2005 we left.": "In two thousand and five we left.",
    "The 1980s were fun.": "The nineteen eighties were fun.",
    "Born on January 5, 2024.": "Born on January fifth twenty twenty four.",
    "On 12/25/2023 we ate.": "On the twenty fifth of December twenty twenty three we ate.",
    "On 1/5/2024 we ate.": "On the fifth of January twenty twenty four we ate.",
    "On 2024-01-05 it rained.": "On the fifth of January twenty twenty four it rained.",
    "Meet at 3:30 pm.": "Meet at three thirty PM.",
    "Meet at 10:05 a.m. sharp.": "Meet at ten oh five AM sharp.",
    "At 9:00 we start.": "At nine o'clock we start.",
    "Read pages 10-20.": "Read pages ten to twenty.",
    "From 1914–1918 there was war.": "From nineteen fourteen to nineteen eighteen there was war.",
    "Add 1/2 cup of milk.": "Add one half cup of milk.",
    "It is 2½ miles.": "It is two and one half miles.",
    "Call 555-123-4567.": "Call five five five, one two three, four five six seven.",
    "Call +1 555 123 4567.": "Call plus one, five five five, one two three, four five six seven.",
    "It moves at 5 km/h.": "It moves at five kilometers per hour.",
    "It is 3 °C outside.": "It is three degrees Celsius outside.",
    "It is −12.5°F outside.": "It is minus twelve point five degrees Fahrenheit outside.",
    "It weighs 20 kg.": "It weighs twenty kilograms.",
    "He ran 100 m in 9.58s.": "He ran one hundred meters in nine point five eight seconds.",
    "The man is 6'2\" tall.": "The man is six feet two inches tall.",
    "A 16:9 screen of 1080p.": "A sixteen to nine screen of ten eighty p.",
    "Dr. Smith met Mr. Jones.": "doctor Smith met mister Jones.",
    "St. Paul lives on Main St. now.": "saint Paul lives on Main Street now.",
    "Capt. Jack saw Fig. 3 on p. 5.": "Captain Jack saw Figure three on page five.",
    "Apples, pears, etc.": "Apples, pears, et cetera.",
    "Use tools, e.g. a saw.": "Use tools, for example a saw.",
    "Louis XIV won.": "Louis the fourteenth won.",
    "World War II ended.": "World War two ended.",
    "The U.S. economy grew.": "The U-S economy grew.",
    "We saw pens, etc. Then we left 2.": "We saw pens, et cetera. Then we left two.",
    "See https://example.com/a?b=1.": "See example dot com slash a question mark b equals one.",
    "Write to john.doe@example.com.": "Write to john dot doe at example dot com.",
    "They won 3-2.": "They won three to two.",
    "Item #5 and no. 6 are here.": "Item number five and number six are here.",
    'He said "I paid $5", didn\'t he?': 'He said "I paid five dollars", didn\'t he?',
}


@pytest.mark.parametrize("written", SPOKEN)
def test_written_forms_are_spoken_as_the_words_they_mean(written: str, espeak: Phonemizer) -> None:
    assert espeak(written) == espeak(SPOKEN[written])


@pytest.mark.parametrize("split", SENTENCE_SPLITS)
def test_built_in_sentences_are_unchanged(split: str) -> None:
    for sentence in load_sentences(split):
        assert expand(sentence) == hyphenate_initialisms(sentence) == sentence


@pytest.mark.parametrize(
    "text",
    [
        "“Really?” she asked — ‘yes’… It’s -- well, a well-known NASA, FBI or USA thing; no.",
        "No. I mean it, I said no. He sat. The sun. (IT) [x] * / _ ~",
        "A Mix of CAPS, I think: is it in or at, am I, mm, kg and such?",
        "  two  spaces ",
    ],
)
def test_other_text_is_unchanged_character_by_character(text: str) -> None:
    assert expand(text) == text


def test_a_pronunciation_given_in_the_notation_of_misaki_is_kept() -> None:
    link = "[Kokoro 2.0](/kˈOkəɹO/)"
    assert expand(f"{link} costs $5.") == f"{link} costs five dollars."


def test_only_initialisms_with_periods_are_hyphenated() -> None:
    assert hyphenate_initialisms("The U.S. and the U.K. won.") == "The U-S and the U-K won."
    assert hyphenate_initialisms('He said "U.S.A."') == 'He said "U-S-eh."'
    assert hyphenate_initialisms("The U.S.A won, U.K") == "The U-S-eh won, U-K"
    assert hyphenate_initialisms("J. R. Smith... x.y. I. It.") == "J. R. Smith... x-y I. It."


@pytest.mark.parametrize("written", ["L.A. is", "An A.I. is", "The U.S.A. won", "A.B.C.", "The D.A.'s"])
def test_the_letter_a_of_an_initialism_is_spoken_by_its_name(written: str, espeak: Phonemizer) -> None:
    # "A" is the phoneme of the letter's name, "ɐ" that of the article.
    spoken = espeak(written.split(maxsplit=1)[-1] if written.startswith(("An", "The")) else written)
    assert "A" in spoken
    assert "ɐ" not in spoken


def test_the_grammars_are_loaded_only_when_they_are_needed() -> None:
    code = (
        "import sys; from nuanced_core.text.normalization import expand; expand('Plain words.'); "
        "print('damga' in sys.modules); expand('5'); print('damga' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True"]
