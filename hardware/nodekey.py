"""What a node's time depends on, as a line of text that a person can read and a table can be keyed by.

    conv k9 s1 Relu float32 n3136 i64 o64 g1        a 3x3 convolution over 3136 output positions
    matmul k1 s1 float32 n197 i192 o768 g1          a product with weights
    Softmax float32 r116427 w116427                 anything else: elements read and written

Keys leave the memory layout out: they describe the graph that every machine gets, so that a table can be
measured on one machine and read on another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from condensec.hardware.nodecost import NodeCost, attributes, cost_of

if TYPE_CHECKING:
    from condensec.hardware.isolate import Isolated

_WEIGHTED = ("conv", "depthwise", "grouped", "deconv", "matmul", "product")
_WORDS = re.compile(r"([a-z])(\d+)$")
_NAME = re.compile(r"[A-Za-z]\w*$")
_DTYPE = re.compile(r"(?:float|int|uint|bool|bfloat)\d*$")


@dataclass(frozen=True)
class NodeKey:
    """A node, reduced to what decides its time.

    Attributes:
        op: one of `_WEIGHTED`, or an operator type.
        dtype: of its first input.
        kernel: positions of the kernel.
        stride: product of the strides.
        act: fused activation, or empty.
        summed: a residual is added.
        off: channels are off the target's alignment, so the slow kernels run.
        n, i, o, g: output positions, input and output channels, groups (weighted nodes).
        read, written: elements (others).
    """

    op: str
    dtype: str = "float32"
    kernel: int = 1
    stride: int = 1
    act: str = ""
    summed: bool = False
    off: bool = False
    n: int = 0
    i: int = 0
    o: int = 0
    g: int = 1
    read: int = 0
    written: int = 0

    @property
    def weighted(self) -> bool:
        """Whether it multiplies matrices."""
        return self.op in _WEIGHTED

    def __str__(self) -> str:
        if not self.weighted:
            return f"{self.op} {self.dtype} r{self.read} w{self.written}"
        marks = [self.act, "sum" if self.summed else "", "off" if self.off else ""]
        words = [self.op, f"k{self.kernel}", f"s{self.stride}", *filter(None, marks), self.dtype]
        return " ".join([*words, f"n{self.n}", f"i{self.i}", f"o{self.o}", f"g{self.g}"])

    def at(self, cost: NodeCost, hard: int = 1) -> NodeKey:
        """The same node at other widths."""
        groups = cost.out_channels if self.op == "depthwise" else self.g
        resized = replace(
            self, n=cost.positions, i=cost.in_channels or self.i, o=cost.out_channels or self.o, g=groups
        )
        return replace(resized, off=is_off(resized, self, hard))


def is_off(key: NodeKey, dense: NodeKey, hard: int) -> bool:
    """Whether channels are off the alignment; the image itself may come in any number."""
    if hard <= 1 or not key.weighted:
        return False
    first = key.i == dense.i < hard
    return bool(key.o % hard or (key.i % hard and not first))


def parse(text: str) -> NodeKey:
    """A key from its text.

    Raises:
        ValueError: it is no key.
    """
    names = {
        "k": "kernel",
        "s": "stride",
        "n": "n",
        "i": "i",
        "o": "o",
        "g": "g",
        "r": "read",
        "w": "written",
    }
    op, *words = text.split()
    if not _NAME.match(op):
        raise ValueError(f"no operator in '{text}'")
    fields: dict[str, Any] = {}
    for word in words:
        number = _WORDS.match(word)
        if number and number[1] in names:
            fields[names[number[1]]] = int(number[2])
        elif word in ("sum", "off"):
            fields["summed" if word == "sum" else "off"] = True
        elif _DTYPE.match(word):
            fields["dtype"] = word
        elif _NAME.match(word):
            fields["act"] = word
        else:
            raise ValueError(f"'{word}' in '{text}'")
    key = NodeKey(op, **fields)
    if key.weighted and min(key.n, key.i, key.o, key.g) < 1:
        raise ValueError(f"a size is missing in '{text}'")
    return key


def key_of(node: Isolated, hard: int = 1) -> NodeKey:
    """The key of a node of a graph.

    Args:
        node: the node, of a graph without a machine's memory layout.
        hard: the target's channel alignment for this kind of node.
    """
    cost = cost_of(node)
    first = next(iter(node.arguments.values()), None)
    dtype = "float32" if first is None else first.array.dtype.name
    if cost is None:
        read = sum(argument.array.size for argument in node.arguments.values())
        return NodeKey(node.node.op_type, dtype, read=read, written=sum(prod(s) for s in node.outputs))
    given = attributes(node.node)
    act = given.get("activation", b"")
    conv = "Conv" in cost.op
    inner = cost.macs // max(1, cost.positions * cost.out_channels)
    key = NodeKey(
        _op(cost),
        dtype,
        cost.kernel_elems,
        prod(int(s) for s in given.get("strides", ())) if conv else 1,
        act.decode() if isinstance(act, bytes) else str(act),
        conv and len(node.node.input) > 3,
        n=cost.positions,
        i=cost.in_channels or inner,
        o=cost.out_channels,
        g=cost.groups,
    )
    return replace(key, off=is_off(key, key, hard))


def own_key(node: Isolated, act: str, summed: bool, hard: int = 1) -> NodeKey:
    """The key of a weighted node as it is in the original graph, with what the runtime fuses into it."""
    return replace(key_of(node, hard), act=act, summed=summed)


def _op(cost: NodeCost) -> str:
    if "Transpose" in cost.op:
        return "deconv"
    if cost.kind != "conv":
        return cost.kind if cost.in_channels else "product"
    return "grouped" if cost.groups > 1 else "conv"
