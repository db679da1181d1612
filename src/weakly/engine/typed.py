"""Plain YAML values to typed dataclasses, with every mistake named at once."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

_MISSING = dataclasses.MISSING


def build(cls: type[Any], values: Any, key: str, errors: list[str]) -> Any:
    """An instance of the dataclass ``cls`` from a mapping; nested dataclasses and containers are followed.

    Args:
        cls: a dataclass.
        values: what YAML held; unknown keys, missing keys and wrong values are appended to ``errors``.
        key: dotted name of this section, empty for the whole file.
        errors: one phrase per mistake.

    Returns:
        The instance, or None where a mistake made it impossible.
    """
    if dataclasses.is_dataclass(values) and isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        errors.append(f"`{key}` must be a section of keys and values, not {_show(values)}")
        return None
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    errors += [unknown_key(join(key, str(name)), str(name), names) for name in values if name not in names]
    before, given = len(errors), {}
    for field in dataclasses.fields(cls):
        if field.name in values and field.init:
            given[field.name] = convert(values[field.name], hints[field.name], join(key, field.name), errors)
        elif field.init and field.default is _MISSING and field.default_factory is _MISSING:
            errors.append(f"`{join(key, field.name)}` is missing")
    if len(errors) > before:
        return None
    try:
        return cls(**given)
    except Exception as error:  # noqa: BLE001 - whatever a settings class objects to is the user's to mend
        errors.append(f"`{key}`: {str(error).rstrip('.')}" if key else str(error).rstrip("."))
        return None


def convert(value: Any, hint: Any, key: str, errors: list[str]) -> Any:
    """``value`` as the type ``hint``; a phrase is appended to ``errors`` where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, key, errors)
    if origin is Literal:
        return _convert_choice(value, arguments, key, errors)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, key, errors)
    if origin in (list, tuple, Sequence) or origin is typing.get_origin(Sequence[int]):
        return _convert_sequence(value, hint, key, errors)
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, int]):
        if not isinstance(value, Mapping):
            return _wrong(value, "a section of keys and values", key, errors)
        return {str(k): convert(v, arguments[1], join(key, str(k)), errors) for k, v in value.items()}
    return _convert_plain(value, hint, key, errors)


def to_plain(value: Any) -> Any:
    """The inverse of :func:`build`: dictionaries, lists and plain values that YAML and JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value) if field.init}
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def join(section: str, name: str) -> str:
    """Dotted name of a key inside a section."""
    return f"{section}.{name}" if section else name


def unknown_key(key: str, name: str, known: Sequence[str]) -> str:
    """The phrase for a key nobody knows, with the closest one that exists."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`?" if close else f"known keys: {', '.join(known)}"
    return f"`{key}` is unknown ({hint})"


def _convert_union(value: Any, arguments: tuple[Any, ...], key: str, errors: list[str]) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [argument for argument in arguments if argument is not type(None)]
    attempts: list[list[str]] = []
    for choice in choices:
        attempt: list[str] = []
        converted = convert(value, choice, key, attempt)
        if not attempt:
            return converted
        attempts.append(attempt)
    errors += attempts[0]
    return None


def _convert_choice(value: Any, choices: tuple[Any, ...], key: str, errors: list[str]) -> Any:
    if value in choices:
        return value
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return _wrong(value, f"one of {', '.join(str(choice) for choice in choices)}", key, errors, hint)


def _convert_sequence(value: Any, hint: Any, key: str, errors: list[str]) -> Any:
    arguments = typing.get_args(hint)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return _wrong(value, "a list", key, errors)
    if typing.get_origin(hint) is tuple and Ellipsis not in arguments:
        if len(value) != len(arguments):
            return _wrong(value, f"a list of {len(arguments)} values", key, errors)
        return tuple(
            convert(item, kind, f"{key}[{i}]", errors)
            for i, (item, kind) in enumerate(zip(value, arguments, strict=True))
        )
    items = [convert(item, arguments[0], f"{key}[{i}]", errors) for i, item in enumerate(value)]
    return items if typing.get_origin(hint) is list else tuple(items)


def _convert_plain(value: Any, hint: Any, key: str, errors: list[str]) -> Any:
    if hint is bool:
        return value if isinstance(value, bool) else _wrong(value, "true or false", key, errors)
    if hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole else _wrong(value, "a whole number", key, errors)
    if hint is float:
        return _convert_float(value, key, errors)
    if hint is str:
        return value if isinstance(value, str) else _wrong(value, "text", key, errors)
    if hint is Path:
        return Path(value).expanduser() if isinstance(value, str | Path) else _wrong(value, "a path", key, errors)
    if isinstance(hint, type) and isinstance(value, hint):
        return value
    return _wrong(value, str(getattr(hint, "__name__", hint)), key, errors)


def _convert_float(value: Any, key: str, errors: list[str]) -> float | None:
    # YAML 1.1 reads 1e-4 (no dot) as text; a person means the number.
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    _wrong(value, "a number", key, errors)
    return None


def _wrong(value: Any, wanted: str, key: str, errors: list[str], hint: str = "") -> None:
    errors.append(f"`{key}` must be {wanted}, not {_show(value)}{hint}")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
