"""Matrix products with something fused to them."""

from __future__ import annotations

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes

_PARAMETERS = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}
_PLAIN = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Softplus", "Softsign")


@legalizes("com.microsoft.FusedMatMul", "com.microsoft.TransposeMatMul")
def fused_matmul(node: Node, e: Emitter) -> None:
    """Alpha A B, either of them transposed."""
    if node.attribute("transBatchA", 0) or node.attribute("transBatchB", 0):
        raise NotLegal("FusedMatMul with transposed batch axes")
    sides = [
        _turned(name, e) if node.attribute(flag, 0) else name
        for name, flag in zip(node.inputs, ("transA", "transB"), strict=True)
    ]
    alpha = float(node.attribute("alpha", 1.0))
    product = e.op("MatMul", *sides, out=node.outputs[0] if alpha == 1.0 else None)
    if alpha != 1.0:
        e.op("Mul", product, e.const(alpha), out=node.outputs[0])


def _turned(name: str, e: Emitter) -> str:
    rank = len(e.shape(name))
    if rank < 2:
        return name
    return e.op("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])


@legalizes("com.microsoft.FusedGemm")
def fused_gemm(node: Node, e: Emitter) -> None:
    """Gemm and an activation behind it."""
    kind = node.attribute("activation", "")
    if kind not in _PLAIN:
        raise NotLegal(f"FusedGemm with activation {kind}")
    rest = {k: v for k, v in node.attributes().items() if not k.startswith("activation")}
    given = {name: node.attribute(f"activation_{name}") for name in _PARAMETERS.get(kind, ())}
    e.op(kind, e.op("Gemm", *node.inputs, **rest), out=node.outputs[0], **given)
