"""Healing: a pruned network learns again to answer as its original did.

Two tiers. `closed_form.repair` re-solves weights by least squares in seconds, without labels and without
a worker. `heal` trains by gradient in a worker process with onnxruntime-training, in an environment that
`environment` makes on first need. Both give back weights by name; the graph itself is never rewritten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from condensec.healing.options import HealOptions, HealResult, Round, Thin

if TYPE_CHECKING:
    from condensec.healing import closed_form
    from condensec.healing.session import heal

__all__ = ["HealOptions", "HealResult", "Round", "Thin", "closed_form", "heal"]


def __getattr__(name: str) -> Any:
    """`heal` and `closed_form` are loaded when asked for: they pull in onnx."""
    import importlib

    if name == "heal":
        value = importlib.import_module("condensec.healing.session").heal
    elif name == "closed_form":
        value = importlib.import_module("condensec.healing.closed_form")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
