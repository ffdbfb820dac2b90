"""Execution providers: what a user calls them, and which of them this onnxruntime really has."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from condensec.errors import ConfigError, TargetUnavailable
from condensec.hardware.protocol import CPU
from condensec.runner import available_providers

_SUFFIX = "ExecutionProvider"
# where one gets an onnxruntime that has it
_FROM = {
    "Tensorrt": "onnxruntime-gpu on a machine with an NVIDIA GPU and TensorRT",
    "CUDA": "onnxruntime-gpu on a machine with an NVIDIA GPU",
    "OpenVINO": "onnxruntime-openvino, in an environment of its own",
    "Xnnpack": "onnxruntime's mobile packages, or a build of one's own",
    "CoreML": "onnxruntime on macOS",
    "Dml": "onnxruntime-directml on Windows",
    "Dnnl": "a build of one's own",
    "Nnapi": "onnxruntime's package for Android",
    "QNN": "onnxruntime-qnn",
    "MIGraphX": "onnxruntime-rocm on a machine with an AMD GPU",
    "NvTensorRTRTX": "onnxruntime-trt-rtx on Windows with an NVIDIA GPU",
}
_PERF_TEST = {"Tensorrt": "tensorrt", "Dnnl": "dnnl", "Nnapi": "nnapi", "MIGraphX": "migraphx"}


def resolve(name: str | None) -> tuple[str, ...]:
    """The providers for ``--ep NAME``: the one asked for, and the CPU for nodes it doesn't take.

    Args:
        name: as onnxruntime spells it, with or without "ExecutionProvider", in any case; None = the CPU.

    Raises:
        ConfigError: onnxruntime knows no such provider.
        TargetUnavailable: the installed onnxruntime doesn't have it; says which have.
    """
    import onnxruntime as ort

    if name is None:
        return CPU
    known = {one.removesuffix(_SUFFIX).lower(): one for one in ort.get_all_providers()}
    known |= {short.lower(): f"{short}{_SUFFIX}" for short in _FROM}
    known |= {one.removesuffix(_SUFFIX).lower(): one for one in available_providers()}
    asked = name.lower().removesuffix(_SUFFIX.lower())
    full = known.get(asked)
    if full is None:
        near = difflib.get_close_matches(asked, known, 1, 0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"there is no execution provider '{name}'", hint=f"{hint}known: {', '.join(sorted(known))}"
        )
    if full not in available_providers():
        there = ", ".join(one.removesuffix(_SUFFIX) for one in available_providers())
        short = full.removesuffix(_SUFFIX)
        source = _FROM.get(short)
        raise TargetUnavailable(
            f"the installed onnxruntime has no {short} execution provider (it has {there})",
            hint=f"it comes with {source}" if source else None,
        )
    return (full,) if full in CPU else (full, *CPU)


def check_used(asked: Sequence[str], used: Sequence[str]) -> None:
    """A session really has the provider asked for: onnxruntime goes on without one that can't be loaded.

    Raises:
        TargetUnavailable: it doesn't.
    """
    if asked and asked[0] not in used:
        short = asked[0].removesuffix(_SUFFIX)
        raise TargetUnavailable(
            f"onnxruntime has the {short} execution provider, but it can't be loaded here",
            hint="its libraries or its device are missing",
        )


def perf_test_name(provider: str) -> str:
    """What ``onnxruntime_perf_test -e`` calls it."""
    short = provider.removesuffix(_SUFFIX)
    return _PERF_TEST.get(short, short.lower())
