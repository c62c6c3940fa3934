"""tune.loggers.hparams: the HPARAMS tab as TensorBoard's plugin answers the browser's requests."""

import json
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from werkzeug.test import Client

from nuanced_core.config.settings import RunConfig
from tests.tune import toy
from tests.tune.conftest import sweep
from tests.tune.search.ledgers import ledger, result, stored_trials
from tests.tune.sweep.test_resume import driver, killed, resume, wait_for
from tune.cluster.shared_storage import SharedFolder
from tune.config.dimension import Choices, Range
from tune.config.space import Space
from tune.config.sweep_settings import SweepSettings
from tune.loggers.hparams import NOT_SEARCHED, HparamsColumn, HparamsTable
from tune.search.ledger import TrialLedger
from tune.search.study import open_study
from tune.sweep.driver import SweepResult

# Trials end complete, pruned and failed; encoder.heads is searched in some only; one column holds 40 and "full".
SWEPT = f"""
train: {{epochs: 4}}
search:
  train.learning_rate: {{low: 1.0e-5, high: 1.0e-1, log: true}}
  encoder.width: [8, 64, {toy.TRAINING_ERROR}]
  encoder.depth: {{low: 1, high: 3}}
  encoder.pooling: [mean, attentive]
  encoder.heads: {{choices: [1, 2, 4], when: {{encoder.pooling: [attentive]}}}}
  train.window_frames: [40, full]
  data.voices: [original, [af_heart, am_adam]]
sweep:
  {{trials: 7, sampler: random, seed: 1, pruner: halving, max_concurrent: 1, memory_per_trial: null, enqueue: [
    {{train.learning_rate: 4.0e-3, encoder.width: {toy.TRAINING_ERROR}, encoder.pooling: mean}},
    {{train.learning_rate: 2.0e-3, encoder.width: 64, encoder.pooling: attentive, train.window_frames: 40}},
    {{train.learning_rate: 1.0e-3, encoder.width: 8, train.window_frames: full}},
    {{train.learning_rate: 1.0e-1}},
  ]}}
"""
SEARCH = {"train.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "encoder.width": [64, 128]}

Post = Callable[[str, dict[str, Any]], dict[str, Any]]


def plugin(logdir: Path) -> Post:
    """The plugin's answers about what ``logdir`` holds now."""
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(logdir))
    runs.Reload()
    apps = HParamsPlugin(TBContext(data_provider=MultiplexerDataProvider(runs, str(logdir)))).get_plugin_apps()

    def post(route: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = Client(apps[f"/{route}"]).post("/", data=json.dumps(body), content_type="text/plain")
        assert answer.status_code == 200, answer.text
        return json.loads(answer.text)  # type: ignore[no-any-return]

    return post


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[Post]:
    """A TensorBoard process that reads ``logdir`` again every 0.2 s."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", *options]
    process = subprocess.Popen([*command, "--reload_interval", "0.2"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        served = next(line for line in process.stderr if " at http" in line)
        url = next(word for word in served.split() if word.startswith("http"))

        def post(route: str, body: dict[str, Any]) -> dict[str, Any]:
            data, header = json.dumps(body).encode(), {"Content-Type": "text/plain"}
            request = urllib.request.Request(f"{url}data/plugin/hparams/{route}", data, header)
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)  # type: ignore[no-any-return]

        yield post
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stderr.close()


def columns(post: Post) -> dict[str, Any]:
    return {info["name"]: info for info in post("experiment", {"experimentName": ""})["hparamInfos"]}


def groups(post: Post, **changed: Any) -> list[dict[str, Any]]:
    """The rows that the table asks for; ``changed`` holds what a user has set for a column."""
    experiment = post("experiment", {"experimentName": ""})
    names = [{"hparam": info["name"]} for info in experiment["hparamInfos"]]
    names += [{"metric": info["name"]} for info in experiment["metricInfos"]]
    statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    body = {"allowedStatuses": statuses, "startIndex": 0, "sliceSize": 100}
    body["colParams"] = [{**name, **changed.get(str(name.get("hparam")), {})} for name in names]
    return post("session_groups", body)["sessionGroups"]  # type: ignore[no-any-return]


def best(group: dict[str, Any]) -> dict[str, float]:
    return {metric["name"]["tag"].removeprefix("best/"): metric["value"] for metric in group["metricValues"]}


def states(post: Post) -> dict[str, tuple[str, str, float | None]]:
    """State, status and best loss by TensorBoard's name of the trial."""
    return {
        group["name"]: (group["hparams"]["State"], group["sessions"][0]["status"][7:], best(group).get("val/loss"))
        for group in groups(post)
    }


def becomes(post: Post, expected: dict[str, tuple[str, str, float | None]]) -> None:
    until = time.monotonic() + 20
    while (found := states(post)) != expected and time.monotonic() < until:
        time.sleep(0.1)
    assert found == expected


@pytest.fixture(scope="module")
def swept(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, dict[str, FrozenTrial]]:
    result, _ = sweep(SWEPT, tmp_path_factory.mktemp("hparams"))
    trials = open_study(result.folder, SweepSettings()).trials
    ended = Counter(trial.state for trial in trials)
    assert set(ended) == {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}  # else choose another seed
    assert len({len(trial.params) for trial in trials}) == 2
    return result, {str(trial.number): trial for trial in trials}


Swept = tuple[SweepResult, dict[str, FrozenTrial]]


def test_all_searched_settings_are_columns_with_their_domains(swept: Swept) -> None:
    found = columns(plugin(swept[0].folder / "trials"))
    assert next(iter(found)) == "State"
    assert {name: info.get("domainDiscrete", info.get("domainInterval")) for name, info in found.items()} == {
        "State": ["running", "interrupted", "complete", "pruned", "failed"],
        "data.voices": ["original", '["af_heart", "am_adam"]'],
        "encoder.depth": ["1", "2", "3"],
        "encoder.heads": ["1", "2", "4", NOT_SEARCHED],
        "encoder.pooling": ["mean", "attentive"],
        "encoder.width": ["  8", " 64", "101"],
        "train.learning_rate": {"minValue": 1e-5, "maxValue": 0.1},
        "train.window_frames": ["40", "full"],
    }


@pytest.mark.parametrize("logdir", ["trials", "."])
def test_each_trial_is_one_row_with_its_settings_state_and_best_scores(swept: Swept, logdir: str) -> None:
    result, trials = swept
    found = {group["name"].removeprefix("trials/"): group for group in groups(plugin(result.folder / logdir))}
    assert found.keys() == trials.keys()
    state = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    status = {"complete": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "pruned": "STATUS_UNKNOWN"}
    for number, trial in trials.items():
        row, params = found[number]["hparams"], trial.user_attrs["params"]
        assert row.pop("State") == state[trial.state]
        assert [session["status"] for session in found[number]["sessions"]] == [status[state[trial.state]]]
        assert row.pop("train.learning_rate") == params["train.learning_rate"]
        texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in params.items() if type(v) is not float}
        texts.setdefault("encoder.heads", NOT_SEARCHED)
        assert {name: value.lstrip() for name, value in row.items()} == texts
        scores = trial.user_attrs.get("metrics", {})
        expected = {name: scores[name] for name in ("val/loss", "val/skill", "val/stft", "val/style") if scores}
        assert best(found[number]) == pytest.approx(expected, rel=1e-6)
        if trial.state == TrialState.COMPLETE:
            assert best(found[number])["val/loss"] == pytest.approx(min(trial.intermediate_values.values()))


