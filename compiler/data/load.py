"""From what the user names to samples: files, folders, callables, arrays."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from condensec.data.fit import LABELS, fit
from condensec.data.npz import read_npy, read_npz
from condensec.data.types import Array, Samples, Signature
from condensec.errors import CondensecError, ConfigError, DataError

DataSpec = str | Path | Mapping[str, Any] | Samples | Callable[..., Any]

# A callable may go on for ever: stop after so many samples or bytes.
MOST_SAMPLES = 100_000
MOST_BYTES = 2 << 30

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load(
    spec: DataSpec, signature: Signature, *, seed: int = 0, values: Mapping[str, Array] | None = None
) -> Samples:
    """Samples for a model.

    Args:
        spec: an .npz (arrays named like the graph inputs, plus ``labels`` or arrays named like outputs),
            a folder of .npz (put together in sorted order) or of .npy (``<input name>.npy``), one .npy,
            ``module:callable`` or a callable giving batches (a dict, or a pair of dict and labels),
            a mapping of arrays, or samples.
        signature: the model's interface.
        seed: given to a callable that takes ``seed``.
        values: of inputs that are the same for all samples.

    Raises:
        DataError: nothing there, or it doesn't fit the model; names file and array.
    """
    if isinstance(spec, Samples):
        arrays = {**spec.extras, **spec.inputs, **(spec.outputs or {})}
        if spec.labels is not None:
            arrays[LABELS] = spec.labels
        return fit(arrays, signature, spec.source, spec.synthetic, values)
    if isinstance(spec, Mapping):
        return fit({str(k): _to_array(str(k), v) for k, v in spec.items()}, signature, "data", values=values)
    if callable(spec):
        name = getattr(spec, "__qualname__", type(spec).__name__)
        return fit(_from_callable(spec, name, seed), signature, name, values=values)
    text = os.fspath(spec)
    path = Path(text)
    if not _exists(path) and _CALLABLE.fullmatch(text):
        return fit(
            _from_callable(import_callable(text, "--data"), text, seed), signature, text, values=values
        )
    return fit(_from_path(path), signature, text, values=values)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _to_array(name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a foreign array type raises
        raise DataError(f"data: '{name}' can't be made an array: {' '.join(str(error).split())}") from error


def _from_path(path: Path) -> Mapping[str, Array]:
    if not _exists(path):
        raise DataError(f"no such data file or folder: {path}", hint="check the path after --data")
    if path.is_dir():
        return _from_folder(path)
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)", hint="write it again")
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".npy":
        return {path.stem: read_npy(path)}
    raise DataError(
        f"{path} isn't data condensec reads",
        hint="give an .npz, a folder of .npz or .npy, or module:callable",
    )


def _from_folder(folder: Path) -> Mapping[str, Array]:
    packed = sorted(folder.glob("*.npz"))
    single = sorted(folder.glob("*.npy"))
    if packed and single:
        raise DataError(f"{folder} holds .npz and .npy files", hint="use one kind")
    if single:
        return {path.stem: read_npy(path) for path in single}
    if not packed:
        raise DataError(f"{folder} holds no .npz or .npy file", hint="check the path after --data")
    parts = [(str(path), read_npz(path)) for path in packed]
    return parts[0][1] if len(parts) == 1 else _joined(parts)


def _joined(parts: Sequence[tuple[str, Mapping[str, Array]]]) -> dict[str, Array]:
    """Concatenate along axis 0; all parts need the same arrays, of the same shapes but for axis 0."""
    first_name, first = parts[0]
    for name, part in parts[1:]:
        if set(part) != set(first):
            raise DataError(
                f"{name} holds the arrays {', '.join(sorted(part))}, but {first_name} holds"
                f" {', '.join(sorted(first))}"
            )
        for key, array in part.items():
            if array.ndim == 0 or array.shape[1:] != first[key].shape[1:] or array.dtype != first[key].dtype:
                raise DataError(
                    f"{name}: array '{key}' is {array.dtype} of shape {array.shape}, but in {first_name}"
                    f" {first[key].dtype} of shape {first[key].shape}",
                    hint="parts may differ in axis 0 only",
                )
    return {key: np.concatenate([part[key] for _, part in parts]) for key in first}


def import_callable(text: str, flag: str) -> Callable[..., Any]:
    """What ``module:callable`` names; the current folder is looked in first.

    Raises:
        ConfigError: no such module, or nothing callable of that name in it.
    """
    module_name, _, path = text.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{flag} {text}: {error}", hint="check the name, or set PYTHONPATH") from error
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(f"{flag} {text}: importing {module_name} failed: {_told(error)}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    for part in path.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{flag} {text}: there's no '{part}' in {module_name}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{flag} {text}: that's no callable but {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _from_callable(function: Callable[..., Any], name: str, seed: int) -> dict[str, Array]:
    parts: list[tuple[str, Mapping[str, Array]]] = []
    samples = size = 0
    try:
        for number, batch in enumerate(_batches(function, seed)):
            part = _batch_arrays(batch, f"{name}, batch {number}")
            parts.append((f"{name}, batch {number}", part))
            samples += max((len(a) for a in part.values() if a.ndim), default=0)
            size += sum(a.nbytes for a in part.values())
            if samples >= MOST_SAMPLES or size >= MOST_BYTES:
                break
    except CondensecError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise DataError(f"{name} failed: {_told(error)}", hint="run it on its own to see where") from error
    if not parts:
        raise DataError(f"{name} gave no batch", hint="it has to give dicts of arrays by input name")
    return dict(parts[0][1]) if len(parts) == 1 else _joined(parts)


def _batches(function: Callable[..., Any], seed: int) -> Iterator[Any]:
    try:
        takes_seed = "seed" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins have no signature
        takes_seed = False
    result = function(seed=seed) if takes_seed else function()
    if isinstance(result, Mapping) or _is_pair(result):
        yield result
    elif isinstance(result, Iterable):
        yield from result
    else:
        raise DataError(f"it gave {type(result).__name__}, not batches")


def _is_pair(batch: object) -> bool:
    return isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], Mapping)


def _batch_arrays(batch: Any, name: str) -> dict[str, Array]:
    labels = None
    if _is_pair(batch):
        batch, labels = batch
    if not isinstance(batch, Mapping):
        raise DataError(
            f"{name}: it is {type(batch).__name__}",
            hint="a batch is a dict of arrays by input name, or a pair of such a dict and labels",
        )
    arrays = {str(key): _to_array(str(key), value) for key, value in batch.items()}
    if labels is not None:
        arrays[LABELS] = _to_array(LABELS, labels)
    return arrays


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
