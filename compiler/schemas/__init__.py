"""JSON Schemas (draft 2020-12) of everything `--json` prints and of the files condensec writes.

Fields may be added to a document without notice; one is changed or removed only with another number in
``schema``. So the schemas allow fields they don't know. That of the report is made from its own types.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, Union, get_args, get_origin, get_type_hints

from condensec.errors import ConfigError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# command -> the schema of what it prints with --json
COMMANDS: Mapping[str, str] = {
    "compress": "report",
    "inspect": "inspect",
    "analyze": "analysis",
    "plan": "plan",
    "apply": "apply",
    "verify": "verify",
    "heal": "heal",
    "quantize": "emit",
    "emit": "emit",
    "bench": "bench",
    "profile": "profile",
    "report": "report",
    "targets": "targets",
    "doctor": "doctor",
    "check": "check",
    "cache": "cache",
    "schema": "schemas",
    "cmake-dir": "cmake-dir",
    "completion": "completion",
}
_MADE = ("analysis", "report")  # from types
_ANALYSIS = (
    "model", "seed", "before", "groups", "frozen", "sensitivity", "sensitivity_unit", "sensitivity_detail",
    "layer_sensitivity", "sensitivity_samples", "data", "timings", "notes",
)  # fmt: skip
_SCALARS: Mapping[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}


def names() -> tuple[str, ...]:
    """Names of the schemas."""
    written = [p.name.removesuffix(".json") for p in files(__name__).iterdir() if p.name.endswith(".json")]
    return tuple(sorted([*written, *_MADE]))


def load(name: str) -> dict[str, Any]:
    """One schema.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in names():
        raise ConfigError(f"there is no schema '{name}'", hint=f"there are {', '.join(names())}")
    if name in _MADE:
        return _report(name)
    document: dict[str, Any] = json.loads((files(__name__) / f"{name}.json").read_text("utf-8"))
    return {"$schema": DIALECT, "$id": f"condensec/{name}", **document}


def _report(name: str) -> dict[str, Any]:
    """The report's schema; of a sensitivity map, the fields it has."""
    from condensec.report.model import SCHEMA, Report

    made = from_type(Report)
    fields = made["properties"]
    if name == "analysis":
        fields = {key: fields[key] for key in _ANALYSIS}
    required = [key for key in made["required"] if key in fields]
    properties = {"schema": {"const": SCHEMA}, **fields}
    if name == "report":
        properties["cached"] = {"const": True, "description": "on stdout: computed before, and copied"}
    title = "report.json, and what compressing prints" if name == "report" else "a sensitivity map"
    head = {"$schema": DIALECT, "$id": f"condensec/{name}", "title": title}
    return {**head, "type": "object", "required": ["schema", *required], "properties": properties}


def from_type(hint: Any) -> dict[str, Any]:
    """The schema of what `condensec.report.codec.encode` makes of a value of this type.

    Raises:
        TypeError: a type that a report can't hold.
    """
    if hint in _SCALARS:
        found: dict[str, Any] = {"type": _SCALARS[hint]}
        return {"type": ["number", "null"]} if hint is float else found  # what isn't finite is null
    if dataclasses.is_dataclass(hint):
        return _from_fields(hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        options = [{"type": "null"} if a is type(None) else from_type(a) for a in arguments]
        return {"anyOf": options}
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return {"type": "array", "items": from_type(arguments[0])}
    if origin is tuple:
        items = [from_type(a) for a in arguments]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": from_type(arguments[1])}
    raise TypeError(f"no schema for {hint!r}")


def _from_fields(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    needed = [
        f.name
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    properties = {f.name: from_type(hints[f.name]) for f in fields}
    title = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    return {"title": title, "type": "object", "required": needed, "properties": properties}
