"""Fidelity: how far a changed model's outputs are from the original's, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]
WRONG = 1e6  # the loss of outputs that aren't numbers


def output_error(reference: Outputs, outputs: Outputs) -> float:
    """Squared error of all float outputs over their variance, averaged over outputs (0: the same).

    Where there are none, of outputs of 8 bits: they are quantized numbers, or pictures.
    """
    return float(sample_errors(reference, outputs).mean())


def sample_errors(reference: Outputs, outputs: Outputs, count: int | None = None) -> npt.NDArray[np.float64]:
    """`output_error` of each sample: ``[N]``, or ``[1]`` where an output has no sample axis.

    Args:
        reference: the original's outputs on all samples: what the errors are relative to is theirs.
        outputs: on the first samples, or on all.
        count: how many; None = all.
    """
    errors = []
    floats = {name: a for name, a in reference.items() if a.dtype.kind == "f"}
    quantized = {name: a for name, a in reference.items() if a.dtype.kind in "iu" and a.dtype.itemsize == 1}
    for name, a in (floats or quantized).items():
        x, y = a.astype(np.float64), outputs[name].astype(np.float64)
        variance = (
            float(((x - x.mean(axis=0)) ** 2).mean()) if a.ndim and len(x) > 1 else float((x**2).mean())
        )
        some = slice(count) if a.ndim else ()
        error = (x[some] - y[some]) ** 2
        error = error.reshape(len(error) if a.ndim else 1, -1).mean(axis=1) / max(variance, 1e-12)
        errors.append(np.where(np.isfinite(error), error, WRONG))
    if not errors:
        return np.zeros(1)
    if len({len(e) for e in errors}) > 1:
        return np.array([np.mean([e.mean() for e in errors])])
    return np.asarray(np.mean(errors, axis=0))


def standard_error(errors: npt.NDArray[np.float64]) -> float:
    """Of the mean over samples; NaN where there is only one."""
    return float(errors.std(ddof=1) / len(errors) ** 0.5) if len(errors) > 1 else float("nan")
