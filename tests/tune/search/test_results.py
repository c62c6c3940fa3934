"""tune.search.results: the order of trials, and their losses with one and with several objectives."""

from collections.abc import Sequence

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from tune.search.results import best_trial, complete_trials, ended_trials, ranked, seed_mean, trial_loss


def make_study(trials: Sequence[tuple[TrialState, float | None]]) -> optuna.Study:
    study = optuna.create_study()
    for state, value in trials:
        study.add_trial(
            create_trial(state=state, value=value, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)})
        )
    return study


def test_complete_trials_are_ranked_by_their_loss() -> None:
    study = make_study(
        [
            (TrialState.COMPLETE, 3.0),
            (TrialState.PRUNED, 0.5),
            (TrialState.COMPLETE, 1.0),
            (TrialState.FAIL, None),
            (TrialState.RUNNING, None),
            (TrialState.COMPLETE, 2.0),
        ]
    )
    assert [trial.number for trial in ranked(study)] == [2, 5, 0]
    assert complete_trials(study) == [(1.0, 2), (2.0, 5), (3.0, 0)]
    best = best_trial(study)
    assert best is not None and best.number == 2
    assert ended_trials(study) == [0, 1, 2, 3, 5]


def test_a_study_without_a_complete_trial_has_no_best_one() -> None:
    assert best_trial(make_study([(TrialState.PRUNED, 1.0), (TrialState.RUNNING, None)])) is None
    assert complete_trials(make_study([])) == ended_trials(make_study([])) == []


def test_the_loss_is_val_loss_whatever_the_objectives_are() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"])
    for values, loss in (([0.1, 9.0], 2.0), ([0.9, 0.1], 1.0)):
        study.add_trial(create_trial(values=values, user_attrs={"metrics": {"val/loss": loss}}))
    assert [trial_loss(trial) for trial in study.trials] == [2.0, 1.0]
    assert complete_trials(study) == [(1.0, 1), (2.0, 0)]


def test_a_running_trial_has_no_loss() -> None:
    assert trial_loss(make_study([(TrialState.RUNNING, None)]).trials[0]) is None


def test_settings_with_several_seeds_are_ranked_by_their_mean() -> None:
    study = optuna.create_study()
    distribution = FloatDistribution(0, 1)
    # (loss, number of the first trial with the settings)
    for value, first in [(1.0, None), (0.5, None), (3.0, 0), (2.5, 1), (2.0, 0), (0.6, 1), (0.1, None), (0.2, 6)]:
        attributes = {} if first is None else {"repeat_of": first, "repeat": 1}
        study.add_trial(
            create_trial(value=value, params={"x": 0.5}, distributions={"x": distribution}, user_attrs=attributes)
        )
    # Means 2.0 and 1.2 of three seeds, before 0.15 of two.
    assert [trial.number for trial in ranked(study)] == [1, 0, 6]
    best = best_trial(study)
    assert best is not None and best.number == 1
    mean = seed_mean(study, best)
    assert mean is not None and (len(mean.trials), mean.mean) == (3, pytest.approx(1.2))
    assert mean.std == pytest.approx(1.1269, abs=1e-4)
    assert [number for _, number in complete_trials(study)] == [6, 7, 1, 5, 0, 4, 3, 2]


def test_a_repeat_with_other_settings_than_its_first_trial_is_not_in_the_mean() -> None:
    study = optuna.create_study()
    first: dict[str, object] = {"repeat_of": 0, "repeat": 1}
    for value, x, attributes in [
        (3.0, 0.5, {}),
        (5.0, 0.5, {**first, "repeat": 2}),
        (1.0, 0.7, first),  # the space was changed
        (2.0, 0.5, {**first, "run": "another"}),
    ]:
        study.add_trial(
            create_trial(
                value=value, params={"x": x}, distributions={"x": FloatDistribution(0, 1)}, user_attrs=attributes
            )
        )
    mean = seed_mean(study, study.trials[0])
    assert mean is not None and [trial.number for trial in mean.trials] == [0, 1]


def test_settings_with_one_seed_have_no_mean() -> None:
    study = make_study([(TrialState.COMPLETE, 3.0)])
    assert seed_mean(study, study.trials[0]) is None
