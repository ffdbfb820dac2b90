"""Sparse initializers made dense: onnx-ir knows no sparse tensors, and the CPU kernels want dense ones."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.errors import ModelError

if TYPE_CHECKING:
    import onnx


def densify(graph: onnx.GraphProto, path: Path) -> int:
    """Turn a graph's sparse initializers into dense ones, in place.

    Indices are linear, ``[count]``, or coordinates, ``[count, rank]`` (ONNX IR, SparseTensorProto).

    Returns:
        How many there were.

    Raises:
        ModelError: one is malformed.
    """
    from onnx import numpy_helper

    for sparse in graph.sparse_initializer:
        name, shape = sparse.values.name, tuple(sparse.dims)
        try:
            values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
            array = np.zeros(prod(shape), values.dtype)
            array[indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)] = values
        except (IndexError, ValueError, TypeError) as error:
            raise ModelError(f"{path}: sparse tensor '{name}' is malformed: {error}") from error
        graph.initializer.append(numpy_helper.from_array(array.reshape(shape), name))
    count = len(graph.sparse_initializer)
    del graph.sparse_initializer[:]
    return count
