"""The small languages of the command line: budgets, healing, patterns, shapes. Each has one parser.

Every parser raises a `ConfigError` that repeats what was written and says what is allowed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from condensec.errors import ConfigError
from condensec.sparsity import parse_sparsity

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


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)


_SETTINGS: dict[str, tuple[str, Callable[[str], float | int | str], str]] = {
    # as written -> (field of HealOptions, type, what is allowed)
    "lr": ("lr", float, "a step size above 0, relative to each weight (0.008 = 0.8%)"),
    "batch": ("batch", int, "samples a step, at least 1"),
    "optimizer": ("optimizer", str, "adamw or sgd"),
    "weight-decay": ("weight_decay", float, "a number from 0 on"),
    "warmup": ("warmup", float, "a share of the run, from 0 to below 1"),
    "average": ("average", float, "a decay a step, from 0 (none) to below 1"),
    "temperature": ("temperature", float, "a number above 0"),
    "freeze": ("freeze", str, "a regular expression without commas"),
    "patience": ("patience", int, "validations without a better one, 0 = never stop early"),
    "views": ("views", int, "augmented views used in turn, 0 = a new one for every epoch"),
    # of the stack, not of one training: no field of HealOptions
    "zeros": ("", float, "the share of the training for zeros, from 0 to below 1"),
    "quantized": ("", float, "the share of the training for int8 graphs, from 0 to below 1"),
    "qat": ("", str, "on, off or auto (int8 graphs are trained where they lose over half of the guard)"),
}
_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "lr": lambda v: 0 < v < math.inf,
    "batch": lambda v: v >= 1,
    "optimizer": lambda v: v in ("adamw", "sgd"),
    "weight-decay": lambda v: 0 <= v < math.inf,
    "warmup": lambda v: 0 <= v < 1,
    "average": lambda v: 0 <= v < 1,
    "temperature": lambda v: 0 < v < math.inf,
    "freeze": _is_pattern,
    "patience": lambda v: v >= 0,
    "views": lambda v: v >= 0,
    "zeros": lambda v: 0 <= v < 1,
    "quantized": lambda v: 0 <= v < 1,
    "qat": lambda v: v in ("on", "off", "auto"),
}


@dataclass(frozen=True)
class Heal:
    """How a cut model learns again.

    Attributes:
        mode: ``off``, ``closed-form``, ``auto``, ``epochs`` or ``minutes``. ``auto`` trains for at most
            `AUTO_MINUTES` where there is real data.
        epochs: passes over the training samples, in mode ``epochs``.
        minutes: of gradient healing, in modes ``minutes`` and ``auto``.
        train_only: no closed form before the training.
        settings: (name, value) of further settings of the training, as written.
    """

    mode: str
    epochs: int | None = None
    minutes: float | None = None
    train_only: bool = False
    settings: tuple[tuple[str, float | int | str], ...] = ()

    @property
    def closed_form(self) -> bool:
        """Whether weights are re-solved by least squares first."""
        return self.mode != "off" and not self.train_only

    @property
    def gradient(self) -> bool:
        """Whether the model is trained, given data."""
        return self.mode in ("auto", "epochs", "minutes")

    @property
    def options(self) -> dict[str, Any]:
        """The further settings as fields of `condensec.healing.HealOptions`."""
        return {_SETTINGS[name][0]: value for name, value in self.settings if _SETTINGS[name][0]}

    def of_stack(self, name: str, default: Any) -> Any:
        """A setting of the stack: ``zeros``, ``quantized`` or ``qat``."""
        return dict(self.settings).get(name, default)

    def __str__(self) -> str:
        text = {"epochs": f"epochs={self.epochs}", "minutes": f"minutes={self.minutes or 0:g}"}
        more = ["closed-form=off"] * self.train_only
        more += [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in self.settings
        ]
        return ",".join([text.get(self.mode, self.mode), *more])


def parse_heal(text: str) -> Heal:
    """``off``, ``closed-form``, ``auto``, ``epochs=3``, ``minutes=10``; to the last three more may be added.

    ``minutes=10,closed-form=off,lr=0.004,optimizer=sgd``: see `_SETTINGS`.

    Raises:
        ConfigError: anything else.
    """
    head, *more = [part.strip() for part in text.split(",")]
    if head in ("off", "closed-form") and not more:
        return Heal(head)
    key, _, value = head.partition("=")
    train_only = "closed-form=off" in more
    settings = tuple(_heal_setting(text, part) for part in more if part != "closed-form=off")
    try:
        if head == "auto":
            return Heal("auto", None, AUTO_MINUTES, train_only, settings)
        if key == "epochs" and int(value) > 0:
            return Heal("epochs", int(value), None, train_only, settings)
        if key == "minutes" and 0 < float(value) < math.inf:
            return Heal("minutes", None, float(value), train_only, settings)
    except ValueError:
        pass
    raise ConfigError(f"--heal '{text}' can't be read", hint=_HEAL_HINT)


def _heal_setting(text: str, part: str) -> tuple[str, float | int | str]:
    name, _, written = part.partition("=")
    if name not in _SETTINGS:
        raise ConfigError(
            f"--heal '{text}': unknown setting '{name}'",
            hint=_nearest(name, ("closed-form", *_SETTINGS), "known"),
        )
    _, kind, allowed = _SETTINGS[name]
    try:
        value = kind(written)
        fits = _ALLOWED[name](value)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"--heal '{text}': {name} can't be '{written}'", hint=f"give {allowed}")
    return name, value


# -- augmentation and losses --------------------------------------------------------------------------

_AUGMENT_HINT = "write flip, crop=4, module:callable, or several joined by commas"
_LOSS_HINT = "write for instance output=1,features=0.5"
LOSSES = ("output", "features", "kl", "mse", "cosine", "ce", "bce", "task_mse")


def parse_augment(text: str) -> tuple[str, ...]:
    """``flip,crop=4`` or ``module:callable``: the steps, in order.

    Raises:
        ConfigError: anything else.
    """
    steps = tuple(part.strip() for part in text.split(","))
    for step in steps:
        if not re.fullmatch(r"flip|crop=[1-9][0-9]*|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", step):
            raise ConfigError(f"--augment '{step}' can't be read", hint=_AUGMENT_HINT)
    return steps


def parse_losses(text: str) -> dict[str, float]:
    """``output=1,features=0.5``: what is compared while training, and how much each counts.

    Raises:
        ConfigError: an unknown kind, or a weight that is no number from 0 on, or nothing that counts.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        kind, _, value = part.strip().partition("=")
        if kind not in LOSSES:
            raise ConfigError(f"--loss: unknown kind '{kind}'", hint=_nearest(kind, LOSSES, "known"))
        try:
            weights[kind] = float(value)
        except ValueError:
            weights[kind] = math.nan
        if not 0 <= weights[kind] < math.inf:
            raise ConfigError(
                f"--loss '{part.strip()}' can't be", hint="write for instance output=1,features=0.5"
            )
    if not any(weights.values()):
        raise ConfigError(f"--loss '{text}': nothing counts", hint="write for instance output=1,features=0.5")
    return weights


