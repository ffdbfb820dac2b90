"""This very machine: what is compiled for it is also measured on it."""

from dataclasses import replace

from condensec.hardware import isa
from condensec.hardware.target import Target
from condensec.hardware.targets.mobile import TARGETS as _MOBILE
from condensec.hardware.targets.x86 import TARGETS as _X86

# Levels without a target of their own take the nearest one's kernels.
_LIKE = {
    "avx512_vnni": "x86-vnni",
    "avx512": "x86-avx512",
    "avx_vnni": "x86-avx2",
    "avx2": "x86-avx2",
    "x86": "x86-avx2",
    "armv8.2": "mobile-cpu",
    "armv8.0": "mobile-cpu-v8.0",
    "unknown": "x86-avx2",
}


def host(level: str) -> Target:
    """The target for a machine of this level."""
    like = next(target for target in (*_X86, *_MOBILE) if target.name == _LIKE[level])
    return replace(
        like,
        name="host",
        summary=f"this machine ({level}), measured here",
        runtime="onnxruntime",
        isa=level,
        dialect="ort",
        fixed_shapes=False,
        latency="table",
        verified="measured",
        precisions=tuple(precision for precision in like.precisions if precision != "fp16"),
    )


TARGETS = (host(isa.detect()),)
