"""Phones' and boards' ARM CPUs, run by onnxruntime's mobile packages.

Odd channel counts cost nothing in fp32 on aarch64; quantized depthwise convolutions still want multiples
of 16 (measured with onnxruntime's aarch64 build under emulation). The peak figures are those of one
big core of the generation: assumptions for the model, not a particular phone's data.
"""

from pathlib import Path

from condensec.hardware.target import Peak, Target

_HARD = {"int8": {"depthwise": 16}}
_SHAPES = "fixed shapes: CoreML rejects dynamic batches, and so do most accelerators behind NNAPI"
_EMULATED = (
    "no such device was at hand: latencies come from instructions counted under an emulator (qemu, "
    "onnxruntime's aarch64 build, fp32), as many a clock assumed as vector products; no phone has confirmed "
    "them"
)


def _counted(target: str) -> str:
    """The table of instructions, made by `benchmarks/emulated.py table --target ...`."""
    return str(Path(__file__).with_name(f"{target}.json"))


TARGETS = (
    Target(
        name="mobile-cpu",
        summary="ARM v8.2 phone core with dot product and fp16 (Cortex-A75 and later)",
        runtime="onnxruntime-mobile",
        isa="armv8.2",
        precisions=("int8", "fp32", "fp16"),
        dialect="ort_mobile",
        latency="instructions",
        grid=4,
        hard=_HARD,
        fixed_shapes=True,
        peak=Peak(
            1, 2.4, {"fp32": 8, "fp16": 16, "int8": 32}, 12.0, 2.0, "Arm Cortex-A76: two 128-bit pipes"
        ),
        notes=(_SHAPES, _EMULATED),
        verified="emulated",
        table=_counted("mobile-cpu"),
    ),
    Target(
        name="mobile-cpu-v8.0",
        summary="ARM v8.0 core without dot product (Cortex-A53, A72; Raspberry Pi 3 and 4)",
        runtime="onnxruntime-mobile",
        isa="armv8.0",
        precisions=("fp32", "int8"),
        dialect="ort_mobile",
        latency="instructions",
        grid=4,
        hard=_HARD,
        fixed_shapes=True,
        peak=Peak(1, 1.5, {"fp32": 4, "int8": 8}, 4.0, 1.0, "Arm Cortex-A72: 128-bit FMA every other clock"),
        notes=(_SHAPES, _EMULATED),
        verified="emulated",
        table=_counted("mobile-cpu-v8.0"),
    ),
)
