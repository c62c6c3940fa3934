"""tune.cluster.machines: how many trials fit, and what is refused before Ray is started."""

import os
from pathlib import Path

import pytest

from nuanced_core.errors import ConfigError
from tune.cluster import machines
from tune.cluster.machines import (
    MEMORY_RESERVE,
    JoinedCluster,
    Resources,
    ThisMachine,
    check_fit,
    concurrency_limit,
    concurrent_trials,
    local_resources,
)
from tune.config.sweep_settings import SweepSettings


@pytest.mark.parametrize(
    ("cpus", "gpus", "settings", "fits"),
    [
        (2, 0, {}, 2),
        (7, 0, {"cpus_per_trial": 2}, 3),
        (2, 0, {"cpus_per_trial": 0.5}, 4),
        (8, 0, {"max_concurrent": 3}, 3),
        (8, 0, {"trials": 2}, 2),
        (32, 2, {"gpus_per_trial": 0.25}, 8),
        (32, 2, {"gpus_per_trial": 0.3}, 6),
        (32, 1, {"gpus_per_trial": 0.1}, 10),
        (32, 5, {"gpus_per_trial": 2}, 2),
        (3, 4, {"gpus_per_trial": 1}, 3),
        (64, 0, {"memory_per_trial": 2.3}, 6),
        (64, 4, {"memory_per_trial": 2.3, "gpus_per_trial": 0.5}, 6),
        (4, 0, {"memory_per_trial": 2.3}, 4),
        (64, 0, {"memory_per_trial": None, "trials": 99}, 64),
    ],
)
def test_the_scarcest_resource_limits_the_concurrent_trials(
    cpus: int, gpus: int, settings: dict[str, float], fits: int
) -> None:
    machine = Resources(cpus, gpus, memory=int(14e9) if "memory_per_trial" in settings else None)
    assert concurrent_trials(SweepSettings(**settings), [machine]) == fits  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"memory_per_trial": 2.3}, "memory: 14.0 GB for trials of 2.3 GB"),
        ({"memory_per_trial": 0.1}, "CPU cores: 64 for trials of 1"),
        ({"memory_per_trial": 2.3, "gpus_per_trial": 1 / 3}, "GPUs: 1 for trials of 0.333"),
        ({"memory_per_trial": 2.3, "max_concurrent": 2}, "sweep.max_concurrent: 2"),
        ({"memory_per_trial": 2.3, "trials": 3}, "sweep.trials: 3"),
    ],
)
def test_what_limits_the_concurrent_trials_is_named(settings: dict[str, float], limit: str) -> None:
    machine = Resources(64, 1, memory=int(14e9))
    assert concurrency_limit(SweepSettings(**{"trials": 99, **settings}), [machine]) == limit  # type: ignore[arg-type]


def test_memory_that_is_too_small_for_one_trial_is_refused() -> None:
    settings = SweepSettings(memory_per_trial=15)
    with pytest.raises(
        ConfigError, match=r"sweep\.memory_per_trial: 15\.0 GB: this machine has 14\.0 GB for trials; lower"
    ):
        check_fit(settings, [Resources(64, 0, memory=int(14e9))])
    nodes = [Resources(8, 0, "a", "1", int(9e9)), Resources(8, 0, "b", "2", int(10e9))]
    with pytest.raises(ConfigError, match=r"sweep\.memory_per_trial: 15\.0 GB: no node has more than 10\.0 GB"):
        check_fit(settings, nodes)
    assert concurrent_trials(SweepSettings(memory_per_trial=4), nodes) == 4
    assert concurrency_limit(SweepSettings(memory_per_trial=4), nodes) == "memory: 19.0 GB for trials of 4.0 GB"
    check_fit(SweepSettings(memory_per_trial=None), nodes)


def test_the_memory_of_this_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([int(9e9), int(1e9)])
    monkeypatch.setattr(machines, "available_memory", lambda: next(measured))
    monkeypatch.setattr(machines, "local_resources", local_resources)  # which the session's Ray has replaced
    machine = ThisMachine()
    first = machine.resources()
    assert first[0].memory == int(9e9) - MEMORY_RESERVE
    assert machine.resources() == first  # trials have taken the rest meanwhile
    assert ThisMachine().resources()[0].memory == 0


@pytest.mark.parametrize(("name", "available"), [("cpus", 2), ("gpus", 1)])
def test_a_trial_that_does_not_fit_is_refused_with_what_is_available(name: str, available: int) -> None:
    settings = SweepSettings(**{f"{name}_per_trial": available + 1})
    with pytest.raises(ConfigError, match=f"sweep.{name}_per_trial: {available + 1}: this machine has {available};"):
        check_fit(settings, [Resources(cpus=2, gpus=1)])
    check_fit(SweepSettings(**{f"{name}_per_trial": available}), [Resources(cpus=2, gpus=1)])


def test_a_ray_that_is_started_here_requires_a_token_from_a_private_file(ray_session: None) -> None:
    from ray._raylet import AuthenticationMode, get_authentication_mode

    assert get_authentication_mode() == AuthenticationMode.TOKEN
    file = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(file.read_text()) == 64


def test_the_options_select_the_same_machines_again() -> None:
    assert ThisMachine().options == ""
    assert JoinedCluster("auto").options == " --address auto"
    assert JoinedCluster("head:6379", insecure=True).options == " --address head:6379 --insecure"


@pytest.mark.parametrize(
    ("address", "error"), [("ray://a:10001", "Ray Client is not supported"), ("nowhere", "no Ray is found")]
)
def test_a_wrong_address_is_refused(address: str, error: str) -> None:
    with pytest.raises(ConfigError, match=f"--address {address}: {error}"), JoinedCluster(address).joined():
        pass


def test_capacity_is_summed_over_nodes_and_max_concurrent_may_exceed_it() -> None:
    nodes = [Resources(8, 1, "a", "1"), Resources(8, 1, "b", "2"), Resources(0, 0, "head", "3")]
    assert concurrent_trials(SweepSettings(gpus_per_trial=0.5, trials=99), nodes) == 4
    assert concurrent_trials(SweepSettings(gpus_per_trial=0.5, trials=99, max_concurrent=10), nodes) == 10
    assert concurrent_trials(SweepSettings(gpus_per_trial=0.5, trials=3, max_concurrent=10), nodes) == 3
    # A trial that needs two GPUs does not fit on two nodes with one each.
    with pytest.raises(ConfigError, match=r"sweep\.gpus_per_trial: 2: no node has more than 1"):
        check_fit(SweepSettings(gpus_per_trial=2), nodes)
    with pytest.raises(ConfigError, match="no node has all of them"):
        check_fit(
            SweepSettings(gpus_per_trial=1, cpus_per_trial=4), [Resources(1, 1, "a", "1"), Resources(8, 0, "b", "2")]
        )
    # Nothing fits yet, but an autoscaler is asked for it.
    check_fit(SweepSettings(gpus_per_trial=1, max_concurrent=2), [Resources(0, 0, "head", "3")])
