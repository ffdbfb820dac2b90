"""Budgets: ``latency<=0.5x`` and its like."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from condensec.errors import ConfigError
from condensec.specs.nearest import nearest

BUDGET_KINDS = ("latency", "macs", "params", "size")
_UNITS: dict[str, dict[str, float]] = {
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "macs": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9},
    "size": {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
}
_BUDGET = re.compile(
    r"\s*([A-Za-z]+)\s*(<=|>=|==|<|>|=)\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*"
)
_EXAMPLES = "'latency<=0.5x', 'latency<=5ms', 'macs<=0.5x', 'params<=0.4x' or 'size<=4MB'"


@dataclass(frozen=True)
class Budget:
    """One upper bound.

    Attributes:
        kind: ``latency``, ``macs``, ``params`` or ``size``.
        value: a share of the original's figure in (0, 1] if ``relative``; otherwise milliseconds, a count,
            or bytes.
        relative: the bound was given as ``0.5x``.
        expr: as written.
    """

    kind: str
    value: float
    relative: bool
    expr: str

    def __str__(self) -> str:
        return self.expr


def parse_budget(text: str) -> Budget:
    """``latency<=0.5x`` and its like.

    Raises:
        ConfigError: nonsense, or a bound that can't be a budget.
    """
    match = _BUDGET.fullmatch(text)
    if match is None:
        raise ConfigError(f"budget '{text}' can't be read", hint=f"write {_EXAMPLES}")
    kind, relation, number, unit = match.groups()
    if kind not in BUDGET_KINDS:
        raise ConfigError(
            f"budget '{text}': unknown figure '{kind}'", hint=nearest(kind, BUDGET_KINDS, "known")
        )
    if relation != "<=":
        raise ConfigError(f"budget '{text}': the relation has to be '<='", hint=f"write {_EXAMPLES}")
    try:
        limit = float(number)
    except ValueError as error:
        raise ConfigError(f"budget '{text}': '{number}' is no number", hint=f"write {_EXAMPLES}") from error
    expr = f"{kind}<={number}{unit}"
    if unit == "x":
        if not 0 < limit <= 1:
            raise ConfigError(
                f"budget '{text}': a share of the original lies above 0 and at most at 1",
                hint=f"write for instance '{kind}<=0.5x'",
            )
        return Budget(kind, limit, True, expr)
    scale = _UNITS[kind].get(unit)
    if scale is None:
        allowed = ", ".join(u or "no unit" for u in ("x", *_UNITS[kind]))
        raise ConfigError(f"budget '{text}': unknown unit '{unit}'", hint=f"for {kind}: {allowed}")
    limit *= scale
    whole = kind in ("latency", "size") or limit.is_integer()
    if not 0 < limit < math.inf or not whole:
        share = f", or a share like '{kind}<=0.5x'"
        raise ConfigError(f"budget '{text}' can't be met", hint=f"give a whole number above 0{share}")
    return Budget(kind, limit, False, expr)
