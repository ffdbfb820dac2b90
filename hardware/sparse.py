"""Weights with many zeros as sparse tensors of ONNX (`sparse_initializer`): a smaller file, the same graph.

onnxruntime reads them and makes them dense when it opens a session; TensorRT refuses them, and minimal builds
may. A sparse tensor holds the numbers that aren't zero and 8 bytes each for their places: it is smaller only
where most are zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from condensec.errors import CondensecError

if TYPE_CHECKING:
    import onnx

INDEX_BYTES = 8  # int64
RUNTIME = "onnxruntime"
FEWEST = 64  # numbers: below that names and headers are what counts


def store(path: Path, runtime: str) -> str:
    """Rewrite a graph in place, where that makes it smaller and its reader takes it.

    Args:
        path: an ONNX file with its weights inside.
        runtime: that will read it.

    Returns:
        A note about what was done, or why it wasn't.
    """
    import onnx

    if runtime != RUNTIME:
        return f"weights stay dense: {runtime} isn't known to read sparse tensors"
    model = onnx.load(str(path))
    before = path.stat().st_size
    count = _rewrite(model)
    if not count:
        return "weights stay dense: none has so many zeros that a sparse tensor is smaller"
    draft = path.with_name(f".{path.name}.sparse")
    try:
        draft.write_bytes(model.SerializeToString(deterministic=True))
        reason = _differs(path, draft)
        if not reason:
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    if reason:
        return f"weights stay dense: {reason}"
    after = path.stat().st_size
    return f"{count} weights are stored as sparse tensors: {before:,} bytes before, {after:,} after"


def _rewrite(model: onnx.ModelProto) -> int:
    """Make sparse what is smaller so; returns how many weights."""
    from onnx import helper, numpy_helper

    dense = []
    count = 0
    captured = {name for node in model.graph.node for a in node.attribute for name in _reads(a)}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        places = np.flatnonzero(array.reshape(-1)).astype(np.int64)
        size = array.dtype.itemsize
        small = len(places) * (size + INDEX_BYTES) < array.size * size
        if array.dtype != np.float32 or array.size < FEWEST or not small or tensor.name in captured:
            dense.append(tensor)
            continue
        values = numpy_helper.from_array(array.reshape(-1)[places], tensor.name)
        indices = numpy_helper.from_array(places, f"{tensor.name}_indices")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(array.shape)))
        count += 1
    if count:
        kept = [type(t).FromString(t.SerializeToString()) for t in dense]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    return count


def _reads(attribute: onnx.AttributeProto) -> list[str]:
    """Names that the bodies of an If, Loop or Scan read: those weights stay as they are."""
    graphs = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
    found = []
    for graph in graphs:
        for node in graph.node:
            found += [*node.input, *(name for a in node.attribute for name in _reads(a))]
        found += [value.name for value in graph.output]
    return found


def _differs(dense: Path, sparse: Path) -> str:
    """Why onnxruntime doesn't get the same numbers out of both; empty if it does."""
    from condensec.data import synthetic
    from condensec.io import load, signature
    from condensec.probe import runnable_shapes
    from condensec.runner import Session

    try:
        known = signature(load(dense))
        shapes = runnable_shapes(dense, known, None)
        count = next((s[0] for s in shapes.values() if s), 1)
        feeds = dict(synthetic(known, seed=0, count=count, shapes=shapes).inputs)
        before, after = (Session(path).run(feeds) for path in (dense, sparse))
    except CondensecError as error:
        return f"onnxruntime doesn't take sparse tensors here: {error.message}"
    same = all(np.array_equal(a, after[name], equal_nan=a.dtype.kind == "f") for name, a in before.items())
    return "" if same else "onnxruntime computes something else with them"
