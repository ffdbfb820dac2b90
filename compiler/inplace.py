"""Read a model file and leave its large weights where they are.

A protobuf holds weights in the middle of the file. Parsed as a whole, they are in memory twice, then once.
Here the file is walked field by field (https://protobuf.dev/programming-guides/encoding): the bytes of large
initializers are skipped, and read again, from the open file, when somebody asks. Nothing in the file is
trusted: whatever doesn't look as an ordinary model file does makes `read` give up, and the file is parsed as
a whole, with the errors that has.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from condensec.errors import ModelError

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx_ir as ir

    from condensec.filetensor import FileTensor

LARGE = 1 << 12  # bytes; smaller weights are read with the rest
WORTH = 1 << 20  # bytes; with less in large weights the file is read as a whole
_GRAPH, _INITIALIZER = 7, 5  # field numbers of ModelProto and GraphProto
_RAW = 9  # field numbers of TensorProto: raw_data, and packed numbers that are stored as those would be
_PACKED = {4: 1, 10: 11}  # float_data, double_data: the types of theirs
_PLAIN = frozenset((1, 2, 8, _RAW, 12, *_PACKED))  # dims, data_type, name, doc_string
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class Unusual(Exception):
    """Something a plain model file doesn't have."""


@dataclass(frozen=True)
class Place:
    """Where a weight's bytes are in the file."""

    offset: int
    length: int


class WeightFile:
    """An open model file. It stays readable when another file takes its name."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._descriptor, self._path = os.dup(file.fileno()), path
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, place: Place) -> bytes:
        """Bytes of a weight.

        Raises:
            ModelError: the file has become shorter since it was opened.
        """
        parts: list[bytes] = []
        offset, left = place.offset, place.length
        while left:
            part = os.pread(self._descriptor, left, offset)
            if not part:
                raise ModelError(f"{self._path} has become shorter while it was in use", hint="start again")
            parts.append(part)
            offset, left = offset + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read(path: Path) -> tuple[bytes, dict[str, Place], WeightFile] | None:
    """A model file without its large weights, and where those are; None where it isn't worth it, or unusual.

    Returns:
        The serialized model, without the raw data of large initializers of the main graph; their places by
        name; and the open file.
    """
    if not hasattr(os, "pread") or sys.byteorder != "little":  # Windows can't replace a file that is open
        return None
    try:
        with open(path, "rb") as file:
            rest, places = _model(_Reader(file, os.fstat(file.fileno()).st_size))
            worth = sum(place.length for place in places.values()) >= WORTH
            return (rest, places, WeightFile(file, path)) if worth else None
    except (OSError, Unusual):
        return None


class _Reader:
    """Fields of nested messages, each held to the end of the one around it."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Number, wire type, start, start of content, end of each field between two offsets."""
        position = start
        while position < end:
            tag, content = self._varint(position, end)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise Unusual("a field without number")
            if kind == _VARINT:
                _, stop = self._varint(content, end)
            elif kind == _BYTES:
                length, content = self._varint(content, end)
                stop = content + length
            elif kind in (_FIXED64, _FIXED32):
                stop = content + (8 if kind == _FIXED64 else 4)
            else:
                raise Unusual("a group, or an unknown wire type")
            if stop > end:
                raise Unusual("a field that ends behind its message")
            yield number, kind, position, content, stop
            position = stop

    def bytes(self, start: int, end: int) -> bytes:
        """The file's bytes between two offsets."""
        self._file.seek(start)
        found = self._file.read(end - start)
        if len(found) != end - start:
            raise Unusual("the file is shorter than it was")
        return found

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """A number of seven bits a byte, and where the next field begins."""
        number = shift = 0
        self._file.seek(position)
        head = self._file.read(min(10, end - position))
        for count, byte in enumerate(head, start=1):
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number, position + count
            shift += 7
        raise Unusual("a number without end")


def _model(reader: _Reader) -> tuple[bytes, dict[str, Place]]:
    from condensec.streaming import tag

    places: dict[str, Place] = {}
    parts: list[bytes] = []
    graphs = 0
    for number, kind, start, content, end in reader.fields(0, reader.size):
        if number != _GRAPH:
            parts.append(reader.bytes(start, end))
            continue
        graphs += 1
        if kind != _BYTES or graphs > 1:  # protobuf would merge several
            raise Unusual("several graphs")
        graph = _graph(reader, content, end, places)
        parts += [tag(_GRAPH, sum(map(len, graph))), *graph]
    return b"".join(parts), places


def _graph(reader: _Reader, start: int, end: int, places: dict[str, Place]) -> list[bytes]:
    """A graph's fields, with the large weights' bytes left out."""
    from condensec.streaming import tag

    parts: list[bytes] = []
    names: set[str] = set()
    for number, kind, first, content, stop in reader.fields(start, end):
        if number != _INITIALIZER or kind != _BYTES or stop - content <= LARGE:
            parts.append(reader.bytes(first, stop))
            continue
        found = _tensor(reader, content, stop)
        if found is None:
            parts.append(reader.bytes(first, stop))
            continue
        name, rest, place = found
        if name in names:
            raise Unusual("two weights of one name")
        names.add(name)
        places[name] = place
        parts += [tag(_INITIALIZER, len(rest)), rest]
    return parts


def _tensor(reader: _Reader, start: int, end: int) -> tuple[str, bytes, Place] | None:
    """Name, fields and place of a weight whose bytes can stay in the file; None where they can't."""
    import onnx

    parts: list[bytes] = []
    places: list[Place] = []
    types: set[int] = set()
    for number, kind, first, content, stop in reader.fields(start, end):
        if number not in _PLAIN:
            return None
        if number == _RAW or number in _PACKED:
            types |= {_PACKED[number]} if number in _PACKED else set()
            if kind != _BYTES:
                return None
            places.append(Place(content, stop - content))
        else:
            parts.append(reader.bytes(first, stop))
    if len(places) != 1 or places[0].length <= LARGE:
        return None
    rest = b"".join(parts)
    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(rest)
    except Exception:  # protobuf's DecodeError
        return None
    size = _itemsize(proto.data_type)
    if types - {proto.data_type}:
        return None
    if not proto.name or not size or min(proto.dims, default=1) < 1:
        return None
    if prod(proto.dims) * size != places[0].length:
        return None
    return proto.name, rest, places[0]


def _itemsize(data_type: int) -> int:
    """Bytes of an element, 0 for types of less than a byte, and text."""
    import onnx_ir as ir

    try:
        dtype = ir.DataType(data_type)
        whole = dtype.bitwidth % 8 == 0
    except (ValueError, TypeError):
        return 0
    return dtype.bitwidth // 8 if whole else 0


def put_back(model: ir.Model, places: dict[str, Place], file: WeightFile) -> None:
    """Let the initializers of a model read without its large weights refer to the file."""
    for name, place in places.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = _file_tensor(value.const_value, place, file)


def _file_tensor(tensor: ir.TensorProtocol, place: Place, file: WeightFile) -> FileTensor:
    import numpy as np
    import onnx_ir as ir

    from condensec.filetensor import FileTensor

    row = place.length // int(tensor.shape.numpy()[0]) if len(tensor.shape) else place.length

    def rows(start: int, stop: int) -> npt.NDArray[Any]:
        content = file.read(Place(place.offset + start * row, (stop - start) * row))
        shape = (stop - start, *tensor.shape.numpy()[1:]) if len(tensor.shape) else ()
        return np.frombuffer(content, dtype=tensor.dtype.numpy()).reshape(shape)

    return FileTensor(
        rows, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=tensor.name, doc_string=tensor.doc_string
    )
