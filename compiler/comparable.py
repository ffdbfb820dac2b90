"""Outputs that two models can't be compared by, so that a cut could neither be chosen, healed nor proven.

Those whose length depends on the data, as a detector's boxes that are left after suppression; those that
aren't numbers; and those that chance decides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from condensec.data import Samples
from condensec.data.types import Array
from condensec.errors import ModelError, PostconditionError
from condensec.randomness import RANDOM
from condensec.runner import Session

MOST_CALLS = 8
DEPENDENT = frozenset(("Compress", "NonMaxSuppression", "NonZero", "Unique"))
_REPEATED = 1e-3  # of an output's largest value: no two orders of the same sums differ by as much


def check_comparable(session: Session, model: ir.Model, samples: Samples) -> None:
    """Refuse a model whose outputs have another length in every call, or none at all.

    Only outputs are looked at whose axis 0 is open and isn't named like an input's.

    Args:
        session: of the model.
        model: the same, to find out where the length comes from.
        samples: real ones; a few calls are made.

    Raises:
        ModelError: names the output and the node that makes its length.
    """
    given = {dim for port in session.inputs for dim in port.shape if isinstance(dim, str)}
    open_ = [p.name for p in session.outputs if p.shape[:1] and not _is_known(p.shape[0], given)]
    if not open_:
        return
    size = session.batch_size or 1
    found: dict[str, set[int]] = {name: set() for name in open_}
    for start in range(0, min(len(samples), MOST_CALLS * size), size):
        feeds = {name: array[start : start + size] for name, array in samples.inputs.items()}
        if {len(array) for array in feeds.values()} == {size}:
            for name, value in session.run(feeds, open_).items():
                found[name].add(len(value))
    for name, lengths in found.items():
        if len(lengths) > 1 or lengths == {0}:
            raise _refusal(name, lengths, _nearest(model, name, _depends))


def check_finite_outputs(outputs: Mapping[str, Array], samples: Samples) -> None:
    """Refuse an original that doesn't give numbers.

    Args:
        outputs: the original's, axis 0 = sample where there is one.
        samples: what they were computed from.

    Raises:
        ModelError: names the output, and the first sample that it isn't finite for.
    """
    for name, value in outputs.items():
        if value.dtype.kind != "f" or np.isfinite(value).all():
            continue
        listed = np.atleast_1d(value)
        rows = np.asarray(~np.isfinite(listed.reshape(len(listed), -1)).all(axis=1))
        where = f"in {rows.sum()} of {len(rows)} rows, the first of them {np.flatnonzero(rows)[0]}"
        made_up = "the inputs are made up: give real ones with --data"
        raise ModelError(
            f"output '{name}' of the model itself is NaN or infinite {where}",
            node=name,
            hint=made_up if samples.synthetic else "leave such samples out, or end the model before that",
        )


def unrunnable(error: PostconditionError) -> ModelError:
    """What to say where the original itself doesn't run."""
    hint = "if it only runs on the number of samples it was exported with, fix that number in its inputs"
    return ModelError(f"the model itself fails: {error.message}", node=error.node, hint=hint)


def check_repeats(model: ir.Model, feeds: Mapping[str, Array], *, threads: int = 1) -> None:
    """Refuse a model that gives something else for the same input each time.

    It runs as it's written: onnxruntime's optimizer takes a Dropout out even where it is training, other
    runtimes don't, and what such a model means can't be told.

    Args:
        model: any; only one in which some node draws numbers is run.
        feeds: arrays by input name, for one call.
        threads: for onnxruntime.

    Raises:
        ModelError: names the output, and the node that draws.
    """
    if not any(map(_draws, ir.traversal.RecursiveGraphIterator(model.graph))):
        return
    session = Session(model, threads=threads, optimize=False)
    once, again = session.run(feeds), session.run(feeds)
    for name, first in once.items():
        if first.dtype.kind != "f" or first.shape != again[name].shape:
            continue
        size = np.abs(first).max(initial=0.0)
        if np.isfinite(size) and np.abs(first - again[name]).max(initial=0.0) > _REPEATED * size:
            raise _drawn(name, _nearest(model, name, _draws))


def _drawn(name: str, node: ir.Node | None) -> ModelError:
    """What to say of an output that chance decides."""
    hint = "make the random numbers an input of the model"
    if node is not None and node.op_type == "Dropout":
        hint = "export the model for inference (in PyTorch: model.eval() first), so that its Dropout is off"
    by = "" if node is None else f", by {node.op_type} '{node.name}'"
    return ModelError(
        f"output '{name}' of the model itself is random{by}: two runs on the same input differ",
        node=None if node is None else node.name,
        hint=hint,
    )


def _draws(node: ir.Node) -> bool:
    """Whether a node gives random numbers; Dropout does while it is training."""
    if node.op_type != "Dropout":
        return node.op_type in RANDOM
    training = node.inputs[2] if len(node.inputs) > 2 else None
    known = None if training is None else ir.convenience.get_const_tensor(training)
    return training is not None and (known is None or bool(np.any(known.numpy())))


def _is_known(dim: int | str | None, given: set[str]) -> bool:
    return isinstance(dim, int) or dim in given


def _refusal(name: str, lengths: set[int], origin: ir.Node | None) -> ModelError:
    what = "is empty" if lengths == {0} else f"has {min(lengths)} to {max(lengths)} rows"
    node = None if origin is None else origin.name
    where = "the node that makes them" if origin is None else origin.op_type
    return ModelError(
        f"output '{name}' {what}, by what the samples hold: two models can't be compared by it",
        node=node,
        hint=f"split the model before {where} (onnx.utils.extract_model), compress the first part, and join "
        "them again (onnx.compose.merge_models)",
    )


def _depends(node: ir.Node) -> bool:
    """Whether the length of a node's output depends on the data."""
    return node.op_type in DEPENDENT


def _nearest(model: ir.Model, name: str, wanted: Callable[[ir.Node], bool]) -> ir.Node | None:
    """The nearest node of a kind before an output."""
    queue = deque(v.producer() for v in model.graph.outputs if v.name == name)
    seen = set()
    while queue:
        node = queue.popleft()
        if node is None or node in seen:
            continue
        if wanted(node):
            return node
        seen.add(node)
        queue.extend(value.producer() for value in node.inputs if value is not None)
    return None
