"""What a model file must be before anything else looks at it. Each check raises a `ModelError`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from condensec.errors import ModelError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
OLDEST_OPSET = 7
_SNIFF = 512  # bytes looked at to tell what a file is
_LFS = b"version https://git-lfs"


def check_content(content: bytes, path: Path) -> None:
    """Refuse what is plainly something else than an ONNX protobuf, and say what it is."""
    head = content[:_SNIFF]
    if not content:
        raise ModelError(f"{path} is empty (0 bytes)", hint="export or download it again")
    if head.startswith(_LFS):
        raise ModelError(f"{path} is a Git LFS pointer, not the model", hint="run 'git lfs pull'")
    if head[4:8] == b"ORTM":
        raise ModelError(f"{path} is an .ort file", hint="give the .onnx file it was made from")
    if head.startswith(b"PK\x03\x04"):
        raise ModelError(f"{path} is a zip archive, not an ONNX model", hint="export the network to ONNX")
    if _is_text(head):
        raise ModelError(f"{path} is a text file, not an ONNX model", hint="name the .onnx file")


def _is_text(head: bytes) -> bool:
    """Whether a beginning is text: UTF-8 without control characters. A protobuf's first tag is one."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # otherwise only the last character was cut in two
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\n\r\f\ufeff" for character in text)


def check_graph(proto: onnx.ModelProto, path: Path) -> None:
    """The protobuf holds a graph whose opset and operator domains are known.

    Raises:
        ModelError: names the node with the unknown operator, or says what is missing.
    """
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(f"{path} holds no graph: there is nothing to compress", hint="export it again")
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no output", hint="export it again")
    if not proto.opset_import:
        raise ModelError(f"{path} names no opset; the file may be cut off", hint="export it again")
    functions = {(f.domain, f.name) for f in proto.functions}
    for node in _nodes(proto):
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in functions:
            raise ModelError(
                f"{path}: node '{_label(node)}' uses operator {node.op_type} of the unknown domain"
                f" '{node.domain}'",
                node=_label(node),
                hint="known are ai.onnx, ai.onnx.ml, com.microsoft and the model's own functions",
            )
    _check_opset(proto, path)


def _check_opset(proto: onnx.ModelProto, path: Path) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    versions = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    opset = versions.get("ai.onnx")
    if opset is None:
        if any(node.domain in ("", "ai.onnx") for node in _nodes(proto)):
            raise ModelError(f"{path} names no opset for ai.onnx", hint="export it again")
    elif opset < OLDEST_OPSET:
        raise ModelError(
            f"{path} has opset {opset}; {OLDEST_OPSET} is the oldest condensec reads",
            hint="convert it with onnx.version_converter",
        )
    elif opset > newest:
        raise ModelError(
            f"{path} has opset {opset}; {newest} is the newest the installed onnx {onnx.__version__} knows",
            hint="upgrade onnx, or export with an older opset",
        )
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path} has IR version {proto.ir_version}; {onnx.IR_VERSION} is the newest the installed"
            f" onnx {onnx.__version__} knows",
            hint="upgrade onnx, or export with an older IR version",
        )


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes: of the graph, its subgraphs and the local functions."""
    pending = list(proto.graph.node)
    for function in proto.functions:
        pending.extend(function.node)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            pending.extend(attribute.g.node)
            for graph in attribute.graphs:
                pending.extend(graph.node)


def _label(node: onnx.NodeProto) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)


def check_external(model: ir.Model, path: Path) -> None:
    """All external data lies inside the model's folder and is as long as stated.

    Raises:
        ModelError: names the weight and the file.
    """
    import onnx_ir as ir

    folder = os.path.realpath(path.parent)
    sizes: dict[str, int] = {}
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            location = os.fspath(tensor.location)
            if location not in sizes:
                sizes[location] = _external_size(tensor, location, folder, path)
            _check_span(tensor, sizes[location], path)


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """All graphs of a model: main, subgraphs, bodies of local functions."""
    yield from model.graphs()
    for function in model.functions.values():
        yield function.graph
        yield from function.graph.subgraphs()


def tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of a model: initializers and Constant nodes, wherever they are."""
    import onnx_ir as ir

    for graph in graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.as_tensor()


def _external_size(tensor: ir.ExternalTensor, location: str, folder: str, path: Path) -> int:
    """Size in bytes of an external file, once its place is found acceptable."""
    where = f"{path}: weight '{tensor.name}'"
    if not location or "\0" in location:
        raise ModelError(f"{where} names no file for its external data", node=tensor.name)
    if os.path.isabs(location) or re.match(r"[A-Za-z]:|[\\/]", location):
        raise ModelError(
            f"{where} lies at the absolute path '{location}'",
            node=tensor.name,
            hint="external data has to be named relative to the model's folder",
        )
    resolved = os.path.realpath(os.path.join(folder, location))
    parts = re.split(r"[\\/]", location)
    if ".." in parts or os.path.commonpath([resolved, folder]) != folder:
        raise ModelError(
            f"{where} lies at '{location}', outside the model's folder",
            node=tensor.name,
            hint="copy the data file beside the model (no '..', no symbolic link that leads out)",
        )
    try:
        status = os.stat(resolved)
    except OSError as error:
        raise ModelError(
            f"{where}: its external data '{location}' is missing",
            node=tensor.name,
            hint="put the data file beside the model",
        ) from error
    if not os.path.isfile(resolved) or not os.access(resolved, os.R_OK):
        raise ModelError(f"{where}: its external data '{location}' isn't a readable file", node=tensor.name)
    if status.st_nlink > 1:  # onnx and onnx_ir refuse to read these, as a file may be smuggled in so
        raise ModelError(
            f"{where}: its external data '{location}' is a hard link to another file",
            node=tensor.name,
            hint="put a real copy beside the model",
        )
    return status.st_size


def _check_span(tensor: ir.ExternalTensor, size: int, path: Path) -> None:
    offset = tensor.offset or 0
    length = tensor.nbytes if tensor.length is None else tensor.length
    where = f"{path}: weight '{tensor.name}'"
    if offset < 0 or length < tensor.nbytes:
        raise ModelError(
            f"{where} states {length} bytes at offset {offset}, but has {tensor.nbytes} bytes",
            node=tensor.name,
            hint="export it again",
        )
    if offset + length > size:
        raise ModelError(
            f"{where}: its external data '{os.fspath(tensor.location)}' is too short"
            f" ({size} bytes, {offset + length} needed)",
            node=tensor.name,
            hint="download or export the data file again",
        )
