"""Operator rules: which axes live and die together.

One file an operator family. A rule is registered by being there:

    @rule("Relu", "Sigmoid")
    def unary(ctx: Context, node: ir.Node) -> None:
        ctx.set(node.outputs[0], ctx.layout(node.inputs[0]))

A rule only declares, through `Context`. An operator without a rule freezes what it touches.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from condensec.passes.context import Context

Rule = Callable[["Context", ir.Node], None]
_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators; names outside the default domain are written ``domain::Op``.

    Raises:
        ValueError: an operator has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in _RULES:
                raise ValueError(f"two rules for {name}: {_RULES[name].__module__} and {function.__module__}")
            _RULES[name] = function
        return function

    return register


def find(node: ir.Node) -> Rule | None:
    """The rule of a node's operator, or None."""
    load_all()
    domain = node.domain
    return _RULES.get(node.op_type if domain in ("", "ai.onnx") else f"{domain}::{node.op_type}")


def load_all() -> dict[str, Rule]:
    """Import every file of this folder once; returns operator name -> rule."""
    if not _RULES:
        for module in sorted(pkgutil.iter_modules(__path__), key=lambda m: m.name):
            importlib.import_module(f"{__name__}.{module.name}")
    return _RULES
