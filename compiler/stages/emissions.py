"""A model as a target's runtime wants it, within the guard and the latency asked for.

What was emitted before in the same run is copied: quantizing is minutes of calibration and trials. The
original is emitted to see what emission alone brings, and again where that is enough; an accepted model is
emitted to measure it, and again at the end.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from condensec import provenance
from condensec.hardware import bench, emit, sparse
from condensec.hardware.choosing import QUICK
from condensec.hardware.target import Target
from condensec.stages import int8
from condensec.stages.heal import Healer
from condensec.stages.job import Job

NEAR = 0.99  # of the latency asked for: measurements repeat to about a percent


def written(
    job: Job, target: Target, model: ir.Model, out: Path, healer: Healer | None = None
) -> emit.Artifact:
    """Write one target's graph; a lower precision is only kept where the guard holds with it, too."""

    def write(accept: Callable[[Path], bool]) -> emit.Artifact:
        return emit.emit(
            job.plain(model),
            target,
            out,
            precision=job.config.quantize,
            samples=job.data.splits.calibration,
            threads=job.config.jobs,
            accept=accept if job.config.quantize != "none" else None,
            fast_enough=_fast_enough(job, target),
            calibrate=job.config.calibrate,
            origin=provenance.entries(job.sha256),
        )

    def guarded() -> emit.Artifact:
        return job.once("emissions", Emissions).get(
            model, target, out, lambda: write(lambda path: job.keeps_guard(int8.metric(job, path)))
        )

    if healer is not None and healer.minutes.trains_quantized:
        artifact = int8.trained(job, healer, guarded, write)
    else:
        artifact = guarded()
    return _stored(target, artifact) if job.config.sparse else artifact


def _fast_enough(job: Job, target: Target) -> Callable[[Path], bool] | None:
    """Whether a graph is as fast as was asked for; None where nothing was, or the precision was."""
    asked = [budget for budget in job.config.budgets if budget.kind == "latency"]
    if job.config.quantize != "auto" or not asked or not target.measurable():
        return None

    def fast_enough(path: Path) -> bool:
        found = bench.compare(job.loaded.path, path, job.feeds(1), protocol=QUICK)
        return all(
            (found.ratio if budget.relative else found.b.seconds * 1e3) <= NEAR * budget.value
            for budget in asked
        )

    return fast_enough


def _stored(target: Target, artifact: emit.Artifact) -> emit.Artifact:
    """The artifact with its zeros left out of the file, where the target's runtime reads that."""
    note = sparse.store(artifact.path, target.runtime)
    return replace(artifact, bytes=bench.model_bytes(artifact.path), notes=(*artifact.notes, note))


class Emissions:
    """The last graphs of each target, kept in a folder that goes with this object.

    Args:
        most: graphs of a target that are kept.
    """

    def __init__(self, most: int = 2) -> None:
        self._most = most
        self._folder = Path(tempfile.mkdtemp(prefix="condensec-emitted-"))
        weakref.finalize(self, shutil.rmtree, self._folder, True)
        self._known: dict[str, dict[str, emit.Artifact]] = {}

    def get(
        self, model: ir.Model, target: Target, out: Path, write: Callable[[], emit.Artifact]
    ) -> emit.Artifact:
        """What ``write`` puts into the folder ``out``; copied there if it was written for this model before.

        Models that differ in their metadata alone are the same; the file gets entries it lacks.
        """
        key = _digest(model)
        known = self._known.setdefault(target.name, {})
        found = known.get(key or "")
        if found is not None:
            shutil.copytree(found.path.parent, out, dirs_exist_ok=True)
            provenance.carry(provenance.of(model), out / found.path.name)
            return _at(found, out / found.path.name)
        made = write()
        if key is not None:
            kept = self._folder / target.name / key
            shutil.copytree(made.path.parent, kept)
            known[key] = _at(made, kept / made.path.name)
            while len(known) > self._most:
                shutil.rmtree(known.pop(next(iter(known))).path.parent)
        return made


def _at(artifact: emit.Artifact, path: Path) -> emit.Artifact:
    """The same graph in another place."""
    command = artifact.command.replace(str(artifact.path), str(path))
    return replace(artifact, path=path, command=command, bytes=bench.model_bytes(path))


def _digest(model: ir.Model) -> str | None:
    """Of graph and weights; None for a model that is too large to be one message."""
    proto = ir.to_proto(model)
    del proto.metadata_props[:]
    try:
        return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    except ValueError:  # over two gigabytes
        return None
