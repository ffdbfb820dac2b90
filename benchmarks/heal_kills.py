"""A heal whose worker is killed again and again, beside one that is left in peace: the same weights?

    python benchmarks/heal_kills.py [--kills 20] [--seed 0]

A small network, trained for a fixed number of epochs. In the second run the worker gets SIGKILL at random
moments of its life, from its start on; the same call is then made again with the same state folder. After
the last kill it may finish. Every kill has to end in one `HealError`, and the end has to be the same: equal
weights, equal validations, the student's file untouched.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from condensec.data import Samples
from condensec.errors import HealError
from condensec.healing import HealOptions, HealResult, client, heal, session
from condensec.runner import Session

EPOCHS, COUNT, WIDTH = 60, 1024, 64


def network(seed: int, noise: float) -> onnx.ModelProto:
    """Two convolutions and a linear layer; the weights disturbed by some noise."""
    rng = np.random.default_rng(0)
    weights = {"w1": (WIDTH, 3, 3, 3), "w2": (WIDTH, WIDTH, 3, 3), "w3": (WIDTH, 10)}
    other = np.random.default_rng(seed)
    tensors = []
    for name, shape in weights.items():
        array = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) if len(shape) > 2 else shape[0])
        array += noise * array.std() * other.standard_normal(shape)
        tensors.append(numpy_helper.from_array(array.astype(np.float32), name))
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "kills",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class Doomed(client.Worker):
    """A worker that is killed after some seconds, if it still lives then."""

    after: float | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self.after is not None:
            timer = threading.Timer(self.after, self.process.kill)
            timer.daemon = True
            timer.start()


def run(folder: Path, samples: Samples, after: float | None) -> HealResult:
    """One call; its worker is killed after some seconds."""
    Doomed.after = after
    session.Worker = Doomed  # type: ignore[misc]
    train, validation = samples.first(COUNT), samples.subset(np.arange(COUNT, len(samples)))
    options = HealOptions(epochs=EPOCHS, batch=32)
    student, teacher = folder / "student.onnx", folder / "teacher.onnx"
    return heal(student, teacher, train, validation, options, state=folder / "state")


def main() -> int:
    """Run both and compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(network(1, 0.0), folder / "teacher.onnx")
        onnx.save(network(1, 0.5), folder / "student.onnx")
        before = (folder / "student.onnx").read_bytes()
        x = np.random.default_rng(2).standard_normal((COUNT + 256, 3, 8, 8)).astype(np.float32)
        samples = Samples({"x": x})
        assert Session(folder / "teacher.onnx").run({"x": x[:2]})["y"].shape == (2, 10)
        begun = time.monotonic()
        peace = run(folder, samples, None)
        life = time.monotonic() - begun
        kills, errors, calls = 0, set(), 0
        while True:
            calls += 1
            # from the very start to a fifth of a whole run: they die young, and still it comes to an end
            after = rng.uniform(0.0, 0.2 * life) if kills < given.kills else None
            try:
                war = run(folder, samples, after)
            except HealError as error:
                kills += 1
                errors.add(str(error).split(";")[0])
                continue
            if kills >= given.kills or after is None:
                break
        same = all(np.array_equal(peace.weights[n], war.weights[n]) for n in peace.weights)
        curves = [[(r.number, r.validation_loss) for r in result.loss_curve] for result in (peace, war)]
        found = {
            "kills": kills,
            "calls": calls,
            "errors": sorted(errors),
            "seconds_in_peace": life,
            "before": peace.before,
            "after": [peace.after, war.after],
            "same_weights": same,
            "same_validations": curves[0] == curves[1],
            "student_untouched": (folder / "student.onnx").read_bytes() == before,
        }
    print(json.dumps(found, indent=2))
    return 0 if same and found["student_untouched"] and kills == given.kills else 1


if __name__ == "__main__":
    raise SystemExit(main())
