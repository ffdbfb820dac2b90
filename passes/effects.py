"""The sensitivity map for zeros: what it does to the outputs that one layer alone loses weights.

The outputs' error is taken for the sum of what the layers do, each in proportion to the energy it loses at
its own output. So the sum is least where the next weight to go costs the same in every layer: all weights are
ranked together by their own energy times their layer's effect. Optimal Brain Damage (LeCun et al. 1990) ranks
by such a product, too, with a curvature in place of what is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from condensec.data import Samples
from condensec.fidelity import output_error
from condensec.passes.patterns import Layer
from condensec.passes.prune import with_weights
from condensec.runner import Session

FloatArray = npt.NDArray[np.float64]
BATCH = 8


def energies(layer: Layer) -> FloatArray:
    """What each weight adds to its layer's output, squared: ``W^2``, times its input's mean square if known.

    Returns:
        ``[groups, rows, columns]``.
    """
    found = np.square(layer.matrix.astype(np.float64))
    squares = layer.squares
    return found if squares is None else found * squares[:, None, :]


def outputs(model: ir.Model, samples: Samples, threads: int) -> dict[str, np.ndarray]:
    """What a model gives for samples, as all runs that are compared here do it."""
    return Session(model, threads=threads, optimize="basic").run_samples(samples, batch=BATCH)


def effects(
    model: ir.Model,
    layers: Sequence[Layer],
    share: float,
    samples: Samples,
    *,
    threads: int = 1,
    tell: Callable[[float], None] = lambda done: None,
) -> dict[str, float]:
    """Error of the outputs for each unit of energy that a layer loses.

    Args:
        model: as it is, healed.
        layers: the weights that may hold zeros.
        share: of a layer's weights that are left out to see what happens: those of least energy.
        samples: to run.
        threads: of the sessions.
        tell: called with the share of the layers that are done.

    Returns:
        Weight -> `condensec.fidelity.output_error` over energy; 0 where the outputs don't change.
    """
    reference = outputs(model, samples, threads)
    found = {}
    for i, layer in enumerate(layers):
        energy = energies(layer)
        gone = np.argsort(energy, axis=None, kind="stable")[: max(1, round(share * energy.size))]
        matrix = layer.matrix.copy().reshape(-1)
        matrix[gone] = 0
        without = with_weights(model, {layer.place.weight: layer.place.array(matrix.reshape(energy.shape))})
        error = output_error(reference, outputs(without, samples, threads))
        lost = float(energy.reshape(-1)[gone].sum())
        found[layer.place.weight] = error / lost if lost > 0 else 0.0
        tell((i + 1) / len(layers))
    return found
