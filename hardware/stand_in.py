"""A stronger x86 machine in place of a weaker one: what can be said there of int8 that can't be timed.

Without VNNI an int8 product takes several instructions for one, so int8 gains less. How much less was
measured by hiding CPU features, for 128 channels (AVX-512 VNNI, AVX-512 without, AVX2): int8 takes 0.30, 0.65
and 0.54 of the fp32 time in 3x3 convolutions, 0.77, 1.12 and 1.00 in 1x1 and depthwise ones, 0.53, 0.90 and
0.71 in matrix products. The first row differs most, so a graph that is faster even by that much will be on
the target.
"""

from __future__ import annotations

from condensec.hardware import isa
from condensec.hardware.target import Target

# int8 over fp32 time of 3x3 convolutions, by level
_INT8 = {"avx512_vnni": 0.30, "avx512": 0.65, "avx2": 0.54}


def int8_penalty(target: Target) -> float | None:
    """Factor between int8's share of the fp32 time on a target and here; None where nothing can be said."""
    here = isa.detect()
    onnxruntime = target.latency == "table" and target.runtime == "onnxruntime"
    if not onnxruntime or target.isa == here or not isa.at_least(here, target.isa):
        return None
    if here not in _INT8 or target.isa not in _INT8:
        return None
    return _INT8[target.isa] / _INT8[here]
