"""Activations without a gradient kernel, from Clip, Max, Exp, Log, Erf, Sigmoid and Tanh."""

from __future__ import annotations

from condensec.healing.graph import Emitter, Node
from condensec.healing.legalize import NotLegal, legalizes
from condensec.healing.trainable import is_straight_through

# Both constants are those of the operator's definition (Klambauer et al. 2017), to its full precision.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def relu_parts(x: str, e: Emitter) -> tuple[str, str]:
    """(max(x, 0), min(x, 0)); the second as x - relu(x), which needs no second mask in the gradient."""
    positive = e.op("Relu", x)
    return positive, e.op("Sub", x, positive)


def exp_minus_one_of_negative(x: str, e: Emitter, scale: float = 1.0) -> tuple[str, str]:
    """(max(x, 0), exp(min(x, 0) * scale) - 1): no overflow, however large x is."""
    positive, negative = relu_parts(x, e)
    if scale != 1.0:
        negative = e.op("Mul", negative, e.const(scale))
    return positive, e.op("Sub", e.op("Exp", negative), e.const(1.0))


@legalizes("HardSigmoid")
def hard_sigmoid(node: Node, e: Emitter) -> None:
    """max(0, min(1, alpha x + beta))."""
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    line = e.op("Add", e.op("Mul", node.inputs[0], e.const(alpha)), e.const(beta))
    e.op("Clip", line, e.const(0.0), e.const(1.0), out=node.outputs[0])


@legalizes("HardSwish")
def hard_swish(node: Node, e: Emitter) -> None:
    """Gives x max(0, min(1, x/6 + 1/2))."""
    x = node.inputs[0]
    line = e.op("Add", e.op("Mul", x, e.const(1 / 6)), e.const(0.5))
    e.op("Mul", x, e.op("Clip", line, e.const(0.0), e.const(1.0)), out=node.outputs[0])


@legalizes("Elu")
def elu(node: Node, e: Emitter) -> None:
    """max(x, 0) + alpha (exp(min(x, 0)) - 1)."""
    positive, negative = exp_minus_one_of_negative(node.inputs[0], e)
    alpha = e.const(node.attribute("alpha", 1.0))
    e.op("Add", positive, e.op("Mul", negative, alpha), out=node.outputs[0])


@legalizes("Celu")
def celu(node: Node, e: Emitter) -> None:
    """max(x, 0) + alpha (exp(min(x, 0) / alpha) - 1)."""
    alpha = node.attribute("alpha", 1.0)
    positive, negative = exp_minus_one_of_negative(node.inputs[0], e, 1 / alpha)
    e.op("Add", positive, e.op("Mul", negative, e.const(alpha)), out=node.outputs[0])


@legalizes("Selu")
def selu(node: Node, e: Emitter) -> None:
    """Gives gamma (max(x, 0) + alpha (exp(min(x, 0)) - 1))."""
    alpha, gamma = node.attribute("alpha", _SELU_ALPHA), node.attribute("gamma", _SELU_GAMMA)
    positive, negative = exp_minus_one_of_negative(node.inputs[0], e)
    both = e.op("Add", positive, e.op("Mul", negative, e.const(alpha)))
    e.op("Mul", both, e.const(gamma), out=node.outputs[0])


@legalizes("PRelu")
def prelu(node: Node, e: Emitter) -> None:
    """max(x, 0) + slope min(x, 0)."""
    positive, negative = relu_parts(node.inputs[0], e)
    e.op("Add", positive, e.op("Mul", negative, node.inputs[1]), out=node.outputs[0])


@legalizes("ThresholdedRelu")
def thresholded_relu(node: Node, e: Emitter) -> None:
    """Gives x where x > alpha, else 0."""
    x = node.inputs[0]
    above = e.op("Greater", x, e.const(node.attribute("alpha", 1.0)))
    e.op("Where", above, x, e.const(0.0), out=node.outputs[0])


def softplus_of(x: str, e: Emitter, out: str | None = None) -> str:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)): exact at both ends."""
    positive = e.op("Relu", x)
    tail = e.op("Log", e.op("Add", e.op("Exp", e.op("Neg", e.op("Abs", x))), e.const(1.0)))
    return e.op("Add", positive, tail, out=out)


@legalizes("Softplus")
def softplus(node: Node, e: Emitter) -> None:
    """log(1 + exp(x))."""
    softplus_of(node.inputs[0], e, node.outputs[0])


@legalizes("Softsign")
def softsign(node: Node, e: Emitter) -> None:
    """Gives x / (1 + |x|)."""
    x = node.inputs[0]
    e.op("Div", x, e.op("Add", e.op("Abs", x), e.const(1.0)), out=node.outputs[0])


@legalizes("Mish")
def mish(node: Node, e: Emitter) -> None:
    """Gives x tanh(softplus(x))."""
    x = node.inputs[0]
    e.op("Mul", x, e.op("Tanh", softplus_of(x, e)), out=node.outputs[0])


@legalizes("Tan", "Sinh", "Cosh", "Atan", "Asin", "Acos", "Asinh", "Acosh", "Atanh")
def rare_function(node: Node, e: Emitter) -> None:
    """The elementary functions that Exp, Log, Sin and Cos give; the arcs have no such form."""
    x, out = node.inputs[0], node.outputs[0]
    if node.op == "Tan":
        e.op("Div", e.op("Sin", x), e.op("Cos", x), out=out)
    elif node.op in ("Sinh", "Cosh"):
        up, down = e.op("Exp", x), e.op("Exp", e.op("Neg", x))
        e.op("Mul", e.op("Sub" if node.op == "Sinh" else "Add", up, down), e.const(0.5), out=out)
    elif node.op in ("Asinh", "Acosh"):
        square = e.op("Mul", x, x)
        inner = e.op("Add" if node.op == "Asinh" else "Sub", square, e.const(1.0))
        e.op("Log", e.op("Add", x, e.op("Sqrt", inner)), out=out)
    elif node.op == "Atanh":
        one = e.const(1.0)
        ratio = e.op("Div", e.op("Add", one, x), e.op("Sub", one, x))
        e.op("Mul", e.op("Log", ratio), e.const(0.5), out=out)
    else:
        raise NotLegal(f"{node.op} has no gradient")


@legalizes("com.microsoft.FastGelu", "com.microsoft.BiasGelu")
def fused_gelu(node: Node, e: Emitter) -> None:
    """Gelu of x + bias; FastGelu by tanh."""
    x, bias = node.inputs[0], node.input(1)
    fast = node.op.endswith("FastGelu")
    inner = e.op("Add", x, bias) if bias else x
    e.op("Gelu", inner, out=node.outputs[0], approximate="tanh" if fast else None)


@legalizes("com.microsoft.Gelu")
def microsoft_gelu(node: Node, e: Emitter) -> None:
    """The same as the default domain's Gelu."""
    e.op("Gelu", node.inputs[0], out=node.outputs[0])


@legalizes("Hardmax", "ArgMax", "Sign", "Floor", "Ceil", "Round")
def steps(node: Node, e: Emitter) -> None:
    """Flat almost everywhere: their gradient is zero by definition; that of a fake quantization isn't."""
    if is_straight_through(node):
        return
    raise NotLegal(f"{node.op} is piecewise constant, its gradient is zero everywhere")
