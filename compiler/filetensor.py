"""Tensors that lie in a file, or are made of ones that do: a few rows at a time, if need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Rows = Callable[[int, int], Array]
CHUNK = 1 << 22  # bytes read at a time


class FileTensor(ir.LazyTensor):
    """A tensor that is read when somebody asks, and not kept."""

    def __init__(
        self,
        rows: Rows,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None = None,
        doc_string: str | None = None,
    ) -> None:
        """A tensor from a function that gives its rows.

        Args:
            rows: ``rows(start, stop)`` are the indices ``start`` to ``stop`` of the first axis.
            dtype: of the elements; of whole bytes.
            shape: numbers only.
            name: of the weight.
            doc_string: from the file.
        """
        self.rows = rows
        whole = ir.Shape(shape.numpy())
        super().__init__(self._read, dtype, whole, name=name, doc_string=doc_string)

    def named(self, name: str) -> FileTensor:
        """The same tensor under another name."""
        return FileTensor(self.rows, self.dtype, self.shape, name=name, doc_string=self.doc_string)

    def chunks(self) -> Iterator[tuple[int, Array]]:
        """The tensor in pieces of about `CHUNK` bytes: first row of each, and the rows."""
        count = int(self.shape.numpy()[0]) if len(self.shape) else 1
        step = max(1, CHUNK * count // max(1, self.nbytes))
        for start in range(0, count, step):
            yield start, self.rows(start, min(start + step, count))

    def _read(self) -> ir.TensorProtocol:
        count = int(self.shape.numpy()[0]) if len(self.shape) else 1
        return ir.Tensor(self.rows(0, count), dtype=self.dtype, shape=self.shape, name=self.name)

    def tofile(self, file: Any) -> None:
        """Write the bytes, a piece at a time."""
        for _, rows in self.chunks():
            file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)


def sliced(tensor: FileTensor, indices: dict[int, npt.NDArray[np.int64]]) -> FileTensor:
    """Some indices (ascending) of some axes of a tensor in a file, still in the file."""
    sizes = [len(indices[a]) if a in indices else int(s) for a, s in enumerate(tensor.shape.numpy())]

    def rows(start: int, stop: int) -> Array:
        wanted = indices[0][start:stop] if 0 in indices else np.arange(start, stop)
        parts = []
        for first, last in _runs(wanted, tensor):
            part = tensor.rows(int(wanted[first]), int(wanted[last - 1]) + 1)
            part = part[wanted[first:last] - wanted[first]] if 0 in indices else part
            for axis, kept in indices.items():
                part = part if axis == 0 else np.take(part, kept, axis=axis)
            parts.append(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return FileTensor(rows, tensor.dtype, ir.Shape(sizes), name=tensor.name, doc_string=tensor.doc_string)


def _runs(wanted: npt.NDArray[np.int64], tensor: FileTensor) -> Iterator[tuple[int, int]]:
    """Positions in ``wanted`` whose rows lie together in no more than a chunk of the file."""
    count = int(tensor.shape.numpy()[0])
    most = max(1, CHUNK * count // max(1, tensor.nbytes))
    first = 0
    while first < len(wanted):
        last = int(np.searchsorted(wanted, wanted[first] + most, side="left"))
        yield first, last
        first = last


def reopened(tensor: ir.ExternalTensor, name: str | None = None) -> ir.ExternalTensor:
    """An external tensor with a mapping of its own, so that closing it lets go of the memory."""
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=tensor.name or "" if name is None else name,
        base_dir=tensor.base_dir,
    )


def external(tensor: ir.ExternalTensor) -> FileTensor | None:
    """An external tensor, mapped a few rows at a time; None where an element is less than a byte."""
    if tensor.dtype.bitwidth % 8 or not len(tensor.shape):
        return None

    def rows(start: int, stop: int) -> Array:
        source = reopened(tensor)
        try:
            return source.numpy()[start:stop].copy()
        finally:
            source.release()  # closes the mapping, and lets go of its memory

    return FileTensor(rows, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name)
