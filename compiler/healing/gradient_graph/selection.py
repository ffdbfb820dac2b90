"""Gradients of values of which parts are picked, as the query, key and value of a packed projection are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from condensec.healing.gradient_graph.writing import Writer, chain


@dataclass(frozen=True)
class Part:
    """One position along one axis.

    Attributes:
        gradient: of what was picked, without that axis.
        axis: of the whole.
        index: along it.
        count: positions along it.
        rank: axes of the whole.
    """

    gradient: str
    axis: int
    index: int
    count: int
    rank: int


def rewrite(nodes: Sequence[onnx.NodeProto], writer: Writer) -> tuple[list[onnx.NodeProto], int]:
    """Replace `GatherGrad` of single positions, which adds up element by element, forty times as slow.

    The gradients of all positions together, which the builder sums, are joined; one alone is filled up with
    zeros.

    Returns:
        The nodes, and how many were replaced.
    """
    parts = {node.output[0]: part for node in nodes if (part := _part(node, writer)) is not None}
    joined = {node.output[0] for node in nodes if _are_all(node, parts)}
    apart = {name for node in nodes if node.output[0] in joined for name in node.input}
    found: list[onnx.NodeProto] = []
    for node in nodes:
        name = node.output[0]
        if name in joined:
            found += _joined([parts[i] for i in node.input], name, writer)
        elif name in parts and name not in apart:
            found += _filled(parts[name], name, writer)
        elif name not in parts:
            found.append(node)
    return found, len(parts)


def _part(node: onnx.NodeProto, writer: Writer) -> Part | None:
    """What a GatherGrad of one known position gives."""
    if node.op_type != "GatherGrad":
        return None
    whole = writer.shapes.get(writer.measured.get(node.input[0], ""))
    index = writer.scalars.get(node.input[1])
    if whole is None or index is None:
        return None
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 0) % len(whole)
    return Part(node.input[2], axis, int(index) % whole[axis], whole[axis], len(whole))


def _are_all(node: onnx.NodeProto, parts: dict[str, Part]) -> bool:
    """It sums the gradients of every position of one axis, each once."""
    if node.op_type != "Sum" or not all(name in parts for name in node.input):
        return False
    given = [parts[name] for name in node.input]
    first = given[0]
    return {p.axis for p in given} == {first.axis} and sorted(p.index for p in given) == list(
        range(first.count)
    )


def _joined(parts: list[Part], name: str, writer: Writer) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    axis = parts[0].axis
    ordered = sorted(parts, key=lambda p: p.index)
    rows = [chain(found, writer, "Unsqueeze", p.gradient, writer.ints(axis)) for p in ordered]
    found.append(helper.make_node("Concat", rows, [name], axis=axis))
    return found


def _filled(part: Part, name: str, writer: Writer) -> list[onnx.NodeProto]:
    found: list[onnx.NodeProto] = []
    row = chain(found, writer, "Unsqueeze", part.gradient, writer.ints(part.axis))
    pads = [0] * 2 * part.rank
    pads[part.axis], pads[part.rank + part.axis] = part.index, part.count - 1 - part.index
    chain(found, writer, "Pad", row, writer.ints(*pads), out=name)
    return found
