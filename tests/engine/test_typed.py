"""YAML values become the types a settings class states, or a phrase that says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from weakly.engine.typed import build, convert, to_plain


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner
    names: tuple[str, ...] = ()
    table: Mapping[str, float] | None = None
    where: Path | None = None


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        ("1e-4", float, 1e-4),
        (True, bool, True),
        ("x", str, "x"),
        ("~/x", Path, Path("~/x").expanduser()),
        (None, int | None, None),
        ("all", int | Literal["all"], "all"),
        ([1, 2], tuple[int, int], (1, 2)),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([1], list[int], [1]),
        ([1], Sequence[int], (1,)),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        ({"any": [1]}, Any, {"any": [1]}),
        (b"x", bytes, b"x"),
    ],
)
def test_fitting_values(value: object, hint: Any, expected: object) -> None:
    errors: list[str] = []
    found = convert(value, hint, "key", errors)
    assert (found, errors) == (expected, []) and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "phrase"),
    [
        (True, int, "a whole number, not True"),
        (2.0, int, "a whole number, not 2.0"),
        ("many", float, "a number, not 'many'"),
        (False, float, "a number, not False"),
        (1, bool, "true or false, not 1"),
        (3, str, "text, not 3"),
        (3, Path, "a path, not 3"),
        ("ab", tuple[str, ...], "a list, not 'ab'"),
        ([1], tuple[int, int], "a list of 2 values, not [1]"),
        (["x"], list[int], "`key[0]` must be a whole number"),
        ([1, "x"], tuple[int, int], "`key[1]` must be a whole number"),
        (3, dict[str, int], "a section of keys and values, not 3"),
        ({"a": "x"}, dict[str, int], "`key.a` must be a whole number"),
        ("x", int | None, "a whole number, not 'x'"),
        ("x", bytes, "bytes, not 'x'"),
        ("y" * 100, int, "yyy..."),
    ],
)
def test_values_that_do_not_fit(value: object, hint: Any, phrase: str) -> None:
    errors: list[str] = []
    assert convert(value, hint, "key", errors) in (None, [None], (1, None), {"a": None})
    assert len(errors) == 1 and phrase in errors[0] and "key" in errors[0]


def test_nested_sections_and_back() -> None:
    values = {"inner": {"size": [3, 4]}, "names": ["a"], "table": {"x": 1.5}, "where": "p"}
    errors: list[str] = []
    found = build(Outer, values, "", errors)
    assert found == Outer(Inner((3, 4)), ("a",), {"x": 1.5}, Path("p")) and not errors
    assert to_plain(found) == values
    assert build(Outer, found, "", errors) is found
