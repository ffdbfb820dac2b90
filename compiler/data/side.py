"""Side inputs: inputs without a sample axis, the same for every sample.

A sampling rate that is a scalar; a first state ``[2, N, 128]`` whose axis 0 counts layers. Samples hold one
copy of such an input for each sample (a view, which takes no memory), so that whatever picks rows needs to
know nothing of it; where a model is run, one copy is handed over (`single_call`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.errors import DataError

Array = npt.NDArray[Any]
Shape = tuple[int | str | None, ...]
_UNNAMED = ("", "?", "-1")


def dim_of(given: int | str | None) -> int | str | None:
    """One dim of a model's shape as it is meant: int = fixed, str = open and named, None = open, unnamed.

    Exporters write open dims as 0, -1 or "?", too. onnxruntime takes -1 as open and 0 as it stands, so a
    model with a 0 doesn't run; but no call of it would hold anything, so open is what was meant.
    """
    if isinstance(given, int):
        return given if given > 0 else None
    return None if given in _UNNAMED else given


def side_inputs(inputs: Sequence[tuple[str, Shape, bool]]) -> frozenset[str]:
    """Which inputs have no sample axis.

    Scalars; where axis 0 of the first input that isn't one is dynamic, those that fix it to more than one;
    where it is fixed, those that fix it to another size.

    Args:
        inputs: name, shape (int = fixed) and whether the rank is known, in the model's order.
    """
    found = {name for name, shape, known in inputs if known and not shape}
    first = next((shape[0] for _, shape, _ in inputs if shape), None)
    allowed = {first} if isinstance(first, int) else {1}
    fixed = {name: shape[0] for name, shape, _ in inputs if shape and isinstance(shape[0], int)}
    return frozenset(found | {name for name, size in fixed.items() if size not in allowed})


def batch_of(inputs: Sequence[tuple[str, Shape, bool]]) -> int | None:
    """Samples a call: the fixed size of axis 0, or None where it is dynamic.

    One where a side input has an unnamed dynamic dim: nobody can tell whether that is the batch.
    """
    sides = side_inputs(inputs)
    fixed = {s[0] for name, s, _ in inputs if name not in sides and s and isinstance(s[0], int)}
    if fixed:
        return int(str(max(fixed)))
    unclear = any(None in shape for name, shape, _ in inputs if name in sides)
    return 1 if unclear else None


def sample_axis(inputs: Sequence[tuple[str, Shape, bool]], output: Shape) -> int | None:
    """Which axis of an output counts samples: 0, or another one that is named like the inputs' axis 0.

    Where the batch is fixed and axis 0 has another size, the only one of the batch's: ``[26, 1, 37]`` of a
    text recogniser that takes one line. None where nothing says: a model that takes one sample a call, and
    has side inputs or no such axis.
    """
    names = _batch_names(inputs)
    if output[:1] and output[0] in names:
        return 0
    found = next((axis for axis, dim in enumerate(output) if dim in names), None)
    if found is not None:
        return found
    batch = batch_of(inputs)
    if batch is not None and output and isinstance(output[0], int) and not _holds(output[0], batch):
        same = [axis for axis, dim in enumerate(output) if dim == batch]
        return same[0] if len(same) == 1 else None if batch == 1 else 0
    return None if batch == 1 and side_inputs(inputs) else 0


def _holds(size: int, batch: int) -> bool:
    """Whether axis 0 of an output may count samples: one each, or several."""
    return size == 1 if batch == 1 else size % batch == 0


def crosses_samples(inputs: Sequence[tuple[str, Shape, bool]], output: Shape) -> bool:
    """Whether two axes of an output count samples, each of a call beside every other, as in CLIP's logits."""
    names = _batch_names(inputs)
    return sum(dim in names for dim in output) > 1


def _batch_names(inputs: Sequence[tuple[str, Shape, bool]]) -> set[str]:
    """What axis 0 of the inputs is called, those without a sample axis left out."""
    sides = side_inputs(inputs)
    return {s[0] for n, s, _ in inputs if n not in sides and s and isinstance(s[0], str)}


def copies(array: Array, count: int) -> Array:
    """One copy for each sample."""
    return np.broadcast_to(array, (count, *array.shape))


def filled(name: str, dtype: np.dtype[Any], value: Array, dims: tuple[int, ...]) -> Array:
    """A value that the user gave for an input, in its dtype and shape; a single number fills it.

    Args:
        name: of the input.
        dtype: of the input.
        value: as given.
        dims: of one call, or of one sample.

    Raises:
        DataError: it doesn't fit.
    """
    if value.ndim and value.shape != dims:
        have, want = ("x".join(map(str, shape)) for shape in (value.shape, dims))
        raise DataError(
            f"--input {name}: the shape is {have}, the input wants {want or 'one number'}",
            node=name,
            hint="give the value of one sample, without a sample axis",
        )
    with np.errstate(all="ignore"):
        cast = value.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, value):
        raise DataError(f"--input {name}: {value} is no {dtype}", node=name, hint=f"give it as {dtype}")
    return np.broadcast_to(cast, dims)


def check_given(values: Mapping[str, Array], names: Sequence[str]) -> None:
    """Values are for inputs that there are.

    Raises:
        DataError: one isn't.
    """
    for name in values:
        if name not in names:
            raise DataError(f"--input {name}: no such input", hint=f"the inputs are {', '.join(names)}")


def single_call(inputs: Sequence[tuple[str, Shape, bool]], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Feeds as the model takes them: of a side input's copies one, as wide as the batch where a dim says so.

    What has the model's own rank already stays as it is.

    Raises:
        DataError: a side input differs between samples.
    """
    sides = side_inputs(inputs)
    shapes = {name: shape for name, shape, _ in inputs}
    names = {s[0] for n, s, _ in inputs if n not in sides and s and isinstance(s[0], str)}
    taken = dict(feeds)
    for name in sides & set(feeds):
        array, shape = feeds[name], shapes[name]
        if array.ndim != len(shape) + 1 or not len(array):
            continue
        if array.strides[0] and len(array) > 1 and not (array == array[:1]).all():
            raise DataError(
                f"input '{name}' has no sample axis, but its value differs between samples",
                node=name,
                hint="give the same value to all samples, for instance with --input",
            )
        one = np.asarray(array[0])
        for axis, dim in enumerate(shape):
            if dim in names and one.shape[axis] == 1 and len(array) > 1:
                one = np.repeat(one, len(array), axis=axis)
        taken[name] = one
    return taken
