"""nuanced_core.exhibits.pictures: each picture is a PNG that shows what it is drawn of."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nuanced_core.exhibits.exhibit import Picture
from nuanced_core.exhibits.pictures import (
    Curves,
    Word,
    attention,
    curves,
    small_spectrogram,
    spectrograms,
    split_words,
    style_map,
)


def pixels(picture: Picture) -> np.ndarray:
    image = Image.open(io.BytesIO(picture.png))
    assert image.format == "PNG"
    assert image.size == (picture.width, picture.height)
    assert len(picture.png) < 200_000
    return np.asarray(image.convert("RGB")).astype(int)


def tone(hertz: float, seconds: float = 1.0, rate: int = 24_000) -> Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_a_small_spectrogram_has_high_tones_above_low_ones(rate: int) -> None:
    places = []
    for hertz in (300, 3000):
        picture = small_spectrogram("tone", tone(hertz, rate=rate), rate)
        assert (picture.width, picture.height) == (101, 80)  # a pixel per 10 ms, and per band
        brightness = pixels(picture).sum(axis=2)[:, 20:80].mean(axis=1)
        places.append(int(brightness.argmax()))
    assert places[1] < places[0] - 20  # row 0 is at the top


def test_spectrograms_of_equal_sounds_differ_by_nothing() -> None:
    low, high = tone(200) + tone(400), tone(3000)
    same, other = (pixels(spectrograms("a/spectrograms", audio, low)) for audio in (low, high))
    rows = slice(int(same.shape[0] * 0.68), int(same.shape[0] * 0.88))  # of the difference
    columns = slice(80, int(same.shape[1] * 0.8))
    assert same[rows, columns].reshape(-1, 3).std(axis=0).max() < 10
    assert other[rows, columns].reshape(-1, 3).std(axis=0).max() > 40


def test_curves_show_predicted_and_reference() -> None:
    time = torch.arange(160) / 80
    flat, rising = Curves(torch.full((160,), 100.0), time), Curves(100 + 100 * time, time)
    unvoiced = Curves(torch.zeros(160), time)
    drawn = [pixels(curves("curves", one, flat)) for one in (flat, rising, unvoiced)]
    assert (drawn[0] != drawn[1]).any()
    blue = [((image[: image.shape[0] // 2] - [0, 114, 178]).__abs__().sum(axis=2) < 60).sum() for image in drawn]
    assert blue[2] < blue[1]  # where nothing is voiced, no F0 is drawn (only the legend)


def test_attention_is_drawn_above_the_words() -> None:
    words = [Word("one", 0.0, 0.5), Word("two", 0.5, 1.0)]
    even = torch.full((50, 2), 1 / 50)
    peak = torch.nn.functional.one_hot(torch.tensor([25, 10]), 50).T.float()
    drawn = [pixels(attention("attention", weights, words, 1.0)) for weights in (even, peak)]
    assert (drawn[0] != drawn[1]).any()
    without = pixels(attention("attention", even, [], 1.0))
    below = slice(int(0.7 * without.shape[0]), None)
    assert (drawn[0][below] < 128).sum() > (without[below] < 128).sum()


def test_the_map_of_styles_shows_voices_and_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    stock = {f"voice_{i}": torch.randn(256, generator=generator) for i in range(6)}
    true = stock["voice_0"] * 0.9
    near, far = style_map("map", stock, [("a", true, true)]), style_map("map", stock, [("a", -3 * true, true)])
    assert (near.width, near.height) == (far.width, far.height)
    assert (pixels(near) != pixels(far)).any()
    with_person = style_map("map", stock, [("a", true, true), ("1034", true * 2, None)])
    green = (np.abs(pixels(with_person) - [0, 158, 115]).sum(axis=2) < 30).sum()
    assert green > (np.abs(pixels(near) - [0, 158, 115]).sum(axis=2) < 30).sum()


def test_words_have_the_times_of_their_phonemes() -> None:
    seconds = [0.5, *([0.1] * 9), 0.3]  # of the boundary, 4 + 1 + 4 tokens, the boundary
    words = split_words("ðɪsɪ hoʊm", "This home.", seconds)
    assert [word.text for word in words] == ["This", "home."]
    assert [(word.start, word.end) for word in words] == [
        (pytest.approx(0.5), pytest.approx(0.9)),
        (pytest.approx(1.0), pytest.approx(1.4)),
    ]


def test_phonemes_stand_for_words_if_there_are_not_as_many() -> None:
    words = split_words("nɪ nɪ", "99", [0.1, *([0.1] * 5), 0.1])
    assert [word.text for word in words] == ["nɪ", "nɪ"]
