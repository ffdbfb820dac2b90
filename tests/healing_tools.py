"""For the tests of healing: a student to heal, and gradient checks of legalizations, many at a time.

Gradients come from onnxruntime-training, which lives in another Python: all cases are written to files
and one process of that Python answers them all.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from models import random_feeds
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.healing import HealOptions, HealResult, environment, heal
from condensec.healing.client import _BOOT
from condensec.healing.graph import Emitter
from condensec.healing.judge import with_weights
from condensec.healing.losses import LOSS
from condensec.healing.static import infer, run, run_model
from condensec.healing.training import differentiable_copy
from condensec.metrics import METRICS
from condensec.runner import Session

_CHECK = """
import json, os, sys
import numpy as np
import onnxruntime as ort
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
from heal_worker.engine import gradient_model
ort.set_default_logger_severity(4)
from onnxruntime.capi import _pybind_state as native

def definition(op, inputs, outputs):
    node = native.GradientNodeDefinition()
    node.op_type, node.domain, node.inputs, node.outputs, node.attributes = op, "", inputs, outputs, []
    return node

# for the negative control: Sum, which no legalized graph has, passes no gradient
native.register_gradient_definition("::Sum", [
    definition("Shape", ["I(0)"], ["shape"]), definition("ConstantOfShape", ["shape"], ["GI(0)"]),
])
out = {}
for case in json.load(open(sys.argv[2])):
    stored = np.load(case["feeds"])
    feeds = {n: stored[f"a{i}"] for i, n in enumerate(case["names"])}
    raw = open(case["model"], "rb").read()
    rng = np.random.default_rng(0)
    worst = {}
    try:
        forward = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
        back = ort.InferenceSession(gradient_model(raw, case["towards"]), providers=["CPUExecutionProvider"])
        grads = dict(zip(case["towards"], back.run([n + "_grad" for n in case["towards"]], feeds)))
    except Exception as error:
        out[case["id"]] = {"error": str(error)[-300:]}
        continue
    for name in case["towards"]:
        for _ in range(3):
            d = rng.standard_normal(feeds[name].shape).astype(np.float32)
            step = 1e-3
            up, down = ({**feeds, name: feeds[name] + s * step * d} for s in (1, -1))
            change = forward.run(["heal.loss"], up)[0] - forward.run(["heal.loss"], down)[0]
            numeric = float(change) / (2 * step)
            exact = float((grads[name].astype(np.float64) * d).sum())
            scale = max(abs(numeric), abs(exact), case["scale"])
            worst[name] = max(worst.get(name, 0.0), abs(numeric - exact) / scale)
    out[case["id"]] = worst
json.dump(out, open(sys.argv[3], "w"))
"""


@dataclass(frozen=True)
class Case:
    """One operator in one configuration.

    Attributes:
        op: operator, "com.microsoft.X" for another domain.
        inputs: inputs in order: a shape becomes a random graph input, an array a constant, None is left out.
        attributes: of the node.
        outputs: how many outputs the node has.
        opset: of the file.
        low: smallest random input value (the others are up to `low + 2`); None = standard normal.
        label: tells cases of one operator apart.
    """

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 20
    low: float | None = None
    label: str = ""

    @property
    def id(self) -> str:
        return f"{self.op}{'-' + self.label if self.label else ''}-{self.opset}"

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The model and its feeds."""
        rng = np.random.default_rng(7)
        names, feeds, constants = [], {}, []
        for i, given in enumerate(self.inputs):
            name = f"i{i}"
            if given is None:
                names.append("")
                continue
            names.append(name)
            if isinstance(given, np.ndarray):
                constants.append(numpy_helper.from_array(given, name))
            elif self.low is None:
                feeds[name] = rng.standard_normal(given).astype(np.float32)
            else:
                feeds[name] = rng.uniform(self.low, self.low + 2, given).astype(np.float32)
        domain, _, kind = self.op.rpartition(".")
        outs = [f"y{i}" for i in range(self.outputs)]
        node = helper.make_node(kind, names, outs, "node", domain=domain, **self.attributes)
        graph = helper.make_graph(
            [node],
            self.id,
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in feeds.items()],
            [onnx.ValueInfoProto(name="y0")],
            constants,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        version = 10 if self.opset <= 21 else 11
        return helper.make_model(graph, opset_imports=opsets, ir_version=version), feeds


@dataclass(frozen=True)
class Written:
    """A case ready for the gradient check, and how far its forward pass is off."""

    id: str
    forward_error: float
    ops: frozenset[str]
    request: Mapping[str, Any]


