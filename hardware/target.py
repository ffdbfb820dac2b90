"""Targets: where a model will run, as plain data, and how one is found by its name.

A target is described by one `Target` in one file of ``hardware/targets``; being there registers it. Other
packages register theirs under the entry-point group ``condensec.targets``, users write a TOML file with the
same field names and give its path instead of a name.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from condensec.errors import ConfigError

ENTRY_POINTS = "condensec.targets"
KINDS = ("conv", "depthwise", "matmul")
PRECISIONS = ("fp32", "fp16", "int8")
VERIFICATIONS = ("measured", "emulated", "parsed", "modelled")
LATENCY_MODELS = ("table", "instructions", "analytic")


@dataclass(frozen=True)
class Peak:
    """Peak figures, for the modelled targets and the report.

    Attributes:
        units: processors that work side by side for one inference: cores used, or a GPU's SMs.
        clock_ghz: clock of one unit.
        fma: fused multiply-adds one unit does a clock, by precision.
        bandwidth_gbs: memory bandwidth, GB/s.
        cache_mb: last-level cache.
        source: where the figures come from.
    """

    units: int = 1
    clock_ghz: float = 0.0
    fma: Mapping[str, int] = field(default_factory=dict)
    bandwidth_gbs: float = 0.0
    cache_mb: float = 0.0
    source: str = ""

    @property
    def vectors(self) -> float:
        """Vector instructions of four lanes one unit executes a second, taking 1 GHz for an unknown clock.

        All instructions are taken to go at this rate where they're counted: an assumption that cancels out in
        every ratio.
        """
        return max(1.0, self.fma.get("fp32", 4) / 4) * (self.clock_ghz or 1.0) * 1e9


@dataclass(frozen=True)
class Target:
    """A place to run.

    Attributes:
        name: what ``--target`` takes.
        summary: one line for ``condensec targets``.
        runtime: the program that executes the emitted file.
        isa: instruction set level (`condensec.hardware.isa`), or the GPU's compute capability.
        precisions: what can be emitted, in the order to prefer where nothing can be measured.
        hard: precision -> op kind -> multiple below which kernels fall off their fast path (missing: 1).
        grid: step between the channel counts worth considering.
        blocks: op kind -> channels a kernel computes at once; a part costs as much as all (missing: 1).
        dialect: file of ``hardware/emit`` that writes for it.
        file_format: extension of the emitted file.
        fixed_shapes: the emitted graph has no dynamic dimension.
        sparsity: structured sparsity the hardware profits from, e.g. ``2:4``.
        latency: how latency is predicted: "table", "instructions" or "analytic".
        peak: peak figures.
        verified: how far it's checked where the target itself isn't at hand.
        table: file of a latency table of the device (`condensec.hardware.devicetable`), or empty.
        needs: importable modules without which it can't be served.
        notes: facts worth a line in the report.
    """

    name: str
    summary: str
    runtime: str
    isa: str
    precisions: tuple[str, ...]
    dialect: str
    latency: str
    grid: int = 8
    hard: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    file_format: str = ".onnx"
    fixed_shapes: bool = False
    sparsity: tuple[str, ...] = ()
    peak: Peak = field(default_factory=Peak)
    verified: str = "modelled"
    needs: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    table: str = ""
    blocks: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks = (
            (self.grid >= 1, f"grid is {self.grid}, it has to be at least 1"),
            (set(self.blocks) <= set(KINDS), f"blocks are given per kind of operator, of {KINDS}"),
            (min(self.blocks.values(), default=1) >= 1, "a block has at least 1 channel"),
            (
                set(self.precisions) <= set(PRECISIONS) and self.precisions,
                f"precisions are among {PRECISIONS}",
            ),
            (set(self.hard) <= set(PRECISIONS), f"hard alignments are given per precision of {PRECISIONS}"),
            (self.verified in VERIFICATIONS, f"verified is one of {VERIFICATIONS}"),
            (self.latency in LATENCY_MODELS, f"latency is one of {LATENCY_MODELS}"),
        )
        for holds, message in checks:
            if not holds:
                raise ConfigError(f"target '{self.name}': {message}")

    def __hash__(self) -> int:
        return hash(self.name)

    def available(self) -> str | None:
        """Why it can't be served on this machine, or None if it can."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}" if missing else None

    def alignment(self, kind: str = "conv", precision: str = "fp32") -> int:
        """The multiple channel counts of this kind of op should keep; 1 = any count is as good."""
        return int(self.hard.get(precision, {}).get(kind, 1))

    def block(self, kind: str = "conv") -> int:
        """Channels that kernels of this kind compute at once; 1 = each by itself."""
        return int(self.blocks.get(kind, 1))

    def levels(
        self, size: int, kind: str = "conv", precision: str = "fp32", align: int | None = None
    ) -> tuple[int, ...]:
        """Unit counts worth considering for a group of ``size`` units, largest (= all) first.

        Args:
            size: units there are.
            kind: op kind the units belong to, of `KINDS`.
            precision: precision the target will run.
            align: replaces the target's own grid and alignment (``--align``); 1 = any count.

        Returns:
            ``size`` and every multiple of the grid below it; for groups of at most two grid steps every
            multiple of the hard alignment, as the grid would leave no choice there.
        """
        hard = self.alignment(kind, precision)
        step = align or max(self.grid, hard)
        if align is None and size <= 2 * step:
            step = hard if hard > 1 and size >= 2 * hard else max(1, min(4, size // 4))
        return (size, *range((size - 1) // step * step, 0, -step))

    def how_verified(self) -> str:
        """How numbers for this target are obtained on this very machine, one of `VERIFICATIONS`."""
        return "measured" if self.measurable() else self.verified

    def how_checked(self) -> str:
        """The same in a line: what stands behind the word on this very machine."""
        from condensec.hardware import isa

        if self.measurable():
            return "measured: graphs are timed here"
        if self.table:
            return f"{self.verified}: a table of the device"
        if self.latency == "table" and isa.at_least(isa.detect(), self.isa):
            return f"{self.verified}: this machine's times, the target's widths"
        if self.runtime.startswith("onnxruntime"):
            return f"{self.verified}: by formula; graphs run here"
        return f"{self.verified}: by formula; nothing runs here"

    def measurable(self) -> bool:
        """Whether graphs for this target can be timed on this very machine."""
        from condensec.hardware import isa

        return self.latency == "table" and self.isa == isa.detect()

    def to_json(self) -> dict[str, Any]:
        """Plain data for reports and ``condensec targets --json``."""
        doc: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        doc["hard"] = {precision: dict(kinds) for precision, kinds in self.hard.items()}
        doc["blocks"] = dict(self.blocks)
        doc["peak"] = {f.name: getattr(self.peak, f.name) for f in fields(Peak)}
        doc["peak"]["fma"] = dict(self.peak.fma)
        doc["table"] = Path(self.table).name
        for name in ("precisions", "sparsity", "needs", "notes"):
            doc[name] = list(doc[name])
        return doc | {"how_verified": self.how_verified(), "unavailable": self.available()}


def from_toml(path: Path) -> Target:
    """A user's own target. Field names are those of `Target`; ``base`` names one to start from.

    Raises:
        ConfigError: the file can't be read, or has a field no target has.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        doc: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"can't read the target file {path}: {error}") from error
    doc.setdefault("name", path.stem)
    base = doc.pop("base", None)
    known = {f.name for f in fields(Target)}
    if unknown := sorted(set(doc) - known):
        raise ConfigError(
            f"{path}: a target has no field {unknown[0]!r}", hint=f"fields: {', '.join(sorted(known))}"
        )
    try:
        for name in ("precisions", "sparsity", "needs", "notes"):
            if name in doc:
                doc[name] = tuple(doc[name])
        if "peak" in doc:
            doc["peak"] = Peak(**doc["peak"])
        if doc.get("table"):
            doc["table"] = str(path.parent / doc["table"])
        made = replace(get(str(base)), **doc) if base else Target(**doc)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from error
    if "table" not in doc:
        return made
    from condensec.hardware import devicetable

    return devicetable.attach(made, Path(made.table))


def get(name: str | Path) -> Target:
    """The target of this name, or described by this TOML file.

    Raises:
        ConfigError: there's no such target; the nearest name is given.
    """
    if str(name).endswith(".toml"):
        return from_toml(Path(name))
    targets = all_targets()
    if str(name) in targets:
        return targets[str(name)]
    near = difflib.get_close_matches(str(name).lower(), targets, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'? " if near else ""
    broken = "".join(f"; the plugin {plugin} couldn't be loaded: {why}" for plugin, why in problems().items())
    raise ConfigError(
        f"there is no target '{name}'", hint=f"{hint}known targets: {', '.join(targets)}{broken}"
    )


def all_targets() -> Mapping[str, Target]:
    """Every known target by name, the built-in ones first.

    Raises:
        ConfigError: two have the same name.
    """
    return _discover()[0]


def problems() -> Mapping[str, str]:
    """Third-party targets that couldn't be loaded, and why."""
    return _discover()[1]


def collect(found: Iterable[tuple[str, Target]]) -> dict[str, Target]:
    """Targets by name, from (where it was found, target) pairs.

    Raises:
        ConfigError: a name comes twice.
    """
    where: dict[str, str] = {}
    targets: dict[str, Target] = {}
    for place, target in found:
        if target.name in targets:
            raise ConfigError(
                f"the target '{target.name}' is defined in both {where[target.name]} and {place}"
            )
        where[target.name], targets[target.name] = place, target
    return targets


@functools.cache
def _discover() -> tuple[Mapping[str, Target], Mapping[str, str]]:
    from condensec.hardware import targets as package

    found: list[tuple[str, Target]] = []
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found.extend((module.__name__, target) for target in module.TARGETS)
    failed: dict[str, str] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            loaded = point.load()
            loaded = loaded() if callable(loaded) else loaded
            loaded = (loaded,) if isinstance(loaded, Target) else tuple(loaded)
            if not all(isinstance(target, Target) for target in loaded):
                raise TypeError("it isn't a Target or a sequence of them")
            found.extend((f"the entry point {point.name} ({point.value})", target) for target in loaded)
        except Exception as error:  # someone else's code: it must not break every run
            failed[f"{point.name} ({point.value})"] = f"{type(error).__name__}: {error}"
    return MappingProxyType(collect(found)), MappingProxyType(failed)
