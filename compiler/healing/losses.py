"""Losses as graph nodes: what the student is pulled towards.

Every loss is a mean over the batch of a per-sample value, zero when student and teacher agree (except
cross-entropy), and without units, so that a mix of them makes sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from condensec.errors import HealError
from condensec.healing.graph import Emitter, Graph, Node

if TYPE_CHECKING:
    from condensec.healing.features import Match

KINDS = ("kl", "mse", "cosine", "ce", "bce", "task_mse")
OUTPUT = "output"  # whichever of the kinds suit the outputs and labels
FEATURES = "features"  # mse at block outputs, see `condensec.healing.features`
_EPS = 1e-7


@dataclass(frozen=True)
class Term:
    """One summand of the loss.

    Attributes:
        kind: one of `KINDS`, or `FEATURES`.
        output: the graph output it compares, or a value inside.
        weight: its factor.
        temperature: of kl.
        scale: variance of the teacher's output, which mse is divided by.
        match: of a value inside: which of the teacher's channels the student has.
    """

    kind: str
    output: str
    weight: float
    temperature: float = 1.0
    scale: float = 1.0
    match: Match | None = None


def target_name(output: str) -> str:
    """Name of the graph input that carries the teacher's values of an output or an inner value."""
    return f"heal.target.{output}"


LABELS = "heal.labels"
LOSS = "heal.loss"


def logits_of(graph: Graph, output: str) -> tuple[str, int, bool]:
    """(value before the softmax that makes an output, its class axis, whether there is a softmax).

    Without a softmax: the output itself and its last axis.
    """
    producers = graph.producers()
    name = output
    while name in producers:
        node = Node(graph.nodes[producers[name]])
        if node.op in ("Identity", "Cast"):
            name = node.inputs[0]
            continue
        if node.op in ("Softmax", "LogSoftmax"):
            rank = len(graph.shape(node.inputs[0]) or ())
            return node.inputs[0], node.attribute("axis", -1) % rank, True
        break
    return output, len(graph.shape(output) or (1,)) - 1, False


def choose(
    graph: Graph,
    teacher: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    weights: Mapping[str, float] | None,
    temperature: float,
) -> list[Term]:
    """The terms for a graph.

    Args:
        graph: the student.
        teacher: a sample of the teacher's outputs.
        labels: task labels, integer classes or values of an output's shape.
        weights: kind -> weight, asked for by the user; None, and what is asked for as `OUTPUT`, chooses by
            what the outputs look like: kl where a softmax ends the graph or labels are classes of it (and
            ce where there are labels), mse elsewhere. `FEATURES` isn't an output's and is left out.
        temperature: of kl.

    Raises:
        HealError: a kind was asked for that fits no output.
    """
    asked = {OUTPUT: 1.0} if weights is None else {k: w for k, w in weights.items() if k != FEATURES and w}
    terms: list[Term] = []
    floats = [o for o in graph.outputs if graph.is_float(o) and o in teacher]
    for output in floats:
        scale = float(np.var(np.asarray(teacher[output], np.float32))) or 1.0
        _, axis, soft = logits_of(graph, output)
        shape = graph.shape(output) or ()
        fits = labels is not None and _are_classes(labels, shape, axis)
        kinds = {kind: weight for kind, weight in asked.items() if kind != OUTPUT}
        for kind, share in (_usual(soft or fits, fits) if OUTPUT in asked else {}).items():
            kinds[kind] = kinds.get(kind, 0.0) + share * asked[OUTPUT]
        for kind, weight in kinds.items():
            if kind == "ce" and not fits:
                continue
            if kind in ("bce", "task_mse") and (labels is None or labels.shape[1:] != shape[1:]):
                continue
            terms.append(Term(kind, output, weight / len(floats), temperature, scale))
    if not terms and weights is not None and asked:
        raise HealError(
            f"no output of the student can be compared by {', '.join(asked)}",
            hint="ce needs class numbers as labels, bce and task_mse labels in the shape of an output",
        )
    return terms


def _usual(classes: bool, labelled: bool) -> dict[str, float]:
    if not classes:
        return {"mse": 1.0}
    return {"kl": 1.0, "ce": 0.3} if labelled else {"kl": 1.0}


def _are_classes(labels: np.ndarray, shape: tuple[int, ...], axis: int) -> bool:
    """Integer labels, one per position of the class axis."""
    if labels.dtype.kind not in "iu" or len(shape) < 2:
        return False
    rest = shape[1:axis] + shape[axis + 1 :]
    return labels.shape[1:] == rest and int(labels.max(initial=0)) < shape[axis]


def append(graph: Graph, terms: list[Term], labels: np.ndarray | None) -> None:
    """Add the loss to a graph: its targets become inputs, `LOSS` its only output.

    Args:
        graph: changed in place.
        terms: from `choose`.
        labels: one batch of labels, for their shape and type.
    """
    e = Emitter(graph, "loss")
    for output in dict.fromkeys(t.output for t in terms):
        graph.inputs[target_name(output)] = (TensorProto.FLOAT, graph.shape(output) or ())
    if labels is not None and any(t.kind in ("ce", "bce", "task_mse") for t in terms):
        kind = TensorProto.INT64 if labels.dtype.kind in "iu" and _needs_classes(terms) else TensorProto.FLOAT
        graph.inputs[LABELS] = (kind, labels.shape)
    total = ""
    for term in terms:
        value = e.op("Mul", _EMIT[term.kind](term, e), e.const(term.weight))
        total = e.op("Add", total, value) if total else value
    e.op("Identity", total, out=LOSS)
    graph.nodes.extend(e.nodes)
    graph.outputs = [LOSS]
    graph.shapes[LOSS], graph.types[LOSS] = (), TensorProto.FLOAT
    graph.prune()


