"""Reading .npz and .npy: memory-mapped where the file holds the array as it is, never unpickled.

``numpy.load`` maps .npy but copies every member of an .npz. A member that is stored (not compressed) lies
in the file as a whole .npy, so it can be mapped too: its place is the local zip header's offset plus that
header's length, then the .npy header. (Formats: PKWARE APPNOTE 4.3.7; numpy's NEP 1.)
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from condensec.data.types import Array
from condensec.errors import DataError

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip member; the last two: length of name, of extra field
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path) -> dict[str, Array]:
    """All arrays of an .npz, in the file's order.

    Raises:
        DataError: the file is damaged, or an array holds Python objects; names the array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if not info.filename.endswith("/")]
            return {info.filename.removesuffix(".npy"): _read_member(archive, info, path) for info in members}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is no .npz file, or is cut off: {error}", hint="write it again") from error
    except DataError:
        raise
    except Exception as error:  # a damaged archive raises anything
        raise DataError(
            f"can't read {path}: {_told(error)}", hint="write it again with numpy.savez"
        ) from error


def read_npy(path: Path) -> Array:
    """The array of an .npy, memory-mapped.

    Raises:
        DataError: the file is damaged or holds Python objects.
    """
    try:
        with open(path, "rb") as file:
            array = _map(file, path, 0, path.stat().st_size, str(path))
            return array if array is not None else _read(file, str(path))
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    name = f"{path}: array '{info.filename.removesuffix('.npy')}'"
    if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:  # bit 0: encrypted
        with open(path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) == _LOCAL_HEADER.size and header[:4] == b"PK\x03\x04":
                *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
                start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
                array = _map(file, path, start, start + info.file_size, name)
                if array is not None:
                    return array
    with archive.open(info) as member:
        return _read(member, name)


def _map(file: IO[bytes], path: Path, start: int, end: int, name: str) -> Array | None:
    """Map the .npy that lies at [start, end) of a file; None for header versions numpy keeps private."""
    file.seek(start)
    try:
        reader = _READERS.get(np.lib.format.read_magic(file))
        if reader is None:
            file.seek(start)
            return None
        shape, fortran, dtype = reader(file)
    except Exception as error:  # numpy parses the header as Python: a damaged one raises anything
        raise DataError(f"{name} is no numpy array: {_told(error)}", hint="write it again") from error
    _refuse_objects(dtype, name)
    offset = file.tell()
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if offset + size > end:
        raise DataError(
            f"{name} is cut off: {size} bytes stated, {end - offset} there", hint="write it again"
        )
    if size == 0:
        return np.empty(shape, dtype)
    mapped = np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    return mapped.view(np.ndarray)


def _read(file: IO[bytes], name: str) -> Array:
    """Read an .npy from a stream into memory."""
    try:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, zlib.error, EOFError, zipfile.BadZipFile):
        raise
    except Exception as error:  # as in `_map`
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            _refuse_objects(np.dtype(object), name)
        raise DataError(f"{name} is no numpy array: {_told(error)}", hint="write it again") from error
    return array


def _refuse_objects(dtype: np.dtype[Any], name: str) -> None:
    if dtype.hasobject:
        raise DataError(
            f"{name} holds Python objects, which are never unpickled",
            hint="save it as an array of numbers (all samples of one shape)",
        )


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
