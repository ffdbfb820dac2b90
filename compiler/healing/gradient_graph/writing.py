"""Names and constants for rules that rewrite a gradient graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int, ...]
PREFIX = "heal.faster"


class Writer:
    """Gives out fresh names and collects constants, each value once.

    Args:
        shapes: value -> its shape; of what is known.
        scalars: constants of one element.
        measured: value that holds a shape -> the value whose shape it is.

    Attributes:
        shapes: the same; rules add what they make where another rule could go on from it.
        scalars: the same.
        measured: the same.
        constants: name -> tensor.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape] | None = None,
        scalars: Mapping[str, float] | None = None,
        measured: Mapping[str, str] | None = None,
    ) -> None:
        self.shapes, self.scalars, self.measured = (
            dict(shapes or {}),
            dict(scalars or {}),
            dict(measured or {}),
        )
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def fresh(self, hint: str) -> str:
        """A name nobody uses yet."""
        self._count += 1
        return f"{PREFIX}.{self._count}.{hint}"

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        """Name of a constant."""
        array = np.array(value, dtype, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._names:
            self._names[key] = name = self.fresh("const")
            self.constants[name] = numpy_helper.from_array(array, name)
            self.shapes[name] = array.shape
        return self._names[key]

    def ints(self, *values: int) -> str:
        """Name of a one-dimensional constant of int64."""
        return self.const(values, np.int64)


def chain(nodes: list[onnx.NodeProto], writer: Writer, op: str, *inputs: str, **attributes: Any) -> str:
    """Append a node of one output and give the output's name; `out` names it, `domain` is its domain."""
    out: str = attributes.pop("out", None) or writer.fresh(op)
    nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
    return out


def reshaped(nodes: list[onnx.NodeProto], writer: Writer, name: str, *shape: int, out: str = "") -> str:
    """A value in another shape; `out` names it."""
    return chain(nodes, writer, "Reshape", name, writer.ints(*shape), out=out)
