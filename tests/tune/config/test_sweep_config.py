"""tune.config.sweep_config: one file holds a run, a search and a sweep; errors are one line."""

import copy
from pathlib import Path
from typing import Any

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError
from tune.config.dimension import Choices, Range
from tune.config.sweep_config import as_override, load, load_run, load_sweep_config, parse_sweep

CONFIGS = Path(__file__).parents[3] / "configs"
GOOD = """
train: {epochs: 6}
search:
  encoder.width: {low: 64, high: 512, log: true}
  encoder.pooling: [mean, mean_std]
sweep: {trials: 8, gpus_per_trial: 0.25}
"""


def written(folder: Path, text: str) -> Path:
    file = folder / "sweep.yaml"
    file.write_text(text)
    return file


def test_a_file_is_split_into_run_search_and_sweep(tmp_path: Path) -> None:
    config = load_sweep_config(written(tmp_path, GOOD), ["train.batch_size=4"])
    assert config.run.train.epochs == 6
    assert config.run.train.batch_size == 4
    assert config.search.dimensions == {
        "encoder.width": Range(64, 512, log=True),
        "encoder.pooling": Choices(("mean", "mean_std")),
    }
    assert (config.sweep.trials, config.sweep.gpus_per_trial) == (8, 0.25)


def test_saved_settings_load_again_and_their_record_is_ignored(tmp_path: Path) -> None:
    config = load_sweep_config(written(tmp_path, GOOD))
    again = tmp_path / "again.yaml"
    write_yaml(again, {**config.as_dict(), "record": {"git_commit": "0"}})
    assert load_sweep_config(again) == config


def test_parsed_data_give_the_sweep_that_its_file_gives(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD + "record: {git_commit: '0'}\n")
    data = read_yaml(file)
    unchanged = copy.deepcopy(data)
    assert parse_sweep(data, str(file)) == load_sweep_config(file)
    overrides = ["train.epochs=3", "sweep.trials=9", "search.encoder.depth=[1, 2]"]
    assert parse_sweep(data, str(file), overrides) == load_sweep_config(file, overrides) != load_sweep_config(file)
    assert data == unchanged


def test_a_sweep_that_cmaes_was_accepted_for_is_still_read() -> None:
    data: dict[str, Any] = {"search": {"encoder.width": [64, 128]}, "sweep": {"sampler": "cmaes"}, "record": {}}
    assert parse_sweep(data, "sweep.yaml", ["sweep.trials=30"]).sweep.sampler == "cmaes"
    with pytest.raises(ConfigError, match=r"sweep\.sampler: cmaes: learns only about ranges"):
        parse_sweep({**data, "sweep": {}}, "sweep.yaml", ["sweep.sampler=cmaes"])


def test_errors_of_parsed_data_name_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^there\.yaml: sweep\.trails: unknown setting; did you mean sweep\.trials"):
        parse_sweep({"search": {"encoder.width": [64, 128]}, "sweep": {"trails": 3}}, "there.yaml")
    with pytest.raises(ConfigError, match=r"^there\.yaml: serach: unknown setting; did you mean search"):
        parse_sweep({"serach": {}}, "there.yaml")


@pytest.mark.parametrize("name", ["outputs", "warm_start", "shared"])
def test_a_path_is_kept_as_it_is_written(tmp_path: Path, name: str) -> None:
    file = written(tmp_path, GOOD.replace("trials: 8", f"trials: 8, {name}: ~/sweeps"))
    assert getattr(load_sweep_config(file).sweep, name) == "~/sweeps"
    # Without quotes, ~ alone is null in YAML.
    assert getattr(load_sweep_config(file, [as_override(f"sweep.{name}", "~")]).sweep, name) == "~"


