"""tune.config.space on any valid space: it suggests valid runs, and survives being written."""

from typing import Any

import optuna
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nuanced_core.config.settings import RunConfig
from tune.config.space import Space

# Bounds within which each number is valid; all of its choices.
INTEGERS = {"encoder.width": (4, 4096), "encoder.depth": (1, 8), "train.batch_size": (2, 256), "train.spoken": (1, 8)}
FLOATS = {"encoder.dropout": (0.0, 0.9), "train.learning_rate": (1e-6, 1e-1), "loss.style": (0.01, 10.0)}
CHOICES = {
    "encoder.pooling": ["mean", "mean_std", "attentive"],
    "encoder.trunk": ["shared", "separate"],
    "features.layers": ["last", "all", [1, 2]],
}


@st.composite
def ranges(draw: st.DrawFn, name: str) -> dict[str, Any]:
    whole = name in INTEGERS
    least, most = (INTEGERS if whole else FLOATS)[name]
    numbers = st.integers(int(least), int(most)) if whole else st.floats(least, most)
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    found: dict[str, Any] = {"low": low, "high": high}
    if low > 0 and draw(st.booleans()):
        found["log"] = True
    elif whole and draw(st.booleans()):
        step = found["step"] = draw(st.integers(1, int(high - low)))
        found["high"] = low + (high - low) // step * step  # the last step reaches it
    return found


@st.composite
def spaces(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from([*INTEGERS, *FLOATS, *CHOICES]), min_size=1, max_size=6, unique=True))
    space: dict[str, Any] = {}
    for name in names:
        if name not in CHOICES:
            space[name] = draw(ranges(name))
            continue
        space[name] = draw(st.lists(st.sampled_from(CHOICES[name]), min_size=2, max_size=3, unique_by=repr))
    chosen = [name for name in names if name in CHOICES]
    conditional = [name for name in names if name not in CHOICES]
    if chosen and conditional and draw(st.booleans()):
        space[conditional[0]]["when"] = {chosen[0]: space[chosen[0]][:1]}
    return space


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(spaces(), st.integers(0, 10**6))
@example({"encoder.width": {"low": 4, "high": 5, "log": True}}, 0)
def test_a_valid_space_suggests_valid_runs(written: dict[str, Any], seed: int) -> None:
    space = Space.parse(written, RunConfig(), "a.yaml")
    assert Space.parse(space.as_dict(), RunConfig(), "b.yaml") == space
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(3):
        trial = study.ask()
        params = space.suggest(trial)
        run = space.apply(RunConfig(), params)
        plain = run.model_dump(mode="json")
        for name in written:
            section, field = name.split(".")
            if name not in params:
                assert "when" in written[name]
                assert plain[section][field] == RunConfig().model_dump(mode="json")[section][field]
                continue
            assert plain[section][field] == params[name]
            if isinstance(written[name], list):
                assert params[name] in written[name]
            else:
                assert written[name]["low"] <= params[name] <= written[name]["high"]
        # A trial that is stored and opened again means the same.
        again = space.suggest(optuna.trial.FixedTrial(trial.params))
        assert again == params
