"""The training graph: a static, differentiable copy of the student with its loss, and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from condensec.errors import HealError
from condensec.healing import losses
from condensec.healing.fold import fold_batch_norms
from condensec.healing.graph import Feeds, Graph
from condensec.healing.legalize import legalize
from condensec.healing.static import infer, read, run, run_model
from condensec.healing.trainable import Selection, blocked, candidates, select, stop_gradients

_TOLERANCE = 2e-3  # of the output's own scale: rewriting changes rounding, not values


@dataclass(frozen=True)
class Training:
    """What the worker needs to know of the student.

    Attributes:
        model: forward graph: inputs, targets and weights in, the loss out.
        weights: initial value of each trained weight, by its name in the student's file.
        frozen: (name, reason) of weights that stay as they are.
        inputs: names of the graph inputs that come from the samples.
        targets: graph input -> the teacher's output it carries.
        uses_labels: the labels are an input too.
        trained_share: trained parameters / all parameters that are weights.
    """

    model: onnx.ModelProto
    weights: dict[str, np.ndarray]
    frozen: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    targets: dict[str, str]
    uses_labels: bool
    trained_share: float


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
    choose: Callable[[Graph], list[losses.Term]],
    labels: np.ndarray | None,
    *,
    freeze: Callable[[str], bool] = lambda name: False,
) -> Training:
    """Make the training graph of a student.

    Args:
        model: the student.
        feeds: one batch of inputs, of the size that training uses.
        choose: picks the loss terms once the graph's shapes are known.
        labels: one batch of labels.
        freeze: weights the user doesn't want trained, by name.

    Raises:
        HealError: nothing can be trained, or the copy doesn't compute what the student does.
    """
    graph, wanted, barriers = differentiable_copy(model, feeds)
    _check(model, graph, feeds)
    inputs = tuple(graph.inputs)
    terms = choose(graph)
    losses.append(graph, terms, labels)
    infer(graph)
    asked = [name for name in wanted if freeze(name)]
    wanted = [name for name in wanted if name not in asked]
    found = select(graph, wanted, barriers, [losses.LOSS])
    if not found.trained:
        reasons = sorted({reason for _, reason in found.frozen}) or ["it has no weights"]
        raise HealError(f"nothing of the student can be trained: {'; '.join(reasons[:3])}")
    stop_gradients(graph, barriers, list(found.trained))
    weights = {name: graph.constants[name] for name in found.trained}
    targets = {losses.target_name(o): o for o in dict.fromkeys(t.output for t in terms)}
    return Training(
        model=graph.model(as_inputs=found.trained),
        weights=weights,
        frozen=(*found.frozen, *((name, "frozen by the user") for name in asked)),
        inputs=tuple(n for n in inputs if n in graph.inputs),
        targets={k: v for k, v in targets.items() if k in graph.inputs},
        uses_labels=losses.LABELS in graph.inputs,
        trained_share=_share(weights, found, graph, model),
    )


def _share(
    weights: Mapping[str, np.ndarray], found: Selection, graph: Graph, model: onnx.ModelProto
) -> float:
    trained = sum(w.size for w in weights.values())
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer}
    missing = sum(
        graph.constants[n].size if n in graph.constants else sizes.get(n, 0) for n, _ in found.frozen
    )
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
