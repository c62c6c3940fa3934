"""Fixtures shared by the tests; the real models are fetched once into the user's cache."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

from nuanced_core.config.settings import Models, RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.data.model_set import ModelSet
from tests.fakes import TINY_RUN, fake_models
from tune.config import secrets

# The same examples in each run; pytest --hypothesis-profile=default looks for others. A busy machine draws slowly.
settings.register_profile("repeated", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeated")

# Fixtures that take long, or whose tests do: real models, Ray, sweeps.
SLOW = {"models", "ray_session"}
# Tests of whole processes, and of whole runs of the fakes.
SLOW_PLACES = (
    *("tests/tune/sweep/", "tests/tune/cluster/", "tests/tune/cli/test_evaluate_command.py"),
    *("tests/nuanced_core/training/test_people.py", "tests/nuanced_core/training/test_preparation.py"),
    *("tests/nuanced_core/training/test_surrogates.py", "tests/nuanced_core/evaluation/test_test_split"),
    *("tests/nuanced_core/data/test_rendering.py", "tests/nuanced_core/people/test_hearing.py"),
    *("tests/nuanced_core/serving/test_limits.py", "tests/nuanced_core/serving/test_log.py"),
)
LONGEST_PLACES = ("tests/tune/cluster/", "tests/tune/sweep/", "tests/tune/search/test_sampler_pruner_pairs.py")
# Sweeps that tests of several modules look at.
SHARED = {"mixed", "pruned"}


@pytest.hookimpl(tryfirst=True)  # before xdist's, which writes the groups into the names
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what ``make test-fast`` leaves out, and keep tests together that one process should run.

    The longest files come first, so that no process waits at the end for another's.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST_PLACES))
    for item in items:
        fixtures = {*getattr(item, "fixturenames", ())}
        if fixtures & SLOW or item.get_closest_marker("real") or item.nodeid.startswith(SLOW_PLACES):
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group("sweeps" if fixtures & SHARED else item.nodeid.partition("::")[0]))


@pytest.fixture(autouse=True)
def no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that read URLs, also damaged ones, mask no word in what later tests print."""
    monkeypatch.setattr(secrets, "_secrets", {})


@pytest.fixture(scope="session")
def models() -> ModelSet:
    """The real Kokoro, its voices and Whisper tiny.en, on the CPU."""
    return ModelSet.fetch(Models(), "cpu")


@pytest.fixture
def fakes(tmp_path: Path) -> SimpleNamespace:
    return fake_models(tmp_path / "voices")


@pytest.fixture
def tiny_run() -> RunConfig:
    """A run that the fakes finish in a second."""
    return validate(RunConfig, TINY_RUN, "tiny")
