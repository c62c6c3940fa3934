from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Augment, Data, Mixes, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data import cache as cache_module
from nuanced_core.data.dataset import Dataset, windows
from nuanced_core.data.utterances import Utterance, plan, styles
from nuanced_core.errors import ConfigError, DiskError, TextError, VoiceError
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.kokoro.voices import VoiceBank


@pytest.fixture
def dataset(fakes: SimpleNamespace, tmp_path: Path) -> Dataset:
    return Dataset(fakes, tmp_path / "cache")


KINDS = ("blend", "half-blend", "swap", "step", "half-step")
MIXES = Mixes(blends=2, half_blends=2, swaps=2, steps=2, half_steps=2, members=3, sentences=2)


def _plan(fakes: SimpleNamespace, tiny_run: RunConfig, mixes: Mixes = Mixes(), **changes: object):  # type: ignore[no-untyped-def]  # noqa: B008
    data = validate(Data, {**tiny_run.data.model_dump(mode="json"), **changes}, "x")
    return plan(data, mixes, fakes.voices, fakes.phonemizer)


def _said(utterances: list[Utterance]) -> list[tuple[object, ...]]:
    return [(u.voice, u.text, u.phonemes, u.seed, *u.style.tolist()) for u in utterances]


def test_no_voice_and_no_sentence_is_on_both_sides(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, val = _plan(fakes, tiny_run)
    assert len(train) == 8 and len(val) == 4
    assert not {u.voice for u in train} & {u.voice for u in val}
    assert not {u.text for u in train} & {u.text for u in val}
    for u in train + val:
        assert torch.equal(u.style, fakes.voices.style(u.voice, len(u.phonemes)))
    assert len({u.seed for u in train + val}) == 12


def test_the_order_of_sentences_and_voices_changes_nothing_on_the_other_side(
    fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    _, val = _plan(fakes, tiny_run)
    for changes in (
        {"sentences": ["A blue window.", "Red door."]},
        {"voices": ["am_michael", "af_bella", "af_heart"]},
        {"sentences_per_voice": 1},
    ):
        assert [(u.voice, u.text, u.seed) for u in _plan(fakes, tiny_run, **changes)[1]] == [
            (u.voice, u.text, u.seed) for u in val
        ]


def test_every_training_voice_has_a_style_for_each_phoneme_count(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = _plan(fakes, tiny_run, MIXES)
    data = validate(Data, tiny_run.data.model_dump(mode="json"), "x")
    found = styles(data, MIXES, fakes.voices)
    assert set(found) == {u.voice for u in train}
    for u in train:
        assert torch.equal(found[u.voice](u.phoneme_count), u.style)
    assert not torch.equal(found["blend-0000"](3), found["blend-0000"](300))


def test_a_clip_is_degraded_by_name_once_and_the_clean_one_has_two_names(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    utterances, _ = _plan(fakes, tiny_run)
    (clip,) = dataset.clips(utterances[:1], (0, "clean", "telephone"))
    assert fakes.whisper.heard == 2
    clean, same, telephone = (dataset.batch([clip], (0, 1), [v]).features for v in (0, "clean", "telephone"))
    assert fakes.whisper.heard == 2
    assert torch.equal(clean, same)
    audio = degraded(resample(clip.audio, 24_000, 16_000), 16_000, "telephone", 0)
    torch.testing.assert_close(telephone[0], fakes.whisper(audio)[:2].half().float())
    assert not torch.equal(clean, telephone)
    assert dataset.missing(utterances[:1], ("room",)) == utterances[:1]


def test_what_is_spoken_may_differ_from_what_is_heard(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    clips = dataset.clips(_plan(fakes, tiny_run)[0][:2])
    heard = dataset.batch(clips, (0,), spoken=clips[::-1])
    assert torch.equal(heard.features, dataset.batch(clips, (0,)).features)
    assert heard.phoneme_counts.tolist() == [clip.utterance.phoneme_count for clip in clips[::-1]]
    assert torch.equal(heard.styles, torch.stack([clip.utterance.style for clip in clips[::-1]]))


def test_mixes_speak_training_sentences_beside_the_stock_voices(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    stock, val = _plan(fakes, tiny_run)
    train, val_beside_mixes = _plan(fakes, tiny_run, MIXES)
    assert _said(train[: len(stock)]) == _said(stock) and _said(val_beside_mixes) == _said(val)
    mixed = train[len(stock) :]
    assert [u.voice for u in mixed[::2]] == [f"{kind}-{i:04}" for kind in KINDS for i in (0, 1)]
    assert len(mixed) == 20 and {u.text for u in mixed} == {"Red door.", "A blue window."}
    assert len({u.seed for u in train + val}) == len(train) + len(val)
    styles = torch.stack([u.style for u in train])
    assert (torch.cdist(styles, styles) + torch.eye(len(train)) > 0.1).all()


def test_more_mixes_keep_the_fewer(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    few = _said(_plan(fakes, tiny_run, MIXES)[0])
    many = _said(_plan(fakes, tiny_run, MIXES.model_copy(update={"blends": 30, "steps": 9}))[0])
    assert len(many) == 8 + 2 * 45 and set(few) < set(many)


def test_the_order_in_which_voices_are_listed_does_not_change_their_mixes(
    fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    voices = list(tiny_run.data.voices)
    assert set(_said(_plan(fakes, tiny_run, MIXES)[0])) == set(
        _said(_plan(fakes, tiny_run, MIXES, voices=voices[::-1])[0])
    )


@pytest.mark.parametrize("voices", ["american", ["af_heart", "am_fenrir", "am_michael", "af_bella"]])
def test_no_held_out_voice_is_in_a_mix(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, voices: str | list[str]
) -> None:
    paths = {name: tmp_path / "voices" / f"{name}.npy" for name in fakes.voices.names}
    paths["af_river"] = tmp_path / "af_river.npy"  # a test voice
    np.save(paths["af_river"], np.load(paths["af_heart"]))
    fakes.voices = VoiceBank(paths)
    before = _said(_plan(fakes, tiny_run, MIXES, voices=voices)[0])
    for held_out in ("af_river", "af_sky", "bm_lewis"):
        np.save(paths[held_out], np.full((510, 1, 256), np.nan, np.float32))
    fakes.voices = VoiceBank(paths)
    assert _said(_plan(fakes, tiny_run, MIXES, voices=voices)[0]) == before


def test_mixes_of_too_many_members_are_told(fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"mixes\.members: 5: there are 4 training voices"):
        _plan(fakes, tiny_run, Mixes(blends=1, members=5))


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"voices": ["af_heart", "af_sky"]}, ConfigError, "af_sky is a validation voice too"),
        ({"val_sentences": ["Red door.", "No rain."]}, ConfigError, "'Red door.' is a training sentence too"),
        ({"val_sentences": ["No rain.", "RED, door!"]}, ConfigError, "'RED, door!' is a training sentence too"),
        ({"val_sentences": ["No rain."]}, ConfigError, r"data.val_sentences: 'No rain.' is the only one"),
        ({"sentences": "test"}, ConfigError, r"data.sentences: '.*' is a test sentence"),
        ({"val_sentences": "test"}, ConfigError, r"data.val_sentences: '.*' is a test sentence"),
        ({"val_voices": ["af_sky", "af_sky"]}, ConfigError, "val_voices: .*af_sky stands twice"),
        ({"sentences": []}, TextError, "data.sentences"),
        ({"val_voices": ["af_hart"]}, VoiceError, "af_hart"),
        ({"max_phonemes": 4}, ConfigError, "data.max_phonemes: 4: no sentence"),
    ],
)
def test_bad_data_is_told(
    fakes: SimpleNamespace, tiny_run: RunConfig, changes: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        _plan(fakes, tiny_run, **changes)


def test_everything_is_rendered_once(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, val = _plan(fakes, tiny_run)
    first = dataset.clips(train + val)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (12, 12)
    again = Dataset(fakes, dataset.folder).clips(train + val)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (12, 12)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.audio, b.audio) and torch.equal(a.token_frames, b.token_frames)
    # A changed setting renders only what it changes.
    dataset.clips(_plan(fakes, tiny_run, voices=["af_heart", "af_nicole"])[0])
    assert fakes.kokoro.spoken == 14
    fakes.whisper_file.sha256 = "another"
    dataset.clips(train)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (14, 22)


def test_a_damaged_entry_is_rendered_again(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = _plan(fakes, tiny_run)
    clip = dataset.clips(train[:1])[0]
    (entry,) = (dataset.folder / "clips").rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:50])
    assert torch.equal(dataset.clips(train[:1])[0].audio, clip.audio)
    assert fakes.kokoro.spoken == 2


@pytest.mark.parametrize("kind", ["clips", "features", "windows"])
def test_a_flipped_bit_is_noticed_and_mended(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def heard() -> list[torch.Tensor]:
        monkeypatch.setattr(cache_module, "_verified", set())  # as another process has it
        dataset = Dataset(fakes, tmp_path / "cache")
        clip = dataset.clips(_plan(fakes, tiny_run)[0][:1])[0]
        return [clip.audio, dataset.batch([clip], (0, 1, 2)).features, dataset.reference(clip, (0, 16))]

    before = heard()
    (entry,) = (tmp_path / "cache" / kind).rglob("*.safetensors")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-40] + bytes([whole[-40] ^ 4]) + whole[-39:])
    work = fakes.kokoro.spoken + fakes.whisper.heard
    for a, b in zip(heard(), before, strict=True):
        assert torch.equal(a, b)
    assert fakes.kokoro.spoken + fakes.whisper.heard == work + 1
    heard()
    assert fakes.kokoro.spoken + fakes.whisper.heard == work + 1


def _versions(dataset: Dataset, utterances: list[Utterance]) -> list[torch.Tensor]:
    (clip,) = dataset.clips(utterances[:1], dataset.versions)
    return [dataset.batch([clip], (0, 2), [version]).features for version in dataset.versions]


def test_versions_are_augmented_as_the_settings_say_each_in_its_own_way(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, _ = _plan(fakes, tiny_run)
    settings = Augment(copies=2, noise=1.0)
    dataset = Dataset(fakes, tmp_path / "cache", settings)
    clean, first, second = _versions(dataset, train)
    assert clean.shape == first.shape == second.shape
    assert not torch.allclose(first, clean) and not torch.allclose(first, second)
    (clip,) = dataset.clips(train[:1])
    assert torch.equal(dataset.batch([clip], (0, 2)).features, clean)
    audio = resample(clip.audio, KOKORO_RATE, WHISPER_RATE)
    assert torch.equal(clean[0], fakes.whisper(audio).half().float()[[0, 2]])
    # As a gain alone it is known what comes out, but for its size.
    louder = Dataset(
        fakes, tmp_path / "cache", Augment(copies=1, equaliser_db=0, noise=0, reverb=0, codec=0, band_limit=0)
    )
    _, changed = _versions(louder, train)
    gain = (changed.norm() / clean.norm()).item()
    assert 0.5 <= gain <= 2 and abs(gain - 1) > 1e-3
    torch.testing.assert_close(changed, clean * gain, rtol=5e-3, atol=1e-3)
    both = dataset.batch([clip, clip], (0, 2), [2, 0]).features
    assert torch.equal(both, torch.cat([second, clean]))


def test_more_copies_keep_the_fewer_and_other_settings_do_not(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, val = _plan(fakes, tiny_run)

    def heard(augment: Augment) -> int:
        before = fakes.whisper.heard
        dataset = Dataset(fakes, tmp_path / "cache", augment)
        missing = dataset.missing(train, dataset.versions)
        dataset.clips(train, dataset.versions)
        dataset.clips(val)
        assert bool(missing) == (fakes.whisper.heard > before)
        return int(fakes.whisper.heard - before)

    assert heard(Augment(copies=0)) == 12
    assert heard(Augment(copies=1)) == 8
    assert heard(Augment(copies=3)) == 16
    assert heard(Augment(copies=2)) == 0
    assert heard(Augment(copies=1, reverb=0.9)) == 8
    assert fakes.kokoro.spoken == 12


def test_what_is_missing_is_what_lacks_a_sound_or_a_version(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, _ = _plan(fakes, tiny_run)
    dataset = Dataset(fakes, tmp_path / "cache", Augment(copies=2))
    assert dataset.missing(train) == train
    dataset.clips(train[:3])
    dataset.clips(train[:1], dataset.versions)
    assert dataset.missing(train) == train[3:]
    assert dataset.missing(train, dataset.versions) == train[1:]
    assert dataset.missing(train[:1] * 2 + train[5:6] * 2) == train[5:6]


def test_statistics_hear_the_versions_in_turn(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> None:
    dataset = Dataset(fakes, tmp_path / "cache", Augment(copies=2))
    clips = dataset.clips(_plan(fakes, tiny_run)[0])
    batch = dataset.batch(clips, (0, 1), [0, 1, 2, 0, 1, 2, 0, 1])
    frames = torch.cat([f[:, m] for f, m in zip(batch.features, batch.mask, strict=True)], dim=1)
    torch.testing.assert_close(dataset.statistics(clips, (0, 1)).mean, frames.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_batches_are_padded_and_masked(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = _plan(fakes, tiny_run)
    clips = dataset.clips(train)
    batch = dataset.batch(clips, (0, 2))
    longest = max(-(-len(c.audio) * 2 // 3 // 320) for c in clips)
    assert batch.features.shape == (8, 2, longest, 4)
    for i, clip in enumerate(clips):
        alone = dataset.batch([clip], (0, 2))
        frames = alone.features.shape[2]
        assert batch.mask[i].sum() == frames
        torch.testing.assert_close(batch.features[i, :, :frames], alone.features[0])
        assert (batch.features[i, :, frames:] == 0).all()
    assert batch.phoneme_counts.tolist() == [len(u.phonemes) for u in train]


def test_statistics_are_those_of_all_frames(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    clips = dataset.clips(_plan(fakes, tiny_run)[0])
    batch = dataset.batch(clips, (0, 1))
    frames = torch.cat([f[:, m] for f, m in zip(batch.features, batch.mask, strict=True)], dim=1)
    statistics = dataset.statistics(clips, (0, 1))
    torch.testing.assert_close(statistics.mean, frames.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.std, frames.std(dim=1, correction=0), rtol=1e-3, atol=1e-4)


def test_layers_by_name(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    (clip,) = dataset.clips(_plan(fakes, tiny_run)[0][:1])
    assert dataset.layers("last", clip) == (2,)
    assert dataset.layers("all", clip) == (0, 1, 2)
    assert dataset.layers((1,), clip) == (1,)
    with pytest.raises(ConfigError, match=r"features.layers: \[3\]: Whisper fake has layers 0 to 2"):
        dataset.layers((3,), clip)


def test_windows_cover_a_clip() -> None:
    assert windows(100, "full") == [(0, 100)]
    assert windows(30, 40) == [(0, 30)]
    for frames, size in ((100, 40), (80, 40), (41, 40)):
        chosen = windows(frames, size)
        covered = set().union(*(range(start, start + n) for start, n in chosen))
        assert covered == set(range(frames))
        assert all(n == size for _, n in chosen)
        assert len(chosen) == -(-frames // size)


def test_a_full_disk_is_told(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nuanced_core.data.cache.save_file", full)
    with pytest.raises(DiskError, match="No space left"):
        dataset.clips(_plan(fakes, tiny_run)[0])
    assert not [p for p in dataset.folder.rglob("*") if p.is_file()]
