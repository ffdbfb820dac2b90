"""Large weights are sliced and written one at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from condensec import io, streaming

SCRIPT = """
import resource, sys
from pathlib import Path
from condensec import io
from condensec.passes.groups import analyze
from condensec.passes.prune import prune
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
model = io.load(Path(sys.argv[1]))
analysis = analyze(model)
before = peak()
cut = prune(analysis, {g.id: range(int(g.size * float(sys.argv[3]))) for g in analysis.groups})
io.save(cut.model, Path(sys.argv[2]))
print(peak() - before)
"""


def external_model(folder: Path, layers: int, width: int) -> Path:
    """A chain of linear layers whose weights lie in a (sparse) file beside it."""
    nodes, weights, size, x = [], [], width * width * 4, "x"
    for k in range(layers):
        weight = TensorProto(
            name=f"w{k}", data_type=1, dims=[width, width], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "weights.bin"), ("offset", k * size), ("length", size)):
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
        weights.append(weight)
        nodes += [
            helper.make_node("MatMul", [x, f"w{k}"], [f"m{k}"]),
            helper.make_node("Relu", [f"m{k}"], [f"r{k}"]),
        ]
        x = f"r{k}"
    inputs = [helper.make_tensor_value_info("x", 1, ["N", width])]
    graph = helper.make_graph(
        nodes, "big", inputs, [helper.make_tensor_value_info(x, 1, ["N", width])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "big.onnx").write_bytes(model.SerializeToString())
    with open(folder / "weights.bin", "wb") as file:
        file.truncate(layers * size)
    return folder / "big.onnx"


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_peak_memory_is_a_few_weights_not_the_model(tmp_path: Path, keep: float) -> None:
    pytest.importorskip("resource")
    model = external_model(tmp_path, layers=12, width=2048)  # 192 MiB in weights of 16
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(tmp_path / "out.onnx"), str(keep)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 100


def test_a_streamed_file_is_the_file_protobuf_would_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "large": rng.normal(size=(700, 500)).astype(np.float32),
        "half": rng.normal(size=(1200, 500)).astype(np.float16),
        "small": rng.normal(size=(500,)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "large"], ["a"]),
        helper.make_node("Add", ["a", "small"], ["y"]),
        helper.make_node("Identity", ["half"], ["z"]),
    ]
    outputs = [
        helper.make_tensor_value_info("y", 1, ["N", 500]),
        helper.make_tensor_value_info("z", 10, [1200, 500]),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 700])], outputs,
                              [numpy_helper.from_array(a, n) for n, a in weights.items()])  # fmt: skip
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    io.save(model, tmp_path / "streamed.onnx")
    read = onnx.load(tmp_path / "streamed.onnx")
    onnx.checker.check_model(read, full_check=True)
    whole = ir.to_proto(model)
    assert read.ByteSize() == (tmp_path / "streamed.onnx").stat().st_size
    found = {w.name: numpy_helper.to_array(w) for w in read.graph.initializer}
    assert all(np.array_equal(found[n], a) for n, a in weights.items())
    for part in (read, whole):
        del part.graph.initializer[:], part.graph.value_info[:]
    assert read == whole


def test_lengths_are_written_as_protobuf_does() -> None:
    assert streaming._varint(0) == b"\x00"
    assert streaming._varint(300) == b"\xac\x02"
    assert streaming._varint(3 << 30) == onnx.ModelProto(ir_version=3 << 30).SerializeToString()[1:]
