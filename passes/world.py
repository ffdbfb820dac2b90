"""A sample world: the model's shapes and small integers at concrete input sizes.

The axis algebra needs every size as a number. Dynamic dimensions get sample sizes, shapes follow from
ONNX shape inference on a copy without weights, and shape arithmetic (Shape, Gather, Concat, ...) is
evaluated. Nothing here changes the model: dynamic dimensions stay dynamic in what is emitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from condensec.data.side import side_inputs
from condensec.errors import ModelError
from condensec.passes import openings, standins
from condensec.passes.arithmetic import FOLDABLE, SMALL, evaluate_node, is_known
from condensec.passes.bodies import enters, home, is_open
from condensec.passes.closing import close_bodies
from condensec.passes.probe import probe_shapes, run_for_shapes

BATCH = 2  # a sample batch of two keeps a reshape of batch*heads apart from one of heads


class World:
    """Concrete shapes and known small values, by value name.

    Attributes:
        shapes: value name -> sizes.
        values: value name -> array, for shape arithmetic and small integer constants.
        inputs: graph input name -> the sample sizes used.
        derived: names of known values that depend on an input's size.
        dtypes: value name -> ONNX element type.
    """

    def __init__(self, inputs: Mapping[str, tuple[int, ...]]) -> None:
        self.inputs = dict(inputs)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.values: dict[str, np.ndarray[Any, Any]] = {}
        self.derived: set[str] = set()
        self.dtypes: dict[str, int] = {}

    def copy(self) -> World:
        """A world of its own with the same contents."""
        other = World(self.inputs)
        other.shapes, other.values = dict(self.shapes), dict(self.values)
        other.derived, other.dtypes = set(self.derived), dict(self.dtypes)
        return other

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Sizes of a value in the sample world, or None where they couldn't be found."""
        return self.shapes.get(value.name or "")

    def known(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """The array of a constant or of shape arithmetic in the sample world, else None."""
        if value is None:
            return None
        found = self.values.get(value.name or "")
        if found is None and value.const_value is not None and value.is_initializer():
            return value.const_value.numpy()
        return found


def sample_inputs(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None, batch: int
) -> dict[str, tuple[int, ...]]:
    """Concrete sizes for every graph input: given ones first, then static ones, then sample sizes."""
    result: dict[str, tuple[int, ...]] = {}
    batches = _batch_dims(model)
    for value in model.graph.inputs:
        name = value.name or ""
        given = (shapes or {}).get(name)
        declared = value.shape
        if declared is None:
            if given is None:
                raise ModelError(
                    f"input '{name}' has no shape", node=name, hint="give it one with --input-shape"
                )
            result[name] = (batch, *given[1:]) if given else ()
            continue
        sizes: list[int] = []
        for position, dim in enumerate(declared.dims):
            static = isinstance(dim, int) and dim > 0
            if static:
                assert isinstance(dim, int)
                sizes.append(dim)
            elif position == 0 or (name, position) in batches:
                sizes.append(batch)
            elif given is not None and position < len(given):
                sizes.append(int(given[position]))
            else:
                sizes.append(224 if len(declared) == 4 and position > 1 else 16)
        result[name] = tuple(sizes)
    return result


def _batch_dims(model: ir.Model) -> set[tuple[str, int]]:
    """(input, axis) of dims that are the batch though they don't come first, as in a state ``[2, N, 128]``.

    They are named like the others' axis 0; where the first dynamic dim of an input without a sample axis has
    no name, it's taken for the batch, too.
    """
    shapes = {
        v.name or "": tuple(d if isinstance(d, int) and d > 0 else getattr(d, "value", None) for d in v.shape)
        for v in model.graph.inputs
        if v.shape is not None and v.name not in model.graph.initializers
    }
    sides = side_inputs([(name, shape, True) for name, shape in shapes.items()])
    names = {s[0] for n, s in shapes.items() if n not in sides and s and isinstance(s[0], str)}
    found = set()
    for name in sides:
        dims = [(axis, dim) for axis, dim in enumerate(shapes[name]) if not isinstance(dim, int)]
        found |= {(name, axis) for axis, dim in dims if dim in names}
        found |= {(name, axis) for axis, dim in dims[:1] if dim is None}
    return found


def build_world(model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None) -> World:
    """Find concrete shapes and shape arithmetic of a normalized model.

    Args:
        model: normalized (no local functions, no Constant nodes).
        shapes: sizes of inputs, e.g. of one real sample; the first axis of dynamic inputs is replaced.

    Raises:
        ModelError: the shapes contradict each other at every sample size tried.
    """
    world = _try(model, shapes)
    if isinstance(world, World) and (shapes or not _open_sizes(model) or _fits(model, world)):
        return world
    probed = probe_shapes(close_bodies(model)) if shapes is None else None
    found = _try(model, probed) if probed is not None else None
    world = found if isinstance(found, World) else world
    if isinstance(world, World):
        return world
    reason = str(world).strip().splitlines()[-1]
    raise ModelError(
        f"the model's shapes contradict each other: {reason}",
        hint="give real sizes with --data or --input-shape",
    )


def _try(model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None) -> World | Exception:
    """A world at the sample batch of two, or of one; or what ONNX says against both."""
    failure: Exception = ValueError("unknown")
    for batch in (BATCH, 1):
        world = World(sample_inputs(model, shapes, batch))
        try:
            _fill(model, world)
            return world
        except onnx.shape_inference.InferenceError as error:
            failure = error
    return failure


def _open_sizes(model: ir.Model) -> bool:
    """Whether an input leaves a size open, its first axis apart."""
    dims = [d for v in model.graph.inputs if v.shape is not None for d in v.shape.dims[1:]]
    return not all(isinstance(d, int) and d > 0 for d in dims)


def _fits(model: ir.Model, world: World) -> bool:
    """Whether the sample sizes contradict nothing in the model, and lead to all shapes."""
    if _gaps(model, world):
        return False
    try:
        _infer_shapes(model, world, strict=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _gaps(model: ir.Model, world: World, *, bodies: bool = True) -> list[str]:
    """Values somebody uses whose shapes aren't known, those of bodies included or not."""
    nodes = (n for n in model.graph if bodies or not (home(n) or enters(n)))
    outputs = (o for node in nodes for o in node.outputs if o.uses() and o.name)
    return [o.name or "" for o in outputs if o.name not in world.shapes]


def _fill(model: ir.Model, world: World) -> None:
    nodes = list(model.graph)
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        world.shapes[value.name or ""] = tuple(int(d) for d in tensor.shape.numpy())
        if _is_seed(tensor):
            world.values[value.name or ""] = tensor.numpy()
    if _work_out(model, nodes, world):
        return
    found = run_for_shapes(close_bodies(model), world.inputs, _gaps(model, world, bodies=False))
    world.shapes.update(found)
    if found:
        _work_out(model, nodes, world)


def _work_out(model: ir.Model, nodes: list[ir.Node], world: World) -> bool:
    """Infer shapes and evaluate shape arithmetic until nothing new comes out; whether nothing is missing."""
    missing = -1
    for _ in range(6 + sum(map(is_open, nodes))):  # what is in a body may wait for another body
        _infer_shapes(model, world)
        _evaluate(nodes, world)
        unknown = sum(
            1 for n in nodes for o in n.outputs if o.name and o.uses() and o.name not in world.shapes
        )
        if unknown in (0, missing):
            return unknown == 0
        missing = unknown
    return False


def _is_seed(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return tensor.size <= SMALL
    return tensor.size == 1 and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _infer_shapes(model: ir.Model, world: World, *, strict: bool = False) -> None:
    """One run of ONNX shape inference on a copy without weights; ``strict``: errors of a node are raised."""
    graph = onnx.GraphProto(name="sample")
    inits = model.graph.initializers
    known = dict(world.values)
    known.update(
        (name, tensor.numpy()) for name, tensor in map(_parameter_of_shape, inits.values()) if tensor
    )
    for value in model.graph.inputs:
        graph.input.append(_info(value.name or "", value.dtype, world.inputs[value.name or ""], value))
    for name, value in inits.items():
        if name not in known:
            graph.input.append(_info(name, value.dtype, world.shapes[name], value))
    produced: set[str] = set()
    graph.input.extend(openings.inputs() if any(map(is_open, model.graph)) else [])
    for node in model.graph:
        if is_known(node, known):
            continue
        if is_open(node):
            graph.node.extend(openings.replace(node, world, model.opset_imports.get("", 1)))
            produced.update(o.name for o in node.outputs if o.name)
            continue
        proto = ir.serde.serialize_node(node)
        produced.update(o for o in proto.output if o)
        graph.node.extend(standins.replace(proto, world.shapes) or [proto])
    for name, array in known.items():
        if name not in produced:
            graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for value in model.graph.outputs:
        graph.output.append(_info(value.name or "", value.dtype, None, value))
    for name, sizes in world.shapes.items():
        if name in produced:
            graph.value_info.append(onnx.ValueInfoProto(name=name))
            graph.value_info[-1].CopyFrom(_info(name, None, sizes, None))
    imports = [onnx.helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4), graph=graph, opset_import=imports)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=strict, data_prop=True)
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        tensor = info.type.tensor_type
        world.dtypes[info.name] = tensor.elem_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            world.shapes.setdefault(info.name, tuple(d.dim_value for d in tensor.shape.dim))
    for name, sizes in world.inputs.items():
        world.shapes[name] = sizes


def _parameter_of_shape(value: ir.Value) -> tuple[str, ir.TensorProtocol | None]:
    """Resize takes its scales as a few floats; inference needs to see them."""
    tensor = value.const_value
    fits = tensor is not None and tensor.size <= 16 and tensor.dtype == ir.DataType.FLOAT
    return value.name or "", tensor if fits else None


def _info(
    name: str, dtype: ir.DataType | None, sizes: Iterable[int] | None, value: ir.Value | None
) -> onnx.ValueInfoProto:
    if value is not None and value.type is not None and not isinstance(value.type, ir.TensorType):
        info = onnx.ValueInfoProto(name=name)
        ir.serde.serialize_type_into(info.type, value.type)
        return info
    element = int(dtype) if dtype is not None else 0
    return onnx.helper.make_tensor_value_info(name, element, None if sizes is None else list(sizes))


def _evaluate(nodes: list[ir.Node], world: World) -> None:
    """Evaluate shape arithmetic in graph order, with the ONNX reference implementation."""
    for node in nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type not in FOLDABLE:
            continue
        if is_known(node, world.values):
            continue
        results = evaluate_node(node, world.values, world.shapes)
        if results is None:
            continue
        derived = node.op_type in ("Shape", "Size") or any(
            i is not None and i.name in world.derived for i in node.inputs
        )
        for output, array in zip(node.outputs, results, strict=False):
            if not output.name:
                continue  # an optional output nobody asked for
            world.values[output.name] = array
            world.shapes[output.name] = array.shape
            if derived:
                world.derived.add(output.name)
