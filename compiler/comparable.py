"""Outputs that two models can't be compared by, so that a cut could neither be chosen, healed nor proven.

Those whose length depends on the data, as a detector's boxes that are left after suppression; and those that
aren't numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from condensec.data import Samples
from condensec.data.types import Array
from condensec.errors import ModelError
from condensec.runner import Session

MOST_CALLS = 8
DEPENDENT = frozenset(("Compress", "NonMaxSuppression", "NonZero", "Unique"))


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
            raise _refusal(name, lengths, _origin(model, name))


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


def _origin(model: ir.Model, name: str) -> ir.Node | None:
    """The nearest node before an output whose output's length depends on the data."""
    queue = deque(v.producer() for v in model.graph.outputs if v.name == name)
    seen = set()
    while queue:
        node = queue.popleft()
        if node is None or node in seen:
            continue
        if node.op_type in DEPENDENT:
            return node
        seen.add(node)
        queue.extend(value.producer() for value in node.inputs if value is not None)
    return None
