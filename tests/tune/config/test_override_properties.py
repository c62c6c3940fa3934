"""Overrides, as --set gives them, with any values: what is written is what the run gets."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from nuanced_core.config.settings import RunConfig
from nuanced_core.config.validation import validate
from nuanced_core.config.yaml_files import apply_overrides
from tune.config.sweep_config import as_override

# Values that are valid for a setting; those of several forms too.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "train.learning_rate": st.floats(1e-6, 0.1),
    "train.epochs": st.integers(1, 10**6),
    "train.seed": st.integers(0, 2**31 - 1),
    "train.checkpointing": st.booleans(),
    "encoder.pooling": st.sampled_from(["mean", "mean_std", "attentive", "gru"]),
    "encoder.dropout": st.floats(0, 0.9),
    "features.layers": st.sampled_from(["last", "all"])
    | st.lists(st.integers(1, 4), min_size=1, unique=True).map(sorted),
    "loss.style": st.floats(0.001, 100),
    "data.sentences": st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
        min_size=2,
        max_size=4,
    ),
}
NAMES = sorted(VALUES)


@st.composite
def settings_of_a_run(draw: st.DrawFn) -> dict[str, Any]:
    return {name: draw(VALUES[name]) for name in draw(st.lists(st.sampled_from(NAMES), max_size=6, unique=True))}


def found(data: dict[str, Any], name: str) -> Any:
    section, field = name.split(".")
    return data[section][field]


@settings(max_examples=50)
@given(settings_of_a_run(), st.randoms(use_true_random=False))
@example({"data.sentences": ["1e-3", "yes", "a=b: {c}", "'", "\N{FILE FOLDER}", "\\ud83d\\udcc1", "\x7f\x85"]}, None)
def test_overrides_in_any_order_are_the_settings_of_the_run(given: dict[str, Any], random: Any) -> None:
    overrides = [as_override(name, value) for name, value in given.items()]
    data = apply_overrides({"train": {"epochs": 3}}, overrides)
    if random is not None:
        random.shuffle(overrides)
    assert apply_overrides({"train": {"epochs": 3}}, overrides) == data
    run = validate(RunConfig, {name: dict(section) for name, section in data.items()}, "--set").model_dump(mode="json")
    for name, value in given.items():
        assert found(data, name) == value == found(run, name)
    # What was not given keeps its default.
    default = RunConfig().model_dump(mode="json")
    for name in set(NAMES) - {*given, "train.epochs"}:
        assert found(run, name) == found(default, name)


@settings(max_examples=40)
@given(st.sampled_from(NAMES), st.data())
def test_the_last_of_two_overrides_counts(name: str, data: st.DataObject) -> None:
    first, last = data.draw(VALUES[name]), data.draw(VALUES[name])
    assert found(apply_overrides({}, [as_override(name, first), as_override(name, last)]), name) == last
    assert (
        found(apply_overrides(apply_overrides({}, [as_override(name, first)]), [as_override(name, last)]), name) == last
    )
