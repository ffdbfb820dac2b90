"""Similarity: how little a residual block changes what goes through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from condensec.passes.groups import Analysis
from condensec.passes.segments import Batch
from condensec.runner import Session


def similarities(analysis: Analysis, batches: Sequence[Batch], threads: int = 1) -> dict[str, float]:
    """Of each layer: the cosine between what goes in and what comes out, mean over samples.

    NaN for a layer inside a body, which nobody can look into.
    """
    model = analysis.runnable
    given = {v.name for v in model.graph.inputs}
    made = given | {v.name for node in model.graph for v in node.outputs}
    layers = [x for x in analysis.layers if {x.source, x.output} <= made]
    names = list(dict.fromkeys(n for x in layers for n in (x.source, x.output)))
    outputs = {v.name for v in model.graph.outputs}
    session = Session(model, threads=threads, extra_outputs=[n for n in names if n not in given | outputs])
    found: dict[str, list[float]] = {x.id: [] for x in analysis.layers}
    for batch in batches:
        values = {**batch, **session.run(batch, [n for n in names if n not in given])}
        for layer in layers:
            a, b = (_rows(values[name]) for name in (layer.source, layer.output))
            size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            found[layer.id].extend((np.einsum("ij,ij->i", a, b) / np.maximum(size, 1e-30)).tolist())
    return {name: float(np.mean(some)) if some else float("nan") for name, some in found.items()}


def _rows(value: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``[samples, everything else]``."""
    return value.reshape(len(value), -1).astype(np.float64)