def _needs_classes(terms: list[Term]) -> bool:
    return any(t.kind == "ce" for t in terms)


def _kl(term: Term, e: Emitter) -> str:
    """T^2 KL(teacher || student) at temperature T (Hinton et al. 2015), mean over all positions."""
    logits, axis, soft = logits_of(e.graph, term.output)
    target = target_name(term.output)
    if soft:  # the teacher gives probabilities: their logarithm is logits up to a constant
        target = e.op("Log", e.op("Max", target, e.const(_EPS)))
    inverse = e.const(1 / term.temperature)
    p = e.op("Softmax", e.op("Mul", target, inverse), axis=axis)
    log_p = e.op("Log", e.op("Max", p, e.const(_EPS)))
    log_q = _log_softmax(e.op("Mul", logits, inverse), axis, len(e.shape(logits)), e)
    divergence = e.op("ReduceSum", e.op("Mul", p, e.op("Sub", log_p, log_q)), e.ints([axis]), keepdims=0)
    return e.op("Mul", e.op("ReduceMean", divergence, keepdims=0), e.const(term.temperature**2))


def _log_softmax(x: str, axis: int, rank: int, e: Emitter) -> str:
    """LogSoftmax over any axis; the gradient kernel wants the last one."""
    if axis == rank - 1:
        return e.op("LogSoftmax", x, axis=-1)
    order = [a for a in range(rank) if a != axis] + [axis]
    back = [order.index(a) for a in range(rank)]
    return e.op("Transpose", e.op("LogSoftmax", e.op("Transpose", x, perm=order), axis=-1), perm=back)


def _mse(term: Term, e: Emitter) -> str:
    """Mean squared error over the teacher's variance: 1 for a student that gives the mean."""
    difference = e.op("Sub", term.output, target_name(term.output))
    square = e.op("ReduceMean", e.op("Mul", difference, difference), keepdims=0)
    return e.op("Mul", square, e.const(1 / term.scale))


def _cosine(term: Term, e: Emitter) -> str:
    """1 - cosine of the angle between the flattened outputs of each sample."""
    shape = e.shape(term.output)
    rows = (shape[0], int(np.prod(shape[1:])))
    a, b = e.reshape(term.output, rows), e.reshape(target_name(term.output), rows)
    dot, one = e.op("ReduceSum", e.op("Mul", a, b), e.ints([1]), keepdims=0), e.const(1.0)
    lengths = [e.op("ReduceSum", e.op("Mul", v, v), e.ints([1]), keepdims=0) for v in (a, b)]
    norm = e.op("Sqrt", e.op("Add", e.op("Mul", *lengths), e.const(_EPS)))
    return e.op("Sub", one, e.op("ReduceMean", e.op("Div", dot, norm), keepdims=0))


def _cross_entropy(term: Term, e: Emitter) -> str:
    """-log of the probability of the label."""
    logits, axis, _ = logits_of(e.graph, term.output)
    rank = len(e.shape(logits))
    log_q = _log_softmax(logits, axis, rank, e)
    index = e.op("Unsqueeze", LABELS, e.ints([axis]))
    picked = e.op("GatherElements", log_q, index, axis=axis)
    return e.op("Neg", e.op("ReduceMean", picked, keepdims=0))


def _binary(term: Term, e: Emitter) -> str:
    """Binary cross-entropy of outputs that are probabilities."""
    one, low = e.const(1.0), e.const(_EPS)
    q = e.op("Clip", term.output, low, e.const(1 - _EPS))
    on = e.op("Mul", LABELS, e.op("Log", q))
    off = e.op("Mul", e.op("Sub", one, LABELS), e.op("Log", e.op("Sub", one, q)))
    return e.op("Neg", e.op("ReduceMean", e.op("Add", on, off), keepdims=0))


def _task_mse(term: Term, e: Emitter) -> str:
    """Squared distance to the labels, over the teacher's variance."""
    difference = e.op("Sub", term.output, LABELS)
    square = e.op("ReduceMean", e.op("Mul", difference, difference), keepdims=0)
    return e.op("Mul", square, e.const(1 / term.scale))


def _probe(term: Term, e: Emitter) -> str:
    """Sum of the output's products with a probe, the target: its gradient is a random row of the Jacobian."""
    return e.op("ReduceSum", e.op("Mul", term.output, target_name(term.output)), keepdims=0)


_EMIT = {
    "probe": _probe,
    "kl": _kl,
    "mse": _mse,
    "cosine": _cosine,
    "ce": _cross_entropy,
    "bce": _binary,
    "task_mse": _task_mse,
    FEATURES: _mse,
}
