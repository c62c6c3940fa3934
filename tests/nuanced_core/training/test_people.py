"""Runs that train on people and are scored on others, with the fakes and made-up voices."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nuanced_core.data.utterances import voice_group
from nuanced_core.encoder.surrogate import Surrogate
from nuanced_core.errors import AudioError
from nuanced_core.exhibits.exhibit import Sound
from nuanced_core.export.folder import export_encoder
from nuanced_core.people.measures import PhonemeCounter
from nuanced_core.training import people as people_module
from nuanced_core.training.run import BEST, Run
from nuanced_core.training.surrogates import load_frame, load_surrogate
from tests.fakes import LivelyKokoro
from tests.nuanced_core.people.conftest import buzz, write
from tests.nuanced_core.training.conftest import RunFactory

SPEAKERS = ("anna", "ben", "carla", "emma", "felix", "greta")  # felix is for validation, ben for the test


@pytest.fixture
def people(tmp_path: Path, fakes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that names a folder of six people."""
    monkeypatch.setattr(PhonemeCounter, "rate", lambda self, audio: 14.0)
    fakes.whisper_file.path = tmp_path / "no-whisper.pt"
    fakes.kokoro = LivelyKokoro()
    for number, name in enumerate(SPEAKERS):
        for take in range(2):
            write(tmp_path / "people" / name / f"{take}.flac", buzz(number, take))
    return f"data.people={tmp_path / 'people'}"


LOSSES = (
    *("loss.speaker=0.3", "loss.surrogate=0.5", "loss.pitch=0.3", "loss.rate=0.1", "loss.prior=0.02"),
    *("features.speaker=campplus", "features.pitch=true", "train.people=3"),
)
OBJECTIVE = ("objective.people=1", "objective.pitch=0.5")


def _finished(run: Run) -> Run:
    while not run.finished:
        run.run_epoch()
    return run


def test_every_term_is_computed_and_reported(new_run: RunFactory, people: str) -> None:
    run = new_run("a", people, *LOSSES, *OBJECTIVE, "train.speak_every=2")
    scalars = run.run_epoch()
    assert {"loss/speaker", "loss/surrogate", "loss/pitch", "loss/rate", "loss/prior"} <= scalars.keys()
    at_steps = [{*step} for _, step in new_run.reported if "loss/style" in step]
    assert ["loss/speaker" in step for step in at_steps] == [True, False, True]
    assert all("loss/surrogate" in step for step in at_steps)
    at_epoch = new_run.reported[-1][1]
    assert at_epoch["val/identity"] == scalars["val/identity"] and at_epoch["val/pitch"] >= 0


def test_people_decide_a_part_of_the_objective(new_run: RunFactory, people: str) -> None:
    with_people = new_run("a", people, *LOSSES, *OBJECTIVE).validate()
    without = new_run("b", people, *LOSSES).validate()
    part = 1 - with_people["val/identity"] + 0.5 * with_people["val/pitch"] / 12
    assert with_people["val/loss"] == pytest.approx(without["val/loss"] + part)
    mean = with_people["baseline/loss"] - with_people["oracle/loss"]
    assert with_people["val/skill"] == pytest.approx(1 - (with_people["val/loss"] - with_people["oracle/loss"]) / mean)
    assert with_people["val/noise"] > 0 and without["val/noise"] > 0
    part = 1 - with_people["baseline/identity"] + 0.5 * with_people["baseline/pitch"] / 12
    assert with_people["baseline/loss"] == pytest.approx(without["baseline/loss"] + part)


def test_the_surrogate_brings_the_voices_of_people_nearer(new_run: RunFactory, people: str) -> None:
    longer = ("train.epochs=6", "train.steps_per_epoch=20", "train.learning_rate=0.01")
    weights = ("loss.surrogate=2", "loss.stft=0", "loss.style=0.01", "features.speaker=campplus", "train.people=4")
    run = new_run("a", people, *weights, *longer)
    before = run.people_losses(0, torch.Generator().manual_seed(1))["surrogate"].item()
    _finished(run)
    run.encoder.eval()
    after = run.people_losses(0, torch.Generator().manual_seed(1))["surrogate"].item()
    assert after < 0.9 * before
    # A run that ignores people does not get there.
    ignoring = new_run("b", people, "loss.stft=0", "features.speaker=campplus", "train.people=4", *longer)
    assert ignoring.people_losses is None
    _finished(ignoring).encoder.eval()
    run.people_losses.encoder = ignoring.encoder
    run.people_losses._kept = None
    assert run.people_losses(0, torch.Generator().manual_seed(1))["surrogate"].item() > 1.05 * after


