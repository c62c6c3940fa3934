import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core.audio import KOKORO_RATE, WHISPER_RATE, resample
from nuanced_core.config.settings import Augment, Features, RunConfig
from nuanced_core.data import cache as cache_module
from nuanced_core.data.cache import Cache
from nuanced_core.data.dataset import Dataset, windows
from nuanced_core.data.utterances import Utterance
from nuanced_core.data.versions import AugmentedCopy
from nuanced_core.errors import ConfigError, DiskError
from nuanced_core.hashing import derived_seed
from nuanced_core.hearing.augmentation import degraded
from nuanced_core.hearing.pitch import pitch_statistics, track_pitch
from nuanced_core.hearing.speaker_features import speaker_features
from tests.fakes import FakeSpeakerEncoder
from tests.nuanced_core.data.conftest import plan_with


@pytest.fixture
def dataset(fakes: SimpleNamespace, tmp_path: Path) -> Dataset:
    return Dataset(fakes, tmp_path / "cache")


def test_features_of_a_condition_are_computed_once_and_0_is_clean(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    utterances, _ = plan_with(fakes, tiny_run)
    (clip,) = dataset.clips(utterances[:1], (0, "clean", "telephone"))
    assert fakes.whisper.heard == 2
    clean, same, telephone = (dataset.batch([clip], (0, 1), [v]).features for v in (0, "clean", "telephone"))
    assert fakes.whisper.heard == 2
    assert torch.equal(clean, same)
    audio = degraded(resample(clip.audio, 24_000, 16_000), 16_000, "telephone", 0)
    torch.testing.assert_close(telephone[0], fakes.whisper(audio)[:2].half().float())
    assert not torch.equal(clean, telephone)
    assert dataset.missing(utterances[:1], ("room",)) == utterances[:1]


def test_targets_may_be_of_other_clips_than_the_features(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig
) -> None:
    clips = dataset.clips(plan_with(fakes, tiny_run)[0][:2])
    batch = dataset.batch(clips, (0,), target_clips=clips[::-1])
    assert torch.equal(batch.features, dataset.batch(clips, (0,)).features)
    assert batch.phoneme_counts.tolist() == [clip.utterance.phoneme_count for clip in clips[::-1]]
    assert torch.equal(batch.styles, torch.stack([clip.utterance.style for clip in clips[::-1]]))


def test_clips_and_features_are_computed_once(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, val = plan_with(fakes, tiny_run)
    first = dataset.clips(train + val)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (12, 12)
    again = Dataset(fakes, dataset.folder).clips(train + val)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (12, 12)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.audio, b.audio) and torch.equal(a.token_frames, b.token_frames)
    # A changed setting renders only what it changes.
    dataset.clips(plan_with(fakes, tiny_run, voices=["af_heart", "af_nicole"])[0])
    assert fakes.kokoro.spoken == 14
    fakes.whisper_file.sha256 = "another"
    dataset.clips(train)
    assert (fakes.kokoro.spoken, fakes.whisper.heard) == (14, 22)


def test_damaged_clip_is_rendered_again(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = plan_with(fakes, tiny_run)
    clip = dataset.clips(train[:1])[0]
    (entry,) = (dataset.folder / "clips").rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:50])
    assert torch.equal(dataset.clips(train[:1])[0].audio, clip.audio)
    assert fakes.kokoro.spoken == 2


@pytest.mark.parametrize("kind", ["clips", "features", "windows"])
def test_flipped_bit_is_detected_and_repaired(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def load() -> list[torch.Tensor]:
        monkeypatch.setattr(cache_module, "_verified", set())  # as in another process
        dataset = Dataset(fakes, tmp_path / "cache")
        clip = dataset.clips(plan_with(fakes, tiny_run)[0][:1])[0]
        return [clip.audio, dataset.batch([clip], (0, 1, 2)).features, dataset.reference(clip, (0, 16))]

    before = load()
    (entry,) = (tmp_path / "cache" / kind).rglob("*.safetensors")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-40] + bytes([whole[-40] ^ 4]) + whole[-39:])
    work = fakes.kokoro.spoken + fakes.whisper.heard
    for a, b in zip(load(), before, strict=True):
        assert torch.equal(a, b)
    assert fakes.kokoro.spoken + fakes.whisper.heard == work + 1
    load()
    assert fakes.kokoro.spoken + fakes.whisper.heard == work + 1


def _features_of_versions(dataset: Dataset, utterances: list[Utterance]) -> list[torch.Tensor]:
    (clip,) = dataset.clips(utterances[:1], dataset.versions)
    return [dataset.batch([clip], (0, 2), [version]).features for version in dataset.versions]


