"""The training graph: a static, differentiable copy of the student with its loss, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from condensec.errors import HealError
from condensec.healing import losses
from condensec.healing.bodies import weights_in_bodies
from condensec.healing.features import Match
from condensec.healing.fold import fold_batch_norms
from condensec.healing.graph import Feeds, Graph
from condensec.healing.legalize import legalize
from condensec.healing.normalized import Normalized, normalize
from condensec.healing.static import infer, read, run, run_model
from condensec.healing.trainable import (
    Selection,
    blocked,
    candidates,
    cut_at,
    select,
    severed,
    stored_as_integers,
    up_to,
)

Choose = Callable[[Graph, Mapping[str, str]], list[losses.Term]]  # of a graph and its barriers
_TOLERANCE = 2e-3  # of the output's own scale: rewriting changes rounding, not values


@dataclass(frozen=True)
class Training:
    """What the worker needs to know of the student.

    Attributes:
        model: forward graph: inputs, targets and weights in, the loss out.
        behind: the same with what operators without a gradient make of the weights as further inputs; None
            where there are no such operators.
        before: gives these values; None as `behind`.
        weights: initial value of each trained weight, by its name in the student's file.
        frozen: (name, reason) of weights that stay as they are.
        inputs: names of the graph inputs that come from the samples.
        targets: graph input -> the teacher's output it carries.
        uses_labels: the labels are an input too.
        matches: of those of the teacher's values that aren't outputs: which of its channels are compared.
        around: nodes without a gradient in whose place the teacher's values are learned, with the reason.
        trained_share: trained parameters / all parameters that are weights.
        terms: of the loss.
        normalized: the copy with batch normalization; None where it isn't asked for, or there is nothing to
            normalize.
    """

    model: onnx.ModelProto
    behind: onnx.ModelProto | None
    before: onnx.ModelProto | None
    weights: dict[str, np.ndarray]
    frozen: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    targets: dict[str, str]
    matches: dict[str, Match]
    around: tuple[tuple[str, str], ...]
    uses_labels: bool
    trained_share: float
    terms: tuple[losses.Term, ...]
    normalized: Normalized | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a sample in each of the graph's inputs."""
        given = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in self.model.graph.input}
        return {name: tuple(dims[1:]) for name, dims in given.items() if name not in self.weights}

    def fits(self, other: Training) -> bool:
        """Whether another one differs in shapes alone: same weights, same values compared."""
        mine, theirs = ([(n, w.shape) for n, w in t.weights.items()] for t in (self, other))
        same = set(self.shapes()) == set(other.shapes()) and self.targets == other.targets
        return mine == theirs and same and self.behind is None and other.behind is None


def differentiable_copy(model: onnx.ModelProto, feeds: Feeds) -> tuple[Graph, list[str], dict[str, str]]:
    """A static copy in operators with gradients.

    Returns:
        The graph with the model's own outputs, the weights by place of use, and the nodes without
        gradient (first output -> reason).

    Raises:
        HealError: the model can't be read into static shapes.
    """
    graph, weights = read(model, feeds)
    wanted = candidates(graph, weights)
    fold_batch_norms(graph)
    infer(graph)
    barriers = blocked(graph, legalize(graph))
    return graph, wanted, barriers


