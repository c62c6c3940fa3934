"""tune.search.enqueue: settings that are tried first, and warnings about those that are left out."""

import json
import logging
from pathlib import Path
from typing import Any

import optuna
import pytest

from nuanced_core.errors import ConfigError
from tests.tune.search.ledgers import ledger, result
from tune.config.sweep_config import SweepConfig, parse_sweep
from tune.search.enqueue import check_enqueued, enqueue, enqueue_failed, enqueue_repeats
from tune.search.study import open_study, read_study

SEARCH: dict[str, Any] = {
    "train.learning_rate": {"low": 1.0e-4, "high": 1.0e-2, "log": True},
    "encoder.width": [64, 128],
}


def sweep(search: dict[str, Any] = SEARCH, **settings: Any) -> SweepConfig:
    return parse_sweep({"search": search, "sweep": settings}, "a.yaml")


def enqueued(config: SweepConfig, times: int = 1) -> list[dict[str, Any]]:
    study = optuna.create_study()
    for _ in range(times):
        enqueue(study, config)
    return [trial.system_attrs["fixed_params"] for trial in study.trials]


def other_sweep(folder: Path) -> Path:
    """Create the study of a sweep with the losses 3, 1 and 2, and return its folder."""
    folder.mkdir()
    book = ledger(folder, search={**SEARCH, "encoder.depth": [1, 2, 3]})
    for loss in (3.0, 1.0, 2.0):
        asked = book.ask()
        assert asked is not None
        book.report(asked["number"], result(1, loss))
        book.end(asked["number"])
    return folder


def params_of(folder: Path) -> list[dict[str, Any]]:
    return [trial.user_attrs["params"] for trial in read_study(folder).trials]


def test_enqueued_settings_are_tried_first_and_once() -> None:
    config = sweep(enqueue=[{"encoder.width": 128}, {"encoder.width": 64, "train.learning_rate": 1.0e-3}])
    expected = [{"encoder.width": 128}, {"encoder.width": 64, "train.learning_rate": 1.0e-3}]
    assert enqueued(config) == enqueued(config, times=2) == expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"encoder.widht": 64}, r"sweep\.enqueue\[0\]: encoder\.widht: is not searched; did you mean encoder\.width"),
        ({"encoder.width": 65}, r"sweep\.enqueue\[0\]: encoder\.width: 65: not one of \[64, 128\]"),
        ({"train.batch_size": 5}, r"sweep\.enqueue\[0\]: train\.batch_size: 5: not in .*\"step\": 2"),
        ({"train.learning_rate": 1.0}, r"sweep\.enqueue\[0\]: train\.learning_rate: 1\.0: not in "),
    ],
)
def test_an_enqueued_setting_that_cannot_be_tried_is_refused(item: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        enqueued(sweep({**SEARCH, "train.batch_size": {"low": 2, "high": 8, "step": 2}}, enqueue=[item]))


def test_a_warm_start_tries_the_best_trials_of_another_sweep(tmp_path: Path) -> None:
    folder = other_sweep(tmp_path / "other")
    first, second, third = params_of(folder)
    search = {**SEARCH, "encoder.depth": [1, 2, 3]}
    assert enqueued(sweep(search, warm_start=str(folder))) == [second, third, first]
    assert enqueued(sweep(search, warm_start=str(folder), warm_start_trials=1)) == [second]


def test_what_a_warm_start_leaves_out_is_logged_as_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = other_sweep(tmp_path / "other")
    rate = params_of(folder)[1]["train.learning_rate"]
    search = {**SEARCH, "encoder.width": [32]}
    assert enqueued(sweep(search, warm_start=str(folder), warm_start_trials=1)) == [{"train.learning_rate": rate}]
    warnings = [record for record in caplog.records if record.name == "tune.search.enqueue"]
    assert {record.levelno for record in warnings} == {logging.WARNING}
    messages = [record.getMessage() for record in warnings]
    assert len(messages) == 2
    assert all(message.startswith(f"Trial 1 of {folder}: setting left out: sweep.warm_start: ") for message in messages)
    assert any("encoder.depth: is not searched" in message for message in messages)
    assert any("encoder.width: " in message and "not one of [32]" in message for message in messages)


def test_a_warm_start_without_a_complete_trial_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path).ask()
    with pytest.raises(ConfigError, match=r"sweep\.warm_start: .*: holds no complete trial; name another sweep"):
        enqueued(sweep(warm_start=str(tmp_path)))
    with pytest.raises(ConfigError, match="not the folder of a sweep"):
        enqueued(sweep(warm_start=str(tmp_path / "nowhere")))


POOLINGS: dict[str, Any] = {
    **SEARCH,
    "encoder.pooling": ["mean", "queries"],
    "encoder.heads": {"choices": [1, 4], "when": {"encoder.pooling": ["queries"]}},
}


