"""tune.space: what a YAML space means to Optuna, and which spaces are refused."""

import json
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from nuanced_core.config import RunConfig
from nuanced_core.errors import ConfigError
from tune.space import Space

SPACE = {
    "encoder.width": {"low": 64, "high": 512, "log": True},
    "encoder.depth": {"low": 1, "high": 7, "step": 2},
    "encoder.dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "encoder.pooling": ["mean", "mean_std"],
    "data.voices": ["original", ["af_heart", "am_adam"]],
}


def parsed(data: Any) -> Space:
    return Space.parse(data, RunConfig(), "a.yaml")


def test_each_form_becomes_optuna_s_distribution_of_that_kind() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    params = parsed(SPACE).suggest(trial)
    assert trial.distributions == {
        "encoder.width": IntDistribution(64, 512, log=True),
        "encoder.depth": IntDistribution(1, 7, step=2),
        "encoder.dropout": FloatDistribution(0.0, 0.5, step=0.25),
        "train.learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "encoder.pooling": CategoricalDistribution(("mean", "mean_std")),
        "data.voices": CategoricalDistribution(("original", '["af_heart", "am_adam"]')),
    }
    assert {name: value for name, value in params.items() if name != "data.voices"} == {
        name: value for name, value in trial.params.items() if name != "data.voices"
    }


@pytest.mark.parametrize("choice", ["original", ["af_heart", "am_adam"]])
def test_choices_that_are_lists_come_back_as_lists(choice: Any) -> None:
    stored = choice if isinstance(choice, str) else json.dumps(choice)
    space = parsed({"data.voices": SPACE["data.voices"]})
    assert space.suggest(FixedTrial({"data.voices": stored})) == {"data.voices": choice}


def test_params_are_put_into_the_run_and_nothing_else_changes() -> None:
    run = RunConfig()
    applied = parsed(SPACE).apply(run, {"encoder.width": 100, "data.voices": ["af_heart", "am_adam"]})
    assert applied.encoder.width == 100
    assert applied.data.voices == ("af_heart", "am_adam")
    assert applied.train == run.train
    assert applied.encoder.model_copy(update={"width": run.encoder.width}) == run.encoder


def test_contradicting_params_are_refused_when_they_meet() -> None:
    space = parsed({"loss.stft": [0.0, 1.0], "loss.style": [0.0, 1.0]})
    with pytest.raises(ConfigError, match="all weights are 0"):
        space.apply(RunConfig(), {"loss.stft": 0.0, "loss.style": 0.0})


def test_a_space_is_read_from_what_it_says_of_itself() -> None:
    space = parsed(SPACE)
    assert parsed(space.as_dict()) == space
    assert space.as_dict() == SPACE


@pytest.mark.parametrize("name", ["objective.stft", "data.val_voices", "data.seed", "models.source", "train.device"])
def test_what_no_trial_may_vary_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a.yaml: search.{name}: cannot be searched: .{{10}}"):
        parsed({name: [1, 2]})


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("encoder.widht", [1], "search.encoder.widht: unknown setting; did you mean encoder.width?"),
        ("encoder", [1], "search.encoder: unknown setting"),
        ("encoder.width", {"low": 64, "hihg": 128}, "search.encoder.width.hihg: unknown; did you mean high?"),
        ("encoder.width", {"low": 64}, "search.encoder.width: has no high"),
        ("encoder.width", {"low": 128, "high": 64}, "low 128 is not below high 64"),
        ("encoder.width", {"low": 64, "high": 64}, "low 64 is not below high 64"),
        ("encoder.width", {"low": "a", "high": 64}, "search.encoder.width.low: 'a': not a number"),
        ("encoder.width", {"low": 2, "high": 64}, "encoder.width: 2: input should be greater than or equal to 4"),
        ("encoder.width", {"low": 64, "high": 512.0}, "encoder.width: 64.0: input should be a valid integer"),
        ("encoder.width", {"low": 64, "high": 100, "step": 10}, "do not hit high 100; the nearest below it is 94"),
        ("encoder.width", {"low": 64, "high": 128, "log": True, "step": 2}, "log and step exclude one another"),
        ("encoder.width", {"low": 64, "high": 128, "log": 1}, "search.encoder.width.log: 1: neither true nor"),
        ("encoder.dropout", {"low": 0, "high": 0.5, "log": True}, "low 0 has no logarithm"),
        ("encoder.dropout", {"low": 0.0, "high": 0.5, "step": 0}, "search.encoder.dropout.step: 0 is not above 0"),
        ("encoder.pooling", ["mean", "sum"], "encoder.pooling: \"sum\": input should be 'mean', 'mean_std'"),
        ("encoder.pooling", [], "search.encoder.pooling: no choices"),
        ("encoder.depth", [1, 2, 1], "search.encoder.depth: the choice 1 stands twice"),
        ("encoder.pooling", "mean", "'mean': neither a range {low: …, high: …} nor a list of choices"),
        ("data.sentences_per_voice", {"low": 1, "high": 4}, "a range; list its values"),
    ],
)
def test_errors_name_the_setting_and_the_fix_in_one_line(name: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed({name: value})
    assert told in str(caught.value)
    assert str(caught.value).startswith("a.yaml: search")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, {}, {"encoder.width": None}])
def test_a_search_of_nothing_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="nothing is searched"):
        parsed(data)
