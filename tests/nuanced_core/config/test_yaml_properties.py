"""nuanced_core.config.yaml_files on any settings that hypothesis thinks of."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nuanced_core.config.yaml_files import apply_overrides, read_yaml, write_yaml, yaml_text

LOOKS_LIKE_SOMETHING_ELSE = [
    "1e-3",
    "1e5",
    "yes",
    "no",
    "null",
    "~",
    "true",
    "0x1F",
    "1_000",
    "2026-01-01",
    "=",
    "<<",
    "1:30",
]
KEYS = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8).filter(
    lambda k: k != "extends"
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(LOOKS_LIKE_SOMETHING_ELSE),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
SETTINGS = st.dictionaries(KEYS, VALUES, max_size=4)


# A busy machine draws slowly.
CALM = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@pytest.mark.slow
@CALM
@given(SETTINGS)
@example({"a": "1e-3", "b": ".5", "c": "yes"})
def test_what_is_written_is_read_again(written: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        write_yaml(path, written)
        found = read_yaml(path)
    assert found == written
    assert repr(found) == repr(written)  # 1 is not 1.0 and not True


@pytest.mark.slow
@CALM
@given(st.lists(KEYS, min_size=1, max_size=3), SCALARS)
@example(["a"], "1e-3")
def test_an_override_sets_one_value_and_nothing_else(keys: list[str], value: Any) -> None:
    text = yaml_text({"value": value}).partition("value:")[2].strip()
    before = {"other": {"kept": 1}, keys[0]: {"kept": 2}}
    found = apply_overrides(before, [f"{'.'.join(keys)}={text}"])
    assert before == {"other": {"kept": 1}, keys[0]: {"kept": 2}}
    where: Any = found
    for key in keys:
        where = where[key]
    assert where == value and type(where) is type(value)
    if keys[0] != "other":
        assert found["other"] == {"kept": 1}
    if len(keys) > 1:
        assert keys[1] == "kept" or found[keys[0]]["kept"] == 2
