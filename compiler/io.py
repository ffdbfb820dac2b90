"""Reading and writing model files: `load`, `save`, `sha256`, `signature`.

A model is an ``onnx_ir.Model``. Weights stay on disk until somebody asks for them, be they in external files
or in the model's own (see `inplace`): a 3 GiB model with external data loads in about a millisecond and next
to no memory. Every file that can't be used is refused here, with a `ModelError` that names it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import inplace, streaming
from condensec.dense import densify
from condensec.errors import ConfigError, ModelError
from condensec.model_checks import check_content, check_external, check_graph, graphs, tensors
from condensec.model_signature import signature

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["INLINE_LIMIT", "load", "parse", "save", "sha256", "signature"]

INLINE_LIMIT = 1_800_000_000  # bytes of weights; above it the protobuf comes near its bound of 2 GB
_PROTOBUF_LIMIT = (1 << 31) - 1  # bytes
_CHUNK = 1 << 20  # bytes read at a time


def load(path: Path) -> ir.Model:
    """Read a model; external weights stay on disk until they're used.

    Raises:
        ModelError: the file is missing, empty, cut off, or no ONNX model; its operators or opset aren't
            known; or its external data is missing, too short, or not inside the model's folder.
    """
    import onnx_ir as ir

    path = Path(path)
    apart = _apart(path)
    proto = parse(path) if apart is None else apart[0]
    check_graph(proto, path)
    densify(proto.graph, path)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # whatever a malformed graph makes onnx_ir raise
        raise ModelError(f"{path}: the graph is malformed: {_one_line(error)}") from error
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = os.path.abspath(path.parent)
    if apart is not None:
        inplace.put_back(model, *apart[1:])
    check_external(model, path)
    return model


def _apart(
    path: Path,
) -> tuple[onnx.ModelProto, dict[str, inplace.Place], inplace.WeightFile] | None:
    """The protobuf without its large weights, and where those are; None where it has to be read whole."""
    import onnx

    found = inplace.read(path) if path.is_file() and path.stat().st_size <= _PROTOBUF_LIMIT else None
    if found is None:
        return None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(found[0])
    except Exception:  # protobuf's DecodeError: reading it as a whole says so
        return None
    return proto, found[1], found[2]


def parse(path: Path) -> onnx.ModelProto:
    """Read the protobuf alone, without external data.

    Raises:
        ModelError: the file can't be read or isn't an ONNX protobuf.
    """
    import onnx

    path = Path(path)
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder, not a model", hint="name the .onnx file in it")
        size = path.stat().st_size
        if size > _PROTOBUF_LIMIT:
            raise ModelError(
                f"{path} has {size / 1e9:.1f} GB, more than a protobuf can have",
                hint="save it with external data",
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"no such file: {path}", hint="check the path of the model") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ModelError(f"can't read {path}: {_one_line(error)}") from error
    check_content(content, path)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError
        raise ModelError(
            f"{path} is damaged or cut off: not a whole ONNX protobuf ({size} bytes)",
            hint="export or download it again",
        ) from error
    return proto


def save(model: ir.Model, path: Path) -> None:
    """Write a model whole or not at all; the model itself isn't changed.

    Weights go into the file. Above `INLINE_LIMIT` they go beside it, into ``<name>.data``.

    Raises:
        ConfigError: the folder can't be written.
        ModelError: the weights can't be read.
    """
    path = Path(path)
    weights = sum(tensor.nbytes for tensor in tensors(model))
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ConfigError(f"can't write {path}: {_one_line(error)}") from error
    try:
        if weights > INLINE_LIMIT:
            _write_external(model, folder / path.name)
        else:
            _write_inline(model, folder / path.name)
        for draft in sorted(folder.iterdir(), key=lambda p: p.name == path.name):  # the model last
            os.replace(draft, path.parent / draft.name)
    except OSError as error:
        raise ConfigError(f"can't write {path}: {_one_line(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        ModelError: the file can't be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"can't read {path}: {_one_line(error)}") from error
    return digest.hexdigest()


def _write_inline(model: ir.Model, draft: Path) -> None:
    """Write with every weight inside, one large weight at a time."""
    streaming.write(model, draft, _bring_inside)


def _bring_inside(model: ir.Model) -> None:
    """Replace external tensors by in-memory ones that view the mapped file."""
    import onnx_ir as ir

    for graph in graphs(model):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _viewed(value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
                    continue
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    node.attributes[name] = ir.AttrTensor(name, _viewed(tensor))


def _viewed(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    import onnx_ir as ir

    try:
        array = tensor.numpy()
    except (OSError, ValueError) as error:
        raise ModelError(
            f"can't read weight '{tensor.name}' from {tensor.path}: {_one_line(error)}", node=tensor.name
        ) from error
    return ir.Tensor(array, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)


def _write_external(model: ir.Model, draft: Path) -> None:
    import onnx_ir as ir

    ir.save(model, draft, external_data=f"{draft.name}.data")


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