def test_each_copy_is_augmented_differently_by_the_settings(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, _ = plan_with(fakes, tiny_run)
    settings = Augment(copies=2, noise=1.0)
    dataset = Dataset(fakes, tmp_path / "cache", settings)
    clean, first, second = _features_of_versions(dataset, train)
    assert clean.shape == first.shape == second.shape
    assert not torch.allclose(first, clean) and not torch.allclose(first, second)
    (clip,) = dataset.clips(train[:1])
    assert torch.equal(dataset.batch([clip], (0, 2)).features, clean)
    audio = resample(clip.audio, KOKORO_RATE, WHISPER_RATE)
    assert torch.equal(clean[0], fakes.whisper(audio).half().float()[[0, 2]])
    # With a gain alone the result is known, except for the gain.
    louder = Dataset(
        fakes, tmp_path / "cache", Augment(copies=1, equaliser_db=0, noise=0, reverb=0, codec=0, band_limit=0)
    )
    _, changed = _features_of_versions(louder, train)
    gain = (changed.norm() / clean.norm()).item()
    assert 0.5 <= gain <= 2 and abs(gain - 1) > 1e-3
    torch.testing.assert_close(changed, clean * gain, rtol=5e-3, atol=1e-3)
    both = dataset.batch([clip, clip], (0, 2), [2, 0]).features
    assert torch.equal(both, torch.cat([second, clean]))


def test_a_larger_number_of_copies_includes_the_smaller_but_other_settings_do_not(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, val = plan_with(fakes, tiny_run)

    def computed(augment: Augment) -> int:
        before = fakes.whisper.heard
        dataset = Dataset(fakes, tmp_path / "cache", augment)
        missing = dataset.missing(train, dataset.versions)
        dataset.clips(train, dataset.versions)
        dataset.clips(val)
        assert bool(missing) == (fakes.whisper.heard > before)
        return int(fakes.whisper.heard - before)

    assert computed(Augment(copies=0)) == 12
    assert computed(Augment(copies=1)) == 8
    assert computed(Augment(copies=3)) == 16
    assert computed(Augment(copies=2)) == 0
    assert computed(Augment(copies=1, reverb=0.9)) == 8
    assert fakes.kokoro.spoken == 12


def test_missing_utterances_lack_a_clip_or_a_version(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, _ = plan_with(fakes, tiny_run)
    dataset = Dataset(fakes, tmp_path / "cache", Augment(copies=2))
    assert dataset.missing(train) == train
    dataset.clips(train[:3])
    dataset.clips(train[:1], dataset.versions)
    assert dataset.missing(train) == train[3:]
    assert dataset.missing(train, dataset.versions) == train[1:]
    assert dataset.missing(train[:1] * 2 + train[5:6] * 2) == train[5:6]


def test_versions_with_settings_mean_the_same_to_a_dataset_with_others(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    train, _ = plan_with(fakes, tiny_run)
    dataset = Dataset(fakes, tmp_path / "cache", Augment(copies=2, noise=1.0))
    versions = dataset.with_settings((0, 1, 2, "room"))
    settings = Augment(copies=0, noise=1.0)
    assert versions == (0, AugmentedCopy(settings, 1), AugmentedCopy(settings, 2), "room")
    other = Dataset(fakes, tmp_path / "cache")
    (clip,) = other.clips(train[:1], versions)
    assert fakes.whisper.heard == 4
    assert dataset.missing(train[:1], (0, 1, 2, "room")) == []
    for version, with_settings in zip((0, 1, 2), versions, strict=False):
        features = other.batch([clip], (0,), [with_settings]).features
        assert torch.equal(features, dataset.batch([clip], (0,), [version]).features)
        Dataset(fakes, tmp_path / "again", dataset.augment).clips(train[:1], [version])
        again = Dataset(fakes, tmp_path / "again", dataset.augment).batch([clip], (0,), [version]).features
        assert torch.equal(features, again)


def test_statistics_use_the_versions_in_turn(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> None:
    dataset = Dataset(fakes, tmp_path / "cache", Augment(copies=2))
    clips = dataset.clips(plan_with(fakes, tiny_run)[0])
    batch = dataset.batch(clips, (0, 1), [0, 1, 2, 0, 1, 2, 0, 1])
    frames = torch.cat([f[:, m] for f, m in zip(batch.features, batch.mask, strict=True)], dim=1)
    torch.testing.assert_close(dataset.statistics(clips, (0, 1)).mean, frames.mean(dim=1), rtol=1e-4, atol=1e-5)


def test_batches_are_padded_and_masked(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    train, _ = plan_with(fakes, tiny_run)
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
    clips = dataset.clips(plan_with(fakes, tiny_run)[0])
    batch = dataset.batch(clips, (0, 1))
    frames = torch.cat([f[:, m] for f, m in zip(batch.features, batch.mask, strict=True)], dim=1)
    statistics = dataset.statistics(clips, (0, 1))
    torch.testing.assert_close(statistics.mean, frames.mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(statistics.std, frames.std(dim=1, correction=0), rtol=1e-3, atol=1e-4)


def test_layers_by_name(dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig) -> None:
    (clip,) = dataset.clips(plan_with(fakes, tiny_run)[0][:1])
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


def test_full_disk_is_an_error(
    dataset: Dataset, fakes: SimpleNamespace, tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nuanced_core.data.cache.save_file", full)
    with pytest.raises(DiskError, match="No space left"):
        dataset.clips(plan_with(fakes, tiny_run)[0])
    assert not [p for p in dataset.folder.rglob("*") if p.is_file()]


def _speaking(fakes: SimpleNamespace, folder: Path, *parts: str) -> Dataset:
    return Dataset(fakes, folder / "cache", Augment(copies=1), parts)


def test_parts_of_each_version_are_computed_once(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> None:
    utterances = plan_with(fakes, tiny_run)[0][:2]
    dataset = _speaking(fakes, tmp_path, "campplus", "resemblyzer", "pitch")
    versions = (0, 1, "telephone")
    plain = Dataset(fakes, tmp_path / "cache", Augment(copies=1))
    plain.clips(utterances, versions)
    assert plain.missing(utterances, versions) == [] and fakes.speakers.used == {}
    assert dataset.missing(utterances, versions) == utterances
    clips = dataset.clips(utterances, versions)
    assert fakes.speakers.embedded == 2 * 2 * 3
    assert dataset.missing(utterances, versions) == [] and dataset.missing(utterances, ("room",)) == utterances
    again = _speaking(fakes, tmp_path, "campplus", "resemblyzer", "pitch")
    settings = Features(speaker="all", pitch=True)
    batch = again.batch(again.clips(utterances, versions), (0,), [1, "telephone"], speaker=settings)
    assert fakes.speakers.embedded == 2 * 2 * 3
    assert batch.speaker is not None and batch.speaker.shape == (2, 192 + 256 + 2)
    assert not torch.equal(dataset.part(clips[0], 1, "campplus"), dataset.part(clips[0], 0, "campplus"))


def test_parts_are_those_of_the_audio_of_a_version(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> None:
    dataset = _speaking(fakes, tmp_path, "campplus", "pitch")
    (clip,) = dataset.clips(plan_with(fakes, tiny_run)[0][:1])
    audio = resample(clip.audio, KOKORO_RATE, WHISPER_RATE)
    telephone = degraded(audio, WHISPER_RATE, "telephone", derived_seed(clip.key, "telephone"))
    for version, heard in ((0, audio), ("telephone", telephone)):
        embedding = FakeSpeakerEncoder("campplus").embed(heard, WHISPER_RATE)
        torch.testing.assert_close(dataset.part(clip, version, "campplus"), embedding)  # type: ignore[arg-type]
        pitch = torch.stack(pitch_statistics(track_pitch(heard, WHISPER_RATE)))
        torch.testing.assert_close(dataset.part(clip, version, "pitch"), pitch)  # type: ignore[arg-type]
    f0 = fakes.kokoro.prosody(fakes.kokoro.encode_text([clip.utterance.phonemes]), clip.utterance.style[None]).f0
    assert float(dataset.part(clip, 0, "pitch")[0]) == pytest.approx(math.log2(f0[0, 0]), abs=0.05)
    settings = Features(speaker="campplus", pitch=True)
    expected = speaker_features(settings, {name: dataset.part(clip, 0, name) for name in ("campplus", "pitch")})
    batch = dataset.batch([clip], (0,), speaker=settings)
    assert batch.speaker is not None and torch.equal(batch.speaker[0], expected)
    assert dataset.batch([clip], (0,), speaker=Features()).speaker is None


def test_key_of_a_part_depends_on_the_encoder_s_weights_and_the_version(
    fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path
) -> None:
    def embedded() -> int:
        before = fakes.speakers.embedded
        clips = _speaking(fakes, tmp_path, "campplus", "pitch").clips(utterances, versions)
        assert len(clips) == 1
        return fakes.speakers.embedded - before

    utterances, versions = plan_with(fakes, tiny_run)[0][:1], (0, 1, "snr10")
    assert (embedded(), embedded()) == (3, 0)
    fakes.speakers.hashes["resemblyzer"] = "another"
    assert embedded() == 0
    fakes.speakers.hashes["campplus"] = "another"
    assert (embedded(), embedded()) == (3, 0)
    entries = [entry for entry in Cache(tmp_path / "cache").entries() if entry.kind == "speakers"]
    assert len(entries) == 2 * 3 + 3  # pitch depends on no encoder
    louder = Dataset(fakes, tmp_path / "cache", Augment(copies=1, gain_db=20), ("campplus",))
    louder.clips(utterances, versions)
    assert fakes.speakers.embedded == 6 + 1  # the augmented copy


def test_damaged_part_is_computed_again(fakes: SimpleNamespace, tiny_run: RunConfig, tmp_path: Path) -> None:
    dataset = _speaking(fakes, tmp_path, "campplus")
    (clip,) = dataset.clips(plan_with(fakes, tiny_run)[0][:1])
    expected = dataset.part(clip, 0, "campplus").clone()
    (entry,) = (tmp_path / "cache" / "speakers").rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:50])
    assert torch.equal(_speaking(fakes, tmp_path).part(clip, 0, "campplus"), expected)
    assert fakes.speakers.embedded == 2