def test_every_column_can_be_filtered_and_sorted(swept: Swept) -> None:
    result, trials = swept
    with tensorboard(result.folder / "trials") as post:
        becomes(post, states(plugin(result.folder / "trials")))
        for name, info in columns(post).items():
            values = info.get("domainDiscrete", [])
            for value in values:
                kept = groups(post, **{name: {"filterDiscrete": [value]}})
                assert {group["hparams"][name] for group in kept} <= {value}, name
                others = groups(post, **{name: {"filterDiscrete": [other for other in values if other != value]}})
                assert len(kept) + len(others) == len(trials), name
            if info["type"] == "DATA_TYPE_STRING":
                groups(post, **{name: {"filterRegexp": "4"}})
            else:
                middle = {"minValue": 1e-4, "maxValue": 1e-2}
                kept = groups(post, **{name: {"filterInterval": middle}})
                assert {1e-4 <= group["hparams"][name] <= 1e-2 for group in kept} == {True}
        ordered = groups(post, **{"encoder.width": {"order": "ORDER_ASC"}})
        widths = [int(group["hparams"]["encoder.width"]) for group in ordered]
        assert widths == sorted(widths) and len(set(widths)) == 3


@pytest.fixture
def book(tmp_path: Path) -> TrialLedger:
    return ledger(tmp_path, search=SEARCH)


def watched(book: TrialLedger, folder: Path, search: Any = SEARCH, **settings: Any) -> HparamsTable:
    space = Space.parse(search, RunConfig(), "a.yaml")
    table = HparamsTable(folder / "trials", space, scores=("val/loss",), **settings)
    table.open(open_study(folder, SweepSettings()))
    book.watcher = table
    return table


