"""tune.config.dimension: what a range allows, names that are written in two forms, and values that are no numbers."""

from typing import Any

import pytest

from nuanced_core.config.settings import RunConfig
from nuanced_core.errors import ConfigError
from tune.config.dimension import Choices, Range, flatten_names, is_compatible, read_dimension
from tune.config.space import Space

WIDTH = "encoder.width"


@pytest.mark.parametrize("step", [None, 1, 2, 3])
def test_a_range_of_integers_allows_what_it_suggests_and_nothing_else(step: int | None) -> None:
    dimension = Range(1, 7, step=step)
    assert dimension.all_values is not None
    assert [value for value in range(-3, 12) if dimension.allows(value)] == list(dimension.all_values)


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_a_range_of_integers_allows_no_other_type(value: Any) -> None:
    assert not Range(1, 7).allows(value)


@pytest.mark.parametrize("value", [1.0, 2, 2.5, True])
def test_a_range_of_floats_allows_nothing(value: Any) -> None:
    assert not Range(1.0, 7.0).allows(value)


def test_a_dimension_may_be_written_in_two_forms_at_once() -> None:
    expected = {WIDTH: {"low": 64, "high": 512}}
    assert flatten_names({WIDTH: {"low": 64}, "encoder": {"width": {"high": 512}}}, [WIDTH]) == expected
    assert flatten_names({WIDTH: {"low": 64, "high": 9}, "encoder": {"width": {"high": 512}}}, [WIDTH]) == expected


def test_the_later_of_two_forms_replaces_what_is_no_mapping() -> None:
    assert flatten_names({WIDTH: [1, 2], "encoder": {"width": {"low": 1}}}, [WIDTH]) == {WIDTH: {"low": 1}}
    assert flatten_names({WIDTH: {"low": 1}, "encoder": {"width": None}}, [WIDTH]) == {WIDTH: None}


@pytest.mark.parametrize("key", ["low", "high", "step"])
@pytest.mark.parametrize("value", ["3", True, [3]])
def test_what_is_no_number_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"search\.{WIDTH}\.{key}: .*: not a number"):
        read_dimension({"low": 1, "high": 5, "step": 2, key: value}, [WIDTH], f"search.{WIDTH}")


def test_an_error_of_choices_with_a_condition_names_their_place() -> None:
    value = {"choices": [1, 1], "when": {WIDTH: [64]}}
    with pytest.raises(ConfigError, match=r"^search\.encoder\.heads: the choice 1 is listed twice$"):
        read_dimension(value, [WIDTH], "search.encoder.heads")


@pytest.mark.parametrize(
    ("dimension", "value", "stored"),
    [
        (Range(1, 7, step=2), 5, 5),
        (Range(1, 7, step=2), 1, 1),
        (Range(1, 7, step=2), 7, 7),
        (Range(1, 7, step=2), 4, None),
        (Range(1, 7), 0, None),
        (Range(1, 7), 8, None),
        (Range(1, 7), True, None),
        (Range(1, 7), 2.0, None),
        (Range(1.0, 7.0), 2, 2.0),
        (Range(1.0, 7.0), "2", None),
        (Range(0.1, 0.7, step=0.2), 0.3, 0.3),
        (Range(0.1, 0.7, step=0.2), 0.4, None),
        (Choices(("a", [1, 2])), [1, 2], "[1, 2]"),
        (Choices(("a", [1, 2])), "b", None),
    ],
)
def test_a_written_value_is_stored_or_refused_in_one_line(
    dimension: Range | Choices, value: Any, stored: float | str | None
) -> None:
    if stored is None:
        with pytest.raises(ConfigError, match=r"^queue: .*: not (in|one of) [^\n]*$"):
            dimension.as_stored(value, "queue")
    else:
        found = dimension.as_stored(value, "queue")
        assert (found, type(found)) == (stored, type(stored))


def test_only_bounds_and_step_of_a_range_may_change() -> None:
    old = Range(1, 7, log=True)
    assert is_compatible(old, Range(2, 70, log=True))
    assert not is_compatible(old, Range(1, 7))
    assert not is_compatible(old, Range(1.0, 7.0, log=True))
    assert is_compatible(Choices((1, 2)), Choices((1, 2)))
    assert not is_compatible(Choices((1, 2)), Choices((2, 1)))
    assert not is_compatible(Choices((1, 2)), old)
    assert not is_compatible(old, Choices((1, 2)))


def test_a_condition_may_name_the_run_s_value_of_a_setting_that_is_not_always_searched() -> None:
    """Trials that do not search the heads keep those of the run."""

    def space(heads: int) -> dict[str, Any]:
        return {
            "encoder.pooling": ["mean", "attentive"],
            "encoder.heads": {"choices": [2, 4], "when": {"encoder.pooling": ["attentive"]}},
            "encoder.depth": {"low": 1, "high": 3, "when": {"encoder.heads": [heads]}},
        }

    kept = RunConfig().encoder.heads
    assert kept not in (2, 4)
    found = Space.parse(space(kept), RunConfig(), "a.yaml").all_params(100)
    assert found is not None
    assert [params.get("encoder.depth") for params in found] == [1, 2, 3, None, None]
    with pytest.raises(ConfigError, match=r"when\.encoder\.heads: 64: never suggested"):
        Space.parse(space(64), RunConfig(), "a.yaml")
    always: Any = {"encoder.heads": [2, 4], "encoder.depth": {"low": 1, "high": 3, "when": {"encoder.heads": [kept]}}}
    with pytest.raises(ConfigError, match=rf"when\.encoder\.heads: {kept}: never suggested"):
        Space.parse(always, RunConfig(), "a.yaml")
