"""Calibration samples in the batches that closed-form repair works through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from condensec.data.side import batch_of, single_call
from condensec.healing import lengths
from condensec.healing.side import ports

if TYPE_CHECKING:
    import onnx

    from condensec.data import Samples

_BATCH = 64
_LEAST = 5  # batches: the last fifth is held out


def batches(
    student: onnx.ModelProto, teacher: onnx.ModelProto, outputs: Sequence[str], samples: Samples
) -> list[dict[str, np.ndarray]]:
    """Inputs batch by batch; a fixed batch size is kept to, filled up by repeating.

    Padding is cut off where that changes nothing (see `condensec.healing.lengths`): layers are then fitted
    to positions that count. The lengths are evenly mixed, so that the last batches have some of each.

    Args:
        student: the cut model.
        teacher: the original.
        outputs: of both.
        samples: calibration samples.
    """
    given = ports(student)
    fixed = batch_of(given) or 0
    size = fixed or max(1, min(_BATCH, len(samples) // _LEAST))
    padded = None if fixed else lengths.find(student, samples, size)
    if padded is not None and lengths.hold(padded, [(m, outputs, []) for m in (teacher, student)], samples):
        kinds = padded.kinds(samples)
        parts = [(np.flatnonzero(kinds == i), padded.cut(samples, n)) for i, n in enumerate(padded.sizes)]
    else:
        whole = len(samples) if not fixed else max(fixed, len(samples) // fixed * fixed)
        parts = [(np.arange(whole), samples)]
    found = []
    for number, (rows, cut) in enumerate(parts):
        starts = range(0, len(rows), size)
        for i, start in enumerate(starts):
            place = ((i + 0.5) / len(starts), number)
            found.append((place, cut, rows[start : start + size]))
    return [
        single_call(given, {n: np.take(cut.inputs[n], rows, axis=0, mode="wrap") for n, _, _ in given})
        for _, cut, rows in sorted(found, key=lambda part: part[0])
    ]
