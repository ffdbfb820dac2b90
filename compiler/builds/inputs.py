"""Every file that a run reads: the model and its external data, samples, and the user's own code."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from condensec.builds.sources import source_files
from condensec.errors import ModelError

if TYPE_CHECKING:
    from condensec.config import Config

CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_WRITTEN = ("output", "command")  # settings that may look like files but aren't read


def config_files(config: Config, more: Iterable[str | Path] = ()) -> tuple[Path, ...]:
    """Files that a run with these settings reads, without repeats, as they are named; the model first.

    Args:
        config: the settings.
        more: further files, such as the condensec.toml itself.
    """
    found = list(model_files(Path(config.model)))
    for field in fields(config):
        if field.name not in ("model", *_WRITTEN):
            found += setting_files(getattr(config, field.name))
    return tuple(dict.fromkeys([*found, *map(Path, more)]))


def model_files(path: Path) -> tuple[Path, ...]:
    """A model file and the files with its external data.

    Raises:
        ModelError: it can't be read.
    """
    if not _may_be_apart(path):
        return (path,)
    import onnx_ir as ir

    from condensec import io
    from condensec.model_checks import tensors

    places = {t.location for t in tensors(io.load(path)) if isinstance(t, ir.ExternalTensor)}
    return (path, *(path.parent / str(place) for place in sorted(map(str, places))))


def _may_be_apart(path: Path) -> bool:
    """Whether a file has the key that every tensor with external data has. Spares reading the graph."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"location") >= 0
    except (OSError, ValueError):  # missing or empty: reading it says so
        return True


def setting_files(value: Any) -> list[Path]:
    """The files one setting names: a file, everything in a folder, or the source of a callable."""
    if isinstance(value, tuple | list):
        return [path for item in value for path in setting_files(item)]
    if not isinstance(value, str | Path):
        return []
    path = Path(value)
    if is_there(path):
        return list(folder_files(path)) if path.is_dir() else _with_data(path)
    parts = [part for part in str(value).split(",") if CALLABLE.fullmatch(part)]
    return [path for part in parts for path in source_files(part)]


def _with_data(path: Path) -> list[Path]:
    """A file; with its external data, where it is a model."""
    return list(model_files(path)) if path.suffix == ".onnx" else [path]


def folder_files(folder: Path) -> Iterator[Path]:
    """The samples in a folder, sorted."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.suffix in (".npz", ".npy"):
            yield path


def is_there(path: Path) -> bool:
    """Whether a path exists; False for text that no file system takes."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def package_file() -> Path:
    """A file that is written anew whenever another condensec is installed."""
    import condensec

    return Path(condensec.__file__)


def signature(paths: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """Size and time of last change of files: whether somebody changed one while it was used.

    Raises:
        ModelError: one is gone.
    """
    found = {}
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise ModelError(f"can't read {path}: {error.strerror}") from error
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found
