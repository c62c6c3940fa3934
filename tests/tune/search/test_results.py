"""tune.search.results: the order of trials, and their losses with one and with several objectives."""

from collections.abc import Sequence

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from tune.search.results import best_trial, complete_trials, ended_trials, ranked, trial_loss


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