@pytest.mark.parametrize(
    ("item", "fix"),
    [
        ({"encoder.pooling": "mean", "encoder.heads": 4}, "leave it out, or change the other"),
        ({"encoder.heads": 4}, "give encoder.pooling too"),
    ],
)
def test_an_enqueued_setting_that_the_trial_would_not_search_is_refused(item: dict[str, Any], fix: str) -> None:
    message = r"sweep\.enqueue\[0\]: encoder\.heads: is searched only when .*queries.*; "
    with pytest.raises(ConfigError, match=message + fix):
        enqueued(sweep(POOLINGS, enqueue=[item]))


def test_what_a_trial_of_the_warm_start_need_not_search_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    book = ledger(folder, budget=1, search={"encoder.pooling": ["mean"], "encoder.heads": [1, 4]})
    asked = book.ask()
    assert asked is not None
    book.report(0, result(1, 1.0))
    book.end(0)
    assert enqueued(sweep(POOLINGS, warm_start=str(folder))) == [{"encoder.pooling": "mean"}]
    assert "encoder.heads: is searched only when" in caplog.text


def finished(folder: Path, states: str, search: Any = POOLINGS, **settings: Any) -> optuna.Study:
    """Create a study whose trials end as the letters say: complete, failed, running."""
    book = ledger(folder, budget=len(states), search=search, **settings)
    for letter in states:
        asked = book.ask()
        assert asked is not None
        if letter == "c":
            book.report(asked["number"], result(1, 1.0 / (asked["number"] + 1)))
        elif letter == "f":
            book.fail(asked["number"], f"reason {asked['number']}")
        if letter != "r":
            book.end(asked["number"])
    return open_study(folder, sweep(search).sweep)


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        ("c", "left out: trial 0 has it: 1"),
        ("f", "left out: trial 0 has failed with it (reason 0); --retry-failed runs failed trials again"),
        ("r", "left out: trial 0 has it and is not finished"),
    ],
)
def test_enqueued_settings_that_were_tried_are_named_with_their_outcome(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, state: str, outcome: str
) -> None:
    study = finished(tmp_path, state)
    params = study.trials[0].user_attrs["params"]
    with caplog.at_level(logging.INFO):
        enqueue(study, sweep(POOLINGS, enqueue=[params]))
    assert len(study.trials) == 1
    assert f"sweep.enqueue[0]: {json.dumps(params)}: {outcome}" in caplog.messages


def test_settings_that_are_enqueued_twice_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert len(enqueued(sweep(enqueue=[{"encoder.width": 64}, {"encoder.width": 64}]))) == 1
    assert 'sweep.enqueue[1]: {"encoder.width": 64}: left out: it is enqueued already' in caplog.messages


def test_failed_trials_are_run_again_once_and_keep_the_budget(tmp_path: Path) -> None:
    study = finished(tmp_path, "cfcf")
    params = {trial.number: trial.user_attrs["params"] for trial in study.trials}
    config = sweep(POOLINGS)
    assert (enqueue_failed(study, config), enqueue_failed(study, config)) == (2, 0)

    book = ledger(tmp_path, budget=4, search=POOLINGS)
    for number, failed in ((4, 1), (5, 3)):
        asked = book.ask()
        assert asked is not None and (asked["number"], asked["params"]) == (number, params[failed])
        book.report(number, result(1, 1.0)) if number == 4 else book.fail(number, "again")
        book.end(number)
    assert book.ask() is None
    assert not ledger(tmp_path, budget=4, search=POOLINGS).has_budget

    study = open_study(tmp_path, config.sweep)
    assert [trial.user_attrs.get("retry_of") for trial in study.trials] == [None, None, None, None, 1, 3]
    assert enqueue_failed(study, config) == 1  # the one that failed again
    assert study.trials[-1].user_attrs["retry_of"] == 5


def test_a_failed_trial_that_would_fail_again_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = finished(tmp_path, "f", search={"encoder.width": [64], "encoder.depth": [1, 2]})
    assert enqueue_failed(study, sweep({"encoder.width": [128], "encoder.depth": [1, 2]})) == 0
    assert "trial 0 would fail again: search: encoder.width: 64: not one of [128]" in caplog.text


