"""Any form of a model as one protobuf onnxruntime takes, whatever its size and wherever its weights are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from condensec.errors import CondensecError, ModelError, PreconditionError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    ModelSource: TypeAlias = "ir.Model | Path | str | bytes | onnx.ModelProto"

INLINE_LIMIT = 1_800_000_000  # bytes of weights; above it a serialised protobuf comes near its 2 GB bound


def to_proto(model: ModelSource) -> onnx.ModelProto:
    """The model as a protobuf with every weight inside.

    Raises:
        ModelError: the weights are above 1.8 GB or can't be read.
    """

    def refuse() -> Path:
        raise ModelError(f"the weights are above {INLINE_LIMIT / 1e9:.1f} GB and don't fit one protobuf")

    proto, folder = locate(model, refuse, inline=True)
    assert folder is None
    return proto


def to_ir(model: ModelSource) -> ir.Model:
    """The model as an onnx_ir model; files are checked as `condensec.io.load` does.

    Raises:
        ModelError: it can't be read.
    """
    import onnx
    import onnx_ir as ir

    from condensec import io

    if isinstance(model, ir.Model):
        return model
    if isinstance(model, str | Path):
        return io.load(Path(model))
    if isinstance(model, onnx.ModelProto):
        return ir.from_proto(model)
    return ir.from_proto(to_proto(model))


def locate(
    model: ModelSource, make_folder: Callable[[], Path], inline: bool = False
) -> tuple[onnx.ModelProto, str | None]:
    """The model as a protobuf, and the folder its external weights lie in.

    Args:
        model: a model in any form; never modified.
        make_folder: called for a folder when weights above `INLINE_LIMIT` have to be written out.
        inline: bring external weights inside if they fit.

    Returns:
        The protobuf (a copy), and the folder; None if every weight is inside.

    Raises:
        ModelError: the model can't be read.
    """
    import onnx
    import onnx_ir as ir

    if isinstance(model, ir.Model):
        return _ir_to_proto(model, make_folder, inline)
    label = model if isinstance(model, str | Path) else "the model"
    folder = None
    try:
        if isinstance(model, onnx.ModelProto):
            if model.ByteSize() > INLINE_LIMIT:
                return _ir_to_proto(ir.from_proto(model), make_folder, inline)
            proto = onnx.ModelProto()
            proto.CopyFrom(model)
        elif isinstance(model, bytes):
            proto = onnx.load_model_from_string(model)
        else:
            proto = onnx.load_model(os.fspath(model), load_external_data=False)
            folder = os.path.abspath(os.path.dirname(os.fspath(model)))
            if inline and _refers(proto):
                return _ir_to_proto(ir.load(model), make_folder, inline)
            folder = None if inline else folder
    except CondensecError:
        raise
    except Exception as error:
        raise ModelError(f"onnxruntime can't load {label}: {error}") from error
    if not proto.HasField("graph"):
        raise ModelError(f"onnxruntime can't load {label}: there's no graph in it")
    return proto, folder


def _ir_to_proto(
    model: ir.Model, make_folder: Callable[[], Path], inline: bool
) -> tuple[onnx.ModelProto, str | None]:
    import onnx_ir as ir

    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    external = [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]
    inside = sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))
    folders = {os.path.abspath(os.fspath(t.base_dir) or ".") for t in external}
    if inside + sum(t.nbytes for t in external) > INLINE_LIMIT and (
        inline or inside > INLINE_LIMIT or len(folders) > 1
    ):
        folder = make_folder()
        ir.save(model, folder / "model.onnx", external_data="weights")
        model = ir.load(folder / "model.onnx")
        return ir.to_proto(model), str(folder)
    proto = ir.to_proto(model)
    if not external:
        return proto, None
    if len(folders) == 1 and not inline:
        return proto, folders.pop()
    _load_external(proto, external)
    return proto, None


def whole(model: ir.Model) -> onnx.ModelProto:
    """The model with all weights inside, however large: to be looked at, it may be too large to write."""
    import onnx_ir as ir

    from condensec.model_checks import tensors

    proto = ir.to_proto(model)
    _load_external(proto, [tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor)])
    return proto


def _refers(proto: onnx.ModelProto) -> bool:
    """Whether any weight lies outside; if none, the file is taken as it is: onnx_ir drops sparse weights."""
    from onnx.external_data_helper import uses_external_data

    return any(uses_external_data(tensor) for graph in _graphs(proto) for tensor in graph.initializer)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    pending = [proto.graph]
    while pending:
        graph = pending.pop()
        yield graph
        for attribute in (a for node in graph.node for a in node.attribute):
            pending.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _load_external(proto: onnx.ModelProto, tensors: Sequence[ir.ExternalTensor]) -> None:
    """Put external weights inside, found again by where they're stored."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    by_place = {(os.fspath(t.location), t.offset or 0, t.length): t for t in tensors}
    for graph in _graphs(proto):
        for tensor in graph.initializer:
            if uses_external_data(tensor):
                info = ExternalDataInfo(tensor)
                found = by_place[(info.location, info.offset or 0, info.length)]
                tensor.raw_data = found.tobytes()
                tensor.ClearField("external_data")
                tensor.ClearField("data_location")


def add_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Make intermediate values graph outputs, in place.

    Raises:
        PreconditionError: a name isn't a value of the graph.
    """
    graph = proto.graph
    present = {output.name for output in graph.output}
    known = {name for node in graph.node for name in node.output}
    known.update(value.name for value in (*graph.input, *graph.initializer))
    for name in dict.fromkeys(names):
        if name in present:
            continue
        if name not in known or not name:
            raise PreconditionError(
                f"'{name}' isn't a value of the graph, so it can't be an output", node=name
            )
        graph.output.add().name = name  # onnxruntime infers the type itself
