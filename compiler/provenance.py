"""Where a model came from, in its own metadata: condensec's version, the plan, the original.

Three entries of ``ModelProto.metadata_props``; `onnxruntime` shows them as ``custom_metadata_map``. They hold
nothing of the moment or the machine, so the same run writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from condensec import __version__

if TYPE_CHECKING:
    import onnx_ir as ir

PREFIX = "condensec."
VERSION, ORIGINAL, PLAN = f"{PREFIX}version", f"{PREFIX}original_sha256", f"{PREFIX}plan_sha256"


def stamp(model: ir.Model, *, original: str, plan: str | None = None) -> None:
    """Write a model's provenance into its metadata.

    Args:
        model: the model.
        original: SHA-256 of the original's file.
        plan: `condensec.plan.Plan.digest` of the plan it was cut by; None = it wasn't cut.
    """
    for key in [key for key in model.metadata_props if key.startswith(PREFIX)]:
        del model.metadata_props[key]
    model.metadata_props.update(entries(original, plan))


def entries(original: str, plan: str | None = None) -> dict[str, str]:
    """The entries themselves; see `stamp`."""
    found = {VERSION: __version__, ORIGINAL: original}
    return found if plan is None else {**found, PLAN: plan}


def of(model: ir.Model) -> dict[str, str]:
    """What a model's metadata says of its provenance; empty if condensec never wrote it."""
    return {key: str(value) for key, value in model.metadata_props.items() if key.startswith(PREFIX)}


def carry(known: Mapping[str, str], path: Path) -> None:
    """Give a written file the entries it lacks; tools that rewrite a graph may drop them.

    They are appended: a protobuf's repeated field goes on wherever its tag comes again, so nothing else of
    the file changes.

    Raises:
        ModelError: the file can't be read.
    """
    import onnx

    from condensec import io

    there = io.load(path).metadata_props
    missing = {key: value for key, value in known.items() if key not in there}
    if not missing:
        return
    more = onnx.ModelProto()
    for key, value in sorted(missing.items()):
        more.metadata_props.add(key=key, value=value)
    with open(path, "ab") as file:
        file.write(more.SerializeToString(deterministic=True))
