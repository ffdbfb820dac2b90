"""Tables of instructions: which nodes are counted, in parts that survive an interruption.

A node's count doesn't depend on what it is counted beside, so a table grows part by part: what a file holds
already is left out, and each part is written as soon as it is done.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from emulator import Emulator

Table = dict[str, Any]
SEEDS = {  # kernel, stride, depthwise, channels, pixels a side
    "conv3": (3, 1, False, (32, 64, 160), (7, 14, 28, 40)),
    "conv3s2": (3, 2, False, (32, 64, 160), (14, 28, 40)),
    "conv1": (1, 1, False, (32, 96, 240), (1, 7, 14, 28, 40)),
    "conv1s2": (1, 2, False, (64, 160), (14, 28)),
    "conv5": (5, 1, False, (32, 80), (7, 14, 28)),
    "dw3": (3, 1, True, (32, 96, 240), (7, 14, 28, 40)),
    "dw3s2": (3, 2, True, (32, 96, 240), (14, 28, 40)),
    "dw5": (5, 1, True, (48, 144), (7, 14, 28)),
}


EACH = (  # operators on every element, with one operand or two
    "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Exp", "Sqrt", "Neg", "Elu",
    "Softplus", "Add", "Mul", "Sub", "Div",
)  # fmt: skip
SHAPES = ((1, 48, 8, 8), (1, 96, 28, 28), (1, 197, 384))


def elementwise(folder: Path) -> Path:
    """A model of single operators side by side."""
    import onnx
    from onnx import TensorProto, helper

    nodes, inputs, outputs = [], [], []
    for op in EACH:
        for i, shape in enumerate(SHAPES):
            names = [f"{op}_{i}_{part}" for part in ("a", "b")[: 1 + (op in ("Add", "Mul", "Sub", "Div"))]]
            nodes.append(helper.make_node(op, names, [f"{op}_{i}"], name=f"{op}_{i}"))
            inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
            outputs.append(helper.make_tensor_value_info(f"{op}_{i}", TensorProto.FLOAT, shape))
    graph = helper.make_graph(nodes, "each", inputs, outputs)
    path = folder / "each.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def seeds(folder: Path) -> list[Path]:
    """Models of single convolutions side by side, for batch 1: sizes that the given models don't have."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = [elementwise(folder)]
    for name, (kernel, stride, depthwise, channels, sides) in SEEDS.items():
        nodes, inputs, outputs, weights = [], [], [], []
        for c in channels:
            for side in sides:
                x, w, y, z = (f"{part}_{c}_{side}" for part in "xwyz")
                shape = (c, 1 if depthwise else c, kernel, kernel)
                weights.append(numpy_helper.from_array(np.full(shape, 0.01, np.float32), w))
                nodes.append(
                    helper.make_node(
                        "Conv",
                        [x, w],
                        [y],
                        name=y,
                        strides=[stride] * 2,
                        pads=[kernel // 2] * 4,
                        group=c if depthwise else 1,
                    )
                )
                nodes.append(helper.make_node("Relu", [y], [z], name=z))
                out = -(-side // stride)
                inputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, c, side, side]))
                outputs.append(helper.make_tensor_value_info(z, TensorProto.FLOAT, [1, c, out, out]))
        graph = helper.make_graph(nodes, name, inputs, outputs, weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        made.append(folder / f"{name}.onnx")
        onnx.save(model, made[-1])
    return made


def pieces_of(models: list[Path], target: str, seed: int) -> dict[str, Any]:
    """The packed nodes of several models: own widths of all, other widths drawn at random."""
    from condensec.hardware import pack
    from condensec.hardware.graphmodel import GraphModel
    from condensec.hardware.target import get

    rng = np.random.default_rng(seed)
    found: dict[object, pack.Piece] = {}
    for path in models:
        try:
            made = pack.pieces(GraphModel(get(target), path, None))
        except Exception as error:
            print(f"{path.name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        fresh = [piece for piece in made if piece.key not in found]
        weighted = [p for p in fresh if p.key.weighted]
        kept = [weighted[i] for i in rng.permutation(len(weighted))[:40]]
        for piece in [p for p in fresh if not p.key.weighted] + kept:
            found.setdefault(piece.key, piece)
    return pack.packed(list(found.values()), {}, target, "", "")


def counted(machine: Emulator, document: Mapping[str, Any], timeout: float = 3600) -> Table:
    """The table of one packed document."""
    from condensec.hardware import pack

    with tempfile.TemporaryDirectory() as name:
        script, counter, out = (Path(name) / n for n in ("on_device.py", "counter", "table.json"))
        pack.write_script(script, document)
        machine.run(script, "-o", out, "--counter", counter, counter=counter, timeout=timeout)
        table: Table = json.loads(out.read_text())
    table["device"] |= {"cpu": machine.cpu, "emulator": "qemu-user"}
    table["points"] = {key: round(value) for key, value in table["points"].items()}
    return table


def parts(document: Mapping[str, Any], known: Mapping[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """The document without what is known, ``size`` nodes at a time."""
    missing = [node for node in document["nodes"] if node["key"] not in known]
    for start in range(0, len(missing), size):
        yield {**document, "nodes": missing[start : start + size]}


def merged(table: Table, more: Table) -> Table:
    """Both tables' nodes, in order of their names; what failed before may have been counted since."""
    points = dict(sorted({**table.get("points", {}), **more["points"]}.items()))
    failed = {k: v for k, v in {**table.get("failed", {}), **more["failed"]}.items() if k not in points}
    return {**more, "points": points, "failed": failed}


def save(table: Table, path: Path) -> None:
    """Write a table whole or not at all."""
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(table, indent=0) + "\n")
    os.replace(draft, path)


def apart(table: Table, other: Table) -> dict[str, object]:
    """How far two tables' counts of the same nodes are apart, in percent."""
    shared = [key for key in table["points"] if key in other["points"]]
    off = [100 * abs(table["points"][k] / max(1, other["points"][k]) - 1) for k in shared]
    return {
        "nodes in both": len(shared),
        "median %": float(np.median(off)) if off else float("nan"),
        "largest %": max(off, default=float("nan")),
        "largest at": shared[int(np.argmax(off))] if off else "",
    }
