"""Packing a model's nodes, at several widths and without weights, so that another device can time them.

Every node is a model of its own of a few hundred bytes: large weights become ConstantOfShape, which
onnxruntime folds into constants when it loads, so that they are laid out and packed as real ones are. Their
values don't matter for time (denormals would; there are none).
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from condensec.errors import ConfigError
from condensec.hardware.graphmodel import GraphModel
from condensec.hardware.isolate import Isolated
from condensec.hardware.nodecost import NodeCost
from condensec.hardware.nodekey import NodeKey, key_of, own_key
from condensec.hardware.widths import append_fused, fused_into, knots, resized

if TYPE_CHECKING:
    import onnx

_LARGE = 64  # elements; smaller constants (shapes, scalars) stay as they are
_GIVEN = 4096  # elements; integer inputs up to this size keep their values: indices have to be valid
_VALUE = 0.01
_IMAGE = 4  # channels of an image: those stay
_MARK = 'PACKED = ""'
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Piece:
    """One node to time.

    Attributes:
        key: what its time depends on.
        model: it alone, with its weights.
        feeds: its inputs.
    """

    key: NodeKey
    model: onnx.ModelProto
    feeds: Mapping[str, Array]


def pieces(model: GraphModel) -> list[Piece]:
    """Every node of a model's graph once, weighted ones at a few widths."""
    found: dict[NodeKey, Piece] = {}
    for part in model.parts:
        known = model.originals.get(part.owner or "") if part.own else None
        made = [_as_it_is(part.isolated)] if known is None else _at_widths(model, part.isolated, *known)
        for piece in made:
            found.setdefault(piece.key, piece)
    return list(found.values())


def _as_it_is(node: Isolated) -> Piece:
    return Piece(key_of(node), node.model(), node.feeds())


def _at_widths(model: GraphModel, part: Isolated, dense: NodeCost, node: Isolated) -> list[Piece]:
    hard = model.target.alignment(dense.kind)
    fused = fused_into(part)
    key = own_key(node, fused.activation, fused.summed, hard)
    grouped = dense.groups > 1 and dense.kind != "depthwise"
    if not dense.in_channels or grouped or "Transpose" in dense.op:
        return [_as_it_is(node)]
    made = []
    for ins, outs in widths(dense, hard, model.target.grid):
        changed = resized(node, dense, ins, outs)
        proto, feeds = changed.model(), dict(changed.feeds())
        append_fused(proto, fused, (node.outputs[0][0], outs, *node.outputs[0][2:]), feeds)
        cost = replace(dense, in_channels=ins, out_channels=outs)
        made.append(Piece(key.at(cost, hard), proto, feeds))
    return made


def widths(dense: NodeCost, hard: int, grid: int) -> list[tuple[int, int]]:
    """Input and output channels worth timing: a few on the grid, and one off the alignment."""
    block = grid if dense.kind != "matmul" else 1
    ins, outs = (knots(size, hard, block) for size in (dense.in_channels, dense.out_channels))
    if dense.in_channels <= _IMAGE:
        ins = (dense.in_channels,)
    if dense.kind == "depthwise":
        pairs = [(c, c) for c in outs]
    else:
        pairs = [(i, o) for i in ins for o in outs]
    if hard > 1 and min(dense.in_channels, dense.out_channels) > hard:
        pairs.append((dense.in_channels - 1, dense.out_channels - 1))
    return pairs


def packed(
    made: Sequence[Piece], feeds: Mapping[str, Array], target: str, name: str, sha256: str
) -> dict[str, Any]:
    """The document that `condensec.hardware.device_script` unpacks."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [x], [y])
    empty = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return {
        "target": target,
        "model": name,
        "sha256": sha256,
        "empty": {"onnx": _text(empty), "feeds": [_spec("x", np.zeros(1, np.float32))]},
        "feeds": [_spec(key, array) for key, array in feeds.items()],
        "nodes": [
            {
                "key": str(piece.key),
                "op": piece.model.graph.node[0].op_type,
                "onnx": _text(light(piece.model)),
                "feeds": [_spec(key, array) for key, array in piece.feeds.items()],
            }
            for piece in made
        ],
    }


def write_script(path: Path, document: Mapping[str, Any]) -> None:
    """The stand-alone script with a packed document inside.

    Raises:
        ConfigError: the file can't be written.
    """
    from condensec.hardware import device_script

    source = Path(device_script.__file__).read_text(encoding="utf-8")
    text = base64.b64encode(zlib.compress(json.dumps(document).encode(), 9)).decode()
    assert source.count(_MARK) == 1
    try:
        path.write_text(source.replace(_MARK, f'PACKED = "{text}"  # noqa: E501'), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"can't write {path}: {error.strerror or error}") from error


def light(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large weights are made when it is loaded, all of one value."""
    import onnx
    from onnx import helper, numpy_helper

    small = onnx.ModelProto()
    small.CopyFrom(model)
    opset = next((o.version for o in small.opset_import if o.domain in ("", "ai.onnx")), 0)
    makers = []
    for tensor in list(small.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if opset < 9 or array.size <= _LARGE:
            continue
        small.graph.initializer.remove(tensor)
        value = np.array([_VALUE if array.dtype.kind == "f" else 1]).astype(array.dtype)
        shape = numpy_helper.from_array(np.array(array.shape, np.int64), f"{tensor.name} shape")
        small.graph.initializer.append(shape)
        makers.append(
            helper.make_node(
                "ConstantOfShape", [shape.name], [tensor.name], value=numpy_helper.from_array(value)
            )
        )
    nodes = [*makers, *small.graph.node]
    del small.graph.node[:]
    small.graph.node.extend(nodes)
    return small


def _text(model: onnx.ModelProto) -> str:
    return base64.b64encode(model.SerializeToString()).decode()


def _spec(name: str, array: Array) -> dict[str, Any]:
    spec: dict[str, Any] = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    if array.dtype.kind in "iub" and array.size <= _GIVEN:
        spec["values"] = array.reshape(-1).tolist()
    return spec
