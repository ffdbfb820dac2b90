"""How many samples go through the training graph at a time.

Gradients of a batch are the mean of those of its parts, so the size of a part is a matter of speed and memory
alone. Once what one operator hands to the next no longer stays in the cache, every sample costs more: a
transformer's took a fifth longer in parts of 64 than in parts of 16.
"""

from __future__ import annotations

from math import prod

import onnx

from condensec.data.side import batch_of
from condensec.healing.side import ports

USUAL = 16  # samples: matrix products and blocked convolutions lose nothing yet
_ROOM = 1 << 20  # bytes of a single value that stay in the cache beside its neighbours


def sizes(model: onnx.ModelProto, batch: int, jobs: int) -> tuple[int, int]:
    """Samples of one part and of a whole batch, if every thread takes one part.

    A model of fixed batch size takes parts of that size, and as many as make up what was asked for.

    Args:
        model: the student.
        batch: samples asked for.
        jobs: threads.
    """
    part = batch_of(ports(model))
    if part is not None:
        return part, part * max(1, batch // part)
    lanes = min(max(1, jobs), batch)
    return batch // lanes, batch // lanes * lanes


def fitting(model: onnx.ModelProto, training: onnx.ModelProto, part: int) -> int:
    """The part to use in place of `part`: a divisor of it, whose values stay in the cache.

    Args:
        model: the student; one of fixed batch size has no choice.
        training: graph for `part` samples, shapes known.
        part: samples.
    """
    if batch_of(ports(model)) is not None:
        return part
    largest = 4 * max((_elements(v) for v in training.graph.value_info), default=0)
    wanted = max(USUAL, part * _ROOM // max(largest, 1))
    if part <= wanted:
        return part
    divisor = max(d for d in range(1, wanted + 1) if part % d == 0)
    return divisor if 2 * divisor > USUAL else part  # smaller ones cost more than they gain


def _elements(value: onnx.ValueInfoProto) -> int:
    return prod(d.dim_value for d in value.type.tensor_type.shape.dim)