def end(book: TrialLedger, table: HparamsTable, number: int) -> None:
    book.end(number)
    table.ended(number, dict(book.ended)[number].state)


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["true", "false"])
def test_state_and_best_loss_are_shown_while_trials_run(tmp_path: Path, book: TrialLedger, reader: str) -> None:
    table = watched(book, tmp_path)
    with tensorboard(tmp_path / "trials", f"--load_fast={reader}") as post:
        for _ in range(3):
            book.ask()
        expected: dict[str, tuple[str, str, float | None]] = {
            f"running/{number}": ("running", "RUNNING", None) for number in range(3)
        }
        becomes(post, expected)
        book.report(0, result(1, 0.5))
        expected["running/0"] = ("running", "RUNNING", 0.5)
        becomes(post, expected)
        book.report(0, result(2, 0.25))
        book.report(0, result(3, 0.75))
        end(book, table, 0)
        book.report(1, {"interrupted": "stopped"})
        end(book, table, 1)
        expected = {
            "0": ("complete", "SUCCESS", 0.25),
            "interrupted/1": ("interrupted", "UNKNOWN", None),
            "running/2": ("running", "RUNNING", None),
        }
        becomes(post, expected)  # now the driver is killed, and another one takes over
        again = ledger(tmp_path, search=SEARCH)
        table = watched(again, tmp_path)
        del expected["running/2"]
        becomes(post, {**expected, "interrupted/2": ("interrupted", "UNKNOWN", None)})
        for number in (1, 2):
            again.ask()
            again.report(number, result(1, 1.5))
        again.report(2, {"error": "step 17"})
        for number in (1, 2):
            end(again, table, number)
        ends = {"1": ("complete", "SUCCESS", 1.5), "2": ("failed", "FAILURE", 1.5)}
        becomes(post, {"0": expected["0"], **ends})
    table.close()
    assert {path.name for path in (tmp_path / "trials").iterdir()} == {"0", "1", "2", "hparams"}


def test_a_trial_whose_settings_are_refused_is_a_failed_row(tmp_path: Path) -> None:
    search = {"encoder.pooling": ["mean"], "features.channel": ["mean"]}  # which leaves nothing to pool
    space = Space(dimensions={name: Choices(tuple(values)) for name, values in search.items()})
    study = open_study(tmp_path, SweepSettings(), create=True)
    book = TrialLedger(study, space, RunConfig(), tmp_path / "trials", SweepSettings(trials=1, sampler="random"))
    with closing(HparamsTable(tmp_path / "trials", space, scores=("val/loss",))) as table:
        table.open(study)
        book.watcher = table
        assert book.ask() is None
        for number, ending in book.ended:
            table.ended(number, ending.state)
    assert states(plugin(tmp_path / "trials")) == {"0": ("failed", "FAILURE", None)}
    assert [trial.state for trial in stored_trials(tmp_path)] == [TrialState.FAIL]


def test_a_space_that_a_resumed_sweep_changes_changes_columns_and_rows(tmp_path: Path) -> None:
    narrow = {"encoder.depth": {"low": 1, "high": 3}, "encoder.width": [64, 128]}
    book = ledger(tmp_path, 1, narrow)
    table = watched(book, tmp_path, narrow)
    book.ask()
    book.report(0, result(1, 0.5))
    end(book, table, 0)
    depth = columns(plugin(tmp_path / "trials"))["encoder.depth"]
    assert depth["domainDiscrete"] == ["1", "2", "3"]
    files = sorted((tmp_path / "trials").rglob("*tfevents*"))
    assert [file.parent.name for file in files] == ["0", "hparams"]
    watched(ledger(tmp_path, 1, narrow), tmp_path, narrow)
    assert sorted((tmp_path / "trials").rglob("*tfevents*")) == files

    wide = {"encoder.depth": {"low": 1, "high": 12}, "train.learning_rate": {"low": 1e-4, "high": 1e-2}}
    book = ledger(tmp_path, 2, wide)
    table = watched(book, tmp_path, wide, others={"train.seed": Choices((3, 4))})
    book.ask()
    book.report(1, result(1, 0.25))
    end(book, table, 1)
    post = plugin(tmp_path / "trials")
    found = columns(post)
    assert found["encoder.depth"]["domainInterval"] == {"minValue": 1, "maxValue": 12}
    assert found["train.seed"]["domainDiscrete"] == ["3", "4"]
    assert len(found["encoder.width"]["domainDiscrete"]) == 1  # what the first trial had of a dropped setting
    params = [trial.user_attrs["params"] for trial in stored_trials(tmp_path)]
    middle = {"filterInterval": {"minValue": 1, "maxValue": 12}}
    rows = {group["name"]: group["hparams"] for group in groups(post, **{"encoder.depth": middle})}
    assert [rows[name]["encoder.depth"] for name in "01"] == [each["encoder.depth"] for each in params]


