"""NVIDIA GPUs through TensorRT.

Tensor cores want fp16 channels in multiples of 8 and int8 channels in multiples of 32; 2:4 sparsity starts
with Ampere. Figures from NVIDIA's data sheets (dense, without sparsity). fma: fp16 or int8 multiply-adds
a clock and SM on tensor cores, fp32 on CUDA cores.
"""

from condensec.hardware.target import Peak, Target

_HARD = {
    "fp16": {"conv": 8, "depthwise": 8, "matmul": 8},
    "int8": {"conv": 32, "depthwise": 32, "matmul": 32},
}
_NOTES = (
    "latency from a tile-and-wave model, good for ordering only: efficiency and launch time are guesses",
)


def _gpu(name: str, summary: str, isa: str, grid: int, peak: Peak, sparsity: tuple[str, ...]) -> Target:
    return Target(
        name=name,
        summary=summary,
        runtime="tensorrt",
        isa=isa,
        precisions=("fp16", "int8", "fp32"),
        dialect="tensorrt",
        latency="analytic",
        grid=grid,
        hard=_HARD,
        sparsity=sparsity,
        peak=peak,
        notes=_NOTES,
    )


TARGETS = (
    _gpu(
        "nvidia-t4",
        "NVIDIA T4 (Turing, 40 SMs)",
        "sm75",
        32,
        Peak(40, 1.59, {"fp32": 64, "fp16": 512, "int8": 1024}, 320.0, 4.0, "NVIDIA T4 data sheet"),
        (),
    ),
    _gpu(
        "nvidia-a10",
        "NVIDIA A10 (Ampere, 72 SMs)",
        "sm86",
        64,
        Peak(72, 1.695, {"fp32": 128, "fp16": 512, "int8": 1024}, 600.0, 6.0, "NVIDIA A10 data sheet"),
        ("2:4",),
    ),
    _gpu(
        "nvidia-l4",
        "NVIDIA L4 (Ada, 58 SMs)",
        "sm89",
        64,
        Peak(58, 2.04, {"fp32": 128, "fp16": 512, "int8": 1024}, 300.0, 48.0, "NVIDIA L4 data sheet"),
        ("2:4",),
    ),
    _gpu(
        "jetson-orin",
        "NVIDIA Jetson AGX Orin (Ampere, 16 SMs)",
        "sm87",
        64,
        Peak(
            16,
            1.3,
            {"fp32": 128, "fp16": 1024, "int8": 2048},
            204.8,
            4.0,
            "NVIDIA Jetson AGX Orin data sheet",
        ),
        ("2:4",),
    ),
)
