"""Find shapes by running the model: sizes of inputs that leave them open, and values nothing can infer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from condensec.errors import CondensecError
from condensec.model_signature import signature
from condensec.probe import runnable_shapes
from condensec.runner import Session

Array = np.ndarray[Any, Any]
RUN_BYTES = 1_000_000_000  # weights of models that are run only to learn a shape


def probe_shapes(model: ir.Model) -> dict[str, tuple[int, ...]] | None:
    """Input sizes at which a model runs, where it leaves them open; None if none was found."""
    if _weights(model) > RUN_BYTES:
        return None
    try:
        return runnable_shapes(model, signature(model))
    except CondensecError:
        return None


def run_for_shapes(
    model: ir.Model, inputs: Mapping[str, tuple[int, ...]], names: list[str]
) -> dict[str, tuple[int, ...]]:
    """Sizes of some values, from one run at the sample sizes. Empty where the model doesn't run."""
    if _weights(model) > RUN_BYTES:
        return {}
    try:
        session = Session(model, optimize=False, extra_outputs=names)
        found = session.run(_feeds(model, inputs), names)
        return {name: array.shape for name, array in found.items() if isinstance(array, np.ndarray)}
    except CondensecError:
        return {}


def _weights(model: ir.Model) -> int:
    tensors = (v.const_value for v in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _feeds(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Inputs that most models take: small normal numbers, tokens and masks of ones."""
    rng = np.random.default_rng(0)
    found: dict[str, Array] = {}
    for value in model.graph.inputs:
        dtype, shape = (value.dtype or ir.DataType.FLOAT).numpy(), shapes[value.name or ""]
        if dtype.kind in "iub":
            found[value.name or ""] = np.ones(shape, dtype)
        else:
            found[value.name or ""] = rng.standard_normal(shape).astype(dtype)
    return found
