"""nuanced_core.exhibits.exhibition: what is shown is what the inference path gives."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core.config.settings import RunConfig, Show
from nuanced_core.data.dataset import Dataset
from nuanced_core.data.utterances import plan_utterances
from nuanced_core.encoder.recording import pooled_recording
from nuanced_core.encoder.style_encoder import StyleEncoder
from nuanced_core.exhibits.exhibit import Sound
from nuanced_core.exhibits.exhibition import Exhibition, ShownClip, StylePoint
from nuanced_core.kokoro.style_frame import StyleFrame
from tests.fakes import LivelyKokoro, random_encoder


@pytest.fixture
def dataset(fakes: SimpleNamespace, tmp_path: Path) -> Dataset:
    fakes.kokoro = LivelyKokoro()
    return Dataset(fakes, tmp_path / "cache")


@pytest.fixture
def exhibition(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> Exhibition:
    """A clip in noise, and a recording of a person."""
    utterances = plan_utterances(tiny_run.data, tiny_run.mixes, fakes.voices, fakes.phonemizer).validation
    clip, other = dataset.clips(utterances[:2])
    names = fakes.voices.training_voices("all", tiny_run.data.val_voices)
    frame = StyleFrame(torch.stack([fakes.voices.pack(name) for name in names]))
    heard = dataset.heard(other, "snr20")
    shown = [
        ShownClip("af_sky, snr20", "af_sky", "snr20", heard, clip.utterance, "am_fenrir", other, clip),
        ShownClip("person 7", "7", "recording", heard[:8000], clip.utterance, "af_bella"),
    ]
    return Exhibition(Show(), dataset, shown, frame, names)


def points(exhibition: Exhibition) -> list[StylePoint]:
    utterance = exhibition.clips[0].utterance
    return [
        StylePoint("af_sky", utterance.style * 0.5, utterance.phoneme_count, utterance.style),
        StylePoint("7", utterance.style, 9),
    ]


def encoder_for(fakes: SimpleNamespace, run: RunConfig, pooling: str = "queries") -> StyleEncoder:
    encoder = run.encoder.model_copy(update={"pooling": pooling, "heads": 2})
    return random_encoder(fakes, run.model_copy(update={"encoder": encoder})).eval()


def test_what_is_spoken_is_what_the_recording_gives(
    exhibition: Exhibition, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    encoder = encoder_for(fakes, tiny_run)
    shown = exhibition.show(encoder, points(exhibition))
    for clip, listening in zip(exhibition.clips, shown.clips, strict=True):
        count = torch.tensor([clip.utterance.phoneme_count])
        style = encoder.styles(pooled_recording(encoder, fakes, clip.heard), count)
        expected = exhibition.dataset.say(clip.utterance.phonemes, style, clip.utterance.seed)
        spoken, rate = listening.sounds["spoken"]
        assert rate == 24_000 and torch.equal(spoken, expected)
        heard, rate = listening.sounds["heard"]
        assert rate == 16_000 and torch.equal(heard, clip.heard)
    first, person = shown.clips
    assert torch.equal(first.sounds["reference"][0], exhibition.clips[0].reference.audio)  # type: ignore[union-attr]
    assert "reference" not in person.sounds
    utterance = exhibition.clips[0].utterance
    nearest = fakes.voices.style("am_fenrir", utterance.phoneme_count)[None]
    mean = exhibition.frame.mean_pack[utterance.phoneme_count - 1][None]
    for name, style in (("nearest", nearest), ("mean", mean)):
        assert torch.equal(first.sounds[name][0], exhibition.dataset.say(utterance.phonemes, style, utterance.seed))


def test_pictures_are_of_the_clip_its_attention_and_all_styles(
    exhibition: Exhibition, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    shown = exhibition.show(encoder_for(fakes, tiny_run), points(exhibition))
    names = [picture.name for picture in shown.pictures]
    assert names == [f"af_sky, snr20/{n}" for n in ("spectrograms", "F0 and energy", "attention")] + ["styles/map"]
    without = exhibition.show(encoder_for(fakes, tiny_run, "mean"), points(exhibition))
    assert "af_sky, snr20/attention" not in [picture.name for picture in without.pictures]


@pytest.mark.slow
def test_sounds_that_do_not_change_are_rendered_and_reported_once(
    exhibition: Exhibition, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    encoder = encoder_for(fakes, tiny_run)
    first = exhibition.show(encoder, points(exhibition)).all(with_fixed=True)
    before = fakes.kokoro.spoken
    shown = exhibition.show(encoder, points(exhibition))
    assert fakes.kokoro.spoken - before == 3  # spoken of both, and one on the reference's durations
    later = shown.all(with_fixed=False)
    assert {e.name for e in later if isinstance(e, Sound)} == {"af_sky, snr20/spoken", "person 7/spoken"}
    kinds = {"af_sky, snr20": ("heard", "reference", "mean", "nearest", "spoken"), "person 7": ("heard", "mean")}
    assert {f"{name}/{kind}" for name, own in kinds.items() for kind in own} <= {e.name for e in first}
    # Another run finds them in the cache.
    again = Exhibition(exhibition.settings, exhibition.dataset, exhibition.clips, exhibition.frame, exhibition.stock)
    before = fakes.kokoro.spoken
    again.show(encoder, points(exhibition))
    assert fakes.kokoro.spoken - before == 3


@pytest.mark.parametrize(
    ("every", "due"), [(0, [1, 4, 16]), (1, list(range(1, 18))), (5, [5, 10, 15])], ids=["default", "each", "fifth"]
)
def test_epochs_that_are_due(exhibition: Exhibition, every: int, due: list[int]) -> None:
    chosen = Exhibition(Show(every=every), exhibition.dataset, exhibition.clips, exhibition.frame, exhibition.stock)
    assert [epoch for epoch in range(1, 18) if chosen.is_due(epoch)] == due
    nothing = Exhibition(Show(every=every), exhibition.dataset, (), exhibition.frame, exhibition.stock)
    assert not any(nothing.is_due(epoch) for epoch in range(1, 18))