def prepare(
    model: onnx.ModelProto,
    feeds: Feeds,
    choose: Choose,
    labels: np.ndarray | None,
    *,
    freeze: Callable[[str], bool] = lambda name: False,
    batch_norm: bool = False,
) -> Training:
    """Make the training graph of a student.

    Args:
        model: the student.
        feeds: one batch of inputs, of the size that training uses.
        choose: picks the loss terms once the graph's shapes, and the nodes without gradient, are known.
        labels: one batch of labels.
        freeze: weights the user doesn't want trained, by their names or those of nodes that read them.
        batch_norm: normalize what can be, see `condensec.healing.normalized`.

    Raises:
        HealError: nothing can be trained, or the copy doesn't compute what the student does.
    """
    graph, wanted, barriers = differentiable_copy(model, feeds)
    _check(model, graph, feeds)
    inputs = tuple(graph.inputs)
    terms = choose(graph, barriers)
    if not terms:
        raise HealError("no output of the student can be compared with its teacher's")
    around = _around(graph, barriers, terms)
    losses.append(graph, terms, labels)
    infer(graph)
    found, asked = _selected(graph, model, wanted, freeze, barriers)
    values = severed(graph, barriers, list(found.trained))
    behind = cut_at(graph, values).model(as_inputs=found.trained) if values else None
    before = up_to(graph, values).model(as_inputs=found.trained) if values else None
    weights = {name: graph.constants[name] for name in found.trained}
    frozen = (
        *found.frozen,
        *stored_as_integers(model),
        *((name, "frozen by the user") for name in asked),
        *((name, reason) for name, (_, reason) in weights_in_bodies(model).items()),
    )
    targets = {losses.target_name(o): o for o in dict.fromkeys(t.output for t in terms)}
    return Training(
        model=graph.model(as_inputs=found.trained),
        behind=behind,
        before=before,
        weights=weights,
        frozen=frozen,
        inputs=tuple(n for n in inputs if n in graph.inputs),
        targets={k: v for k, v in targets.items() if k in graph.inputs},
        matches={t.output: t.match for t in terms if t.match is not None},
        around=around,
        uses_labels=losses.LABELS in graph.inputs,
        trained_share=_share(weights, frozen, graph, model),
        terms=tuple(terms),
        normalized=normalize(graph, found.trained) if batch_norm and not values else None,
    )


def _selected(
    graph: Graph,
    model: onnx.ModelProto,
    wanted: list[str],
    freeze: Callable[[str], bool],
    barriers: dict[str, str],
) -> tuple[Selection, list[str]]:
    """What is trained, and which weights the user wants left alone.

    Raises:
        HealError: nothing is.
    """
    readers = _readers(model)
    asked = [name for name in wanted if freeze(name) or any(map(freeze, readers.get(name, ())))]
    found = select(graph, [name for name in wanted if name not in asked], barriers, [losses.LOSS])
    if not found.trained:
        reasons = sorted({reason for _, reason in found.frozen}) or ["it has no weights"]
        raise HealError(f"nothing of the student can be trained: {'; '.join(reasons[:3])}")
    return found, asked


def _readers(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Value -> names of the nodes that read it."""
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node.name)
    return found


def _around(
    graph: Graph, barriers: Mapping[str, str], terms: list[losses.Term]
) -> tuple[tuple[str, str], ...]:
    """(node, reason) of the barriers before which something is compared."""
    compared = {t.output for t in terms if t.match is not None}
    return tuple(
        (proto.name or proto.output[0], barriers[proto.output[0]])
        for proto in graph.nodes
        if proto.output[0] in barriers and compared.intersection(proto.input)
    )


def _share(
    weights: Mapping[str, np.ndarray],
    frozen: Iterable[tuple[str, str]],
    graph: Graph,
    model: onnx.ModelProto,
) -> float:
    trained = sum(w.size for w in weights.values())
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    sizes.update((name, size) for name, (size, _) in weights_in_bodies(model).items())
    missing = sum(graph.constants[n].size if n in graph.constants else sizes.get(n, 0) for n, _ in frozen)
    return trained / max(trained + missing, 1)


def _check(model: onnx.ModelProto, graph: Graph, feeds: Feeds) -> None:
    """The copy must compute what the student does.

    Raises:
        HealError: it doesn't; names the output and by how much.
    """
    wanted, found = run_model(model, feeds), run(graph, feeds)
    for name, value in wanted.items():
        if value.dtype.kind != "f" or name not in found:
            continue
        reference = value.astype(np.float32)
        scale = float(np.abs(reference[np.isfinite(reference)]).max(initial=1e-3))
        error = float(np.abs(found[name] - reference).max(initial=0.0))
        if not error <= _TOLERANCE * scale:
            raise HealError(
                f"the training copy is off by {error:.3g} at output '{name}' (values up to {scale:.3g})"
            )
