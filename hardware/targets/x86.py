"""x86 servers and PCs, by instruction set level.

onnxruntime's blocked (NCHWc) convolutions take channel counts that are multiples of 4 and pad them to
blocks of 16 (AVX-512) or 8 (AVX2); anything else falls back to im2col, up to 2.7 times slower. Quantized
depthwise convolutions need multiples of 16. Measured with onnxruntime 1.32.
"""

from collections.abc import Mapping

from condensec.hardware.target import Peak, Target

_FP32 = {"conv": 4, "depthwise": 4}
_INT8 = {"conv": 4, "depthwise": 16}
_HARD = {"fp32": _FP32, "fp16": _FP32, "int8": _INT8}
# VNNI kernels work on 16 output channels at once: fewer are no faster, and 12 of 16 take 1.24 of the time
_VNNI = {**_HARD, "int8": {"conv": 16, "depthwise": 16}}
_SOURCE = (
    "vendors' optimisation manuals: vector width times FMA ports of one core; clock and bandwidth assumed"
)


def _x86(
    name: str,
    isa: str,
    summary: str,
    grid: int,
    precisions: tuple[str, ...],
    peak: Peak,
    hard: Mapping[str, Mapping[str, int]] = _HARD,
) -> Target:
    return Target(
        name=name,
        summary=summary,
        runtime="onnxruntime",
        isa=isa,
        precisions=precisions,
        dialect="ort",
        latency="table",
        grid=grid,
        blocks={"conv": grid, "depthwise": grid},
        hard=hard,
        peak=peak,
        notes=("fp16 only adds Cast nodes on x86 CPUs, so it isn't offered",),
    )


TARGETS = (
    _x86(
        "x86-avx2",
        "avx2",
        "x86-64 with AVX2 and FMA (Haswell, Zen 1 and later)",
        8,
        ("int8", "fp32"),
        Peak(1, 3.0, {"fp32": 16, "int8": 32}, 20.0, 16.0, _SOURCE),
    ),
    _x86(
        "x86-avx512",
        "avx512",
        "x86-64 with AVX-512, no VNNI (Skylake-X)",
        16,
        ("int8", "fp32"),
        Peak(1, 2.5, {"fp32": 32, "int8": 64}, 20.0, 16.0, _SOURCE),
    ),
    _x86(
        "x86-vnni",
        "avx512_vnni",
        "x86-64 with AVX-512 VNNI (Cascade Lake, Ice Lake, Zen 4 and later)",
        16,
        ("int8", "fp32"),
        Peak(1, 2.5, {"fp32": 32, "int8": 128}, 20.0, 32.0, _SOURCE),
        _VNNI,
    ),
)
