"""The values that carry samples through the line."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.data.side import batch_of, side_inputs, single_call

Array = npt.NDArray[Any]
Index = npt.NDArray[np.int64]
CHUNK = 1 << 23  # bytes of a mapped array that are looked at or copied at a time


def is_decision(dtype: np.dtype[Any], shape: Sequence[int | str | None]) -> bool:
    """Whether values are class numbers or a mask: whole numbers, but not quantized scores ``[N, C]``."""
    scores = dtype.itemsize == 1 and len(shape) > 1 and all(d == 1 for d in shape[2:])
    return dtype.kind == "b" or (dtype.kind in "iu" and not scores)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: of the value.
        dtype: numpy dtype.
        shape: int = fixed, str = named dynamic, None = unnamed dynamic.
        rank_known: False if the model states no shape at all (then ``shape`` is empty).
        bound: for integer inputs that are indices into a table: its number of rows.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    rank_known: bool = True
    bound: int | None = None

    def __str__(self) -> str:
        dims = ",".join("?" if d is None else str(d) for d in self.shape) if self.rank_known else "..."
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """The interface of a model."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def ports(self) -> list[tuple[str, tuple[int | str | None, ...], bool]]:
        """Name, shape and whether the rank is known, of each input."""
        return [(spec.name, spec.shape, spec.rank_known) for spec in self.inputs]

    @property
    def sides(self) -> frozenset[str]:
        """Inputs without a sample axis, see `condensec.data.side`."""
        return side_inputs(self.ports)

    @property
    def batch(self) -> int | None:
        """Samples a call: the fixed size of axis 0, or None where it is dynamic."""
        return batch_of(self.ports)

    def call(self, samples: Samples, count: int) -> dict[str, Array]:
        """Inputs of one call: the first ``count`` samples, or the model's own batch where it is fixed."""
        index = np.arange(self.batch or count) % len(samples)
        rows = {name: np.ascontiguousarray(array[index]) for name, array in samples.inputs.items()}
        return single_call(self.ports, rows)

    def sample_shapes(self, samples: Samples) -> dict[str, tuple[int, ...]]:
        """Shapes of one sample's inputs, axis 0 included where it is the sample axis."""
        return {
            name: array.shape[1:] if name in self.sides else (1, *array.shape[1:])
            for name, array in samples.inputs.items()
        }

    @property
    def decides(self) -> bool:
        """Whether the first output is a decision, see `is_decision`."""
        return bool(self.outputs) and is_decision(self.outputs[0].dtype, self.outputs[0].shape)

    @property
    def classes(self) -> int | None:
        """C, if the first output is scores ``[N, C]`` (or ``[N, C, 1, 1]``) with a fixed C > 1."""
        if not self.outputs or self.decides:
            return None
        shape = self.outputs[0].shape
        if len(shape) < 2 or any(d != 1 for d in shape[2:]):
            return None
        return shape[1] if isinstance(shape[1], int) and shape[1] > 1 else None


class Rows(Mapping[str, Array]):
    """Some rows of some arrays; copied when an array is asked for, not before.

    Args:
        base: the whole arrays.
        index: which rows, in order.
    """

    def __init__(self, base: Mapping[str, Array], index: Index) -> None:
        self._base, self._index = base, index
        self._copies: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        if name not in self._copies:
            self._copies[name] = take(self._base[name], self._index)
        return self._copies[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)

    def rows(self, index: Index) -> Rows:
        """Rows of these rows, taken from the whole arrays."""
        return Rows(self._base, self._index[index])


def take(array: Array, index: Index) -> Array:
    """Rows of an array: a view if they're consecutive, a copy otherwise."""
    if len(index) and index[-1] - index[0] == len(index) - 1 and np.all(np.diff(index) == 1):
        return array[int(index[0]) : int(index[-1]) + 1]
    rows = max(1, CHUNK // max(1, array[:1].nbytes))
    if _mapping(array) is None or len(index) <= rows:
        return array[index]
    copy = np.empty((len(index), *array.shape[1:]), array.dtype)
    for start in range(0, len(index), rows):
        copy[start : start + rows] = array[index[start : start + rows]]
        forget(array)
    return copy


def forget(array: Array) -> None:
    """Give back the memory of a mapped array's pages; they're read again when they're used again."""
    mapping = _mapping(array)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def files_of(arrays: Mapping[str, Array]) -> set[str]:
    """The files that arrays are mapped from: they're read whenever the arrays are."""
    whole = arrays._base if isinstance(arrays, Rows) else arrays
    found = set()
    for array in whole.values():
        base: object = array
        while isinstance(base, np.ndarray):
            if isinstance(base, np.memmap) and base.filename is not None:
                found.add(str(base.filename))
            base = base.base
    return found


def _mapping(array: Array) -> mmap.mmap | None:
    """The file mapping an array looks into, if any."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples for one model. Axis 0 of every array is the sample axis.

    Attributes:
        inputs: arrays by graph-input name.
        labels: one entry a sample (class numbers, or whatever a metric of the user's takes), or None.
        outputs: arrays by graph-output name, given with the data (targets or a teacher's answers), or None.
        synthetic: made up, so no accuracy can be measured on them.
        source: where they come from, for the report.
        extras: further arrays of the file with one row a sample; only a metric of the user's sees them.
        notes: what was done to the data on the way (conversions, samples left out), for the report.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    outputs: Mapping[str, Array] | None = None
    synthetic: bool = False
    source: str = "arrays"
    extras: Mapping[str, Array] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    count: int = -1  # number of samples; filled in

    def __post_init__(self) -> None:
        if self.count < 0:
            object.__setattr__(self, "count", len(next(iter(self.inputs.values()))))

    def __len__(self) -> int:
        return self.count

    def subset(self, indices: Sequence[int] | Index) -> Samples:
        """Some samples, in the given order. Nothing is copied before it's asked for (labels are)."""
        index = np.asarray(indices, np.int64)
        return replace(
            self,
            inputs=_rows(self.inputs, index),
            labels=None if self.labels is None else self.labels[index],
            outputs=None if self.outputs is None else _rows(self.outputs, index),
            extras=_rows(self.extras, index),
            count=len(index),
        )

    def first(self, count: int) -> Samples:
        """The first ``count`` samples (all, if there are fewer)."""
        return self if count >= len(self) else self.subset(np.arange(count))

    def batches(self, size: int) -> Iterator[Samples]:
        """Consecutive samples, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), max(1, size)):
            yield self.subset(np.arange(start, min(start + max(1, size), len(self))))

    def shuffled(self, seed: int) -> Samples:
        """The same samples in another order."""
        return self.subset(np.random.default_rng(seed).permutation(len(self)))


def _rows(arrays: Mapping[str, Array], index: Index) -> Rows:
    return arrays.rows(index) if isinstance(arrays, Rows) else Rows(arrays, index)


@dataclass(frozen=True, eq=False)
class Splits:
    """Samples kept apart (see `condensec.data.split`).

    Attributes:
        calibration: closed-form repair, sensitivity, quantization ranges.
        train: gradient healing.
        validation: the accuracy guard and early stop.
        test: the report's last line; nothing else sees them.
        note: empty, or what a reader has to know (e.g. too few samples to keep apart).
    """

    calibration: Samples
    train: Samples
    validation: Samples
    test: Samples
    note: str = ""
