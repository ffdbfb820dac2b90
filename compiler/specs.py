"""The small languages of the command line: budgets, healing, patterns, shapes. Each has one parser.

Every parser raises a `ConfigError` that repeats what was written and says what is allowed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from condensec.errors import ConfigError

# -- budgets ----------------------------------------------------------------------------------------

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
            f"budget '{text}': unknown figure '{kind}'", hint=_nearest(kind, BUDGET_KINDS, "known")
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


# -- healing ----------------------------------------------------------------------------------------

AUTO_MINUTES = 2.0  # of gradient healing in all, when the user says nothing
_HEAL_HINT = "write off, closed-form, auto, epochs=3 or minutes=10 (and ',closed-form=off' to train only)"
_TRAIN_ONLY = ",closed-form=off"


@dataclass(frozen=True)
class Heal:
    """How a cut model learns again.

    Attributes:
        mode: ``off``, ``closed-form``, ``auto``, ``epochs`` or ``minutes``. ``auto`` trains for at most
            `AUTO_MINUTES` where there is real data.
        epochs: passes over the training samples, in mode ``epochs``.
        minutes: of gradient healing, in modes ``minutes`` and ``auto``.
        train_only: no closed form before the training.
    """

    mode: str
    epochs: int | None = None
    minutes: float | None = None
    train_only: bool = False

    @property
    def closed_form(self) -> bool:
        """Whether weights are re-solved by least squares first."""
        return self.mode != "off" and not self.train_only

    @property
    def gradient(self) -> bool:
        """Whether the model is trained, given data."""
        return self.mode in ("auto", "epochs", "minutes")

    def __str__(self) -> str:
        text = {"epochs": f"epochs={self.epochs}", "minutes": f"minutes={self.minutes or 0:g}"}
        return text.get(self.mode, self.mode) + (_TRAIN_ONLY if self.train_only else "")


def parse_heal(text: str) -> Heal:
    """``off``, ``closed-form``, ``auto``, ``epochs=3``, ``minutes=10``, ``minutes=10,closed-form=off``.

    Raises:
        ConfigError: anything else.
    """
    if text in ("off", "closed-form"):
        return Heal(text)
    if text == "auto":
        return Heal("auto", minutes=AUTO_MINUTES)
    only = text.replace(" ", "").endswith(_TRAIN_ONLY)
    key, _, value = text.partition(",")[0].partition("=") if only else text.partition("=")
    try:
        if key == "epochs" and int(value) > 0:
            return Heal("epochs", epochs=int(value), train_only=only)
        if key == "minutes" and 0 < float(value) < math.inf:
            return Heal("minutes", minutes=float(value), train_only=only)
    except ValueError:
        pass
    raise ConfigError(f"--heal '{text}' can't be read", hint=_HEAL_HINT)


# -- patterns ---------------------------------------------------------------------------------------

UNIT_PATTERNS = ("channels", "heads", "neurons", "layers")
DEFAULT_PATTERNS = ("channels", "heads", "neurons")
_LATER = "this version cuts channels, heads and neurons"


def parse_patterns(text: str) -> tuple[str, ...]:
    """A comma-separated list of what may be cut.

    Raises:
        ConfigError: an unknown pattern, or one this version doesn't cut.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if re.fullmatch(r"unstructured=[0-9.]+|[0-9]+:[0-9]+", name) or name == "layers":
            raise ConfigError(f"--patterns '{name}' isn't available", hint=_LATER)
        if name not in UNIT_PATTERNS:
            raise ConfigError(
                f"--patterns: unknown pattern '{name}'", hint=_nearest(name, DEFAULT_PATTERNS, "known")
            )
    return names


# -- shapes -----------------------------------------------------------------------------------------


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """``x=1x3x48x192``: an input's name and its whole shape, batch included.

    Raises:
        ConfigError: anything else.
    """
    name, _, dims = text.rpartition("=")
    if not name or not re.fullmatch(r"[1-9][0-9]*([x,][1-9][0-9]*)*", dims):
        raise ConfigError(f"--shape '{text}' can't be read", hint="write INPUT=1x3x224x224")
    return name, tuple(int(d) for d in re.split("[x,]", dims))


def _nearest(name: str, known: Iterable[str], label: str) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    listed = f"{label}: {', '.join(known)}"
    return f"did you mean '{near[0]}'? {listed}" if near else listed