def write_case(case: Case, folder: Path) -> Written:
    """Legalize a case, compare its output, and write it with a loss: a random weighted sum of the output."""
    model, feeds = case.model()
    wanted = run_model(model, feeds)["y0"]
    graph, weights, barriers = differentiable_copy(model, feeds)
    if barriers:
        raise AssertionError(f"{case.id}: no gradient: {barriers}")
    found = run(graph, feeds)["y0"]
    error = float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-6))
    ops = frozenset(n.op_type for n in graph.nodes)
    e = Emitter(graph, "loss")
    mix = np.random.default_rng(1).standard_normal(wanted.shape).astype(np.float32)
    e.op("ReduceSum", e.op("Mul", "y0", e.const(mix)), keepdims=0, out=LOSS)
    graph.nodes += e.nodes
    graph.outputs = [LOSS]
    graph.shapes[LOSS], graph.types[LOSS] = (), TensorProto.FLOAT
    infer(graph)
    name = case.id.replace(".", "_")
    (folder / f"{name}.onnx").write_bytes(graph.model(as_inputs=weights).SerializeToString())
    arrays = {**feeds, **{w: graph.constants[w] for w in weights}}
    np.savez(folder / f"{name}.npz", **{f"a{i}": a for i, a in enumerate(arrays.values())})
    request = {
        "id": case.id,
        "model": str(folder / f"{name}.onnx"),
        "feeds": str(folder / f"{name}.npz"),
        "names": list(arrays),
        "towards": list(arrays),
        "scale": float(0.05 * np.linalg.norm(mix)),
    }
    return Written(case.id, error, ops, request)


def check_gradients(written: list[Written], folder: Path) -> dict[str, dict[str, Any]]:
    """Case id -> input -> worst relative error of its gradient along three random directions."""
    from condensec.healing import client

    requests, answers = folder / "requests.json", folder / "answers.json"
    requests.write_text(json.dumps([w.request for w in written]))
    boot = _BOOT + "\n" + _CHECK
    worker = Path(client.__file__).parent / "worker"
    subprocess.run(
        [str(environment.ensure()), "-I", "-c", boot, str(worker), str(requests), str(answers)],
        check=True,
        timeout=300,
        capture_output=True,
    )
    found: dict[str, dict[str, Any]] = json.loads(answers.read_text())
    return found


def noisy(model: onnx.ModelProto, share: float = 0.4) -> onnx.ModelProto:
    """The same network with its weight matrices disturbed: what a cut leaves, in a smaller way."""
    rng = np.random.default_rng(0)
    student = onnx.ModelProto()
    student.CopyFrom(model)
    for tensor in student.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim >= 2:
            noise = rng.standard_normal(array.shape).astype(np.float32) * array.std() * share
            tensor.CopyFrom(numpy_helper.from_array(array + noise, tensor.name))
    return student


class Setting:
    """Teacher, student and samples in a folder."""

    def __init__(
        self,
        folder: Path,
        teacher: onnx.ModelProto,
        student: onnx.ModelProto,
        count: int = 512,
        labelled: bool = True,
    ) -> None:
        self.folder = folder
        self.teacher, self.student, self.state = folder / "t.onnx", folder / "s.onnx", folder / "state"
        onnx.save(teacher, self.teacher)
        onnx.save(student, self.student)
        self.model = student
        feeds = random_feeds(teacher, count + 128, seed=3)
        if not labelled:
            self.train = Samples({k: v[:count] for k, v in feeds.items()})
            self.validation = Samples({k: v[count:] for k, v in feeds.items()})
            return
        labels = Session(teacher).run_samples(Samples(feeds))
        classes = next(iter(labels.values())).argmax(-1)
        self.train = Samples({k: v[:count] for k, v in feeds.items()}, labels=classes[:count])
        self.validation = Samples({k: v[count:] for k, v in feeds.items()}, labels=classes[count:])

    def heal(
        self, metric: Any = None, progress: Any = None, slices: Any = None, **options: Any
    ) -> HealResult:
        return heal(
            self.student, self.teacher, self.train, self.validation, HealOptions(**options),
            metric=metric, state=self.state, progress=progress, slices=slices,
        )  # fmt: skip

    def healed(self, weights: Any) -> onnx.ModelProto:
        """The student with other weights."""
        return with_weights(self.model, weights)

    def accuracy(self, weights: Any) -> float:
        outputs = Session(with_weights(self.model, weights)).run_samples(self.validation)
        return METRICS["top1"].value(outputs, self.validation)