@pytest.mark.parametrize("name", ["outputs", "shared"])
def test_an_empty_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"sweep\.{name}: \"\": string should have at least 1 character"):
        load_sweep_config(written(tmp_path, GOOD), [f"sweep.{name}=''"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.seed=1", "data.seed: was 0, would be 1: trials could not be compared; start a new sweep"),
        ("data.max_phonemes=40", "data.max_phonemes: was 510, would be 40: trials could not be compared"),
        ("objective.stft=2", "objective: was "),
        ("sweep.storage='sqlite:///x.db'", "sweep.storage: was None, would be sqlite:///x.db: trials could not be"),
        ("sweep.shared=there", "sweep.shared: was None, would be there: unfinished trials would not find their"),
        (
            "search.encoder.pooling=[mean, max]",
            'search.encoder.pooling: was ["mean", "mean_std"], would be ["mean", "max"]: the sampler cannot learn from '
            "the trials so far; keep it, drop it with --set search.encoder.pooling=null, or start a new sweep",
        ),
        ("search.encoder.width=[64, 128]", 'search.encoder.width: was {"low": 64, "high": 512, "log": true}, would be'),
        ("search.encoder.width.log=false", "search.encoder.width: was "),
    ],
)
def test_a_sweep_cannot_continue_one_with_other_trials(tmp_path: Path, override: str, message: str) -> None:
    file = written(tmp_path, GOOD)
    with pytest.raises(ConfigError) as caught:
        load_sweep_config(file, [override]).check_can_continue(load_sweep_config(file))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_sweep_continues_one_with_another_budget_or_range(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    for override in (
        "sweep.trials=99",
        "train.epochs=9",
        "search.encoder.width.high=1024",
        "search.encoder.pooling=null",
        "search.encoder.depth=[1, 2]",
    ):
        load_sweep_config(file, [override]).check_can_continue(load_sweep_config(file))


def test_a_run_is_loaded_from_a_sweep_s_file(tmp_path: Path) -> None:
    assert load_run(written(tmp_path, GOOD), ["train.epochs=2"]).train.epochs == 2


def test_a_search_is_overridden_extended_and_dropped_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    config = load_sweep_config(
        file,
        ["search.encoder.width.high=128", "search.encoder.pooling=null", "search.encoder.depth=[1, 2]"],
    )
    assert config.search.dimensions == {
        "encoder.width": Range(64, 128, log=True),
        "encoder.depth": Choices((1, 2)),
    }


def test_a_condition_can_be_overridden_on_its_own(tmp_path: Path) -> None:
    condition = "  encoder.heads: {choices: [1, 2], when: {encoder.pooling: [mean_std]}}\n"
    file = written(tmp_path, GOOD.replace("sweep:", condition + "sweep:"))
    config = load_sweep_config(file, ["search.encoder.heads.when.encoder.pooling=[mean]"])
    assert config.search.dimensions["encoder.heads"] == Choices((1, 2), ({"encoder.pooling": ("mean",)},))


def test_runs_to_prepare_are_the_combinations_of_models_and_data(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        GOOD + "models: {whisper: base}\n",
    )
    voices = "search.data.voices=[original, [af_heart, am_adam]]"
    config = load_sweep_config(file, [voices, "search.features.layers=[last, all]"])
    runs = config.runs_to_prepare()
    assert {run.data.voices for run in runs} == {"original", ("af_heart", "am_adam")}
    assert {run.features.layers for run in runs} == {"last", "all"}
    assert len(runs) == 3
    assert all(run.encoder == RunConfig().encoder for run in runs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("serach.encoder.width=[1]", "serach: unknown setting; did you mean search?"),
        ("learning_rate=0.1", "learning_rate: unknown setting; did you mean train.learning_rate?"),
        ("train.epoch=3", "train.epoch: unknown setting; did you mean train.epochs?"),
        ("sweep.trails=3", "sweep.trails: unknown setting; did you mean sweep.trials?"),
        ("sweep.trials=0", "sweep.trials: 0: input should be greater than or equal to 1"),
        ("sweep.trials=many", 'sweep.trials: "many": input should be a valid integer'),
        (
            "sweep.pruner=hyper",
            "sweep.pruner: \"hyper\": input should be 'halving', 'hyperband', 'median', 'patience' or 'none'",
        ),
        ("sweep.trials=null", "trials, hours and gpu_hours are all null, so the sweep would never end"),
        (
            "sweep.objectives=[val/stft, val/style]",
            "several objectives cannot be pruned by one of them; set pruner none",
        ),
        ("sweep.repeats=0", "sweep.repeats: 0: input should be greater than or equal to 1"),
        ("sweep={repeats: 2, keep_trials: 3}", "which need not be those with the lowest mean of their repeats"),
        (
            "sweep={objectives: [val/stft, val/style], pruner: none, repeats: 2}",
            "repeats compares means of val/loss, not of several objectives",
        ),
        (
            "sweep={objectives: [val/stft, val/style], pruner: none, sampler: cmaes}",
            "sampler cmaes takes one objective",
        ),
        ("sweep.gpus_per_trial=1.5", "gpus_per_trial 1.5 is neither a share of one GPU nor a whole number"),
        ("sweep=fast", 'sweep: "fast"'),
        ("search=fast", "search: 'fast': not 'setting: range or choices' lines"),
        (
            "encoder.width=100",
            "--set encoder.width=100: this setting is searched; "
            "take it out of the search with --set search.encoder.width=null",
        ),
    ],
)
def test_errors_name_the_place_and_the_fix_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep_config(written(tmp_path, GOOD), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


CHOICES = {"encoder.pooling": ["mean", "queries"]}
HEADS = {"low": 1, "high": 8, "when": {"encoder.pooling": ["queries"]}}


@pytest.mark.parametrize(
    ("search", "sweep", "message"),
    [
        (
            {"train.learning_rate": {"low": 1e-4, "high": 1e-2}},
            {"sampler": "grid"},
            "sweep.sampler: grid: search.train.learning_rate is a range of floats without a step",
        ),
        (
            {"encoder.width": {"low": 8, "high": 512}, "train.batch_size": {"low": 1, "high": 100}},
            {"sampler": "grid"},
            "sweep.sampler: grid: the search space has more than 20000 combinations",
        ),
        (CHOICES, {"sampler": "cmaes"}, "sweep.sampler: cmaes: learns only about ranges without a condition"),
        (
            {**CHOICES, "encoder.heads": HEADS},
            {"sampler": "cmaes"},
            "sweep.sampler: cmaes: learns only about ranges without a condition",
        ),
        ({"train.seed": [0, 1]}, {"repeats": 2}, "sweep.repeats: 2: varies train.seed, which is searched"),
    ],
)
def test_a_sampler_that_cannot_search_the_space_is_refused(
    search: dict[str, Any], sweep: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_sweep({"search": search, "sweep": sweep}, "a.yaml")
    assert str(caught.value).startswith(f"a.yaml: {message}") and "\n" not in str(caught.value)


def test_a_grid_needs_no_budget() -> None:
    config = parse_sweep({"search": CHOICES, "sweep": {"sampler": "grid", "trials": None}}, "a.yaml")
    assert config.sweep.trials is None


def test_an_override_may_hold_any_characters(tmp_path: Path) -> None:
    text = "out: {put}, # 1"
    config = load_sweep_config(written(tmp_path, GOOD), [as_override("sweep.outputs", text)])
    assert config.sweep.outputs == text


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_in_configs_loads(file: Path) -> None:
    run = load_run(file)
    loaded = load(file)
    if "search" in read_yaml(file):
        assert loaded == load_sweep_config(file)
    else:
        assert loaded == run


def test_configs_holds_sweeps_and_a_run() -> None:
    searched = {file.stem: "search" in read_yaml(file) for file in CONFIGS.glob("*.yaml")}
    assert sum(searched.values()) >= 3
    assert searched["default"] is False


def test_a_run_has_the_device_of_its_trials(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("search: {encoder.width: [8, 16]}\n")
    assert load_sweep_config(file).run.train.device == "cpu"
    assert load_sweep_config(file, ["sweep.gpus_per_trial=0.25"]).run.train.device == "cuda"
    for overrides in (["train.device=cuda"], ["train.device=cpu", "sweep.gpus_per_trial=1"], ["train.device=cuda:1"]):
        with pytest.raises(ConfigError, match=r"train\.device: .* take auto"):
            load_sweep_config(file, overrides)


def test_a_setting_that_decides_validation_sentences_cannot_be_searched(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("search: {data.max_phonemes: [20, 40]}\n")
    with pytest.raises(ConfigError, match="every trial is compared by the same objective"):
        load_sweep_config(file)
