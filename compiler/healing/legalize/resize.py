"""Resize and Upsample: along each axis a product with a constant interpolation matrix.

The matrix is what the operator itself does to the unit vectors, so every mode, coordinate rule and corner
case is served exactly, and its transpose is the exact gradient.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from condensec.healing.graph import OPSET, Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes


@legalizes("Resize")
def resize(node: Node, e: Emitter) -> None:
    """One MatMul per resized axis; whole-number nearest upsampling as Expand, which moves less."""
    x = node.inputs[0]
    shape, out_shape = e.shape(x), e.shape(node.outputs[0])
    if node.attribute("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NotLegal("Resize that crops (tf_crop_and_resize) has no gradient")
    axes = [a for a in range(len(shape)) if shape[a] != out_shape[a]]
    current = list(shape)
    for axis in axes:
        matrix = _matrix(node, axis, shape, out_shape, e)
        factor = out_shape[axis] // shape[axis]
        rows, columns = int(np.prod(current[:axis])), int(np.prod(current[axis + 1 :]))
        if factor * shape[axis] == out_shape[axis] and _repeats(matrix, factor):
            wide = e.ints([rows, shape[axis], factor, columns])
            y = e.op("Expand", e.reshape(x, (rows, shape[axis], 1, columns)), wide)
        elif axis == len(shape) - 1:
            y = e.op("MatMul", e.reshape(x, (rows, shape[axis])), e.const(matrix.T))
        else:
            y = e.op("MatMul", e.const(matrix), e.reshape(x, (rows, shape[axis], columns)))
        current[axis] = out_shape[axis]
        x = e.reshape(y, current)
    if axes:
        e.nodes[-1].output[0] = node.outputs[0]
    else:
        e.op("Identity", x, out=node.outputs[0])


def _repeats(matrix: np.ndarray, factor: int) -> bool:
    """The matrix copies each input `factor` times in a row."""
    return bool(np.array_equal(matrix, np.repeat(np.eye(matrix.shape[1], dtype=np.float32), factor, axis=0)))


def _matrix(
    node: Node, axis: int, shape: tuple[int, ...], out_shape: tuple[int, ...], e: Emitter
) -> np.ndarray:
    """[out, in]: the operator's own answer to each unit vector along one axis."""
    from condensec.healing.static import run_model

    n, m = shape[axis], out_shape[axis]
    # Two axes, as linear and cubic kernels ask for; the rows are the unit vectors and keep their size.
    scale, sizes = _scale_along(node, axis, e), None
    if scale is None:
        sizes = helper.make_tensor("sizes", TensorProto.INT64, [4], [1, 1, n, m])
    keep = {"mode", "coordinate_transformation_mode", "nearest_mode", "cubic_coeff_a", "exclude_outside",
            "extrapolation_value", "antialias"}  # fmt: skip
    attributes = {k: v for k, v in node.attributes().items() if k in keep}
    inputs = ["x", "", "", "sizes"] if sizes else ["x", "", "scales"]
    constant = sizes or helper.make_tensor(
        "scales", TensorProto.FLOAT, [4], [1.0, 1.0, 1.0, float(scale or 1)]
    )
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], **attributes)],
        "one axis",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, n, n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [constant],
    )
    model: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9
    )
    answer = run_model(model, {"x": np.eye(n, dtype=np.float32)[None, None]})["y"]
    if answer.shape != (1, 1, n, m):
        raise NotLegal("Resize whose single axes don't add up to the whole")
    return np.ascontiguousarray(answer[0, 0].T)


def _scale_along(node: Node, axis: int, e: Emitter) -> float | None:
    """The scale given for an axis; None where sizes are given."""
    if not node.input(2):
        return None
    scales = e.graph.constants.get(node.inputs[2])
    if scales is None:
        raise NotLegal("Resize by scales that are computed")
    if scales.size == 0:
        return None
    axes = node.attribute("axes") or list(range(scales.size))
    rank = len(e.shape(node.inputs[0]))
    by_axis: dict[int, float] = {int(a) % rank: float(s) for a, s in zip(axes, scales, strict=True)}
    return by_axis.get(axis, 1.0)
