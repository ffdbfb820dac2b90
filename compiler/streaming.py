"""Write a model into one protobuf file, a weight at a time.

Serialising a model as a whole needs its weights two or three times over in memory. Here everything but the
large weights is serialised; they are written behind it, straight from where they are. Protobuf's wire format:
a field is a tag (number and kind), a length, and the bytes (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from condensec.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir

LARGE = 1 << 12  # bytes; smaller weights go with the rest
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of ModelProto, GraphProto, TensorProto


def write(model: ir.Model, path: Path, bring_inside: Callable[[ir.Model], None]) -> None:
    """Write a model with every weight inside. The model isn't changed.

    Args:
        model: any model.
        path: the file, overwritten.
        bring_inside: replaces the external weights of a model by ones in memory, for the small ones.
    """
    import onnx_ir as ir

    rest = model.clone()
    large: list[tuple[str, ir.TensorProtocol]] = []
    for name, value in list(rest.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > LARGE and tensor.dtype != ir.DataType.STRING:
            large.append((name, tensor))
            del rest.graph.initializers[name]
    bring_inside(rest)
    proto = ir.to_proto(rest)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_head(name, tensor) for name, tensor in large]
    sizes = [len(head) + tensor.nbytes for head, (_, tensor) in zip(heads, large, strict=True)]
    total = len(graph) + sum(len(tag(_INITIALIZER, size)) + size for size in sizes)
    with open(path, "wb") as file:
        file.write(proto.SerializeToString())
        file.write(tag(_GRAPH, total))
        file.write(graph)
        for head, size, (_, tensor) in zip(heads, sizes, large, strict=True):
            file.write(tag(_INITIALIZER, size))
            file.write(head)
            _write_bytes(file, tensor)


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to its bytes."""
    import onnx

    dims = [int(d) for d in tensor.shape.numpy()]
    proto = onnx.TensorProto(name=name, dims=dims, data_type=int(tensor.dtype))
    if tensor.doc_string:
        proto.doc_string = tensor.doc_string
    return bytes(proto.SerializeToString()) + tag(_RAW_DATA, tensor.nbytes)


def _write_bytes(file: BinaryIO, tensor: ir.TensorProtocol) -> None:
    import onnx_ir as ir

    from condensec.filetensor import FileTensor, external

    if isinstance(tensor, ir.ExternalTensor):
        tensor = external(tensor) or tensor
    if isinstance(tensor, FileTensor):
        tensor.tofile(file)
        return
    content = tensor.tobytes()
    if len(content) != tensor.nbytes:
        raise ModelError(
            f"weight '{tensor.name}' has {len(content)} bytes, not {tensor.nbytes}", node=tensor.name
        )
    file.write(content)


def tag(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _varint(field << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
