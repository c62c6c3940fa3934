"""nuanced_core.config.settings: immutable settings, constraints between them, and paths with ``~``."""

from typing import Any

import pytest

from nuanced_core.config.settings import PEOPLE_TERMS, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.errors import ConfigError


def test_settings_are_immutable() -> None:
    config = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"data": {"val_voices": ["af_sky", "am_puck", "af_sky"]}}, "data.val_voices: .*af_sky is listed twice"),
        ({"features": {"layers": [1, 2, 1]}}, "features.layers: .*1 is listed twice"),
        ({"augment": {"snr_db": [20, 10]}}, "augment: .*the lowest comes first"),
        ({"encoder": {"pooling": "attentive", "heads": 4, "frame_width": 2}}, "4 heads cannot share 2 channels"),
        ({"features": {"channel": "mean"}}, "features.channel mean removes the mean of each clip"),
        ({"train": {"speak_every": 2}, "loss": {"style": 0}}, "train.speak_every 2: without loss.style"),
        ({"loss": {"stft": 0, "style": 0}}, "loss: .*all weights are 0.*raise one of them"),
        ({"objective": {"stft": 0, "style": 0}}, "objective: .*all weights are 0.*raise one of them"),
        ({"loss": {"speaker_encoders": ["campplus", "campplus"]}}, "loss.speaker_encoders: .*campplus is listed twice"),
        (
            {"encoder": {"surrogate_steps": 5}, "features": {"pitch": True}},
            "encoder.surrogate_steps 5: .*features.speaker none; name a speaker encoder there, or set it to 0",
        ),
        *(
            (
                {"loss": {term: 0.5}},
                f"loss.{term} needs recordings of people; set data.people to a folder .* or set it to 0",
            )
            for term in PEOPLE_TERMS
        ),
        ({"objective": {"people": 1}}, "objective.people needs recordings of people; set data.people"),
        ({"objective": {"pitch": 1}}, "objective.pitch needs recordings of people; set data.people"),
        (
            {
                "data": {"people": "~/people"},
                "loss": {"surrogate": 1, "speaker_encoders": ["campplus", "resemblyzer"]},
                "objective": {"people": 1},
            },
            "objective.people_encoder resemblyzer judges what loss.speaker_encoders trains.*choose different ones",
        ),
        (
            {
                "data": {"people": "people"},
                "features": {"speaker": "all"},
                "encoder": {"surrogate_steps": 5},
                "objective": {"people": 1},
            },
            "objective.people_encoder resemblyzer judges what encoder.surrogate_steps approach.*features.speaker all",
        ),
        (
            {
                "data": {"people": "~/people"},
                "loss": {"speaker_encoders": ["resemblyzer"]},
                "mixes": {"found": 5},
                "objective": {"people": 1},
            },
            "objective.people_encoder resemblyzer judges what loss.speaker_encoders trains.*choose different ones",
        ),
        ({"mixes": {"found": 5}}, "mixes.found needs recordings of people; set data.people"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(RunConfig, data, "sweep.yaml")


@pytest.mark.parametrize(
    "data",
    [
        {"encoder": {"surrogate_steps": 5}, "features": {"speaker": "campplus"}},
        {"data": {"people": "people"}, "loss": {"stft": 0, "style": 0, "prior": 1}},
        {"data": {"people": "people"}, "objective": {"stft": 0, "style": 0, "people": 1}},
        # The judge may be an encoder that no term of the loss uses, or of terms without a weight.
        {"data": {"people": "people"}, "loss": {"speaker": 1}, "objective": {"people": 1}},
        {"data": {"people": "people"}, "loss": {"speaker_encoders": ["resemblyzer"]}, "objective": {"people": 1}},
        {"data": {"people": "people"}, "loss": {"speaker": 1}, "objective": {"people_encoder": "campplus"}},
    ],
)
def test_settings_that_fit_together_are_accepted(data: dict[str, Any]) -> None:
    found = validate(RunConfig, data, "sweep.yaml").model_dump(mode="json")
    for section, values in data.items():
        assert {name: found[section][name] for name in values} == values


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, ()),
        ({"features": {"speaker": "all"}}, ("campplus", "resemblyzer")),
        ({"features": {"pitch": True}}, ("pitch",)),
        ({"features": {"speaker": "resemblyzer"}, "encoder": {"surrogate_steps": 1}}, ("resemblyzer", "pitch")),
        ({"data": {"people": "people"}, "loss": {"surrogate": 1}}, ("campplus", "pitch")),
        (
            {
                "data": {"people": "people"},
                "loss": {"surrogate": 1},
                "features": {"speaker": "all", "pitch": True},
                "encoder": {"surrogate_steps": 1},
            },
            ("campplus", "resemblyzer", "pitch"),
        ),
        ({"data": {"people": "people"}, "loss": {"speaker": 1, "pitch": 1}}, ()),
    ],
)
def test_parts_of_a_clip_are_those_that_a_run_uses_each_once(data: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert validate(RunConfig, data, "sweep.yaml").clip_parts == expected


def test_terms_of_people_are_those_with_a_weight() -> None:
    data = {"data": {"people": "people"}, "loss": {"rate": 0.1, "speaker": 1, "f0": 1}}
    assert validate(RunConfig, data, "sweep.yaml").loss.of_people == ("speaker", "rate")
    assert RunConfig().loss.of_people == ()


@pytest.mark.parametrize(("section", "name"), [("models", "source"), ("data", "sentences"), ("data", "val_sentences")])
def test_paths_are_kept_as_they_are_written(section: str, name: str) -> None:
    config = validate(RunConfig, {section: {name: "~/mine"}}, "sweep.yaml")
    assert getattr(getattr(config, section), name) == "~/mine"
