"""Read JSON, and hold what it says against the types of a dataclass's fields.

`Annotated[int, range(1, 10)]` and `Annotated[str, ("a", "b")]` also say which values are expected.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
INTEGERS = range(-(2**63), 2**63)  # what any reader of JSON can hold


def parse(text: str | bytes) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: it is no JSON, or lists and objects are nested too deep in it.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None


def instance(expected: type[T], value: Any, name: str) -> T:
    """Return a dataclass from a JSON object; keys that are no fields of it are left out.

    Raises:
        ValueError: it is no object, a field is missing, of another type or out of its range.
    """
    if not isinstance(value, Mapping):
        raise _unexpected(name, "an object", value)
    fields = dataclasses.fields(expected)  # type: ignore[arg-type]
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - value.keys()):
        raise ValueError(f"{name} has no {', '.join(missing)}")
    hints: dict[str, Any] = _hints(expected)  # type: ignore[arg-type]
    known = {key: hint for key, hint in hints.items() if key in value}
    return expected(**{k: as_type(value[k], hint, f"{name}.{k}") for k, hint in known.items()})


def as_type(value: Any, expected: Any, name: str) -> Any:
    """Return a value of parsed JSON as a type: lists as tuples, texts as paths and enumerations.

    Args:
        value: the parsed JSON.
        expected: the type, as an annotation.
        name: what the value is called, for the message.

    Raises:
        ValueError: it is of another type or out of its range.
    """
    origin, inner = get_origin(expected), get_args(expected)
    if origin is Annotated:
        value = as_type(value, inner[0], name)
        return _one_of(value, inner[1], name)
    if origin is Literal:
        return _one_of(value, inner, name)
    if origin in (Union, UnionType):  # with None
        return None if value is None else as_type(value, inner[0], name)
    if expected is Any:
        return value
    if origin in (list, tuple):
        return origin(_items(value, (*inner, ...) if origin is list else inner, name))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _unexpected(name, "an object", value)
        key, item = inner
        return {as_type(k, key, name): as_type(v, item, f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(expected):
        if isinstance(value, expected):  # type: ignore[arg-type]
            return value
        return instance(expected, value, name)  # type: ignore[arg-type]
    return _scalar(value, expected, name)


def _scalar(value: Any, expected: Any, name: str) -> Any:
    if issubclass(expected, bool):
        if isinstance(value, bool):
            return value
        raise _unexpected(name, "true or false", value)
    if issubclass(expected, int):
        if isinstance(value, int) and not isinstance(value, bool) and value in INTEGERS:
            return value
        raise _unexpected(name, "a whole number of 64 bits", value)
    if issubclass(expected, float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and abs(value) <= sys.float_info.max:
            return float(value)
        raise _unexpected(name, "a finite number", value)
    if not isinstance(value, str) or "\0" in value or not _is_unicode(value):
        raise _unexpected(name, "a text", value)
    if issubclass(expected, Enum):
        return _one_of(value, [member.value for member in expected], name) and expected(value)
    return Path(value) if issubclass(expected, Path) else value


def _items(value: Any, inner: tuple[Any, ...], name: str) -> Iterator[Any]:
    if not isinstance(value, list | tuple):
        raise _unexpected(name, "a list", value)
    types = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
    if len(types) != len(value):
        raise ValueError(f"{name}: expected {len(types)} values, received {len(value)}")
    pairs = enumerate(zip(value, types, strict=True))
    return (as_type(item, hint, f"{name}[{i}]") for i, (item, hint) in pairs)


def _one_of(value: Any, choices: Any, name: str) -> Any:
    if value in choices:
        return value
    if isinstance(choices, range):
        raise _unexpected(name, f"{choices.start} to {choices.stop - 1}", value)
    raise _unexpected(name, f"one of {', '.join(map(repr, choices))}", value)


def _unexpected(name: str, expected: str, value: Any) -> ValueError:
    """Return the error; a short value is named, any other by its type."""
    short = isinstance(value, bool | float) or value is None
    short |= isinstance(value, str) and len(value) < 60 and value.isprintable()
    short |= isinstance(value, int) and value in INTEGERS
    received = repr(value) if short else f"a value of type {type(value).__name__}"
    return ValueError(f"{name}: expected {expected}, received {received}")


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written: JSON can escape halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


@functools.cache
def _hints(expected: Any) -> dict[str, Any]:
    return get_type_hints(expected, include_extras=True)
