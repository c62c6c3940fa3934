"""tune.config.space: sampling a space with Optuna, applying samples to a run, and refusing invalid spaces."""

import json
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.errors import ConfigError
from tune.config.space import Space

SPACE = {
    "encoder.width": {"low": 64, "high": 512, "log": True},
    "encoder.depth": {"low": 1, "high": 7, "step": 2},
    "encoder.dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
    "train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "encoder.pooling": ["mean", "mean_std"],
    "data.voices": ["original", ["af_heart", "am_adam"]],
}


def parse(data: Any) -> Space:
    return Space.parse(data, RunConfig(), "a.yaml")


def test_each_form_has_its_optuna_distribution() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    params = parse(SPACE).suggest(trial)
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
def test_choices_that_are_lists_are_suggested_as_lists(choice: Any) -> None:
    stored = choice if isinstance(choice, str) else json.dumps(choice)
    space = parse({"data.voices": SPACE["data.voices"]})
    assert space.suggest(FixedTrial({"data.voices": stored})) == {"data.voices": choice}


def test_apply_replaces_the_params_of_a_run_and_nothing_else() -> None:
    run = RunConfig()
    applied = parse(SPACE).apply(run, {"encoder.width": 100, "data.voices": ["af_heart", "am_adam"]})
    assert applied.encoder.width == 100
    assert applied.data.voices == ("af_heart", "am_adam")
    assert applied.train == run.train
    assert applied.encoder.model_copy(update={"width": run.encoder.width}) == run.encoder


def test_contradicting_params_are_refused_by_apply() -> None:
    space = parse({"loss.stft": [0.0, 1.0], "loss.style": [0.0, 1.0]})
    with pytest.raises(ConfigError, match="all weights are 0"):
        space.apply(RunConfig(), {"loss.stft": 0.0, "loss.style": 0.0})


def test_a_space_is_parsed_from_its_plain_values() -> None:
    space = parse(SPACE)
    assert parse(space.as_dict()) == space
    assert space.as_dict() == SPACE


@pytest.mark.parametrize(
    "name",
    [
        *(
            "objective.stft",
            "data.val_voices",
            "data.seed",
            "data.people",
            "data.people_seconds",
            "models.source",
            "show.clips",
        ),
        "train.device",
    ],
)
def test_a_setting_that_cannot_be_searched_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a.yaml: search.{name}: cannot be searched: .{{10}}"):
        parse({name: [1, 2]})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.widht", [1], "search.encoder.widht: unknown setting; did you mean encoder.width?"),
        ("encoder", [1], "search.encoder: unknown setting"),
        ("encoder.depth", {"choices": [1], "low": 1}, "search.encoder.depth: choices and low exclude each other"),
        ("encoder.depth", {"choices": 1}, "search.encoder.depth.choices: 1: not a list"),
        ("encoder.width", {"low": 64, "hihg": 128}, "search.encoder.width.hihg: unknown; did you mean high?"),
        ("encoder.width", {"low": 64}, "search.encoder.width: has no high"),
        ("encoder.width", {"low": 128, "high": 64}, "low 128 is not below high 64"),
        ("encoder.width", {"low": 64, "high": 64}, "low 64 is not below high 64"),
        ("encoder.width", {"low": "a", "high": 64}, "search.encoder.width.low: 'a': not a number"),
        ("encoder.width", {"low": 2, "high": 64}, "encoder.width: 2: input should be greater than or equal to 4"),
        ("encoder.width", {"low": 64, "high": 512.0}, "encoder.width: 64.0: input should be a valid integer"),
        (
            "encoder.width",
            {"low": 64, "high": 100, "step": 10},
            "do not reach high 100; the nearest value below it is 94",
        ),
        ("encoder.width", {"low": 64, "high": 128, "log": True, "step": 2}, "log and step exclude each other"),
        ("encoder.width", {"low": 64, "high": 128, "log": 1}, "search.encoder.width.log: 1: neither true nor"),
        ("encoder.dropout", {"low": 0, "high": 0.5, "log": True}, "low 0 has no logarithm"),
        ("encoder.dropout", {"low": 0.0, "high": 0.5, "step": 0}, "search.encoder.dropout.step: 0 is not above 0"),
        ("encoder.pooling", ["mean", "sum"], "encoder.pooling: \"sum\": input should be 'mean', 'mean_std'"),
        ("encoder.pooling", [], "search.encoder.pooling: no choices"),
        ("encoder.depth", [1, 2, 1], "search.encoder.depth: the choice 1 is listed twice"),
        ("encoder.pooling", "mean", "'mean': neither a range {low: …, high: …} nor a list of choices"),
        ("data.sentences_per_voice", {"low": 1, "high": 4}, "a range; list its values"),
        ("mixes.blends", {"low": 0, "high": 400}, "a range; list its values"),
        ("augment.gain_db", {"low": 0.0, "high": 6.0}, "a range; list its values"),
    ],
)
def test_errors_name_the_setting_and_the_fix_in_one_line(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({name: value})
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.yaml: search")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [None, {}, {"encoder.width": None}])
def test_an_empty_search_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="nothing is searched"):
        parse(data)


