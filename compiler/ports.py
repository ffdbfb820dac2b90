"""A session's inputs and outputs, and whether arrays fit them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from condensec.data.side import dim_of
from condensec.errors import DataError, PostconditionError

_DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
}


@dataclass(frozen=True)
class Port:
    """One graph input or output as onnxruntime sees it.

    Attributes:
        name: the value's name.
        dtype: numpy dtype; None for types numpy doesn't know (bfloat16, sequences, strings).
        shape: int = fixed, str = named dynamic, None = unnamed dynamic; () also when the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]


def port_of(arg: Any) -> Port:
    """One of a session's inputs or outputs."""
    match = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    dtype = _DTYPES.get(match.group(1)) if match else None
    return Port(arg.name, None if dtype is None else np.dtype(dtype), tuple(map(dim_of, arg.shape)))


def ranked(source: str | bytes) -> set[str]:
    """Inputs whose rank the model states: onnxruntime gives the same shape for a scalar and for no shape."""
    import onnx

    try:
        if isinstance(source, bytes):
            proto = onnx.load_model_from_string(source)
        else:
            proto = onnx.load(source, load_external_data=False)
    except Exception:  # onnxruntime's own format
        return set()
    return {value.name for value in proto.graph.input if value.type.tensor_type.HasField("shape")}


def check_fit(port: Port, array: np.ndarray) -> None:
    """An array has its port's dtype and shape."""
    if port.dtype is not None and array.dtype != port.dtype:
        raise DataError(f"array '{port.name}' is {array.dtype}, the model wants {port.dtype}")
    fits = len(array.shape) == len(port.shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(port.shape, array.shape, strict=True)
    )
    if port.shape and not fits:
        wanted = "x".join("?" if d is None else str(d) for d in port.shape)
        found = "x".join(map(str, array.shape)) or "scalar"
        raise DataError(f"array '{port.name}' has shape {found}, the model wants {wanted}")


def pad(array: np.ndarray, rows: int) -> np.ndarray:
    """Filled up to so many rows by repeating the last one."""
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])


def trim(value: Any, rows: int, valid: int) -> np.ndarray:
    """An output's rows without those of the padding."""
    array = np.atleast_1d(np.asarray(value))
    if np.ndim(value) and len(array) and len(array) % rows == 0:
        return array[: len(array) // rows * valid]
    return array


def concatenate(name: str, values: list[np.ndarray]) -> np.ndarray:
    """The parts of an output, one behind another."""
    try:
        return np.concatenate(values)
    except ValueError as error:
        shapes = sorted({value.shape[1:] for value in values})
        raise PostconditionError(
            f"output '{name}' changes its shape from call to call {shapes}, so it can't be collected",
            node=name,
        ) from error
