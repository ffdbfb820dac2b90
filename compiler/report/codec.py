"""Frozen dataclasses to plain JSON values and back, driven by the type hints alone.

Only what the report needs: dataclasses, tuples, string-keyed mappings, optionals and the JSON scalars.
Two promises: every number written is finite (NaN and infinities become null), and keys appear in the
order in which the fields are declared, so equal values give equal bytes.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from condensec.errors import ConfigError

T = TypeVar("T")
_SCALARS = (str, bool, int, float)


def encode(value: Any) -> Any:
    """Turn a dataclass, tuple, mapping or scalar into JSON values.

    Raises:
        TypeError: a value of a type that JSON doesn't know (a caller's mistake).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if value is None or isinstance(value, (str, bool)):
        return value
    if hasattr(value, "item"):  # a numpy scalar; numpy itself isn't imported for it
        value = value.item()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise TypeError(f"a report can't hold a {type(value).__name__}: {value!r}")


def decode(kind: type[T], doc: Any, where: str = "report") -> T:
    """Rebuild a value of type `kind` from JSON values.

    Keys that the type doesn't know are passed over: a newer condensec may have written them.

    Args:
        kind: the dataclass to build.
        doc: what `encode` gave, after a trip through a file.
        where: the path of `doc` within its document, for messages.

    Raises:
        ConfigError: a value is missing or has the wrong type; names the place.
    """
    value = _decode(kind, doc, where)
    assert isinstance(value, kind)
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _decode(hint: Any, doc: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(hint), doc, where)
    if origin is tuple:
        return _decode_tuple(get_args(hint), doc, where)
    if origin is not None and issubclass(origin, Mapping):
        item = get_args(hint)[1]
        return {str(k): _decode(item, v, f"{where}.{k}") for k, v in _expect(doc, dict, where).items()}
    if dataclasses.is_dataclass(hint):
        return _decode_fields(hint, _expect(doc, dict, where), where)
    if hint is float and type(doc) is int:
        return float(doc)
    return _expect(doc, hint, where)


def _decode_fields(kind: Any, doc: Mapping[str, Any], where: str) -> Any:
    values = {}
    for item in dataclasses.fields(kind):
        if item.name in doc:
            values[item.name] = _decode(_hints(kind)[item.name], doc[item.name], f"{where}.{item.name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{item.name} is missing")
    return kind(**values)


def _decode_union(options: tuple[Any, ...], doc: Any, where: str) -> Any:
    if doc is None and type(None) in options:
        return None
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _decode(rest[0], doc, where)
    if type(doc) in rest:  # a union of scalars: the JSON type decides
        return doc
    raise ConfigError(f"{where} can't be {doc!r}")


def _decode_tuple(items: tuple[Any, ...], doc: Any, where: str) -> Any:
    values = _expect(doc, list, where)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_decode(items[0], value, f"{where}[{i}]") for i, value in enumerate(values))
    if len(items) != len(values):
        raise ConfigError(f"{where} has {len(values)} values, expected {len(items)}")
    pairs = enumerate(zip(items, values, strict=True))
    return tuple(_decode(item, value, f"{where}[{i}]") for i, (item, value) in pairs)


def _expect(doc: Any, kind: type, where: str) -> Any:
    matches = type(doc) is kind if kind in _SCALARS else isinstance(doc, kind)
    if not matches:
        raise ConfigError(f"{where} should be a {kind.__name__}, found {doc!r}")
    return doc
