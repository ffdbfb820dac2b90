"""A step in parts and on several threads: the mean over all samples, the same on any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from condensec.healing import parts
from condensec.healing.worker.lanes import PIECE, Gradients
from condensec.healing.worker.optimizer import Flat, Optimizer, Settings


def model(batch: int | str, width: int) -> onnx.ModelProto:
    def info(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, (batch, width))

    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], value_info=[info("a")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(
    ("part", "width", "expected"),
    [
        (64, 1024, 64),  # 256 KB: stays in the cache as it is
        (64, 8192, 32),
        (64, 1 << 20, 16),  # never below that for the cache's sake
        (16, 1 << 20, 16),
        (48, 1 << 20, 16),
        (40, 1 << 20, 10),
        (37, 1 << 20, 37),  # nothing divides it
    ],
)
def test_a_part_is_a_divisor_that_stays_in_the_cache(part: int, width: int, expected: int) -> None:
    assert parts.fitting(model("N", width), model(part, width), part) == expected
    assert parts.fitting(model(part, width), model(part, width), part) == part, "a fixed batch size is kept"


@pytest.mark.parametrize(("lanes", "turns", "count"), [(1, 1, 1), (1, 3, 3), (2, 1, 2), (2, 2, 4), (2, 2, 3)])
def test_the_mean_over_lanes_and_turns(lanes: int, turns: int, count: int) -> None:
    """Twice in a row, since the places keep what the step before left there."""
    rng = np.random.default_rng(0)
    shapes = {"w": (3, PIECE), "b": (7,), "s": ()}
    wanted = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    found = Gradients(wanted, lanes, turns)
    with ThreadPoolExecutor(lanes) as pool:
        for _ in range(2):
            given = [
                {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
                for _ in range(count)
            ]
            for lane in range(lanes):
                for number in range(lane, count, lanes):
                    for name, array in given[number].items():
                        np.copyto(found.into[lane][name], array)
                    found.add(lane, first=number == lane)
            found.average(count, pool, lanes)
            for name, array in wanted.items():
                mean = np.mean([g[name] for g in given], axis=0)
                np.testing.assert_allclose(array, mean, rtol=1e-5, atol=1e-6, err_msg=name)
                assert count == 1 or np.abs(array - given[0][name]).max() > 1e-2


SHAPES = {"large": (5, PIECE // 2 - 3), "w": (4, 5), "b": (5,), "s": (), "w2": (30, 30), "full": (PIECE,)}


def moved(kind: str, threads: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Weights and their average after three steps."""
    rng = np.random.default_rng(1)
    weights = Flat({n: rng.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()})
    gradients = weights.like()
    optimizer = Optimizer(weights, gradients, Settings(kind=kind, weight_decay=0.1), 0.9, threads=threads)
    for i in range(3):
        gradients.buffer[:] = rng.standard_normal(gradients.buffer.size)
        optimizer.step(0.1 + 0.2 * i, optimizer.gradient_norm())
    return weights.views, optimizer.average


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_threads_do_not_change_a_step(kind: str) -> None:
    (one, average), (three, other) = moved(kind, 1), moved(kind, 3)
    for name, array in one.items():
        np.testing.assert_array_equal(array, three[name], err_msg=name)
    np.testing.assert_array_equal(average, other)


def test_adamw_is_the_formula() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in double precision, tensor by tensor."""
    rng = np.random.default_rng(1)
    settings = Settings(weight_decay=0.1)
    weights = {n: rng.standard_normal(s).astype(np.float32).astype(float) for n, s in SHAPES.items()}
    scales = {n: np.sqrt(np.mean(w**2)) for n, w in weights.items()}
    m, v = ({n: np.zeros(s) for n, s in SHAPES.items()} for _ in range(2))
    from condensec.healing.worker.optimizer import schedule

    for t in range(1, 4):
        flat = rng.standard_normal(sum(w.size for w in weights.values())).astype(np.float32).astype(float)
        norm = float(np.sqrt(np.sum(flat**2)))
        start = 0
        for name, w in weights.items():
            g = flat[start : start + w.size].reshape(w.shape) / norm
            start += w.size
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.99 * v[name] + 0.01 * g**2
            rate = schedule(0.1 + 0.2 * (t - 1), settings) * settings.lr
            w = w * (1 - rate * 0.1) if w.ndim >= 2 else w
            update = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.99**t)) + 1e-8)
            weights[name] = w - rate * scales[name] * update
    for name, found in moved("adamw", 2)[0].items():
        np.testing.assert_allclose(found, weights[name], rtol=2e-5, atol=1e-6, err_msg=name)
