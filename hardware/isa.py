"""What this CPU is: its instruction set level, in the words onnxruntime's kernels care about.

Levels, weakest to strongest within a family:

- x86: ``x86`` < ``avx2`` < ``avx_vnni`` / ``avx512`` < ``avx512_vnni``
- ARM: ``armv8.0`` < ``armv8.2`` (dot product and half precision)
- ``unknown`` where nothing could be found out
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable
from pathlib import Path

_X86_MACHINES = ("x86_64", "amd64", "i386", "i686")
_ARM_MACHINES = ("aarch64", "arm64")
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
# numpy's names for what /proc/cpuinfo calls otherwise (numpy 1.26 to 2.4 report different ones)
_NUMPY_NAMES = {
    "avx2": {"avx2", "fma"},
    "fma3": {"fma"},
    "x86_v3": {"avx2", "fma"},
    "x86_v4": _AVX512 | {"avx2", "fma"},
    "avx512_skx": _AVX512 | {"avx2", "fma"},
    "avx512_clx": _AVX512 | {"avx2", "fma", "avx512_vnni"},
    "avx512_icl": _AVX512 | {"avx2", "fma", "avx512_vnni"},
    "avx512_spr": _AVX512 | {"avx2", "fma", "avx512_vnni"},
    "asimddp": {"asimddp"},
    "asimdhp": {"asimdhp"},
}
ORDER = {
    "x86": ("x86", "avx2", "avx_vnni", "avx512", "avx512_vnni"),
    "arm": ("armv8.0", "armv8.2"),
}


def level(machine: str, flags: Iterable[str]) -> str:
    """The level of a CPU.

    Args:
        machine: as ``platform.machine()`` gives it.
        flags: feature names as Linux' /proc/cpuinfo spells them.
    """
    have, machine = set(flags), machine.lower()
    if machine in _ARM_MACHINES:
        return "armv8.2" if "asimddp" in have and have & {"asimdhp", "fphp"} else "armv8.0"
    if machine not in _X86_MACHINES:
        return "unknown"
    if have >= _AVX512:
        return "avx512_vnni" if "avx512_vnni" in have else "avx512"
    if {"avx2", "fma"} <= have:
        return "avx_vnni" if "avx_vnni" in have else "avx2"
    return "x86"


def cpuinfo_flags(text: str) -> set[str]:
    """Feature names of the first core in the text of /proc/cpuinfo."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return set(value.split())
    return set()


@functools.cache
def detect() -> str:
    """The level of this CPU."""
    machine = platform.machine()
    try:
        flags = cpuinfo_flags(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        flags = set()
    if os.environ.get("CONDENSEC_HIDDEN_ISA"):  # set in processes whose CPU features are hidden, see hide.py
        return os.environ["CONDENSEC_HIDDEN_ISA"]
    return level(machine, flags or _numpy_flags())


def _numpy_flags() -> set[str]:
    """Features as numpy found them: works on macOS and Windows, too."""
    import numpy as np

    try:
        found = np.show_config(mode="dicts")["SIMD Extensions"]
    except (KeyError, TypeError):
        return set()
    names = [*found.get("baseline", ()), *found.get("found", ())]
    return {flag for name in names for flag in _NUMPY_NAMES.get(str(name).lower(), {str(name).lower()})}


def at_least(have: str, want: str) -> bool:
    """Whether a CPU of level ``have`` executes everything of level ``want``."""
    if have == want:
        return True
    if "avx_vnni" in (have, want):  # AVX-VNNI isn't part of AVX-512
        return have == "avx_vnni" and want in ("x86", "avx2")
    for order in ORDER.values():
        if have in order and want in order:
            return order.index(have) >= order.index(want)
    return False
