"""Graphs that were emitted before in the same run: quantizing one is minutes of calibration and trials.

The original is emitted to see what emission alone brings, and again where that is enough; an accepted model
is emitted to measure it, and again at the end.
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
from condensec.hardware import bench, emit
from condensec.hardware.target import Target


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
