"""Is a value zero wherever its units are cut?

In the masked original a cut unit is still there, with zero weights. What it computes then is zero after a
convolution or a Relu, but not after a Sigmoid. That makes no difference where a sliced weight consumes it. It
does where two activations are multiplied and summed: there the reference has to be restricted to kept units.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from condensec.axes import Term
from condensec.passes.arithmetic import names
from condensec.passes.bodies import entry, is_open
from condensec.passes.context import Context

# f(0) = 0, or only moved, joined, pooled: what was zero stays zero.
_KEEP = names(
    "Abs Asin Asinh Atan Atanh AveragePool BatchNormalization BiasAdd BiasGelu Cast CastLike Ceil Celu",
    "Concat DepthToSpace DequantizeLinear Dropout DynamicQuantizeLinear Elu Erf FastGelu Flatten Floor",
    "GRU Gather Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNorm GroupNormalization HardSwish",
    "Identity",
    "InstanceNormalization LRN LSTM LeakyRelu LpNormalization LpPool MaxPool Mish Neg PRelu",
    "QuantizeLinear QuickGelu RMSNormalization RNN ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin",
    "ReduceSum ReduceSumSquare Relu Reshape Resize RotaryEmbedding Round Selu Shrink Sign",
    "SimplifiedLayerNormalization Sin Sinh Slice Softsign SpaceToDepth Split Sqrt Squeeze Swish Tan Tanh",
    "ThresholdedRelu Tile Transpose Trilu Unsqueeze Upsample",
)
# Sums of products with a sliced weight (and bias): zero in every unit they make.
_MAKE = names(
    "Conv ConvInteger ConvTranspose DeformConv FusedConv FusedGemm Gemm MatMulNBits QGemm QLinearConv",
    "QLinearMatMul",
)
_ALL = names("Add Sub Sum Max Min Mean Where QLinearAdd BitwiseOr Or")
_ANY = names("Mul And BitwiseAnd QLinearMul")
_PRODUCTS = names("MatMul FusedMatMul")
_ROUNDS = names("Loop Scan")


def settle(ctx: Context, graph: ir.Graph) -> None:
    """Find what vanishes at cut units, and keep the contractions where neither side does.

    Runs when the whole graph has been read, for only axes that may be cut matter.
    """
    reduced: dict[ir.Node, set[int]] = {}
    for reduction in ctx.reductions:
        reduced.setdefault(reduction.node, set()).add(reduction.axis)
    doubted: set[ir.Node] = set()
    while True:
        ctx.vanishing.clear()
        for node in graph:
            if node not in doubted and _Zeros(ctx, node, reduced.get(node, set())).vanishes():
                ctx.vanishing.update(node.outputs)
        wrong = {entry(n) for n in graph if n.op_type in _ROUNDS and is_open(n) and not _all_vanish(ctx, n)}
        if wrong <= doubted:
            break
        doubted |= wrong  # what a loop carries was taken to be zero where it's cut, and isn't
    loose = []
    for reduction in ctx.reductions:
        if reduction.contraction:
            inputs = reduction.node.inputs
            operands = [inputs[i] for i in reduction.operands if i < len(inputs)]
            if any(v is not None and ctx.vanishes(v) for v in operands):
                continue
            if reduction.fused:
                kind = reduction.node.op_type
                ctx.freeze(reduction.term, f"{kind} multiplies values that don't vanish when cut")
                continue
            ctx.axes.reduced(reduction.term)
        loose.append(reduction)
    ctx.reductions[:] = loose


def _all_vanish(ctx: Context, node: ir.Node) -> bool:
    """Whether all that goes into or comes out of a body is zero at its cut units."""
    values = [v for v in node.inputs if v is not None]
    return all(ctx.vanishes(v) for v in values if any(ctx.axes.is_free(t) for t in ctx.layout(v) if t))


class _Zeros:
    """One node's question."""

    def __init__(self, ctx: Context, node: ir.Node, reduced: set[int]) -> None:
        self._ctx, self._node, self._reduced = ctx, node, reduced
        self._inputs = [v for v in node.inputs if v is not None]
        self._result = self._free(node.outputs[0]) if node.outputs else []

    def _free(self, value: ir.Value) -> list[Term | None]:
        axes = self._ctx.axes
        return [t if t is not None and axes.is_free(t) else None for t in self._ctx.layouts.get(value, ())]

    def vanishes(self) -> bool:
        """Whether the outputs are zero wherever one of their units is cut."""
        ctx, node, kind = self._ctx, self._node, self._node.op_type
        if kind in _MAKE or all(t is None for o in node.outputs for t in self._free(o)):
            return True
        either = kind in _ANY or kind in _PRODUCTS
        if is_open(node):
            return _all_vanish(ctx, node)
        if not self._inputs or not (either or ctx.vanishes(self._inputs[0])):
            return False
        if kind in _KEEP:
            return kind != "Concat" or all(ctx.vanishes(v) for v in self._inputs)
        if kind in _ALL:
            values = self._inputs[kind == "Where" :]
            return all(ctx.vanishes(v) and all(self._covered(v)) for v in values)
        if kind in _ANY:  # every axis that may be cut has a factor that vanishes along it
            factors = [self._covered(v) for v in self._inputs if ctx.vanishes(v)]
            return bool(factors) and all(map(any, zip(*factors, strict=True)))
        if kind in ("Div", "Pow"):
            return all(self._covered(self._inputs[0]))
        return self._special(kind)

    def _special(self, kind: str) -> bool:
        ctx, node, first = self._ctx, self._node, self._inputs[0]
        if kind in _PRODUCTS:
            return self._matmul()
        if kind == "LayerNormalization":  # restricted over an axis that is cut; along others the bias shows
            others = [t for axis, t in enumerate(self._free(first)) if axis not in self._reduced]
            return not ctx.has(node, 2) or all(t is None for t in others)
        if kind == "Clip":
            low, high = (self._bound(i, name) for i, name in ((1, "min"), (2, "max")))
            return low <= 0 <= high
        if kind == "Pad":
            fill = ctx.constant(node, 2)
            return (fill is None or not np.any(fill)) and "value" not in node.attributes
        return False

    def _bound(self, index: int, name: str) -> float:
        """A bound of a Clip: an attribute in old opsets, else an input; unbounded where there is none."""
        if name in self._node.attributes:
            return self._node.attributes[name].as_float()
        if not self._ctx.has(self._node, index):
            return -np.inf if name == "min" else np.inf
        known = self._ctx.constant(self._node, index)
        return float(np.asarray(known).reshape(-1)[0]) if known is not None and known.size else np.nan

    def _covered(self, value: ir.Value) -> list[bool]:
        """For each axis of the output: it isn't cut, or the value lies on it (and isn't spread over it)."""
        own = self._free(value)
        own = [None] * (len(self._result) - len(own)) + own
        return [t is None or o is not None for t, o in zip(self._result, own, strict=True)]

    def _matmul(self) -> bool:
        a, b = self._inputs[:2]
        zero_a, zero_b = self._ctx.vanishes(a), self._ctx.vanishes(b)
        tail = [zero_a] * (len(self._ctx.layout(a)) > 1) + [zero_b] * (len(self._ctx.layout(b)) > 1)
        flags = [zero_a or zero_b] * (len(self._result) - len(tail)) + tail
        return all(t is None or zero for t, zero in zip(self._result, flags, strict=True))
