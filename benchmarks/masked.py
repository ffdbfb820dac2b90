"""The masked original: what a plan takes away, zeroed in the original file. Knows only ONNX and plan.json.

It answers two questions without trusting the compiler: how good is the model right after the cut, before
any healing; and does the compiler's own check tell the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def masked(model: Path, plan: Mapping[str, Any]) -> onnx.ModelProto:
    """The original with every weight slice that `plan` doesn't list set to zero (a running variance: one).

    Equal to the cut model where every group of the plan is `exact`; where a norm or softmax reduces over a
    cut axis the two differ.

    Raises:
        KeyError: the plan names a weight that the file doesn't have.
    """
    graph = onnx.load(model)
    weights = {w.name: w for w in graph.graph.initializer}
    for node in graph.graph.node:
        if node.op_type == "Constant":
            weights[node.output[0]] = node.attribute[0].t
    for copy, split in plan.get("splits", {}).items():  # one weight, users that are cut differently
        user = next(n for n in graph.graph.node if n.output and n.output[0] == split["output"])
        user.input[split["input"]] = copy
        weights[copy] = graph.graph.initializer.add()
        weights[copy].CopyFrom(weights[split["of"]])
        weights[copy].name = copy
    variances = {n.input[4] for n in graph.graph.node if n.op_type == "BatchNormalization"}
    for name, axes in plan["slices"].items():
        array = numpy_helper.to_array(weights[name]).copy()
        for axis, kept in axes.items():
            gone = np.setdiff1d(np.arange(array.shape[int(axis)]), kept)
            where: list[Any] = [slice(None)] * array.ndim
            where[int(axis)] = gone
            array[tuple(where)] = 1 if name in variances else 0
        weights[name].CopyFrom(numpy_helper.from_array(array, weights[name].name))
    return graph


def save_masked(model: Path, plan: Mapping[str, Any], path: Path) -> Path:
    """Writes the masked original and returns its path."""
    onnx.save(masked(model, plan), path)
    return path
