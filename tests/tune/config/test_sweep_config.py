"""tune.config.sweep_config: one file is a run, a search and a sweep; what is wrong is told in one line."""

from pathlib import Path

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.yaml_files import read_yaml, write_yaml
from nuanced_core.errors import ConfigError
from tune.config.dimension import Choices, Range
from tune.config.sweep_config import as_override, load, load_run, load_sweep

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
    config = load_sweep(written(tmp_path, GOOD), ["train.batch_size=4"])
    assert config.run.train.epochs == 6
    assert config.run.train.batch_size == 4
    assert config.search.dimensions == {
        "encoder.width": Range(64, 512, log=True),
        "encoder.pooling": Choices(("mean", "mean_std")),
    }
    assert (config.sweep.trials, config.sweep.gpus_per_trial) == (8, 0.25)


def test_the_resolved_settings_load_again_with_a_record_beside_them(tmp_path: Path) -> None:
    config = load_sweep(written(tmp_path, GOOD))
    again = tmp_path / "again.yaml"
    write_yaml(again, {**config.as_dict(), "record": {"git_commit": "0"}})
    assert load_sweep(again) == config


def test_a_run_is_read_from_a_sweep_s_file(tmp_path: Path) -> None:
    assert load_run(written(tmp_path, GOOD), ["train.epochs=2"]).train.epochs == 2


def test_a_search_is_overridden_extended_and_dropped_by_name(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD)
    config = load_sweep(
        file,
        ["search.encoder.width.high=128", "search.encoder.pooling=null", "search.encoder.depth=[1, 2]"],
    )
    assert config.search.dimensions == {
        "encoder.width": Range(64, 128, log=True),
        "encoder.depth": Choices((1, 2)),
    }


def test_a_condition_is_overridden_in_part(tmp_path: Path) -> None:
    condition = "  encoder.heads: {choices: [1, 2], when: {encoder.pooling: [mean_std]}}\n"
    file = written(tmp_path, GOOD.replace("sweep:", condition + "sweep:"))
    config = load_sweep(file, ["search.encoder.heads.when.encoder.pooling=[mean]"])
    assert config.search.dimensions["encoder.heads"] == Choices((1, 2), ({"encoder.pooling": ("mean",)},))


def test_runs_to_prepare_are_the_combinations_of_models_and_data(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        GOOD + "models: {whisper: base}\n",
    )
    voices = "search.data.voices=[original, [af_heart, am_adam]]"
    config = load_sweep(file, [voices, "search.features.layers=[last, all]"])
    runs = config.runs_to_prepare()
    assert {run.data.voices for run in runs} == {"original", ("af_heart", "am_adam")}
    assert {run.features.layers for run in runs} == {"last", "all"}
    assert len(runs) == 3
    assert all(run.encoder == RunConfig().encoder for run in runs)


@pytest.mark.parametrize(
    ("override", "told"),
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
        ("sweep.gpus_per_trial=1.5", "gpus_per_trial 1.5 is neither a share of one GPU nor whole"),
        ("sweep=fast", 'sweep: "fast"'),
        ("search=fast", "search: 'fast': not 'setting: range or choices' lines"),
        (
            "encoder.width=100",
            "--set encoder.width=100: this setting is searched; "
            "take it out of the search with --set search.encoder.width=null",
        ),
    ],
)
def test_errors_name_the_place_and_the_fix_in_one_line(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(written(tmp_path, GOOD), [override])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_keep_any_text(tmp_path: Path) -> None:
    strange = "out: {put}, # 1"
    config = load_sweep(written(tmp_path, GOOD), [as_override("sweep.outputs", strange)])
    assert config.sweep.outputs == strange


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_in_configs_loads(file: Path) -> None:
    run = load_run(file)
    loaded = load(file)
    if "search" in read_yaml(file):
        assert loaded == load_sweep(file)
    else:
        assert loaded == run


def test_there_are_configs_to_sweep_and_one_to_train() -> None:
    searched = {file.stem: "search" in read_yaml(file) for file in CONFIGS.glob("*.yaml")}
    assert sum(searched.values()) >= 3
    assert searched["default"] is False


def test_runs_are_rendered_for_what_their_trials_are_given(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("search: {encoder.width: [8, 16]}\n")
    assert load_sweep(file).run.train.device == "cpu"
    assert load_sweep(file, ["sweep.gpus_per_trial=0.25"]).run.train.device == "cuda"
    for overrides in (["train.device=cuda"], ["train.device=cpu", "sweep.gpus_per_trial=1"], ["train.device=cuda:1"]):
        with pytest.raises(ConfigError, match=r"train\.device: .* take auto"):
            load_sweep(file, overrides)


def test_what_chooses_validation_sentences_cannot_be_searched(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("search: {data.max_phonemes: [20, 40]}\n")
    with pytest.raises(ConfigError, match="every trial is compared by the same objective"):
        load_sweep(file)