def test_shared_storage_has_the_same_table(tmp_path: Path, book: TrialLedger) -> None:
    shared = tmp_path / "shared"
    table = watched(book, tmp_path, copy=SharedFolder(f"file://{shared}"))
    for number in range(3):
        book.ask()
        book.report(number, result(1, 1.5 - number / 4))
    book.report(1, {"interrupted": "stopped"})
    for number in (0, 1):
        end(book, table, number)
    table.close()
    found = states(plugin(shared))
    assert found == states(plugin(tmp_path / "trials"))
    assert found == {
        "0": ("complete", "SUCCESS", 1.5),
        "interrupted/1": ("interrupted", "UNKNOWN", 1.25),
        "running/2": ("running", "RUNNING", 1.0),
    }


def test_a_table_that_cannot_be_written_stops_no_trial(
    tmp_path: Path, book: TrialLedger, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "trials").write_text("not a folder")
    table = watched(book, tmp_path)
    for number in range(2):
        assert book.ask() is not None
        book.report(number, result(1, 0.5))
        end(book, table, number)
    table.close()
    assert [trial.state for trial in stored_trials(tmp_path)] == [TrialState.COMPLETE] * 2
    assert [r.message for r in caplog.records if "HPARAMS" in r.message] == [caplog.records[0].message]


def test_a_value_that_tensorboard_cannot_hold_stops_no_trial(
    tmp_path: Path, book: TrialLedger, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(watched(book, tmp_path)) as table:
        table.started(0, {"train.learning_rate": 10**400})
    assert "HPARAMS tab is incomplete: OverflowError: " in caplog.text


def test_a_killed_and_resumed_sweep_with_shared_storage_shows_all_its_trials(ray_session: None, tmp_path: Path) -> None:
    fixed = ["sweep.trials=2", "train.epochs=1", "sweep.memory_per_trial=null"]
    fixed += [f"search.encoder.width=[{toy.SLOW}]", f"sweep.shared=file://{tmp_path / 'shared'}"]
    process = driver(tmp_path, *fixed)
    folder = tmp_path / "toy" / "trials"
    wait_for(folder / "running" / "0", process)
    time.sleep(1)
    killed(process)
    assert states(plugin(folder))["running/0"] == ("running", "RUNNING", None)
    resume(tmp_path)
    found = states(plugin(folder))
    assert {name: (state, status) for name, (state, status, _) in found.items()} == {
        "0": ("complete", "SUCCESS"),
        "1": ("complete", "SUCCESS"),
    }
    assert states(plugin(tmp_path / "shared" / "toy" / "trials")) == found


@pytest.mark.parametrize(
    ("dimension", "value", "shown"),
    [
        (Range(0.1, 0.5), 0.25, 0.25),
        (Range(1, 2, step=0.5), 1.0, 1.0),
        (Range(1, 1000), 3, 3.0),  # too many to list
        (Range(2, 10, step=2), 4, " 4"),
        (Choices((1, 20, 300)), 20, " 20"),
        (Choices((0.5, 1)), 1, 1.0),
        (Choices((True, False)), False, False),
        (Choices((True, False), when=({"a": (1,)},)), False, "false"),
        (Choices((40, "full")), 40, "40"),
        (Choices((40, "full")), "full", "full"),
        (Choices((40, "40")), "40", '"40"'),
        (Choices((None, 3)), None, "null"),
        (Choices((None, 0.001)), 0.001, "0.001"),
        (Choices((True, 3)), True, "true"),
        (Choices(([1, 2], "last")), [1, 2], "[1, 2]"),
    ],
)
def test_a_value_is_shown_as_its_column_says(dimension: Range | Choices, value: Any, shown: Any) -> None:
    column = HparamsColumn("a", dimension)
    assert (column.value(value), type(column.value(value))) == (shown, type(shown))
    kind = {str: "STRING", float: "FLOAT64", bool: "BOOL"}[type(shown)]
    assert (
        column.info.type
        == column.info.DESCRIPTOR.fields_by_name["type"].enum_type.values_by_name[f"DATA_TYPE_{kind}"].number
    )
    if isinstance(dimension, Choices):
        assert shown in list(column.info.domain_discrete)
