"""Emission: from the healed fp32 model to the file a target's runtime wants.

One file a dialect, found by being there: a module with

- ``variants(request, precision) -> names`` of its ways to write a precision, the likeliest first;
- ``write(request, recipe, path) -> notes``;
- ``slow(request, variant)`` and ``doubtful(request, variant)``: layers that stay fp32 where nothing can be
  measured, and those to try in fp32, too, where it can; with reasons;
- ``command(request, path, precision) -> str``: a line that measures the graph on the device.

What is common to all is here: every candidate is run once and compared with fp32; where the target can be
measured, a lower precision is kept only if it's faster (`condensec.hardware.choosing`).
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from condensec import provenance
from condensec.errors import ConfigError, PostconditionError
from condensec.hardware import bench
from condensec.hardware.calibration import METHODS
from condensec.hardware.choosing import FILE, Candidate, Search
from condensec.hardware.emission import Artifact, Fidelity, Request, reference
from condensec.hardware.mobile_checks import ort_format
from condensec.hardware.quantize import already_quantized
from condensec.hardware.target import Target

if TYPE_CHECKING:
    from condensec.data import Samples
    from condensec.serialized import ModelSource

__all__ = ["CALIBRATIONS", "Artifact", "Fidelity", "dialects", "emit"]

SPECS = ("none", "fp32", "int8", "fp16", "auto")
CALIBRATIONS = ("auto", *METHODS)


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
    fast_enough: Callable[[Path], bool] | None = None,
    calibrate: str = "auto",
    ort: bool = False,
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
        fast_enough: whether a graph is as fast as was asked for: an int8 graph that is faster than that gets
            layers back in fp32; default: the fastest is the best.
        calibrate: how ranges of int8 activations are found: one of `CALIBRATIONS`.
        ort: write onnxruntime's own format beside, for minimal builds.
        origin: entries of `condensec.provenance` for the file, where the model has none of its own.

    Returns:
        What was written. Its notes say why a precision that was asked for wasn't taken.

    Raises:
        ConfigError: an unknown precision or dialect, or a folder that can't be written.
        PostconditionError: the fp32 graph failed its check; nothing was written.
    """
    _check_words(precision, calibrate)
    dialect, out = _dialect(target), Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".emit-", dir=out))
    except OSError as error:
        raise ConfigError(f"can't write to {out}: {error.strerror}") from error
    try:
        request = replace(
            _request(model, target, samples, threads, calibrate, work), choosy=precision == "auto"
        )
        search = Search(dialect, request, work, reference(request), accept)
        quantized = already_quantized(request.model)
        chosen = _chosen(search, request, precision, quantized, guarded=accept is not None)
        chosen = chosen if fast_enough is None else search.truer(chosen, fast_enough)
        provenance.carry({**(origin or {}), **provenance.of(request.model)}, chosen.path)
        extra = _ort_format(chosen, search) if ort else []
        path = _publish(chosen.path, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    recipe = chosen.recipe
    return Artifact(
        path=path,
        precision="int8" if quantized else recipe.precision,
        bytes=bench.model_bytes(path),
        verified=target.how_verified(),
        notes=(*chosen.notes, *_layer_notes(chosen), *search.notes, *extra, str(chosen.fidelity)),
        fidelity=chosen.fidelity,
        command=dialect.command(request, path, recipe.precision),
        tried=search.tried,
        calibration=recipe.method if recipe.precision == "int8" else "",
        in_fp32=chosen.reasons,
    )


def _chosen(search: Search, request: Request, precision: str, quantized: int, *, guarded: bool) -> Candidate:
    """The graph of the precision asked for; the plain one of a model that has ``quantized`` nodes already."""
    base = search.base()
    if quantized:
        search.notes.append(f"the model is quantized already ({quantized} nodes): it stays as it is")
        return base
    wanted = _wanted(request.target, precision)
    return search.best(base, wanted, guarded=guarded or precision == "auto")


def _check_words(precision: str, calibrate: str) -> None:
    if precision not in SPECS:
        raise ConfigError(f"there is no precision '{precision}'", hint=f"choose one of {', '.join(SPECS)}")
    if calibrate not in CALIBRATIONS:
        raise ConfigError(
            f"there is no calibration '{calibrate}'", hint=f"choose one of {', '.join(CALIBRATIONS)}"
        )


def _dialect(target: Target) -> ModuleType:
    if target.dialect not in dialects():
        raise ConfigError(
            f"target '{target.name}' wants the dialect '{target.dialect}'",
            hint=f"there are {', '.join(dialects())}",
        )
    return importlib.import_module(f"{__name__}.{target.dialect}")


def _request(
    model: ModelSource, target: Target, samples: Samples | None, threads: int, calibrate: str, work: Path
) -> Request:
    from condensec.data import synthetic
    from condensec.model_signature import signature
    from condensec.serialized import to_ir

    graph = to_ir(model)
    given = samples if samples is not None else synthetic(signature(graph))
    return Request(graph, target, given, threads, calibrate, work)


def _wanted(target: Target, asked: str) -> tuple[str, ...]:
    """Precisions below fp32 to try, in order; where nothing is measured, fp32 ends the target's own order."""
    if asked in ("none", "fp32"):
        return ()
    if asked != "auto":
        return (asked,)
    order = target.precisions
    if not target.measurable() and "fp32" in order:
        order = order[: order.index("fp32")]
    return tuple(precision for precision in order if precision != "fp32")


def _layer_notes(chosen: Candidate) -> list[str]:
    """How ranges were found, and how many layers stay fp32 for which reason."""
    notes = [f"ranges of activations by {chosen.recipe.method}"] if chosen.recipe.precision == "int8" else []
    reasons = list(chosen.reasons.values())
    for reason in dict.fromkeys(reasons):
        count = reasons.count(reason)
        notes.append(f"{count} layer{'s' * (count > 1)} in fp32: {reason}")
    return notes


def _ort_format(chosen: Candidate, search: Search) -> list[str]:
    """Notes about the .ort file; where it can't be had, the ONNX graph is enough."""
    try:
        return ort_format(chosen.path, chosen.path.parent, chosen.recipe.precision)
    except PostconditionError as error:
        search.notes.append(f"no .ort file: {error.message}")
        return []


def _publish(path: Path, out: Path) -> Path:
    """Move the graph (its external weights first) to its final name."""
    for file in sorted(path.parent.iterdir(), key=lambda file: file.name == FILE):
        os.replace(file, out / file.name)
    return out / FILE