POOLINGS = ["mean", "attentive", "queries"]
CONDITIONAL = {
    "encoder.pooling": POOLINGS,
    "encoder.heads": {"choices": [1, 2, 4], "when": {"encoder.pooling": ["attentive", "queries"]}},
    # A chain of conditions: 4 heads occur only where heads are searched.
    "encoder.frame_width": {"low": 8, "high": 64, "log": True, "when": {"encoder.heads": [4]}},
}


def suggest_trials(space: Space, count: int) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(space.suggest(trial))
        assert set(trial.params) == set(found[-1])
    return found


def test_a_setting_is_searched_only_where_its_condition_holds() -> None:
    trials = suggest_trials(parse(CONDITIONAL), 100)
    for params in trials:
        assert ("encoder.heads" in params) == (params["encoder.pooling"] != "mean")
        assert ("encoder.frame_width" in params) == (params.get("encoder.heads") == 4)
    assert {len(params) for params in trials} == {1, 2, 3}


def test_all_params_are_what_can_be_suggested() -> None:
    finite = {
        "encoder.width": {"low": 64, "high": 192, "step": 64},
        "encoder.dropout": {"low": 0.0, "high": 0.5, "step": 0.25},
        "encoder.pooling": ["mean", "queries"],
        "encoder.heads": {"choices": [1, 2], "when": {"encoder.pooling": ["queries"]}},
    }
    space = parse(finite)
    found = space.all_params(27)
    assert found is not None and len(found) == 3 * 3 * (1 + 2)
    assert {str(params) for params in suggest_trials(space, 400)} == {str(params) for params in found}
    assert space.all_params(26) is None
    chain = parse(CONDITIONAL).all_params(200)
    assert chain is not None and len(chain) == 1 + 2 * (2 + len(range(8, 65)))
    endless = parse(SPACE)
    assert endless.unlimited == ["train.learning_rate"] and endless.all_params(10**6) is None
    assert parse({"encoder.dropout": {"low": 0.0, "high": 0.5, "step": 1e-12}}).all_params(9) is None  # none are listed


@pytest.mark.parametrize(
    ("params", "reasons"),
    [
        ({"encoder.pooling": "queries", "encoder.heads": 4, "encoder.frame_width": 8}, {}),
        ({"encoder.pooling": "queries"}, {}),
        ({}, {}),
        ({"encoder.pooling": "mean", "encoder.heads": 4}, {"encoder.heads": "leave it out, or change the other"}),
        ({"encoder.heads": 4}, {"encoder.heads": "give encoder.pooling too"}),
        (
            {"encoder.pooling": "queries", "encoder.frame_width": 8},
            {"encoder.frame_width": "give encoder.heads too"},
        ),
        (
            {"encoder.pooling": "mean", "encoder.heads": 4, "encoder.frame_width": 8},
            {"encoder.heads": "leave it out", "encoder.frame_width": "leave it out"},
        ),
    ],
)
@pytest.mark.parametrize("run_pooling", ["mean", "queries"])
def test_params_that_a_trial_need_not_search_are_found(
    params: dict[str, Any], reasons: dict[str, str], run_pooling: str
) -> None:
    run = validate(RunConfig, {"encoder": {"pooling": run_pooling}}, "a.yaml")
    found = Space.parse(CONDITIONAL, run, "a.yaml").unused(params)
    assert found.keys() == reasons.keys()
    assert all(reasons[name] in reason and "is searched only when" in reason for name, reason in found.items())


def test_a_setting_that_is_not_searched_keeps_the_run_s_value() -> None:
    run = validate(RunConfig, {"encoder": {"heads": 8}}, "a.yaml")
    space = Space.parse(CONDITIONAL, run, "a.yaml")
    assert space.apply(run, {"encoder.pooling": "mean"}).encoder.heads == 8
    assert space.apply(run, {"encoder.pooling": "queries", "encoder.heads": 2}).encoder.heads == 2


