"""tune.trial.checkpoints: which checkpoints of ended trials are kept."""

from pathlib import Path

import pytest

from tests.tune.conftest import MIXED, sweep
from tune.cluster.shared_storage import SharedFolder
from tune.config.sweep_settings import SweepSettings
from tune.search.results import Ending
from tune.trial.checkpoints import CheckpointKeeper


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        (tmp_path / "trials" / str(number) / "checkpoints").mkdir(parents=True)
        for name in ("best", "last"):
            (tmp_path / "trials" / str(number) / "checkpoints" / f"{name}.safetensors").touch()
    return tmp_path


def kept(folder: Path) -> dict[int, str]:
    """The checkpoints of each trial that has some, by the first letters of their names."""
    found: dict[int, str] = {}
    for path in sorted((folder / "trials").glob("*/checkpoints/*")):
        number = int(path.parents[1].name)
        found[number] = found.get(number, "") + path.name[0]
    return found


ENDINGS = [
    (0, Ending("complete", 3.0)),
    (1, Ending("failed", error="nan")),
    (2, Ending("complete", 1.0)),
    (3, Ending("pruned", 0.5)),
    (4, Ending("complete", 2.0)),
    (5, Ending("interrupted", 9.0)),
]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, dict.fromkeys(range(6), "bl")),
        ({"keep_checkpoints": "best"}, {**dict.fromkeys(range(5), "b"), 5: "bl"}),
        ({"keep_trials": 2}, {2: "bl", 4: "bl", 5: "bl"}),
        ({"keep_trials": 1, "keep_checkpoints": "best"}, {2: "b", 5: "bl"}),
    ],
)
def test_what_is_kept_of_trials_that_ended(folder: Path, settings: dict[str, object], left: dict[int, str]) -> None:
    keeper = CheckpointKeeper(SweepSettings(**settings), [SharedFolder(str(folder))])  # type: ignore[arg-type]
    for number, ending in ENDINGS:
        keeper.note(number, ending)
    assert kept(folder) == left


def test_a_resumed_sweep_knows_which_trials_were_the_best(folder: Path) -> None:
    earlier = [(1.5, 0), (2.5, 1)]
    keeper = CheckpointKeeper(SweepSettings(keep_trials=2), [SharedFolder(str(folder))], earlier)
    keeper.note(2, Ending("complete", 2.0))
    assert kept(folder) == dict.fromkeys((0, 2, 3, 4, 5), "bl")


def test_a_sweep_keeps_its_best_trials_alone(ray_session: None, tmp_path: Path) -> None:
    # The toy's checkpoints have another name: what is removed is looked for here, not by the keeper.
    overrides = ["search.encoder.width=[64]", "sweep.trials=4", "sweep.keep_trials=1", "train.epochs=2"]
    removed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedFolder, "remove", lambda self, *names: removed.extend(names))
        result, _ = sweep(MIXED, tmp_path, *overrides)
    gone = {name.split("/")[1] for name in removed if name.startswith("trials/")}
    best = result.status["best"]["number"]
    assert gone == {str(number) for number in range(4)} - {str(best)}