# -- patterns ---------------------------------------------------------------------------------------

LAYERS = "layers"
NOTHING = "none"  # no unit goes: for a stack of zeros or of quantization alone
KIND_PATTERNS: dict[str, tuple[str, ...]] = {  # kind of group in plan.json -> patterns that let it go
    "channel": ("channels",),
    "head": ("heads",),
    "kv_head": ("heads", "kv_heads"),
    "head_dim": ("heads", "head_dims"),
    "neuron": ("neurons",),
    "hidden": ("neurons", "hidden"),
    "expert": ("neurons", "experts"),
    "rnn_unit": ("neurons", "rnn_units"),
}
UNIT_PATTERNS = (
    *("channels", "heads", "neurons"),
    *("kv_heads", "head_dims", "hidden", "experts", "rnn_units"),
    LAYERS,
)
DEFAULT_PATTERNS = ("channels", "heads", "neurons")  # a whole layer goes only where that was asked for


def parse_patterns(text: str) -> tuple[str, ...]:
    """A comma-separated list of what may be cut, and at most one pattern of zeros; ``none`` cuts nothing.

    ``heads`` takes groups of grouped-query attention and features of heads along, ``neurons`` all units
    that aren't channels or heads; the narrower names are for one kind alone.

    Raises:
        ConfigError: an unknown pattern, or two patterns of zeros, or ``none`` beside units.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    zeros = []
    for name in names:
        found = parse_sparsity(name)
        if found is not None:
            zeros.append(found)
        elif name == NOTHING:
            if set(names) & set(UNIT_PATTERNS):
                raise ConfigError("--patterns: 'none' and units exclude each other", hint="leave one out")
        elif name not in UNIT_PATTERNS:
            raise ConfigError(
                f"--patterns: unknown pattern '{name}'",
                hint=_nearest(name, (*UNIT_PATTERNS, "unstructured=0.9", "2:4"), "known"),
            )
    if len(zeros) > 1:
        raise ConfigError(f"--patterns: {zeros[0]} and {zeros[1]} exclude each other", hint="use one of them")
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


def parse_input(text: str) -> tuple[str, str]:
    """``sr=16000``, ``flag=true``, ``size=480,640``, ``state=zeros.npy``: an input's name and value as text.

    Raises:
        ConfigError: anything else.
    """
    name, _, value = text.partition("=")
    number = r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"
    if not name or not re.fullmatch(rf"true|false|{number}(,{number})*|.+\.npy", value):
        raise ConfigError(
            f"--input '{text}' can't be read",
            hint="write INPUT=NUMBER, INPUT=NUMBER,NUMBER, INPUT=true or INPUT=FILE.npy",
        )
    return name, value


def input_value(name: str, text: str) -> Any:
    """The array that a value of `parse_input` stands for.

    Raises:
        DataError: a file can't be read.
    """
    import numpy as np

    if text.endswith(".npy"):
        from pathlib import Path

        from condensec.data.npz import read_npy
        from condensec.errors import DataError

        path = Path(text)
        if not path.is_file():
            raise DataError(f"no such file: {path}", node=name, hint=f"check the path after --input {name}=")
        return np.asarray(read_npy(path))
    if text in ("true", "false"):
        return np.asarray(text == "true")
    numbers = [float(part) if re.search(r"[.eE]", part) else int(part) for part in text.split(",")]
    return np.asarray(numbers if "," in text else numbers[0])


def _nearest(name: str, known: Iterable[str], label: str) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    listed = f"{label}: {', '.join(known)}"
    return f"did you mean '{near[0]}'? {listed}" if near else listed