def test_conditions_on_settings_that_are_not_searched_use_the_run_s_values() -> None:
    run = validate(RunConfig, {"encoder": {"pooling": "queries", "heads": 4}}, "a.yaml")
    unsearched_pooling = Space.parse(CONDITIONAL | {"encoder.pooling": None}, run, "a.yaml")
    assert all("encoder.heads" in params for params in suggest_trials(unsearched_pooling, 5))
    # The run itself has 4 heads, so frame_width is searched also where heads are not.
    space = Space.parse(CONDITIONAL, run, "a.yaml")
    assert any(
        "encoder.frame_width" in params for params in suggest_trials(space, 20) if params["encoder.pooling"] == "mean"
    )


def test_the_order_of_a_file_does_not_matter_to_conditions() -> None:
    backwards = dict(reversed(CONDITIONAL.items()))
    assert parse(backwards).names == list(CONDITIONAL)
    assert suggest_trials(parse(backwards), 20) == suggest_trials(parse(CONDITIONAL), 20)


def test_all_settings_of_a_condition_and_one_condition_of_a_list_have_to_hold() -> None:
    counts = {"mixes.blends": [0, 9], "mixes.half_blends": [0, 9]}
    both = {"mixes.members": {"choices": [2, 4], "when": {"mixes.blends": [9], "mixes.half_blends": [9]}}}
    either = {"mixes.members": {"choices": [2, 4], "when": [{"mixes.blends": [9]}, {"mixes.half_blends": [9]}]}}
    for params in suggest_trials(parse(counts | both), 40):
        assert ("mixes.members" in params) == (params["mixes.blends"] == 9 and params["mixes.half_blends"] == 9)
    for params in suggest_trials(parse(counts | either), 40):
        assert ("mixes.members" in params) == (params["mixes.blends"] == 9 or params["mixes.half_blends"] == 9)
    assert parse(counts | either).as_dict() == counts | either


def test_of_two_conditions_one_may_never_hold() -> None:
    never, sometimes = {"encoder.output": ["span"]}, {"encoder.depth": [2]}
    heads = {"choices": [1, 2], "when": [never, sometimes]}
    for params in suggest_trials(parse({"encoder.depth": [1, 2], "encoder.heads": heads}), 20):
        assert ("encoder.heads" in params) == (params["encoder.depth"] == 2)


def test_a_conditional_space_is_parsed_from_its_plain_values() -> None:
    space = parse(CONDITIONAL)
    assert parse(space.as_dict()) == space
    assert space.as_dict() == CONDITIONAL


def test_a_condition_may_be_nested_like_an_override() -> None:
    nested = {
        "encoder": {"pooling": POOLINGS, "heads": {"choices": [1, 2], "when": {"encoder": {"pooling": ["mean"]}}}}
    }
    assert parse(nested).as_dict()["encoder.heads"] == {"choices": [1, 2], "when": {"encoder.pooling": ["mean"]}}


def test_choices_are_validated_with_the_conditions_under_which_they_are_searched() -> None:
    run = validate(RunConfig, {"loss": {"style": 0.0}}, "a.yaml")
    with pytest.raises(ConfigError, match="all weights are 0"):
        Space.parse({"loss.stft": [0.0, 1.0], "loss.f0": [0.0, 1.0]}, run, "a.yaml")
    space = Space.parse(
        {"loss.stft": {"choices": [0.0, 1.0], "when": {"loss.f0": [1.0]}}, "loss.f0": [0.0, 1.0]}, run, "a.yaml"
    )
    assert space.names == ["loss.f0", "loss.stft"]


def test_voices_are_found_by_each_choice_of_speaker_encoders() -> None:
    encoders = [["campplus"], ["resemblyzer"], ["campplus", "resemblyzer"]]
    space = parse({"loss.speaker_encoders": encoders})
    run = RunConfig.model_validate({"data": {"people": "people"}, "mixes": {"found": 3}})
    assert [[*variant.loss.speaker_encoders] for variant in space.variants(run)] == encoders


def test_variants_are_all_combinations_to_prepare_without_repeats() -> None:
    data: dict[str, Any] = {
        "mixes.blends": [0, 9],
        "mixes.members": {"choices": [2, 4, 5], "when": {"mixes.blends": [9]}},
        "augment.copies": [0, 1],
        "encoder.width": [8, 16],
    }
    run = RunConfig()
    space = parse(data)
    variants = space.variants(run)
    tried = {(r.mixes, r.augment) for r in (space.apply(run, params) for params in suggest_trials(space, 200))}
    assert len(variants) == (1 + 3) * 2
    assert {(variant.mixes, variant.augment) for variant in variants} == tried
    assert all(variant.encoder == run.encoder for variant in variants)


