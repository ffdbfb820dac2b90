"""One key for everything a result depends on: inputs by content, settings, version, machine."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condensec.builds.inputs import CALLABLE, folder_files, is_there, model_files
from condensec.builds.sources import source_files
from condensec.io import sha256

if TYPE_CHECKING:
    from condensec.config import Config

SCHEMA = 1
# settings that say where, whether or how a result is written, not what it is
_NOT_IN_KEY = frozenset(("output", "resume", "dry_run", "command"))
_MODELS = ("model", "teacher")
_READS_ANYTHING = ("data", "val")  # a callable that gives samples may read any file
_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnx-graphsurgeon")


class NotCacheable(Exception):
    """The settings hold something whose content can't be told. The message says what."""


def fingerprint(config: Config) -> str:
    """The key of a run, in hex.

    Model, samples and the source of named callables count by content, so a copy of a file elsewhere has the
    same key, and an edited one another.

    Raises:
        NotCacheable: a callable or an object given from Python, or samples that code makes.
        CondensecError: a file can't be read, or a target isn't known.
    """
    from condensec.hardware.target import get

    document = {
        "schema": SCHEMA,
        "tool": tool(),
        "machine": machine(),
        "targets": [repr(get(name)) for name in config.targets],
        "settings": {
            field.name: _told(field.name, getattr(config, field.name))
            for field in fields(config)
            if field.name not in _NOT_IN_KEY
        },
    }
    text = json.dumps(document, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _told(name: str, value: Any) -> Any:
    """A setting as plain data that changes when its meaning does."""
    if name in _MODELS and value is not None:
        path, *more = model_files(Path(value))
        return [path.name, sha256(path), [[p.name, sha256(p)] for p in more]]
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return _text(name, value)
    if isinstance(value, tuple | list):
        return [_told(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _told(name, item) for key, item in value.items()}
    if hasattr(value, "__array_interface__"):
        return _array(value)
    if hasattr(value, "__dataclass_fields__"):
        return [type(value).__name__, {f.name: _told(name, getattr(value, f.name)) for f in fields(value)}]
    raise NotCacheable(f"{name} is a {type(value).__name__} given from Python")


def _text(name: str, value: str | Path) -> Any:
    path = Path(value)
    if is_there(path) and path.is_dir():
        if name not in _READS_ANYTHING:
            return str(value)
        return ["folder", [[p.name, sha256(p)] for p in folder_files(path)]]
    if is_there(path):
        return ["file", path.suffix, sha256(path)]
    named = [part for part in str(value).split(",") if CALLABLE.fullmatch(part)]
    if named and name in _READS_ANYTHING:
        raise NotCacheable(f"--{name} {value} may read any file")
    sources = [[p.name, sha256(p)] for part in named for p in source_files(part)]
    return ["text", str(value), sources]


def _array(value: Any) -> Any:
    import numpy as np

    array = np.ascontiguousarray(value)
    if array.dtype.hasobject:
        raise NotCacheable("the samples hold Python objects")
    return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


@functools.cache
def tool() -> dict[str, Any]:
    """This condensec: its version, the content of its files, and the versions of what it computes with."""
    from importlib.metadata import PackageNotFoundError, version

    import condensec
    import condensec.hardware
    import condensec.passes

    digest = hashlib.sha256()
    for package in (condensec, condensec.hardware, condensec.passes):
        for path in _package_files(Path(str(package.__file__)).parent):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    versions: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "?"
    return {"version": condensec.__version__, "files": digest.hexdigest(), "packages": versions}


def _package_files(folder: Path) -> Iterable[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


@functools.cache
def machine() -> dict[str, Any]:
    """This machine, as far as measured results depend on it."""
    from condensec.hardware import isa, table

    return {"isa": isa.detect(), "cpu": table.machine(), "cores": os.cpu_count() or 0}