@pytest.mark.parametrize("pooling", ["mean", "attentive"])
def test_a_resumed_run_takes_the_same_steps(new_run: RunFactory, people: str, pooling: str) -> None:
    settings = (people, *LOSSES, *OBJECTIVE, f"encoder.pooling={pooling}", "augment.copies=1")
    whole = new_run("whole", *settings)
    expected = [whole.run_epoch(), whole.run_epoch()][1]
    new_run("parts", *settings).run_epoch()
    resumed = new_run("parts", *settings)
    assert resumed.run_epoch()["val/loss"] == expected["val/loss"]
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(resumed.encoder.state_dict()[name], tensor), name


def test_validation_people_are_heard_in_the_first_half_and_compared_with_the_second(
    new_run: RunFactory, people: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run("a", people, *LOSSES, *OBJECTIVE)
    validation = run.data.people_validation
    (recording,) = validation.recordings
    assert recording.speaker == "felix"
    inputs = []
    compute = people_module._inputs

    def watched(*arguments: object, **more: object) -> object:
        inputs.append(compute(*arguments, **more))  # type: ignore[arg-type]
        return inputs[-1]

    monkeypatch.setattr(people_module, "_inputs", watched)
    validation.styles(run.encoder)
    features, _, speaker = inputs[0]
    whole = run.data.people.hearing.states(recording, run.encoder.config.layers)
    assert torch.equal(features[0], whole[:, : whole.shape[1] // 2].float())
    torch.testing.assert_close(speaker[0, :192] / 192**0.5, recording.half_embeddings["campplus"][0])
    assert torch.equal(validation._compared[0], recording.half_embeddings["resemblyzer"][1])


def test_baselines_are_scored_on_people_once(new_run: RunFactory, people: str) -> None:
    run = new_run("a", people, *LOSSES, *OBJECTIVE)
    spoken = new_run.fakes.kokoro.spoken
    again = new_run("b", people, *LOSSES, *OBJECTIVE)
    assert new_run.fakes.kokoro.spoken == spoken
    baselines = run.data.people_validation.baselines
    assert set(baselines) == {"mean", "nearest", "ridge"}
    assert again.data.people_validation.baselines == baselines
    scores = run.validate()
    for row, name in (("baseline", "mean"), ("nearest", "nearest"), ("ridge", "ridge")):
        assert scores[f"{row}/identity"] == baselines[name].identity
        of_clips = scores[f"{row}/stft"] + scores[f"{row}/style"]
        assert scores[f"{row}/loss"] == pytest.approx(of_clips + run.data.people_validation.loss(baselines[name]))
    assert again.data.baselines == run.data.baselines


def test_people_are_shown_by_the_half_that_is_heard(new_run: RunFactory, people: str) -> None:
    run = new_run("a", people, *LOSSES, "show.people=1", "show.clips=1")
    run.run_epoch()
    ((_, exhibits),) = new_run.exhibits
    sounds = {exhibit.name: exhibit for exhibit in exhibits if isinstance(exhibit, Sound)}
    kinds = {name.partition("/")[2] for name in sounds if name.startswith("person felix/")}
    assert kinds == {"heard", "mean", "nearest", "spoken"}
    (recording,) = run.data.people_validation.recordings
    whole = run.data.people.hearing.audio(recording)
    assert torch.equal(sounds["person felix/heard"].audio, whole[: -(-len(whole) // 2)])
    assert run.data.exhibition.clips[1].nearest in run.data.voices
    listening = json.loads((run.folder / "listening" / "listening.json").read_text())
    assert [clip["name"] for clip in listening["clips"]] == ["af_sky, clean", "person felix"]


def test_a_folder_that_is_gone_is_one_clear_error(new_run: RunFactory, people: str, tmp_path: Path) -> None:
    new_run("a", people, *LOSSES).run_epoch()
    (tmp_path / "people").rename(tmp_path / "elsewhere")
    with pytest.raises(AudioError, match=r"data\.people: .*people: no such folder; name a folder"):
        new_run("a", people, *LOSSES)


def test_the_term_hearing_needs_whispers_states(new_run: RunFactory, people: str) -> None:
    new_run.fakes.whisper.encode_segment = lambda audio, layers: new_run.fakes.whisper(audio, layers)
    run = new_run("a", people, "loss.hearing=0.5")
    assert run.train_step()["loss/hearing"] > 0


FOUND = ("mixes.found=3", "mixes.found_rounds=2", "loss.surrogate=0.5", "features.speaker=campplus")


def test_voices_are_found_for_training_people_and_spoken(new_run: RunFactory, people: str) -> None:
    data = new_run("a", people, *FOUND, "encoder.surrogate_steps=3").data
    plain = new_run("b", people, *FOUND[2:], "encoder.surrogate_steps=3").data
    found = data.clips[len(plain.clips) :]
    assert data.clips[0].key == plain.clips[0].key and len(found) == 6 and data.mix_clips == plain.mix_clips + 6
    names = [clip.utterance.voice for clip in found]
    assert [name.rpartition("-")[2] for name in names] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert {voice_group(name) for name in names} <= {"found-anna", "found-carla", "found-emma", "found-greta"}
    assert len(data.encoder_surrogate.points) == len(data.people.surrogate.points) == len(data.clips)
    heard = {recording.speaker: recording for recording in data.people.hearing.of_split("train")}
    known = plain.clips
    for spoken in (found[:3], found[3:]):  # a round finds what the clips so far say of a person
        surrogate = load_surrogate(data.dataset, known, ("campplus",), ("af_sky", "bm_lewis"))
        for clip in spoken:
            offset = data.people.frame.offsets(clip.utterance.style[None], torch.tensor([clip.utterance.phoneme_count]))
            person = heard[voice_group(clip.utterance.voice).removeprefix("found-")]
            pitch = torch.tensor([[person.f0_median, person.f0_spread]])
            wanted = {"campplus": person.embeddings["campplus"][None]}, pitch
            assert surrogate.loss(offset, *wanted) < surrogate.loss(torch.zeros_like(offset), *wanted)
        known = [*known, *spoken]


def test_found_voices_are_found_once(new_run: RunFactory, people: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_run("a", people, *FOUND)
    scalars = first.run_epoch()

    def approach(*arguments: object) -> None:
        raise AssertionError("voices were found again")

    monkeypatch.setattr(Surrogate, "approach", approach)
    second = new_run("b", people, *FOUND)
    assert [clip.key for clip in second.data.clips] == [clip.key for clip in first.data.clips]
    assert second.run_epoch()["val/loss"] == scalars["val/loss"]


def test_found_voices_have_a_style_for_every_phoneme_count(new_run: RunFactory, people: str) -> None:
    data = new_run("a", people, *FOUND, "train.rows=any").data
    clip = data.clips[-1]
    style_of, count = data.styles[clip.utterance.voice], clip.utterance.phoneme_count
    assert torch.equal(style_of(count), clip.utterance.style)
    frame = load_frame(data.dataset, ("af_sky", "bm_lewis"))
    torch.testing.assert_close(
        frame.offsets(style_of(100)[None], torch.tensor([100])),
        frame.offsets(clip.utterance.style[None], torch.tensor([count])),
        rtol=0,
        atol=1e-4,
    )


def test_an_export_names_the_people_but_not_their_place(new_run: RunFactory, people: str, tmp_path: Path) -> None:
    run = new_run("a", people, *LOSSES)
    run.run_epoch()
    folder = export_encoder(tmp_path / "a" / BEST, tmp_path / "mine")
    card, config = (folder / "README.md").read_text(), (folder / "config.json").read_text()
    assert "on recordings of people: people." in card and str(tmp_path) not in card + config
    run = new_run("b")
    run.run_epoch()
    voices = (export_encoder(tmp_path / "b" / BEST, tmp_path / "of voices") / "README.md").read_text()
    assert "Trained on Kokoro's own voices: recordings of people" in voices
