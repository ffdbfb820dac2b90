"""Emission: from the healed fp32 model to the file a target's runtime wants.

One file a dialect, found by being there: a module with ``variants(request, precision) -> names``,
``write(request, precision, variant, path) -> notes`` and ``command(request, path, precision) -> str``.
What is common to all is here: every candidate is run once and compared with fp32; where the target can be
measured, a lower precision is kept only if it's faster.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from condensec import provenance
from condensec.errors import CondensecError, ConfigError
from condensec.hardware import bench
from condensec.hardware.emission import Arrays, Artifact, Fidelity, Request, check, reference
from condensec.hardware.protocol import Protocol
from condensec.hardware.target import Target

if TYPE_CHECKING:
    from condensec.data import Samples
    from condensec.serialized import ModelSource

__all__ = ["Artifact", "Fidelity", "dialects", "emit"]

FILE = "model.onnx"
SPECS = ("none", "fp32", "int8", "fp16", "auto")
_QUICK = Protocol(pairs=30, min_seconds=0.5, max_seconds=10.0)
_AGREEMENT = 0.98  # for "auto" without a guard of the caller's
_COSINE = 0.99


def dialects() -> tuple[str, ...]:
    """Names of the dialects that are there."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(__path__)))


def emit(
    model: ModelSource,
    target: Target,
    out: Path,
    *,
    precision: str = "none",
    samples: Samples | None = None,
    threads: int = 1,
    accept: Callable[[Path], bool] | None = None,
    origin: Mapping[str, str] | None = None,
) -> Artifact:
    """Write what to deploy on a target.

    Args:
        model: the fp32 model; not modified.
        target: where it will run.
        out: folder to write ``model.onnx`` into; made if it isn't there.
        precision: "none" (fp32), "int8", "fp16", or "auto": the best that is faster and accepted.
        samples: for calibration and for the comparison with fp32; default: synthetic ones.
        threads: threads for calibration and checks.
        accept: whether a graph of lower precision keeps the guard; default: same answer on 98%.
        origin: entries of `condensec.provenance` for the file, where the model has none of its own.

    Returns:
        What was written. Its notes say why a precision that was asked for wasn't taken.

    Raises:
        ConfigError: an unknown precision or dialect, or a folder that can't be written.
        PostconditionError: the fp32 graph failed its check; nothing was written.
    """
    if precision not in SPECS:
        raise ConfigError(f"there is no precision '{precision}'", hint=f"choose one of {', '.join(SPECS)}")
    dialect, request = _dialect(target), _request(model, target, samples, threads)
    expected = reference(request)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".emit-", dir=out))
    except OSError as error:
        raise ConfigError(f"can't write to {out}: {error.strerror}") from error
    try:
        base = _candidate(dialect, request, "fp32", "", work, expected)
        chosen, notes, tried = _best(dialect, request, base, precision, work, expected, accept)
        provenance.carry({**(origin or {}), **provenance.of(request.model)}, chosen.path)
        path = _publish(chosen.path, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Artifact(
        path=path,
        precision=chosen.precision,
        bytes=bench.model_bytes(path),
        verified=target.how_verified(),
        notes=(*chosen.notes, *notes, str(chosen.fidelity)),
        fidelity=chosen.fidelity,
        command=dialect.command(request, path, chosen.precision),
        tried=tried,
    )


class _Candidate:
    """A graph written but not published."""

    def __init__(self, path: Path, precision: str, notes: tuple[str, ...], fidelity: Fidelity) -> None:
        self.path, self.precision, self.notes, self.fidelity = path, precision, notes, fidelity


def _dialect(target: Target) -> ModuleType:
    if target.dialect not in dialects():
        raise ConfigError(
            f"target '{target.name}' wants the dialect '{target.dialect}'",
            hint=f"there are {', '.join(dialects())}",
        )
    return importlib.import_module(f"{__name__}.{target.dialect}")


def _request(model: ModelSource, target: Target, samples: Samples | None, threads: int) -> Request:
    from condensec.data import synthetic
    from condensec.model_signature import signature
    from condensec.serialized import to_ir

    graph = to_ir(model)
    return Request(graph, target, samples if samples is not None else synthetic(signature(graph)), threads)


def _candidate(
    dialect: ModuleType, request: Request, precision: str, variant: str, work: Path, expected: Arrays
) -> _Candidate:
    path = work / f"{precision}-{variant}" / FILE
    path.parent.mkdir()
    notes = tuple(dialect.write(request, precision, variant, path))
    return _Candidate(path, precision, notes, check(path, request, expected, precision))


def _best(
    dialect: ModuleType,
    request: Request,
    base: _Candidate,
    asked: str,
    work: Path,
    expected: Arrays,
    accept: Callable[[Path], bool] | None,
) -> tuple[_Candidate, tuple[str, ...], dict[str, float]]:
    """The candidate to keep, why others weren't, and their measured times over fp32."""
    target = request.target
    best, best_ratio = base, 1.0
    notes: list[str] = []
    tried: dict[str, float] = {}
    for precision in _wanted(target, asked):
        if precision not in target.precisions:
            notes.append(f"{precision} isn't offered for {target.name}: {_why_not(target)}")
            continue
        for variant in dialect.variants(request, precision):
            name = f"{precision} ({variant})" if variant else precision
            try:
                one = _candidate(dialect, request, precision, variant, work, expected)
            except CondensecError as error:
                notes.append(f"{name} was left out: {error.message}")
                continue
            if (asked == "auto" or accept is not None) and not _accepted(one, accept):
                notes.append(f"{name} was left out: it doesn't keep the guard ({one.fidelity})")
                continue
            if target.how_verified() != "measured":
                return one, tuple(notes), tried
            result = bench.compare(base.path, one.path, request.feeds(), protocol=_QUICK)
            tried[name] = result.ratio
            if result.verdict != "faster":
                notes.append(f"{name} was left out: {_ratio(result)} the time of fp32 here")
            elif result.ratio < best_ratio:
                best, best_ratio = one, result.ratio
    return best, tuple(notes), tried


def _wanted(target: Target, asked: str) -> tuple[str, ...]:
    """Precisions below fp32 to try, in order; where nothing is measured, fp32 ends the target's own order."""
    if asked in ("none", "fp32"):
        return ()
    if asked != "auto":
        return (asked,)
    order = target.precisions
    if target.how_verified() != "measured" and "fp32" in order:
        order = order[: order.index("fp32")]
    return tuple(precision for precision in order if precision != "fp32")


def _ratio(result: bench.Comparison) -> str:
    return f"{result.ratio:.2f}x (95% interval {result.ci95[0]:.2f} to {result.ci95[1]:.2f})"


def _why_not(target: Target) -> str:
    return target.notes[0] if target.notes else f"it takes {', '.join(target.precisions)}"


def _accepted(one: _Candidate, accept: Callable[[Path], bool] | None) -> bool:
    if accept is not None:
        return accept(one.path)
    agreement = one.fidelity.agreement
    return one.fidelity.cosine >= _COSINE if agreement is None else agreement >= _AGREEMENT


def _publish(path: Path, out: Path) -> Path:
    """Move the graph (its external weights first) to its final name."""
    for file in sorted(path.parent.iterdir(), key=lambda file: file.name == FILE):
        os.replace(file, out / file.name)
    return out / FILE
