"""condensec: ONNX in, a smaller and faster ONNX out, for a named target.

    import condensec

    report = condensec.compress("model.onnx", target="mobile-cpu", data="samples.npz")

The single steps (inspect, analyze, plan, apply, verify, heal, emit, bench, check) are in `condensec.api`, the
errors in `condensec.errors`. Names are loaded when they're first used, so that importing costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from condensec import api, errors
    from condensec.api import analyze, apply, bench, check, compress, emit, heal, inspect
    from condensec.config import Config, configure
    from condensec.plan import Plan
    from condensec.report import Report

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Plan",
    "Report",
    "__version__",
    "analyze",
    "api",
    "apply",
    "bench",
    "check",
    "compress",
    "configure",
    "emit",
    "errors",
    "heal",
    "inspect",
]

_HOMES = {
    "Config": "condensec.config",
    "Plan": "condensec.plan",
    "Report": "condensec.report",
    "analyze": "condensec.api",
    "api": "condensec.api",
    "apply": "condensec.api",
    "bench": "condensec.api",
    "check": "condensec.api",
    "compress": "condensec.api",
    "configure": "condensec.config",
    "emit": "condensec.api",
    "errors": "condensec.errors",
    "heal": "condensec.api",
    "inspect": "condensec.api",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    import importlib

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'condensec' has no attribute '{name}'")
    module = importlib.import_module(home)
    value = module if home == f"condensec.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names."""
    return sorted(__all__)