def test_a_complete_trial_is_repeated_with_the_next_seeds(tmp_path: Path) -> None:
    book = ledger(tmp_path, budget=7, search=SEARCH, repeats=3, pruner="halving")
    trials = []
    for loss in (2.0, None, 1.0, 3.0, 5.0):
        asked = book.ask()
        assert asked is not None
        trials.append((asked["params"]["encoder.width"], asked["params"]["train.seed"], asked["run"]["train"]["seed"]))
        number = asked["number"]
        if loss is None:
            book.fail(number, "lost")
        else:
            book.report(number, result(1, loss))
            assert not (number in (1, 2) and book.should_prune(number))  # a repeat is not stopped
        book.end(number)
    (first, *_), failed, again, new, repeated = trials
    assert [seed for _, seed, _ in trials] == [seed for *_, seed in trials] == [0, 1, 2, 0, 1]
    assert first == failed[0] == again[0] and new[0] == repeated[0]
    study = open_study(tmp_path, sweep(SEARCH).sweep)
    assert [(t.user_attrs.get("repeat_of"), t.user_attrs.get("repeat")) for t in study.trials] == [
        (None, None),
        (0, 1),
        (0, 2),
        (None, None),
        (3, 1),
        (3, 2),
    ]
    assert enqueue_failed(study, sweep(SEARCH)) == 1
    assert {**study.trials[-1].user_attrs} == {"repeat_of": 0, "repeat": 1, "retry_of": 1}


def test_a_study_gets_the_repeats_that_it_lacks_when_it_is_opened_the_best_ones_first(tmp_path: Path) -> None:
    study = finished(tmp_path, "cfcc", search=SEARCH)
    space = sweep().search
    assert enqueue_repeats(study, space, "", 2, number=1) == 0  # a failed trial
    book = ledger(tmp_path, budget=8, search=SEARCH, repeats=2)
    asked = [book.ask() for _ in range(3)]
    assert [trial["params"]["train.seed"] for trial in asked if trial is not None] == [1, 1, 1]
    trials = open_study(tmp_path, sweep(SEARCH).sweep).trials
    assert [trial.user_attrs["repeat_of"] for trial in trials[4:]] == [3, 2, 0]
    assert enqueue_repeats(study, space, str(study.user_attrs["run"]), 2) == 0


def test_failed_trials_are_run_again_before_repeats_for_which_the_budget_had_no_room(tmp_path: Path) -> None:
    study = finished(tmp_path, "fcc", search=SEARCH, repeats=4)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE", "WAITING", "WAITING"]
    assert enqueue_failed(study, sweep()) == 1
    book = ledger(tmp_path, budget=3, search=SEARCH)
    asked = book.ask()
    assert asked is not None and asked["number"] == 5 and book.ask() is None
    assert asked["params"].items() >= study.trials[0].params.items()


@pytest.mark.parametrize(
    "search",
    [
        {"encoder.width": [64, 128]},  # the learning rate is that of the run
        {**SEARCH, "encoder.depth": [1, 2]},  # the depth would be drawn
        {**SEARCH, "train.learning_rate": {"low": 0.5, "high": 0.6, "log": True}},
    ],
)
def test_trials_of_another_search_space_are_not_repeated(tmp_path: Path, search: dict[str, Any]) -> None:
    finished(tmp_path, "cc", search=SEARCH)
    ledger(tmp_path, budget=9, search=search, repeats=2)
    assert len(open_study(tmp_path, sweep().sweep).trials) == 2


def test_trials_of_another_run_are_not_repeated(tmp_path: Path) -> None:
    study = finished(tmp_path, "cc", search=SEARCH)
    assert enqueue_repeats(study, sweep().search, "another", 2) == 0
    assert enqueue_repeats(study, sweep().search, str(study.user_attrs["run"]), 2) == 2


def test_a_sweep_with_enqueued_settings_that_a_trial_has_not_searched_is_resumed(tmp_path: Path) -> None:
    item = {"encoder.pooling": "mean", "encoder.heads": 4}
    config = sweep(POOLINGS, enqueue=[item])
    study = open_study(tmp_path, config.sweep, create=True)
    study.enqueue_trial(item)  # as long as such settings were not refused
    asked = ledger(tmp_path, search=POOLINGS).ask()
    assert asked is not None and "encoder.heads" not in asked["params"]
    enqueue(study, config)
    assert len(study.trials) == 1


def test_a_warm_start_is_done_once(tmp_path: Path) -> None:
    folder = other_sweep(tmp_path / "other")
    config = sweep(warm_start=str(folder), warm_start_trials=1)
    check_enqueued(config)
    study = optuna.create_study()
    enqueue(study, config)
    folder.rename(tmp_path / "gone")
    enqueue(study, config)
    assert len(study.trials) == 1
    with pytest.raises(ConfigError, match=r"sweep\.warm_start: .*; name another sweep, or set it to null"):
        check_enqueued(config)


def test_what_is_enqueued_is_checked_before_there_is_a_study() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.enqueue\[0\]: encoder\.wdth: is not searched"):
        check_enqueued(sweep(enqueue=({"encoder.wdth": 64},)))
