"""A small trained model and its samples, for the tutorial: which of six shapes is in a picture of 24 x 24?

    python examples/shapes.py            writes shapes.onnx, train.npz, val.npz and test.npz here

The pictures are drawn with numpy, the network (three linear layers) is trained with numpy; it takes under a
minute on one core. Any network of your own that is an ONNX file goes the same way from there.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 24
SHAPES = ("disc", "ring", "square", "frame", "cross", "bar")
WIDTHS = (SIDE * SIDE, 512, 256, len(SHAPES))
Array = NDArray[np.float32]


def draw(count: int, rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Pictures [count, 1, 24, 24] with noise, and which shape each shows."""
    labels = rng.integers(0, len(SHAPES), count)
    centre = rng.uniform(9.5, SIDE - 10.5, (count, 2, 1, 1))
    size = rng.uniform(6, 9.5, (count, 1, 1))
    angle = rng.uniform(0, np.pi, (count, 1, 1))
    row, column = np.mgrid[:SIDE, :SIDE][:, None] - centre.swapaxes(0, 1)
    x, y = np.cos(angle) * column + np.sin(angle) * row, np.cos(angle) * row - np.sin(angle) * column
    radius, edge = np.hypot(x, y), np.maximum(np.abs(x), np.abs(y))
    inside = np.stack([
        radius < size,
        (radius < size) & (radius > 0.6 * size),
        edge < 0.85 * size,
        (edge < 0.85 * size) & (edge > 0.5 * size),
        (edge < size) & (np.minimum(np.abs(x), np.abs(y)) < 0.25 * size),
        (np.abs(x) < size) & (np.abs(y) < 0.3 * size),
    ])  # fmt: skip
    pictures = inside[labels, np.arange(count)] + rng.normal(0, 0.25, (count, SIDE, SIDE))
    return pictures[:, None].astype(np.float32), labels


def train(pictures: Array, labels: NDArray[np.int64], epochs: int, rng: np.random.Generator) -> list[Array]:
    """Weights and biases of the layers, by Adam on the cross entropy."""
    values: list[Array] = []
    for a, b in pairwise(WIDTHS):
        values += [rng.normal(0, (2 / a) ** 0.5, (a, b)).astype(np.float32), np.zeros(b, np.float32)]
    first, second = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values]
    flat, step, batch = pictures.reshape(len(pictures), -1), 0, 128
    total = epochs * (len(flat) // batch)
    for _ in range(epochs):
        order = rng.permutation(len(flat))
        for start in range(0, len(flat) - batch + 1, batch):
            step += 1
            index = order[start : start + batch]
            gradients = backward(values, flat[index], labels[index])
            rate = 1e-3 * 0.5 * (1 + np.cos(np.pi * step / total))
            for i, gradient in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                scaled = (first[i] / (1 - 0.9**step)) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
                values[i] = (values[i] - rate * scaled).astype(np.float32)
    return values


def backward(values: list[Array], x: Array, labels: NDArray[np.int64]) -> list[Any]:
    """Gradients of the mean cross entropy."""
    inputs = [x]
    for i in range(0, len(values), 2):
        out = inputs[-1] @ values[i] + values[i + 1]
        inputs.append(np.maximum(out, 0) if i < len(values) - 2 else out)
    scores = np.exp(inputs[-1] - inputs[-1].max(axis=1, keepdims=True))
    slope = scores / scores.sum(axis=1, keepdims=True)
    slope[np.arange(len(labels)), labels] -= 1
    slope /= len(labels)
    gradients: list[Any] = []
    for i in range(len(values) - 2, -1, -2):
        gradients = [inputs[i // 2].T @ slope, slope.sum(axis=0), *gradients]
        slope = (slope @ values[i].T) * (inputs[i // 2] > 0)
    return gradients


def export(values: list[Array], path: Path) -> None:
    """The network as ONNX: `image` [N, 1, 24, 24] in, `logits` [N, 6] out."""
    nodes = [helper.make_node("Flatten", ["image"], ["flat"], name="flatten")]
    weights, x = [], "flat"
    for i in range(len(values) // 2):
        names = [f"fc{i}.weight", f"fc{i}.bias"]
        weights += [numpy_helper.from_array(values[2 * i + k], name) for k, name in enumerate(names)]
        last = i == len(values) // 2 - 1
        nodes.append(helper.make_node("Gemm", [x, *names], ["logits" if last else f"fc{i}"], name=f"fc{i}"))
        if not last:
            nodes.append(helper.make_node("Relu", [f"fc{i}"], [f"relu{i}"], name=f"relu{i}"))
        x = f"relu{i}"
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, SIDE, SIDE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(SHAPES)])
    graph = helper.make_graph(nodes, "shapes", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="A small trained model and its samples.")
    parser.add_argument("-o", "--output", type=Path, default=Path("."), help="folder (default: here)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--train", type=int, default=16_000, help="pictures to train on")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    options.output.mkdir(parents=True, exist_ok=True)
    sets = {"train": draw(options.train, rng), "val": draw(2000, rng), "test": draw(2000, rng)}
    for name, (pictures, labels) in sets.items():
        np.savez(options.output / f"{name}.npz", image=pictures, labels=labels)
    values = train(*sets["train"], options.epochs, rng)
    export(values, options.output / "shapes.onnx")
    pictures, labels = sets["test"]
    flat: Any = pictures.reshape(len(pictures), -1)
    for i in range(0, len(values), 2):
        flat = flat @ values[i] + values[i + 1]
        flat = np.maximum(flat, 0) if i < len(values) - 2 else flat
    print(f"shapes.onnx: {100 * np.mean(flat.argmax(axis=1) == labels):.1f}% of {len(labels)} test pictures")
    return 0


if __name__ == "__main__":
    sys.exit(main())
