"""tune.sweep.driver: failed trials run again, grids that are used up, settings with several seeds, on a real Ray."""

from pathlib import Path

import pytest
import yaml

from nuanced_core.errors import ConfigError
from tests.tune import toy
from tests.tune.conftest import logged, sweep
from tune.show.report import status_lines
from tune.show.status import status
from tune.sweep.driver import resume_sweep

GRID = f"""
train: {{epochs: 2}}
search:
  train.learning_rate: [1.0e-3, 1.0e-2]
  encoder.width: [64, {toy.BROKEN}]
sweep: {{sampler: grid, trials: null, pruner: none}}
"""
REPEATED = """
train: {epochs: 2, seed: 7}
search:
  train.learning_rate: [1.0e-3, 1.0e-2]
sweep: {trials: 10, repeats: 2, pruner: none}
"""


def test_failed_trials_are_run_again_after_a_grid_is_used_up(ray_session: None, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    result, lines = sweep(GRID, tmp_path)
    failed = [trial for trial in result.status["trials"] if trial["state"] == "failed"]
    assert len(failed) == 2 and len(result.status["trials"]) == 4 and result.exit_code == 0
    assert "all 4 combinations of the search space have been tried" in lines
    with pytest.raises(ConfigError, match=r"all 4 combinations .* have been tried; widen it .* --retry-failed"):
        resume_sweep(tmp_path / "toy", services=toy.services())

    (tmp_path / "broken").unlink()
    with logged() as log:
        again = resume_sweep(tmp_path / "toy", retry_failed=True, services=toy.services())
    assert "2 failed trials are run again" in log
    assert again.exit_code == 0
    new = again.status["trials"][4:]
    assert [(trial["number"], trial["state"], trial["retry_of"]) for trial in new] == [
        (4, "complete", failed[0]["number"]),
        (5, "complete", failed[1]["number"]),
    ]
    assert [trial["params"] for trial in new] == [trial["params"] for trial in failed]
    assert (tmp_path / "toy" / "trials" / "5" / "config.yaml").is_file()
    with pytest.raises(ConfigError, match="have been tried"):  # none is left to run again
        resume_sweep(tmp_path / "toy", retry_failed=True, services=toy.services())


def test_settings_are_trained_with_several_seeds_and_compared_by_their_mean(ray_session: None, tmp_path: Path) -> None:
    result, lines = sweep(REPEATED, tmp_path)
    trials = result.status["trials"]
    assert len(trials) == 4 and {trial["state"] for trial in trials} == {"complete"}
    assert "all 2 combinations of the search space have been tried" in lines
    seeds = {}
    for trial in trials:
        config = yaml.safe_load((tmp_path / "toy" / "trials" / str(trial["number"]) / "config.yaml").read_text())
        assert config["train"]["seed"] == trial["params"]["train.seed"]
        assert config["train"]["learning_rate"] == trial["params"]["train.learning_rate"]
        seeds.setdefault(config["train"]["learning_rate"], []).append(config["train"]["seed"])
    assert {rate: sorted(found) for rate, found in seeds.items()} == {1.0e-3: [7, 8], 1.0e-2: [7, 8]}
    best = status(tmp_path / "toy")["best"]
    assert best["params"]["train.learning_rate"] == 1.0e-3
    assert best["seeds"] == {"number": 2, "mean": pytest.approx(1.0), "std": 0.0}
    seed_line = "  val/loss of its settings: 1.0000 ± 0.0000 (2 seeds)"
    assert seed_line in lines and seed_line in status_lines(tmp_path / "toy")