def test_surrogates_are_fitted_for_each_speaker_encoder() -> None:
    steps = {"choices": [0, 9], "when": {"features.speaker": ["campplus", "resemblyzer"]}}
    space = parse({"features.speaker": ["none", "campplus", "resemblyzer"], "encoder.surrogate_steps": steps})
    found = [(v.features.speaker, v.encoder.surrogate_steps) for v in space.variants(RunConfig())]
    assert found == [("none", 0), ("campplus", 0), ("campplus", 9), ("resemblyzer", 0), ("resemblyzer", 9)]


def test_each_choice_of_layers_is_prepared_once_with_each_whisper_model() -> None:
    data: dict[str, Any] = {
        "models.whisper": ["tiny.en", "base"],
        "features.layers": ["last", "all", [1, 2]],
        "data.sentences_per_voice": [1, 2, 3, 4],
    }
    variants = parse(data).variants(RunConfig())
    pairs = {(variant.models.whisper, variant.features.layers) for variant in variants}
    assert pairs == {(whisper, layers) for whisper in ("tiny.en", "base") for layers in ("last", "all", (1, 2))}
    assert {(v.models.whisper, v.data.sentences_per_voice) for v in variants} == {
        (whisper, count) for whisper in ("tiny.en", "base") for count in (1, 2, 3, 4)
    }
    assert len(variants) == 2 * (4 + 2)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"encoder.heads": {"choices": [1, 2], "when": {"encoder.poling": ["mean"]}}},
            "search.encoder.heads.when.encoder.poling: unknown setting; did you mean encoder.pooling?",
        ),
        (
            {"encoder.heads": {"choices": [1, 2], "when": {"encoder.pooling": "mean"}}},
            "search.encoder.heads.when.encoder.pooling: 'mean': not a list of values",
        ),
        (
            {"encoder.heads": {"choices": [1, 2], "when": ["encoder.pooling"]}},
            "search.encoder.heads.when: 'encoder.pooling': not 'setting: [values]'",
        ),
        ({"encoder.heads": {"choices": [1, 2], "when": []}}, "search.encoder.heads.when: []: no condition; drop it"),
        (
            {"encoder.pooling": POOLINGS, "encoder.heads": {"choices": [1], "when": {"encoder.pooling": ["max"]}}},
            "search.encoder.heads.when.encoder.pooling: \"max\": never suggested; search.encoder.pooling is ['mean',",
        ),
        (
            {
                "mixes.blends": [0, 9],
                "mixes.steps": [0, 9],
                "mixes.members": {"choices": [2], "when": [{"mixes.blends": [9]}, {"mixes.steps": [8]}]},
            },
            "search.mixes.members.when.mixes.steps: 8: never suggested; search.mixes.steps is [0, 9]",
        ),
        (
            {
                "encoder.depth": {"low": 1, "high": 7, "step": 2},
                "encoder.residual": {"choices": [True, False], "when": {"encoder.depth": [3, 4]}},
            },
            "search.encoder.residual.when.encoder.depth: 4: never suggested; search.encoder.depth is {'low': 1,",
        ),
        (
            {"encoder.heads": {"choices": [1, 2], "when": {"encoder.pooling": ["queries"]}}},
            'search.encoder.heads: would never be searched, because encoder.pooling is "mean" and not searched',
        ),
        (
            {
                "encoder.dropout": {"low": 0.0, "high": 0.5},
                "encoder.heads": {"choices": [1, 2], "when": {"encoder.dropout": [0.0]}},
            },
            "search.encoder.heads.when.encoder.dropout: is searched in a range of floats; list its choices",
        ),
        (
            {"encoder.depth": [1, 2], "mixes.members": {"choices": [2, 3], "when": {"encoder.depth": [2]}}},
            "search.mixes.members.when.encoder.depth: is searched, but data is prepared before the first trial and "
            "may depend only on settings of models, data, mixes, augment",
        ),
        (
            {
                "encoder.heads": {"choices": [1, 2], "when": {"encoder.depth": [1]}},
                "encoder.depth": {"choices": [1, 2], "when": {"encoder.heads": [1]}},
            },
            "search: conditions form a cycle: encoder.",
        ),
        (
            {"encoder.heads": {"choices": [1, 2], "when": {"encoder.heads": [1]}}},
            "search: conditions form a cycle: encoder.heads → encoder.heads; drop one of them",
        ),
    ],
)
def test_a_condition_that_cannot_hold_is_refused_in_one_line(search: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(search)
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.yaml: search")
    assert "\n" not in str(caught.value)
